//! What cutting and joining promise, for all that could be found out about packets.

pub mod build;
mod corpus;
mod cut;
mod join;
mod properties;
