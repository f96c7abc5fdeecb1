//! The kernel's network interfaces, through netlink: ours is set up, the others are watched.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use rtnetlink::{
    LinkUnspec, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressHeaderFlags},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo},
        route::RouteAttribute,
    },
    sys::SocketAddr as NetlinkAddress,
};
use wiremesh_certs::OverlayIp;

use crate::{
    overlay::{
        batch::largest_packet,
        endpoints::{Interface, Kind},
    },
    task::Tasks,
};

/// Packets that the kernel keeps for us. Enough for a burst of a TCP window.
const QUEUE: u32 = 1000;
/// How long after a change to look: changes come in groups.
const SETTLE: Duration = Duration::from_millis(200);
/// Looked at anyway, in case a change was missed.
const REFRESH: Duration = Duration::from_secs(30);

/// A netlink socket.
pub struct Links {
    handle: rtnetlink::Handle,
    changes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, NetlinkAddress)>,
}

impl Links {
    /// Opens one and listens for changes of interfaces, addresses and routes.
    pub fn open(tasks: &Tasks) -> anyhow::Result<Links> {
        let (connection, handle, changes) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        // Ends with the last handle, and not before: what is last asked of it is to remove our interface.
        tasks.spawn("overlay-netlink", |stop| async move {
            connection.await;
            anyhow::ensure!(stop.is_cancelled(), "the netlink socket closed");
            Ok(())
        });
        Ok(Links { handle, changes })
    }

    /// All interfaces as they are, for who wants to know once.
    pub async fn look() -> anyhow::Result<Vec<Interface>> {
        let (connection, handle, changes) = new_multicast_connection(&[])?;
        let links = Links { handle, changes };
        tokio::select! {
            () = connection => anyhow::bail!("the netlink socket closed"),
            interfaces = links.interfaces() => interfaces,
        }
    }

    /// All interfaces as they are.
    pub async fn interfaces(&self) -> anyhow::Result<Vec<Interface>> {
        let mut interfaces = BTreeMap::new();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            let mut interface = Interface {
                up: link.header.flags.contains(LinkFlags::Up),
                loopback: link.header.flags.contains(LinkFlags::Loopback),
                ..Interface::default()
            };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => interface.name = name,
                    LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                    LinkAttribute::LinkInfo(infos) => interface.kind = kind_of(&infos),
                    _ => {}
                }
            }
            interfaces.insert(link.header.index, interface);
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            // On point-to-point links `Address` is the other end and `Local` is ours; IPv6 has only the former.
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = local.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            });
            if let (Some(interface), Some(address)) = (interfaces.get_mut(&message.header.index), address) {
                // A prefix that does not fit its address is not the kernel's.
                interface.addresses.extend(IpNet::new(address, message.header.prefix_len).ok());
            }
        }
        for index in self.ways_out().await? {
            if let Some(interface) = interfaces.get_mut(&index) {
                interface.default_route = true;
            }
        }
        Ok(interfaces.into_values().collect())
    }

    /// The interfaces of default routes.
    async fn ways_out(&self) -> anyhow::Result<Vec<u32>> {
        let mut found = Vec::new();
        let families = [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for message in families {
            let mut routes = self.handle.route().get(message).execute();
            while let Some(route) = routes.try_next().await? {
                if route.header.destination_prefix_length == 0 {
                    found.extend(route.attributes.iter().filter_map(|attribute| match attribute {
                        RouteAttribute::Oif(index) => Some(*index),
                        _ => None,
                    }));
                }
            }
        }
        Ok(found)
    }

    /// Gives our interface its address, MTU and route, and puts it up.
    pub async fn set_up(&self, name: &str, address: OverlayIp, network: &IpNet, mtu: u16) -> anyhow::Result<()> {
        let index = self.index(name).await?;
        // The ioctl for the queue's length wants rights outside of any user namespace; netlink does not.
        let up = LinkUnspec::new_with_index(index).mtu(mtu.into()).txqueuelen(QUEUE).up().build();
        self.handle.link().set(up).execute().await.context("setting MTU and state")?;
        self.set_largest_packet(index, mtu).await;
        self.add_address(index, address).await.context("adding the address")?;
        self.add_route(index, address, network).await.with_context(|| format!("the route to {network}"))
    }

    /// Gives our interface what it lacks of its address and route. Whether it lacked any.
    pub async fn restore(&self, name: &str, address: OverlayIp, network: &IpNet) -> anyhow::Result<bool> {
        let index = self.index(name).await?;
        let address_lacked = unless_there(self.add_address(index, address).await).context("adding the address")?;
        let added = self.add_route(index, address, network).await;
        let route_lacked = unless_there(added).with_context(|| format!("the route to {network}"))?;
        Ok(address_lacked || route_lacked)
    }

    /// Changes our interface's MTU.
    pub async fn set_mtu(&self, name: &str, mtu: u16) -> anyhow::Result<()> {
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index).mtu(mtu.into()).build();
        self.handle.link().set(message).execute().await?;
        self.set_largest_packet(index, mtu).await;
        Ok(())
    }

    /// Removes our interface. Whoever reads from it is told.
    pub async fn remove(&self, name: &str) -> anyhow::Result<()> {
        let index = self.index(name).await?;
        Ok(self.handle.link().del(index).execute().await?)
    }

    /// Waits until something may have changed. Cancel-safe.
    pub async fn changed(&mut self) {
        tokio::select! {
            Some(_) = self.changes.next() => {
                tokio::time::sleep(SETTLE).await;
                while self.changes.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(REFRESH) => {}
        }
    }

    /// A little faster where the kernel takes it, and no harm where it does not.
    async fn set_largest_packet(&self, index: u32, mtu: u16) {
        let largest = LinkAttribute::GsoMaxSize(largest_packet(mtu));
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(largest).build();
        if let Err(error) = self.handle.link().set(message).execute().await {
            tracing::debug!(%error, "the kernel does not let us choose the size of large packets");
        }
    }

    async fn add_address(&self, index: u32, address: OverlayIp) -> io::Result<()> {
        let alone = match address.0 {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        let mut add = self.handle.address().add(index, address.0, alone);
        // Without it an IPv6 address may not be used at once, and the route that names it is refused.
        add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        add.execute().await.map_err(as_io)
    }

    async fn add_route(&self, index: u32, address: OverlayIp, network: &IpNet) -> io::Result<()> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(network.network(), network.prefix_len())
            .and_then(|route| route.output_interface(index).pref_source(address.0))
            .map_err(io::Error::other)?
            .build();
        // Not `replace`: that would take the route from another agent or VPN of this machine and leave it without one.
        self.handle.route().add(route).execute().await.map_err(as_io)
    }

    async fn index(&self, name: &str) -> anyhow::Result<u32> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = links.try_next().await?.with_context(|| format!("there is no interface {name}"))?;
        Ok(link.header.index)
    }
}

fn kind_of(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Veth) => Kind::Cable,
        Some(InfoKind::Bridge) => Kind::Bridge,
        _ => Kind::Other,
    }
}

/// Whether something was added that was not there.
fn unless_there(added: io::Result<()>) -> io::Result<bool> {
    match added {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel's answer as what it is.
fn as_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(said) => said.to_io(),
        other => io::Error::other(other),
    }
}
