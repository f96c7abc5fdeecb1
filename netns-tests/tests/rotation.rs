//! The mesh's authority is replaced while traffic flows, machines are off and the coordinator is killed: nobody is lost.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Coordinator, Node, TokenOptions, eventually, story_within};
use serde_json::Value;
use wiremesh::clock;

const LIMIT: Duration = Duration::from_secs(300);
/// For one step of a rotation, a coordinator that was started lately and hears its members again included.
const STEP_WITHIN: Duration = Duration::from_secs(90);
/// So that steps are not waited for too long.
const FAST: &str = "heartbeat_interval = \"2s\"\ncertificate_lifetime = \"4m\"";
const BLOCK_BYTES: usize = 16 * 1024;
/// One block each, so that traffic flows for as long as the story lasts.
const PACE: Duration = Duration::from_millis(5);
/// Nothing is lost and nothing waits: TCP repairs a lost packet within a second or two.
const LONGEST_GAP: Duration = Duration::from_secs(3);

#[test]
fn an_authority_is_replaced_under_traffic_and_nobody_is_lost() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator_with("coordinator", FAST)?;
        let old_token = coordinator.token_with(&TokenOptions { uses: Some(2), ..TokenOptions::default() })?;
        let near = lab.node("near")?.join(&coordinator)?;
        let far = lab.node("far")?.serving("ocr").join(&coordinator)?;
        let third = lab.node("third")?.join(&coordinator)?;
        let mut away = lab.node("away")?.serving("audio").join(&coordinator)?;
        for agent in [&near, &far, &third, &away] {
            agent.expect_published()?;
        }
        let old = issuing(&coordinator)?;
        let stream = Steady::begin(&near.node, &far.node, far.overlay_ip()?)?;
        away.running()?.kill()?;
        eventually("the coordinator misses who is away", STEP_WITHIN, || {
            let living = status(&coordinator)?["living"].as_u64();
            anyhow::ensure!(living == Some(3), "{living:?} are heard");
            Ok(())
        })?;

        let begun = rotate(&coordinator, &[])?;
        coordinator.stop();
        assert_eq!(begun["stage"], "announced");
        thread::sleep(Duration::from_secs(2));
        coordinator.restart()?;
        eventually("the new authority issues", STEP_WITHIN, || {
            let now = issuing(&coordinator)?;
            anyhow::ensure!(now != old, "not yet");
            Ok(())
        })?;
        coordinator.stop();
        coordinator.restart()?;
        let over = rotate(&coordinator, &["--status", "--wait", "--timeout", "90s"])?;
        assert_eq!(over["stage"], "idle", "{over}");

        let new = issuing(&coordinator)?;
        for name in ["near", "far", "third"] {
            assert_eq!(authority_of(&coordinator, name)?, new);
        }
        assert_eq!(near.get("/service/ocr")?.expect_ok()?.route(), "far overlay dht");
        away.start()?;
        eventually("who was away finds back by itself", STEP_WITHIN, || {
            let its = authority_of(&coordinator, "away")?;
            anyhow::ensure!(its == new, "its certificate is from {its}");
            near.get("/service/audio")?.expect_ok()
        })?;
        let mut late = lab.node("late")?.prepare(&old_token)?;
        late.start().context("joining with a token that pins the old authority")?;
        eventually("who joins later is one of them", STEP_WITHIN, || late.get("/service/ocr")?.expect_ok())?;

        let (bytes, longest_gap) = stream.finish()?;
        println!("{bytes} bytes during the rotation, the longest gap {longest_gap:?}");
        assert!(bytes > 10_000_000, "{bytes}");
        assert!(longest_gap < LONGEST_GAP, "{longest_gap:?}");
        Ok(())
    });
}

