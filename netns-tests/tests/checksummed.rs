//! Gigabytes over the overlay, every byte compared: over a wire that is bad while keys change, and over one that is good.

use std::{thread, time::Duration};

use anyhow::Context;
use netns_tests::{Agent, Fates, Impairments, Lab, TcpInfo, Transfer, Wire, story_within, transfer};

const LIMIT: Duration = Duration::from_secs(150);
const GIGABYTE: u64 = 1_000_000_000;
/// Under loss one connection waits much of the time; several fill the wire together.
const STREAMS: u64 = 8;
/// New keys are made this often.
const REKEY_SECS: u64 = 3;
/// How often, in so many hundred thousand packets, the kernel may change the order by itself: it can when a thread is moved to
/// another processor between two packets. Who sorts packets wrongly does it thousands of times.
const BY_THE_KERNEL: u64 = 2;
/// In a hundred thousand datagrams.
const BAD: Impairments = Impairments { lost: 1_000, late: 1_000, damaged: 50, doubled: 50 };

#[test]
fn two_gigabytes_arrive_whole_over_a_bad_wire_while_keys_change() {
    story_within(LIMIT, |lab| {
        let (near, far, wire) = over_a_wire(lab, BAD)?;
        let far_ip = far.overlay_ip()?;

        let transfer = Transfer::begin(&near.node, &far.node, far_ip, STREAMS, GIGABYTE)?;
        let mut handshakes = 0;
        let mut last = f64::INFINITY;
        while !transfer.is_over() {
            let age = handshake_age(&near)?;
            handshakes += u64::from(age < last);
            last = age;
            thread::sleep(Duration::from_millis(250));
        }
        let done = transfer.finish()?;

        let Fates { came, lost, late, damaged, doubled } = wire.fates();
        println!("{}; {:?}; {handshakes} handshakes", done.summary(), wire.fates());
        // As many as there could be, and some that were late because a handshake was lost.
        let possible = done.took.as_secs() / REKEY_SECS;
        assert!(handshakes >= 2 && handshakes >= possible / 2, "{handshakes} handshakes, {possible} possible");
        assert!(came > 2 * GIGABYTE / 1420, "{came} datagrams took the wire");
        // Each share is a mean of over a million draws.
        for (share, count) in [(BAD.lost, lost), (BAD.late, late), (BAD.damaged, damaged), (BAD.doubled, doubled)] {
            let expected = came * u64::from(share) / 100_000;
            assert!((expected / 2..expected * 2).contains(&count), "{count} instead of {expected}");
        }
        assert!(done.sum(TcpInfo::retransmissions) >= lost, "what is lost is sent again");
        assert!(done.sum(TcpInfo::reorderings) > 0, "the wire's order is not the agents' to repair");
        let refused = |reason: &str| anyhow::Ok(near.metric("wiremesh", reason)? + far.metric("wiremesh", reason)?);
        let refused = [refused("replayed")?, refused("forged")? + refused("garbage")? + refused("unknown_session")?];
        for (refused, done_to) in refused.into_iter().zip([doubled, damaged]) {
            assert!(refused >= done_to as f64 * 0.9, "{refused} of {done_to} were found out");
        }
        Ok(())
    });
}

#[test]
fn a_good_wire_stays_one_where_every_packet_comes_in_its_turn() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let rekeying = format!("[overlay]\nrekey_after = \"{REKEY_SECS}s\"\n");
        let near = lab.node("near")?.with_configuration(&rekeying).join(&coordinator)?;
        let far = lab.node("far")?.with_configuration(&rekeying).join(&coordinator)?;
        near.expect_dht_contacts(1)?;
        let far_ip = far.overlay_ip()?;

        for streams in [1, 4] {
            let done = transfer(&near.node, &far.node, far_ip, streams, GIGABYTE / 4)?;

            println!("{}", done.summary());
            // The sender knows: a segment that it sent once only was acknowledged after a later one.
            let reorderings = done.sum(TcpInfo::reorderings);
            assert!(reorderings <= BY_THE_KERNEL, "the order was changed {reorderings} times");
            // The receiver does not know whether the earlier one was overtaken or lost. Where nothing was lost, because
            // all that was sent again was sent for nothing, there is only the one explanation.
            if reorderings == 0 && done.sum(TcpInfo::retransmissions) == done.sum(TcpInfo::needless) {
                assert_eq!(done.sum(TcpInfo::out_of_order), 0);
            }
            let age = handshake_age(&near)?;
            assert!(age < 3.0 * REKEY_SECS as f64, "the keys are {age} s old");
        }
        Ok(())
    });
}

/// Two agents and a wire between them, through which they have found each other.
fn over_a_wire(lab: &mut Lab, impairments: Impairments) -> anyhow::Result<(Agent, Agent, Wire)> {
    let coordinator = lab.coordinator()?;
    let (near, far) = (lab.node("near")?, lab.node("far")?);
    let wire = Wire::between(&mut lab.network, &near.node, &far.node, impairments, 7)?;
    let configured = |advertised: String| format!("[overlay]\n{advertised}\nrekey_after = \"{REKEY_SECS}s\"\n");
    let near = near.with_configuration(&configured(wire.near_advertises())).join(&coordinator)?;
    let far = far.with_configuration(&configured(wire.far_advertises())).join(&coordinator)?;
    near.expect_dht_contacts(1)?;
    Ok((near, far, wire))
}

/// How many seconds ago an agent and its only peer made keys.
fn handshake_age(agent: &Agent) -> anyhow::Result<f64> {
    let peers = agent.command_json(&["peers"])?;
    let peer = peers["peers"].as_array().and_then(|peers| peers.first()).context("no peer")?;
    peer["handshake_secs_ago"].as_f64().with_context(|| format!("no handshake in {peer}"))
}
