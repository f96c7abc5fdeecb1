//! The lab: wiremesh's real binaries on a network of namespaces, for stories to happen in.
//!
//! ```text
//!  cargo test ─► story(…) ─► the same test again, as process 1 of a sandbox ─► Lab
//!                                                          coordinator · agents · services: real processes,
//!                                                          each on a node of its own
//! ```
//!
//! A story reads as one, and needs no clean-up: what it started is gone with the sandbox, also when it fails.

mod agent;
pub mod containers;
mod coordinator;
mod datagrams;
pub mod forge;
mod http;
mod lab;
mod load;
mod process;
mod refused;
mod requests;
mod service;
mod session;
mod story;
mod tcp_info;
mod transfer;
mod wire;

pub use agent::Agent;
pub use coordinator::{Coordinator, TokenOptions};
pub use datagrams::datagrams_pass;
pub use http::{Answer, client, fetch, fetch_in};
pub use lab::{Lab, wiremesh_binary};
pub use load::{Load, Outcome};
pub use process::{Process, children};
pub use refused::Refused;
pub use requests::requests_pass;
pub use service::Service;
pub use session::{Session, tunn};
pub use story::{eventually, story, story_within};
pub use tcp_info::TcpInfo;
pub use transfer::{Transfer, Transferred, transfer};
pub use wire::{Fates, Impairments, Wire};
pub use wiremesh::sandbox::{Cut, Network, Node, Traffic};
