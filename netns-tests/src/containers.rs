//! Stories in containers: the same text on a real Docker Engine, where there can be one, and elsewhere on its twin.
//!
//! ```text
//!                          ┌── Docker: an engine of the sandbox's own, with an image by deploy/Dockerfile
//!  a story ──► Ground ──► Engine
//!                          └── Twin: processes in namespaces around the same bridges, with the same rights
//!
//!  the machine   203.0.113.10
//!   ├── bridge "alpha"   172.30.1.1/24    coordinator (on the machine's network)
//!   │     ├── worker-1   172.30.1.11
//!   │     └── worker-2   172.30.1.12
//!   └── bridge "beta"    172.30.2.1/24
//! ```
//!
//! Each story says which of the two it stood on. `CONTAINERS_ON=docker` fails where there is no engine, and
//! `CONTAINERS_ON=twin` takes none.

mod container;
mod coordinator;
mod docker;
mod ground;
mod twin;
mod worker;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Output,
    sync::Arc,
    time::Duration,
};

use wiremesh::sandbox::Namespace;

pub use container::{Bridge, Container, Network, Program, Published, Transport};
pub use coordinator::Coordinator;
pub use docker::Compose;
pub use ground::{Ground, in_containers};
pub use worker::Worker;

/// The machine's address that is no bridge's.
pub const MACHINE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

/// What runs containers.
pub trait Engine: Send + Sync {
    /// What it is, for the one who reads the log.
    fn describe(&self) -> String;

    /// The network of the machine that it runs on.
    fn machine(&self) -> Arc<Namespace>;

    /// What starts containers as a compose file says, if this engine has it.
    fn compose(&self) -> Option<Compose> {
        None
    }

    /// Where things are in a container of this name.
    fn paths(&self, name: &str) -> Paths;

    /// Makes a bridge.
    fn add_bridge(&self, bridge: &Bridge) -> anyhow::Result<()>;

    /// Makes a container and starts it. What it keeps in its state folder outlives it.
    fn run(&self, container: &Container) -> anyhow::Result<()>;

    /// Starts a container that has ended.
    fn start(&self, name: &str) -> anyhow::Result<()>;

    /// Asks a container to end, ends it after `grace`, and says how it did.
    fn stop(&self, name: &str, grace: Duration) -> anyhow::Result<i32>;

    /// Ends a container at once.
    fn kill(&self, name: &str) -> anyhow::Result<()>;

    /// Takes a container away, running or not, without what it keeps.
    fn remove(&self, name: &str) -> anyhow::Result<()>;

    /// Lets a container stand still.
    fn pause(&self, name: &str) -> anyhow::Result<()>;

    /// Lets it go on.
    fn unpause(&self, name: &str) -> anyhow::Result<()>;

    /// Takes a container off its bridge.
    fn disconnect(&self, name: &str) -> anyhow::Result<()>;

    /// Puts it on its bridge again, with this address.
    fn connect(&self, name: &str, address: IpAddr) -> anyhow::Result<()>;

    /// Drops UDP between the containers of a bridge.
    fn block_udp(&self, bridge: &Bridge) -> anyhow::Result<()>;

    /// Lets it pass again.
    fn pass_udp(&self, bridge: &Bridge) -> anyhow::Result<()>;

    /// What the container's own check of its health has found, if it was made with `health`.
    fn health(&self, name: &str) -> anyhow::Result<String>;

    /// A `wiremesh` command in a running container.
    fn exec(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Output>;

    /// What a container said since it was made.
    fn logs(&self, name: &str) -> anyhow::Result<String>;

    /// The network of a running container.
    fn namespace(&self, name: &str) -> anyhow::Result<Arc<Namespace>>;
}

/// Where things are, as a container's program sees them.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What is kept: keys, certificates, a database.
    pub state: PathBuf,
    /// Its configuration.
    pub configuration: PathBuf,
    /// A folder that the story sees too.
    pub shared: PathBuf,
    /// The program that the lab's services are.
    pub service: PathBuf,
}
