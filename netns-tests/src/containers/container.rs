//! What a story asks of an engine: a container and all that it is given.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;

/// A bridge of the machine's and its network.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// What it is called.
    pub name: String,
    /// The first is 1.
    pub number: u8,
}

/// A container as it is made.
#[derive(Clone, Debug)]
pub struct Container {
    /// What it is called, by the engine and by others on its bridge.
    pub name: String,
    /// What runs in it.
    pub program: Program,
    /// What network it has.
    pub network: Network,
    /// `--cap-add NET_ADMIN`
    pub net_admin: bool,
    /// `--device /dev/net/tun`
    pub tun: bool,
    /// `--publish`, each
    pub published: Vec<Published>,
    /// `--env`, each
    pub environment: Vec<(String, String)>,
    /// Whether the engine asks it for its health.
    pub health: bool,
}

/// What runs in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `wiremesh agent`
    Agent,
    /// `wiremesh coordinator`
    Coordinator,
}

/// What network a container has.
#[derive(Clone, Debug)]
pub enum Network {
    /// The machine's own.
    Machine,
    /// One of its own, on a bridge, with this address.
    On(Bridge, IpAddr),
}

/// A port of a container that is also one of the machine's.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Where the machine listens for it.
    pub at: SocketAddr,
    /// The container's port.
    pub port: u16,
    /// Which kind of port.
    pub transport: Transport,
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Bridge {
    /// Its network.
    pub fn subnet(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(172, 30, self.number, 0), 24)
    }

    /// The machine's address on it.
    pub fn gateway(&self) -> IpAddr {
        self.address(1)
    }

    /// One of its addresses.
    pub fn address(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(172, 30, self.number, host).into()
    }

    /// What its interface on the machine is called.
    pub fn interface(&self) -> String {
        format!("br-{}", self.name)
    }
}

impl Program {
    /// What the command is called, and its configuration file without the ending.
    pub fn command(self) -> &'static str {
        match self {
            Program::Agent => "agent",
            Program::Coordinator => "coordinator",
        }
    }
}

impl Transport {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}
