//! The commands of `wiremesh`, one file each.

pub mod demo;
pub mod failure;
pub mod socket;