#[test]
fn an_authority_waits_for_an_agent_that_still_depends_on_it() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator_with("coordinator", FAST)?;
        let mut stuck = lab.node("stuck")?.join(&coordinator)?;
        let _other = lab.node("other")?.join(&coordinator)?;
        eventually("both are heard", STEP_WITHIN, || {
            anyhow::ensure!(status(&coordinator)?["living"] == 2, "not yet");
            Ok(())
        })?;

        // An agent that is stopped in its tracks is heard for three intervals more: long enough to begin.
        stuck.running()?.signal(nix::sys::signal::Signal::SIGSTOP)?;
        let begun = rotate(&coordinator, &[])?;

        assert_eq!(begun["stage"], "announced");
        let over = rotate(&coordinator, &["--status", "--wait", "--timeout", "90s"])?;
        assert_eq!(over["stage"], "idle", "whoever falls silent holds nothing up: {over}");
        stuck.running()?.signal(nix::sys::signal::Signal::SIGCONT)?;
        let new = issuing(&coordinator)?;
        eventually("it finds back by itself", STEP_WITHIN, || {
            anyhow::ensure!(authority_of(&coordinator, "stuck")? == new, "not yet");
            Ok(())
        })
    });
}

fn rotate(coordinator: &Coordinator, arguments: &[&str]) -> anyhow::Result<Value> {
    command(coordinator, &[&["cert", "rotate", "--json"], arguments].concat())
}

fn status(coordinator: &Coordinator) -> anyhow::Result<Value> {
    rotate(coordinator, &["--status"])
}

/// The fingerprint of the authority that issues.
fn issuing(coordinator: &Coordinator) -> anyhow::Result<String> {
    let status = status(coordinator)?;
    let authorities = status["authorities"].as_array().context("no authorities")?;
    let issuing = authorities.iter().find(|authority| authority["standing"] == "issuing").context("none issues")?;
    Ok(issuing["fingerprint"].as_str().context("no fingerprint")?.to_owned())
}

/// The fingerprint of the authority that a member's certificate is from.
fn authority_of(coordinator: &Coordinator, name: &str) -> anyhow::Result<String> {
    let fleet = command(coordinator, &["cert", "list", "--json"])?;
    let members = fleet["members"].as_array().context("no members")?;
    let member = members.iter().find(|member| member["name"] == name).with_context(|| format!("no {name}"))?;
    member["authority"].as_str().map(str::to_owned).with_context(|| format!("{name} has shown none"))
}

fn command(coordinator: &Coordinator, arguments: &[&str]) -> anyhow::Result<Value> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let output = coordinator.command(&arguments)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout).with_context(|| format!("wiremesh {arguments:?} printed {stdout:?} and {stderr:?}"))
}

/// One connection on which a block comes all the time, every byte compared.
struct Steady {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<anyhow::Result<u64>>,
    reader: JoinHandle<anyhow::Result<(u64, Duration)>>,
}

impl Steady {
    fn begin(near: &Node, far: &Node, far_ip: IpAddr) -> anyhow::Result<Steady> {
        let listener = far.run(|| TcpListener::bind((far_ip, 0)))??;
        let to = listener.local_addr()?;
        let mut to_far =
            near.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(15)))?.context("connecting")?;
        let (mut from_near, _) = listener.accept()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let writer = thread::spawn(move || {
            let mut number = 0;
            while !stopping.load(Ordering::Relaxed) {
                to_far.write_all(&block(number)).with_context(|| format!("sending block {number}"))?;
                number += 1;
                thread::sleep(PACE);
            }
            Ok(number)
        });
        let reader = thread::spawn(move || {
            let (mut number, mut longest, mut came_at) = (0, Duration::ZERO, clock::now());
            let mut received = vec![0; BLOCK_BYTES];
            loop {
                match from_near.read_exact(&mut received) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok((number, longest)),
                    Err(error) => return Err(error).with_context(|| format!("receiving block {number}")),
                }
                anyhow::ensure!(received == block(number), "block {number} is damaged");
                let now = clock::now();
                longest = longest.max(now - came_at);
                (number, came_at) = (number + 1, now);
            }
        });
        Ok(Steady { stop, writer, reader })
    }

    /// How many bytes came, all of them right, and for how long none did at most.
    fn finish(self) -> anyhow::Result<(u64, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let over = |_| anyhow::anyhow!("it panicked");
        let sent = self.writer.join().map_err(over)??;
        let (received, longest) = self.reader.join().map_err(over)??;
        anyhow::ensure!(sent == received, "{received} of {sent} blocks came");
        Ok((received * BLOCK_BYTES as u64, longest))
    }
}

fn block(number: u64) -> Vec<u8> {
    let bytes = (0..BLOCK_BYTES as u64).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ number.wrapping_mul(131)) as u8);
    bytes.collect()
}
