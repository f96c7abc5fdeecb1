//! Nodes around one switch, each a network namespace with one cable.

use std::{
    ffi::OsStr,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::Arc,
};

use anyhow::Context;
use futures::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        route::{RouteAttribute, RouteMetric},
    },
};

use super::{
    cut::{Cut, Traffic, prepare_for_cuts},
    namespace::Namespace,
};

/// The underlays of sandboxes: ranges for documentation (RFC 5737, RFC 3849), so that they are nobody's real network.
const UNDERLAY_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 24);
const UNDERLAY_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 64);
/// One switch, one range: addresses .1 to .250.
const MAX_NODES: u8 = 250;

const BRIDGE: &str = "switch";
/// What a node's cable is called inside it.
pub(super) const CABLE: &str = "eth0";

/// A switch with nodes around it, all in namespaces of their own.
#[derive(Debug)]
pub struct Network {
    switch: Arc<Namespace>,
    bridge: String,
    range: IpNet,
    nodes: u8,
    /// The machine that the bridge is on has the first address, and is the way to all others.
    gateway: Option<IpAddr>,
}

/// One machine of the network.
#[derive(Clone, Debug)]
pub struct Node {
    namespace: Arc<Namespace>,
    switch: Arc<Namespace>,
    port: String,
    address: IpAddr,
}

impl Network {
    /// A switch with nothing plugged in. Needs the rights that one has inside the sandbox.
    pub fn new() -> anyhow::Result<Network> {
        Network::of(UNDERLAY_V4.into())
    }

    /// The same where nodes have IPv6 addresses and no others.
    pub fn ipv6() -> anyhow::Result<Network> {
        Network::of(UNDERLAY_V6.into())
    }

    fn of(range: IpNet) -> anyhow::Result<Network> {
        Network::made(Arc::new(Namespace::new(BRIDGE)?), BRIDGE, range, None)
    }

    /// A bridge on a machine that is there, which has the first address of `range`: the way an engine of containers does it.
    pub fn bridge(machine: &Arc<Namespace>, bridge: &str, range: Ipv4Net) -> anyhow::Result<Network> {
        let gateway = IpAddr::from(Ipv4Addr::from_bits(range.network().to_bits() | 1));
        let mut network = Network::made(machine.clone(), bridge, range.into(), Some(gateway))?;
        network.nodes = 1;
        machine.netlink("giving a bridge its address", async |handle| {
            let index = index_of(&handle, bridge).await?;
            add_address(&handle, index, gateway, range.prefix_len()).await
        })?;
        Ok(network)
    }

    fn made(switch: Arc<Namespace>, bridge: &str, range: IpNet, gateway: Option<IpAddr>) -> anyhow::Result<Network> {
        switch.netlink("making a bridge", async |handle| {
            let mut link = LinkBridge::new(bridge).up();
            if let Some(IpAddr::V4(gateway)) = gateway {
                // Else it takes that of a cable, and another when that one is taken out: neighbours would not know.
                link = link.address([&[0x02, 0x42][..], &gateway.octets()].concat());
            }
            handle.link().add(link.build()).execute().await
        })?;
        Ok(Network { switch, bridge: bridge.to_owned(), range, nodes: 0, gateway })
    }

    /// One more node, with a cable to the switch and the next free address.
    pub fn add(&mut self, name: &str) -> anyhow::Result<Node> {
        anyhow::ensure!(self.nodes < MAX_NODES, "a switch has {MAX_NODES} ports");
        let number = self.nodes + 1;
        let address = match self.range {
            IpNet::V4(range) => Ipv4Addr::from_bits(range.addr().to_bits() | u32::from(number)).into(),
            IpNet::V6(range) => Ipv6Addr::from_bits(range.addr().to_bits() | u128::from(number)).into(),
        };
        self.add_at(name, address)
    }

