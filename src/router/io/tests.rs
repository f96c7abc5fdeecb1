//! The router against real servers on loopback addresses.

mod accounts;
mod answers;
mod doors;
mod mesh;
mod models;
mod streams;
mod workers;
