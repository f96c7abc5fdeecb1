//! Where it is measured: two namespaces, and one veth pair between them that every implementation uses.
//!
//! ```text
//!   near ── wire0  203.0.113.1 ──────── 203.0.113.2  wire1 ── far
//! ```

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
};

use anyhow::Context;
use futures::TryStreamExt;
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};
use wiremesh::sandbox::Namespace;

/// Bits of the cable's network (a range for documentation, RFC 5737).
const UNDERLAY_BITS: u8 = 24;
/// What WireGuard adds to a packet over IPv6, the most it ever adds.
const WIREGUARD_OVERHEAD: u32 = 80;

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where streams begin, unless they run in reverse.
    Near,
    /// Where they end.
    Far,
}

/// Both ends, for loops.
pub const SIDES: [Side; 2] = [Side::Near, Side::Far];

/// The cable between the two.
#[derive(Clone, Copy, Debug)]
pub struct Cable {
    /// The largest packet that fits through it.
    pub mtu: u32,
    /// Whether it takes many datagrams at once and cuts them itself (`tx-udp-segmentation`).
    pub udp_segmentation: bool,
}

/// Two machines and a cable.
pub struct Place {
    near: Namespace,
    far: Namespace,
    cable: Cable,
}

impl Side {
    /// Its address on the cable.
    pub fn underlay(self) -> Ipv4Addr {
        match self {
            Side::Near => Ipv4Addr::new(203, 0, 113, 1),
            Side::Far => Ipv4Addr::new(203, 0, 113, 2),
        }
    }

    /// The end that it talks to.
    pub fn other(self) -> Side {
        match self {
            Side::Near => Side::Far,
            Side::Far => Side::Near,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Side::Near => "near",
            Side::Far => "far",
        }
    }

    fn plug(self) -> &'static str {
        match self {
            Side::Near => "wire0",
            Side::Far => "wire1",
        }
    }
}

impl Place {
    /// Two fresh namespaces with nothing in them but the cable.
    pub fn new(cable: Cable) -> anyhow::Result<Place> {
        let place = Place { near: Namespace::new("near")?, far: Namespace::new("far")?, cable };
        let descriptor = place.far.as_fd().as_raw_fd();
        let [near_plug, far_plug] = SIDES.map(Side::plug);
        place.near.netlink("laying the cable", async |handle| {
            handle.link().add(LinkVeth::new(near_plug, far_plug).build()).execute().await?;
            let far = index_of(&handle, far_plug).await?;
            set(&handle, LinkUnspec::new_with_index(far).setns_by_fd(descriptor)).await
        })?;
        for side in SIDES {
            place.namespace(side).netlink("switching on the loopback", async |handle| {
                let loopback = index_of(&handle, "lo").await?;
                set(&handle, LinkUnspec::new_with_index(loopback).up()).await
            })?;
            place.bring_up(side, side.plug(), IpAddr::V4(side.underlay()), UNDERLAY_BITS, cable.mtu)?;
            if !cable.udp_segmentation {
                place.turn_off_udp_segmentation(side)?;
            }
        }
        Ok(place)
    }

    /// One of the two machines.
    pub fn namespace(&self, side: Side) -> &Namespace {
        match side {
            Side::Near => &self.near,
            Side::Far => &self.far,
        }
    }

    /// The MTU of the cable.
    pub fn cable_mtu(&self) -> u32 {
        self.cable.mtu
    }

    /// The MTU that every overlay is given: what WireGuard leaves of the cable's.
    pub fn overlay_mtu(&self) -> u32 {
        self.cable.mtu - WIREGUARD_OVERHEAD
    }

    /// Gives an interface its address and MTU, and switches it on.
    pub fn bring_up(&self, side: Side, interface: &str, address: IpAddr, bits: u8, mtu: u32) -> anyhow::Result<()> {
        self.namespace(side).netlink(&format!("configuring {interface}"), async |handle| {
            let index = index_of(&handle, interface).await?;
            set(&handle, LinkUnspec::new_with_index(index).mtu(mtu)).await?;
            handle.address().add(index, address, bits).execute().await?;
            set(&handle, LinkUnspec::new_with_index(index).up()).await
        })
    }

    /// Packets that the cable has carried, both ways.
    pub fn packets(&self) -> anyhow::Result<u64> {
        let table = self.near.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        packets_of(&table, Side::Near.plug()).with_context(|| format!("no {} in {table}", Side::Near.plug()))
    }

    fn turn_off_udp_segmentation(&self, side: Side) -> anyhow::Result<()> {
        let mut command = self.namespace(side).command("ethtool")?;
        command.args(["-K", side.plug(), "tx-udp-segmentation", "off", "gro", "on"]);
        let output = command.output().context("running ethtool, which turns UDP segmentation off")?;
        anyhow::ensure!(output.status.success(), "ethtool: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// Received and sent packets of an interface, as `/proc/net/dev` has them.
pub fn packets_of(table: &str, interface: &str) -> Option<u64> {
    let numbers = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    Some(numbers.get(1)? + numbers.get(9)?)
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

async fn set(handle: &Handle, link: LinkMessageBuilder<LinkUnspec>) -> Result<(), rtnetlink::Error> {
    handle.link().set(link.build()).execute().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_both_ways() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
                     face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                     lo:       0       0    0    0    0     0          0         0        0       0    0\n \
                     wire0: 1000      10    0    0    0     0          0         0     2000      32    0\n";

        assert_eq!(packets_of(table, "wire0"), Some(42));
        assert_eq!(packets_of(table, "wire1"), None);
    }
}