    /// One more node, with a cable to the switch and this address.
    pub fn add_at(&mut self, name: &str, address: IpAddr) -> anyhow::Result<Node> {
        let namespace = Namespace::new(name)?;
        let port = self.connect(&namespace, address)?;
        switch_loopback_on(&namespace, &[])?;
        namespace.netlink("preparing for cuts", async |handle| prepare_for_cuts(&handle, &self.range).await)?;
        Ok(Node { namespace: Arc::new(namespace), switch: self.switch.clone(), port, address })
    }

    /// Takes a node's cable away, with the interface at its end.
    pub fn take_out(&self, node: &Node) -> anyhow::Result<()> {
        self.switch.netlink("taking a cable away", async |handle| {
            let port = index_of(&handle, &node.port).await?;
            handle.link().del(port).execute().await
        })
    }

    /// Gives a node that was taken out another cable and this address.
    pub fn put_back(&mut self, node: &mut Node, address: IpAddr) -> anyhow::Result<()> {
        node.port = self.connect(&node.namespace, address)?;
        node.address = address;
        Ok(())
    }

    /// Lays a cable into a namespace. Its port.
    fn connect(&mut self, namespace: &Namespace, address: IpAddr) -> anyhow::Result<String> {
        self.nodes += 1;
        let port = format!("{}{}", self.bridge, self.nodes);
        let plug = format!("{port}x");
        let descriptor = namespace.as_fd().as_raw_fd();
        self.switch.netlink("plugging in a cable", async |handle| {
            handle.link().add(LinkVeth::new(&port, &plug).build()).execute().await?;
            let bridge = index_of(&handle, &self.bridge).await?;
            let near = index_of(&handle, &port).await?;
            let far = index_of(&handle, &plug).await?;
            set(&handle, LinkUnspec::new_with_index(near).controller(bridge).up()).await?;
            set(&handle, LinkUnspec::new_with_index(far).setns_by_fd(descriptor)).await
        })?;
        namespace.netlink("configuring a cable", async |handle| {
            let cable = index_of(&handle, &plug).await?;
            set(&handle, LinkUnspec::new_with_index(cable).name(CABLE)).await?;
            add_address(&handle, cable, address, self.range.prefix_len()).await?;
            set(&handle, LinkUnspec::new_with_index(cable).up()).await
        })?;
        if let Some(gateway) = self.gateway {
            route(namespace, anywhere(gateway), gateway)?;
        }
        Ok(port)
    }

    /// Drops `traffic` between the two, both ways, without a word to either.
    pub fn cut(&self, a: &Node, b: &Node, traffic: Traffic) -> anyhow::Result<Cut> {
        Cut::new(traffic, [(&a.namespace, b.address.into()), (&b.namespace, a.address.into())])
    }
}

