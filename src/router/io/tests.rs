//! The router against real servers on loopback addresses.

mod accounts;
mod answers;
mod certainty;
mod doors;
mod mesh;
mod models;
mod policy;
mod reports;
mod revoked;
mod stalls;
mod streams;
mod upstreams;
mod workers;
