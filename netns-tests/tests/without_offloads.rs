//! Kernels that know fewer ways to carry many packets at once, and agents that were told to use fewer: slower, not
//! different.

use std::time::Duration;

use netns_tests::{Agent, Refused, datagrams_pass, requests_pass, story_within, transfer};

const LIMIT: Duration = Duration::from_secs(120);
/// Each way.
const BYTES: u64 = 20_000_000;

/// What an agent logs about each when it does without.
const NO_TUN: &str = "TunOffloads { checksums: false, tcp: false, udp: false }";
const NO_SEND: &str = r#""sends":false"#;
const NO_RECEIVE: &str = r#""receives":false"#;
const NO_READS_AT_ONCE: &str = "this kernel reads packets one by one";

#[test]
fn agents_told_to_do_without_and_agents_that_use_everything_understand_each_other() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let mut agent = |name: &str, without: &[&str]| {
            let lines: String = without.iter().map(|switch| format!("{switch} = false\n")).collect();
            lab.node(name)?.with_configuration(&format!("[overlay.offload]\n{lines}")).join(&coordinator)
        };
        let everything = ["tun", "udp_send", "udp_receive"];
        let all = agent("all", &[])?;
        let without = [
            (agent("no-tun", &["tun"])?, &[NO_TUN][..]),
            (agent("no-send", &["udp_send"])?, &[NO_SEND]),
            (agent("no-receive", &["udp_receive"])?, &[NO_RECEIVE]),
            (agent("nothing", &everything)?, &[NO_TUN, NO_SEND, NO_RECEIVE]),
        ];
        let neither = agent("neither", &everything)?;

        for (agent, does_without) in &without {
            everything_passes(agent, &all)?;
            expect_logged(agent, does_without);
        }
        for word in [NO_TUN, NO_SEND, NO_RECEIVE] {
            assert!(!all.log().contains(word), "{word}");
        }
        everything_passes(&neither, &without[3].0)
    });
}

#[test]
fn agents_whose_kernel_refuses_things_do_without_them() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let mut agent = |name: &str, refused: &[Refused]| lab.node(name)?.refused(refused).join(&coordinator);
        let all = agent("all", &[])?;
        let without = [
            (agent("no-tun", &[Refused::TunOffloads])?, &[NO_TUN][..]),
            (agent("no-send", &[Refused::UdpSend])?, &[NO_SEND]),
            (agent("no-receive", &[Refused::UdpReceive])?, &[NO_RECEIVE]),
            (agent("no-reads", &[Refused::ReadsAtOnce])?, &[NO_READS_AT_ONCE]),
            (agent("nothing", Refused::ALL)?, &[NO_TUN, NO_SEND, NO_RECEIVE, NO_READS_AT_ONCE]),
        ];
        let neither = agent("neither", Refused::ALL)?;

        for (agent, does_without) in &without {
            everything_passes(agent, &all)?;
            expect_logged(agent, does_without);
        }
        everything_passes(&neither, &without[4].0)
    });
}

fn everything_passes(near: &Agent, far: &Agent) -> anyhow::Result<()> {
    let far_ip = far.overlay_ip()?;
    datagrams_pass(&near.node, &far.node, far_ip, 1420)?;
    println!("{}: a request takes {:?}", near.name(), requests_pass(&near.node, &far.node, far_ip)?);
    println!("{}: {}", near.name(), transfer(&near.node, &far.node, far_ip, 2, BYTES)?.summary());
    Ok(())
}

/// That an agent does without something only shows in what it says, and in its speed.
fn expect_logged(agent: &Agent, words: &[&str]) {
    let log = agent.log();
    for word in words {
        assert!(log.contains(word), "{} does not say {word}", agent.name());
    }
}
