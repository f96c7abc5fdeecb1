//! What operators and cables do to an agent in the middle of bulk traffic: it goes on, or ends as it should.

use std::{net::IpAddr, thread, time::Duration};

use netns_tests::{Agent, Coordinator, Lab, Transfer, eventually, story_within};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(120);
/// Each way. More than passes while something is done to an agent.
const BYTES: u64 = 200_000_000;
const STREAMS: u64 = 2;
/// Enough to say that traffic flows.
const SOME_BYTES: u64 = 5_000_000;
/// For traffic to flow again: TCP asks ever less often while nothing comes.
const AGAIN_WITHIN: Duration = Duration::from_secs(20);
/// How long things are broken.
const BREAK: Duration = Duration::from_millis(1500);
const INTERFACE: &str = "wiremesh0";
const CABLE: &str = "eth0";
/// For an agent to be gone that is told to.
const END_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn the_interface_is_switched_off_and_on() {
    story_within(LIMIT, |lab| {
        let (_coordinator, mut near, far) = two(lab)?;

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        flows(&transfer)?;
        near.node.switch_off(INTERFACE)?;
        thread::sleep(BREAK);
        let moved = transfer.moved();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(transfer.moved(), moved, "traffic flows through an interface that is off");
        let cpu = near.running()?.cpu_time()?;
        thread::sleep(BREAK);
        let cpu = near.running()?.cpu_time()? - cpu;
        assert!(cpu < BREAK / 4, "busy for {cpu:?} with an interface that is off");
        near.node.switch_on(INTERFACE)?;

        flows(&transfer)?;
        println!("{}", transfer.finish()?.summary());
        near.running()?.expect_running()
    });
}

#[test]
fn the_cable_is_pulled_and_put_back_and_the_network_card_switched_off_and_on() {
    story_within(LIMIT, |lab| {
        let (_coordinator, near, far) = two(lab)?;

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        flows(&transfer)?;
        near.node.unplug()?;
        thread::sleep(BREAK);
        near.node.plug()?;
        flows(&transfer)?;
        far.node.switch_off(CABLE)?;
        thread::sleep(BREAK);
        far.node.switch_on(CABLE)?;

        flows(&transfer)?;
        println!("{}", transfer.finish()?.summary());
        Ok(())
    });
}

#[test]
fn an_agent_is_told_to_stop_and_started_again() {
    story_within(LIMIT, |lab| {
        let (_coordinator, mut near, far) = two(lab)?;

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        flows(&transfer)?;
        let status = near.terminate(END_WITHIN)?;
        assert_eq!(status.code(), Some(0));
        assert!(!near.node.has_interface(INTERFACE)?);
        near.start()?;

        // Not only does new traffic flow: connections outlive the agent.
        flows(&transfer)?;
        println!("{}", transfer.finish()?.summary());
        Ok(())
    });
}

#[test]
fn an_agent_whose_interface_is_deleted_ends_and_says_why() {
    story_within(LIMIT, |lab| {
        let (_coordinator, mut near, far) = two(lab)?;

        let _transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        near.node.delete(INTERFACE)?;

        let status = near.running()?.wait(Duration::from_secs(10))?;
        assert_ne!(status.code(), Some(0));
        assert!(status.code().is_some(), "{status}");
        assert!(near.log().contains("TUN device"), "it does not say why");
        near.start()
    });
}

#[test]
fn an_agent_moves_to_another_address() {
    story_within(LIMIT, |lab| {
        let (_coordinator, near, far) = two(lab)?;
        let IpAddr::V4(before) = near.node.address() else { anyhow::bail!("an IPv6 underlay") };
        let after = IpAddr::from([before.octets()[0], before.octets()[1], before.octets()[2], 250]);

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        flows(&transfer)?;
        near.node.remove_address(before.into(), 24)?;
        near.node.add_address(after, 24)?;

        flows(&transfer)?;
        let peers = far.command_json(&["peers"])?;
        assert_eq!(peers["peers"][0]["endpoint"], format!("{after}:51820"));
        println!("{}", transfer.finish()?.summary());
        Ok(())
    });
}

#[test]
fn the_underlay_takes_smaller_packets_and_large_ones_again() {
    story_within(LIMIT, |lab| {
        let (_coordinator, near, far) = two(lab)?;

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        for (underlay, overlay) in [(1280, 1280), (1500, 1420)] {
            flows(&transfer)?;
            near.node.set_mtu(underlay)?;
            far.node.set_mtu(underlay)?;
            for agent in [&near, &far] {
                eventually("the overlay follows", AGAIN_WITHIN, || {
                    let mtu = &agent.command_json(&["status"])?["overlay"]["mtu"];
                    anyhow::ensure!(*mtu == overlay, "{mtu}");
                    Ok(())
                })?;
            }
        }

        flows(&transfer)?;
        println!("{}", transfer.finish()?.summary());
        Ok(())
    });
}

#[test]
fn an_agent_that_was_asleep_wakes_up() {
    story_within(LIMIT, |lab| {
        let (_coordinator, near, mut far) = two(lab)?;

        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, BYTES)?;
        flows(&transfer)?;
        far.running()?.signal(Signal::SIGSTOP)?;
        thread::sleep(BREAK);
        far.running()?.signal(Signal::SIGCONT)?;

        flows(&transfer)?;
        println!("{}", transfer.finish()?.summary());
        Ok(())
    });
}

#[test]
fn a_member_that_is_revoked_is_cut_off_in_mid_stream() {
    story_within(LIMIT, |lab| {
        let (coordinator, near, far) = two(lab)?;

        // More than could be moved before the end of the story.
        let transfer = Transfer::begin(&near.node, &far.node, far.overlay_ip()?, STREAMS, 100 * BYTES)?;
        flows(&transfer)?;
        coordinator.revoke(far.name())?;
        eventually("the news has come", AGAIN_WITHIN, || {
            let peers = near.command_json(&["peers"])?;
            anyhow::ensure!(peers["peers"].as_array().is_some_and(Vec::is_empty), "{peers}");
            Ok(())
        })?;

        // What had arrived may still be read.
        thread::sleep(Duration::from_millis(300));
        let moved = transfer.moved();
        thread::sleep(BREAK);
        assert_eq!(transfer.moved(), moved);
        assert!(!transfer.is_over());
        Ok(())
    });
}

/// Two agents that know of each other.
fn two(lab: &mut Lab) -> anyhow::Result<(Coordinator, Agent, Agent)> {
    let coordinator = lab.coordinator()?;
    let near = lab.node("near")?.join(&coordinator)?;
    let far = lab.node("far")?.join(&coordinator)?;
    near.expect_dht_contacts(1)?;
    Ok((coordinator, near, far))
}

/// Waits until the transfer has got on, and there is more to come.
fn flows(transfer: &Transfer) -> anyhow::Result<()> {
    let until = transfer.moved() + SOME_BYTES;
    assert!(until < transfer.total(), "nothing is left to be moved");
    eventually("traffic flows", AGAIN_WITHIN, || {
        let moved = transfer.moved();
        anyhow::ensure!(moved >= until, "{moved} of {} bytes", transfer.total());
        Ok(())
    })
}
