//! A network of namespaces on one machine: nodes, a switch between them, and ways to break it.
//!
//! ```text
//!  the program ──spawn──► keeper ──fork──► the same program, as process 1 of its own world
//!  (waits)                (waits)           │  own mounts, processes, network; root in it, whoever started it
//!                                           ├── switch: a bridge
//!                                           ├── node "coordinator"  eth0 198.51.100.1
//!                                           ├── node "alpha"        eth0 198.51.100.2
//!                                           └── …
//! ```
//!
//! Used by `wiremesh demo` and by the stories in `netns-tests`. Everything is done by system calls and netlink: no
//! `ip`, `nft` or `unshare` needs to be installed.
//!
//! **Invariant:** nothing outlives the program that entered the sandbox, however it ends. Process 1 dies with the
//! keeper, the keeper with the program; with process 1 the kernel ends every process of its world, and with the last of
//! these go the namespaces, links and mounts.

mod cut;
mod enter;
mod namespace;
mod network;

pub use cut::{Cut, Traffic};
pub use enter::{Entered, Refused, enter, on_signal, scratch, spawn};
pub use namespace::Namespace;
pub use network::{Network, Node, switch_loopback_on};
