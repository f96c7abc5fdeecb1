//! What cutting and joining promise, for all that could be found out about packets.

mod build;
mod cut;
mod join;
