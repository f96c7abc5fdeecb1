//! The commands of `wiremesh`, one file each.

pub mod call;
pub mod capabilities;
pub mod demo;
pub mod failure;
pub mod socket;
