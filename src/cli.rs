//! The commands of `wiremesh`, one file each.

pub mod demo;
