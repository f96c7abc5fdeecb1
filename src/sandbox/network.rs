//! Nodes around one switch, each a network namespace with one cable.

use std::{
    ffi::OsStr,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::Arc,
};

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{
    cut::{Cut, Traffic, prepare_for_cuts},
    namespace::Namespace,
};

/// The underlay of every sandbox: a range for documentation (RFC 5737), so that it is nobody's real network.
const UNDERLAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 0);
const UNDERLAY_BITS: u8 = 24;
/// One switch, one range: addresses .1 to .250.
const MAX_NODES: u8 = 250;

const BRIDGE: &str = "switch";
/// What a node's cable is called inside it.
pub(super) const CABLE: &str = "eth0";

/// A switch with nodes around it, all in namespaces of their own.
#[derive(Debug)]
pub struct Network {
    switch: Arc<Namespace>,
    nodes: u8,
}

/// One machine of the network.
#[derive(Clone, Debug)]
pub struct Node {
    namespace: Arc<Namespace>,
    switch: Arc<Namespace>,
    port: String,
    address: Ipv4Addr,
}

impl Network {
    /// A switch with nothing plugged in. Needs the rights that one has inside the sandbox.
    pub fn new() -> anyhow::Result<Network> {
        let switch = Namespace::new(BRIDGE)?;
        switch.netlink("making a bridge", |handle| async move {
            handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await
        })?;
        Ok(Network { switch: Arc::new(switch), nodes: 0 })
    }

    /// One more node, with a cable to the switch and the next free address.
    pub fn add(&mut self, name: &str) -> anyhow::Result<Node> {
        anyhow::ensure!(self.nodes < MAX_NODES, "a switch has {MAX_NODES} ports");
        self.nodes += 1;
        let number = self.nodes;
        let namespace = Namespace::new(name)?;
        let port = format!("port{number}");
        let plug = format!("plug{number}");
        let [a, b, c, _] = UNDERLAY.octets();
        let address = Ipv4Addr::new(a, b, c, number);

        let descriptor = namespace.as_fd().as_raw_fd();
        self.switch.netlink("plugging in a cable", async |handle| {
            handle.link().add(LinkVeth::new(&port, &plug).build()).execute().await?;
            let bridge = index_of(&handle, BRIDGE).await?;
            let near = index_of(&handle, &port).await?;
            let far = index_of(&handle, &plug).await?;
            set(&handle, LinkUnspec::new_with_index(near).controller(bridge).up()).await?;
            set(&handle, LinkUnspec::new_with_index(far).setns_by_fd(descriptor)).await
        })?;
        namespace.netlink("configuring the interfaces", async |handle| {
            let lo = index_of(&handle, "lo").await?;
            let cable = index_of(&handle, &plug).await?;
            set(&handle, LinkUnspec::new_with_index(lo).up()).await?;
            set(&handle, LinkUnspec::new_with_index(cable).name(CABLE)).await?;
            handle.address().add(cable, IpAddr::V4(address), UNDERLAY_BITS).execute().await?;
            set(&handle, LinkUnspec::new_with_index(cable).up()).await?;
            prepare_for_cuts(&handle).await
        })?;
        Ok(Node { namespace: Arc::new(namespace), switch: self.switch.clone(), port, address })
    }

    /// Drops `traffic` between the two, both ways, without a word to either.
    pub fn cut(&self, a: &Node, b: &Node, traffic: Traffic) -> anyhow::Result<Cut> {
        Cut::new(traffic, [(&a.namespace, Some(b.address)), (&b.namespace, Some(a.address))])
    }
}

impl Node {
    /// What it is called.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The namespace it lives in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A program that will run on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> anyhow::Result<Command> {
        self.namespace.command(program).with_context(|| format!("preparing a program on {}", self.name()))
    }

    /// Does `work` on it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        self.namespace.run(work)
    }

    /// Runs the future that `make` gives on it.
    pub fn block_on<T: Send, F: Future<Output = anyhow::Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> anyhow::Result<T> {
        self.namespace.block_on(make)
    }

    /// Drops `traffic` that reaches it from any other node.
    pub fn cut(&self, traffic: Traffic) -> anyhow::Result<Cut> {
        Cut::new(traffic, [(&self.namespace, None)])
    }

    /// Pulls the cable out of the switch.
    pub fn unplug(&self) -> anyhow::Result<()> {
        self.switch.netlink("pulling a cable", async |handle| {
            let port = index_of(&handle, &self.port).await?;
            set(&handle, LinkUnspec::new_with_index(port).down()).await
        })
    }

    /// Puts the cable back.
    pub fn plug(&self) -> anyhow::Result<()> {
        self.switch.netlink("plugging in a cable", async |handle| {
            let port = index_of(&handle, &self.port).await?;
            set(&handle, LinkUnspec::new_with_index(port).up()).await
        })
    }

    /// One more address on the cable, as after a move to another network.
    pub fn add_address(&self, address: IpAddr, bits: u8) -> anyhow::Result<()> {
        self.namespace.netlink("adding an address", async |handle| {
            let cable = index_of(&handle, CABLE).await?;
            handle.address().add(cable, address, bits).execute().await
        })
    }

    /// Gives an interface that a program made an address, and switches it on.
    pub fn bring_up(&self, interface: &str, address: IpAddr, bits: u8) -> anyhow::Result<()> {
        self.namespace.netlink("configuring an interface", async |handle| {
            let index = index_of(&handle, interface).await?;
            handle.address().add(index, address, bits).execute().await?;
            set(&handle, LinkUnspec::new_with_index(index).up()).await
        })
    }

    /// Sends what is for no known network to `gateway`.
    pub fn default_route(&self, gateway: Ipv4Addr) -> anyhow::Result<()> {
        self.namespace.netlink("setting the default route", async |handle| {
            handle.route().add(RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build()).execute().await
        })
    }

    /// Whether an interface of this name exists on it.
    pub fn has_interface(&self, name: &str) -> anyhow::Result<bool> {
        self.run(|| nix::net::if_::if_nametoindex(name).is_ok())
    }
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

async fn set(handle: &Handle, link: rtnetlink::LinkMessageBuilder<LinkUnspec>) -> Result<(), rtnetlink::Error> {
    handle.link().set(link.build()).execute().await
}