impl Node {
    /// What it is called.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its address on the underlay.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The namespace it lives in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The same for keeping.
    pub fn shared_namespace(&self) -> Arc<Namespace> {
        self.namespace.clone()
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
        Cut::new(traffic, [(&self.namespace, anywhere(self.address))])
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
            add_address(&handle, cable, address, bits).await
        })
    }

    /// Takes an address from the cable.
    pub fn remove_address(&self, address: IpAddr, bits: u8) -> anyhow::Result<()> {
        self.namespace.netlink("removing an address", async |handle| {
            let cable = index_of(&handle, CABLE).await?;
            let mut add = handle.address().add(cable, address, bits);
            let message = std::mem::take(add.message_mut());
            handle.address().del(message).execute().await
        })
    }

    /// The largest packet that its cable takes, either way.
    pub fn set_mtu(&self, mtu: u32) -> anyhow::Result<()> {
        let set_at = async |handle: Handle, interface: &str| {
            let index = index_of(&handle, interface).await?;
            set(&handle, LinkUnspec::new_with_index(index).mtu(mtu)).await
        };
        self.switch.netlink("setting the MTU of a port", async |handle| set_at(handle, &self.port).await)?;
        self.namespace.netlink("setting the MTU of a cable", async |handle| set_at(handle, CABLE).await)
    }

    /// Gives an interface that a program made an address, and switches it on.
    pub fn bring_up(&self, interface: &str, address: IpAddr, bits: u8) -> anyhow::Result<()> {
        self.namespace.netlink("configuring an interface", async |handle| {
            let index = index_of(&handle, interface).await?;
            handle.address().add(index, address, bits).execute().await?;
            set(&handle, LinkUnspec::new_with_index(index).up()).await
        })
    }

    /// Switches an interface on.
    pub fn switch_on(&self, interface: &str) -> anyhow::Result<()> {
        self.namespace.netlink("switching an interface on", async |handle| {
            let index = index_of(&handle, interface).await?;
            set(&handle, LinkUnspec::new_with_index(index).up()).await
        })
    }

    /// Switches an interface off. Its routes go with it, and its IPv6 addresses.
    pub fn switch_off(&self, interface: &str) -> anyhow::Result<()> {
        self.namespace.netlink("switching an interface off", async |handle| {
            let index = index_of(&handle, interface).await?;
            set(&handle, LinkUnspec::new_with_index(index).down()).await
        })
    }

    /// Deletes an interface that a program made.
    pub fn delete(&self, interface: &str) -> anyhow::Result<()> {
        self.namespace.netlink("deleting an interface", async |handle| {
            let index = index_of(&handle, interface).await?;
            handle.link().del(index).execute().await
        })
    }

    /// Sends what is for no known network to `gateway`.
    pub fn default_route(&self, gateway: IpAddr) -> anyhow::Result<()> {
        self.route(anywhere(gateway), gateway)
    }

    /// Sends what is for `to` to `gateway`.
    pub fn route(&self, to: IpNet, gateway: IpAddr) -> anyhow::Result<()> {
        route(&self.namespace, to, gateway)
    }

    /// Sends what is for the neighbour `to` in pieces of at most `mtu`, also what it passes on for others.
    pub fn narrow_route(&self, to: IpAddr, mtu: u32) -> anyhow::Result<()> {
        let to = IpNet::from(to);
        let mut route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to.addr(), to.prefix_len())?;
        route.get_mut().attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        self.namespace.netlink("setting a route", async |handle| {
            let cable = index_of(&handle, CABLE).await?;
            handle.route().add(route.output_interface(cable).build()).execute().await
        })
    }

    /// Whether an interface of this name exists on it.
    pub fn has_interface(&self, name: &str) -> anyhow::Result<bool> {
        self.run(|| nix::net::if_::if_nametoindex(name).is_ok())
    }
}

/// Makes a namespace a machine that can talk to itself, with more addresses that are its own and on no cable.
pub fn switch_loopback_on(machine: &Namespace, more: &[IpAddr]) -> anyhow::Result<()> {
    machine.netlink("configuring the loopback", async |handle| {
        let lo = index_of(&handle, "lo").await?;
        for address in more {
            add_address(&handle, lo, *address, IpNet::from(*address).max_prefix_len()).await?;
        }
        set(&handle, LinkUnspec::new_with_index(lo).up()).await
    })
}

fn route(machine: &Namespace, to: IpNet, gateway: IpAddr) -> anyhow::Result<()> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.network(), to.prefix_len())?
        .gateway(gateway)?
        .build();
    machine.netlink("setting a route", async |handle| handle.route().add(route).execute().await)
}

/// Every address of this one's family.
fn anywhere(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

/// An IPv6 address serves at once: nobody else in a sandbox can have it.
async fn add_address(handle: &Handle, index: u32, address: IpAddr, bits: u8) -> Result<(), rtnetlink::Error> {
    let mut add = handle.address().add(index, address, bits);
    add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    add.execute().await
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

async fn set(handle: &Handle, link: rtnetlink::LinkMessageBuilder<LinkUnspec>) -> Result<(), rtnetlink::Error> {
    handle.link().set(link.build()).execute().await
}
