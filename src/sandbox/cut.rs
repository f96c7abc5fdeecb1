//! Cutting traffic to a node, as a firewall on the way would: what is cut arrives and is dropped, and nobody is told.
//!
//! Done with policy routing rules, because every kernel has them and they need no tool:
//!
//! ```text
//!    10  from 198.51.100.3 ipproto udp iif eth0  →  blackhole      (a cut)
//!   100  everything                              →  table local    (moved here from 0)
//! 32766  everything                              →  table main
//! ```

use std::sync::Arc;

use ipnet::IpNet;
use rtnetlink::{
    Handle,
    packet_route::{
        AddressFamily, IpProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use super::{namespace::Namespace, network::CABLE};

/// Rules that cut come before the one that delivers to the machine itself.
const CUT_PRIORITY: u32 = 10;
const LOCAL_PRIORITY: u32 = 100;
/// The kernel's table of the machine's own addresses.
const LOCAL_TABLE: u8 = 255;

/// What a cut stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// UDP alone, as many office networks do; TCP passes.
    Udp,
    /// Every packet.
    Everything,
}

/// Something cut. Whole again with [`Cut::restore`], or when dropped.
#[derive(Debug)]
#[must_use = "dropping it restores the traffic"]
pub struct Cut {
    rules: Vec<(Arc<Namespace>, RuleMessage)>,
}

impl Cut {
    /// Drops `traffic` that arrives at each namespace from the network beside it.
    pub(super) fn new<const N: usize>(traffic: Traffic, places: [(&Arc<Namespace>, IpNet); N]) -> anyhow::Result<Cut> {
        let mut cut = Cut { rules: Vec::with_capacity(N) };
        for (namespace, from) in places {
            let rule = rule(traffic, from);
            namespace.netlink("cutting", async |handle| {
                let mut add = handle.rule().add();
                *add.message_mut() = rule.clone();
                add.execute().await
            })?;
            cut.rules.push((namespace.clone(), rule));
        }
        Ok(cut)
    }

    /// Lets the traffic pass again.
    pub fn restore(mut self) -> anyhow::Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        for (namespace, rule) in std::mem::take(&mut self.rules) {
            namespace.netlink("restoring", async |handle| handle.rule().del(rule).execute().await)?;
        }
        Ok(())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!("traffic stays cut: {error:#}");
        }
    }
}

/// Moves the rule that delivers to the machine itself behind the place where cuts go.
pub(super) async fn prepare_for_cuts(handle: &Handle, network: &IpNet) -> Result<(), rtnetlink::Error> {
    let mut local = RuleMessage::default();
    local.header.family = family_of(network);
    local.header.table = LOCAL_TABLE;
    local.header.action = RuleAction::ToTable;
    let mut moved = local.clone();
    moved.attributes.push(RuleAttribute::Priority(LOCAL_PRIORITY));
    local.attributes.push(RuleAttribute::Priority(0));

    let mut add = handle.rule().add();
    *add.message_mut() = moved;
    add.execute().await?;
    handle.rule().del(local).execute().await
}

fn rule(traffic: Traffic, from: IpNet) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family_of(&from);
    rule.header.action = RuleAction::Blackhole;
    rule.attributes.push(RuleAttribute::Priority(CUT_PRIORITY));
    rule.attributes.push(RuleAttribute::Iifname(CABLE.to_owned()));
    if from.prefix_len() > 0 {
        rule.header.src_len = from.prefix_len();
        rule.attributes.push(RuleAttribute::Source(from.addr()));
    }
    if traffic == Traffic::Udp {
        rule.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Udp));
    }
    rule
}

fn family_of(network: &IpNet) -> AddressFamily {
    match network {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}
