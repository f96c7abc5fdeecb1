//! The commands of `wiremesh`, one file each.

pub mod coordinator;
pub mod demo;
pub mod failure;
pub mod revoke;
pub mod socket;
pub mod token;
