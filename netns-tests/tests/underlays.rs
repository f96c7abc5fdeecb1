//! Underlays that are not an Ethernet with IPv4: small and large packets, IPv6, a narrow place on the way.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use ipnet::IpNet;
use netns_tests::{Agent, Lab, Network, Node, datagrams_pass, requests_pass, story_within, transfer};

const LIMIT: Duration = Duration::from_secs(120);
/// Each way.
const BYTES: u64 = 60_000_000;

#[test]
fn an_underlay_of_1280_bytes_carries_an_overlay_of_1280_bytes_in_pieces() {
    story_within(LIMIT, |lab| {
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        near.node.set_mtu(1280)?;
        far.node.set_mtu(1280)?;
        let (near, far) = joined(lab, near, far, "")?;

        let pieces = counted(&near.node, "Ip:", "FragCreates")?;
        all_kinds_of_traffic_pass(&near, &far, 1280)?;

        let pieces = counted(&near.node, "Ip:", "FragCreates")? - pieces;
        assert!(pieces > BYTES / 1280, "{pieces} pieces were made");
        Ok(())
    });
}

#[test]
fn an_underlay_of_9000_bytes_is_made_use_of() {
    story_within(LIMIT, |lab| {
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        near.node.set_mtu(9000)?;
        far.node.set_mtu(9000)?;
        let (near, far) = joined(lab, near, far, "")?;

        all_kinds_of_traffic_pass(&near, &far, 8920)
    });
}

#[test]
fn an_underlay_without_ipv4_carries_everything() {
    story_within(LIMIT, |lab| {
        lab.network = Network::ipv6()?;
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        let (near, far) = joined(lab, near, far, "")?;

        all_kinds_of_traffic_pass(&near, &far, 1420)?;

        assert!(endpoint_of_peer(&near)?.is_ipv6());
        assert_eq!(endpoint_of_peer(&near)?.ip(), far.node.address());
        Ok(())
    });
}

#[test]
fn an_underlay_of_1280_bytes_without_ipv4_carries_everything_in_pieces() {
    story_within(LIMIT, |lab| {
        lab.network = Network::ipv6()?;
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        near.node.set_mtu(1280)?;
        far.node.set_mtu(1280)?;
        let (near, far) = joined(lab, near, far, "")?;

        all_kinds_of_traffic_pass(&near, &far, 1280)
    });
}

#[test]
fn a_narrow_place_that_neither_end_knows_of_costs_speed_and_nothing_else() {
    story_within(LIMIT, |lab| {
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        let router = lab.bare_node("router")?;
        router.run(|| {
            fs::write("/proc/sys/net/ipv4/conf/all/send_redirects", "0")?;
            fs::write("/proc/sys/net/ipv4/conf/eth0/send_redirects", "0")?;
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })??;
        for (end, other) in [(&near.node, &far.node), (&far.node, &near.node)] {
            end.route(IpNet::from(other.address()), router.address())?;
            router.narrow_route(end.address(), 1300)?;
        }
        let (near, far) = joined(lab, near, far, "")?;

        let pieces = counted(&router, "Ip:", "FragCreates")?;
        all_kinds_of_traffic_pass(&near, &far, 1420)?;

        let pieces = counted(&router, "Ip:", "FragCreates")? - pieces;
        assert!(pieces > BYTES / 1420, "{pieces} pieces were made");
        Ok(())
    });
}

#[test]
fn an_overlay_of_ipv6_carries_everything() {
    story_within(LIMIT, |lab| {
        let (near, far) = (lab.node("near")?, lab.node("far")?);
        let (near, far) = joined(lab, near, far, "network = \"fd42::/48\"")?;
        assert!(near.overlay_ip()?.is_ipv6());

        all_kinds_of_traffic_pass(&near, &far, 1420)
    });
}

/// Both in the mesh of a coordinator with this configuration, and each knows of the other.
fn joined(lab: &mut Lab, near: Agent, far: Agent, configuration: &str) -> anyhow::Result<(Agent, Agent)> {
    let coordinator = lab.coordinator_with("coordinator", configuration)?;
    let (near, far) = (near.join(&coordinator)?, far.join(&coordinator)?);
    near.expect_dht_contacts(1)?;
    Ok((near, far))
}

fn all_kinds_of_traffic_pass(near: &Agent, far: &Agent, mtu: u16) -> anyhow::Result<()> {
    let far_ip: IpAddr = far.overlay_ip()?;
    for agent in [near, far] {
        let status = agent.command_json(&["status"])?;
        assert_eq!(status["overlay"]["mtu"], mtu, "{}", agent.name());
    }

    datagrams_pass(&near.node, &far.node, far_ip, mtu)?;
    println!("a request takes {:?}", requests_pass(&near.node, &far.node, far_ip)?);
    println!("{}", transfer(&near.node, &far.node, far_ip, 2, BYTES)?.summary());
    Ok(())
}

/// Where an agent's only peer is.
fn endpoint_of_peer(agent: &Agent) -> anyhow::Result<SocketAddr> {
    let peers = agent.command_json(&["peers"])?;
    let peer = peers["peers"].as_array().and_then(|peers| peers.first()).context("no peer")?;
    peer["endpoint"].as_str().context("no endpoint")?.parse().context("an endpoint")
}

/// A counter of the kernel's, from `/proc/net/snmp` of a node.
fn counted(node: &Node, protocol: &str, name: &str) -> anyhow::Result<u64> {
    let text = node.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let names = lines.next().context("no such protocol")?.split(' ');
    let mut values = names.zip(lines.next().context("no values")?.split(' '));
    let (_, value) = values.find(|(found, _)| *found == name).with_context(|| format!("no {protocol} {name}"))?;
    value.parse().with_context(|| format!("{name} is {value}"))
}
