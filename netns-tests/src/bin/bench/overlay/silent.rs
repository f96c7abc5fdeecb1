//! An agent among silent peers: how often it wakes up, and how much it sends.

use std::{fs, net::UdpSocket, path::Path, thread, time::Duration};

use netns_tests::eventually;
use wiremesh::{clock, sandbox::Network};

use super::{daemons::waits_of, implementations::Mesh, measures::Numbers, place::packets_of};

/// The cable of a node of the sandbox's network.
const CABLE: &str = "eth0";
const MTU: u32 = 1420;
/// For the first packets, after which every two have a session.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const SESSION_LIMIT: Duration = Duration::from_secs(20);
/// Keepalives and the bustle of joining are over after that.
const SETTLE: Duration = Duration::from_secs(20);
/// Longer than the time between two words of the directory.
const IDLE: Duration = Duration::from_secs(120);

/// What tells the packet path from the directory, which says every minute and a half where its node is.
const NO_DIRECTORY: &str = "[dht]\nenabled = false\n";

/// An agent with a session to each of so many others, none of which says anything; and the same without the directory.
pub fn measure(program: &Path, folder: &Path, number: usize, peers: usize) -> anyhow::Result<Numbers> {
    let [wakeups, packets] = measure_with("", program, &folder.join("whole"), number, peers)?;
    let [path_wakeups, path_packets] = measure_with(NO_DIRECTORY, program, &folder.join("path"), number, peers)?;
    Ok(Numbers::from([
        ("silent_wakeups", wakeups),
        ("silent_packets", packets),
        ("silent_path_wakeups", path_wakeups),
        ("silent_path_packets", path_packets),
    ]))
}

/// Wake-ups a second and packets a minute of an agent that has `more` in its configuration, as the others have.
fn measure_with(more: &str, program: &Path, folder: &Path, number: usize, peers: usize) -> anyhow::Result<[f64; 2]> {
    fs::create_dir_all(folder)?;
    let mut network = Network::new()?;
    let node = network.add("coordinator")?;
    let mesh = Mesh::start(program, node.namespace(), node.address(), folder)?;
    let watched = network.add("watched")?;
    let agent = mesh.agent(watched.namespace(), "watched", number, MTU, more)?;
    let mut others = Vec::new();
    for at in 0..peers {
        let node = network.add(&format!("silent{at}"))?;
        let other = mesh.agent(node.namespace(), node.name(), number, MTU, more)?;
        let there = node.run(|| UdpSocket::bind((other.address, 0)))??;
        let here = watched.run(|| UdpSocket::bind((agent.address, 0)))??;
        there.set_read_timeout(Some(ANSWER_LIMIT))?;
        let to = there.local_addr()?;
        eventually("a packet arrives", SESSION_LIMIT, || {
            here.send_to(&[1], to)?;
            Ok(there.recv(&mut [0])?)
        })?;
        others.push(other);
    }
    thread::sleep(SETTLE);

    let packets = || -> anyhow::Result<u64> {
        let table = watched.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        packets_of(&table, CABLE).ok_or_else(|| anyhow::anyhow!("no {CABLE}"))
    };
    let (waits, sent, started) = (waits_of(agent.process.pid())?, packets()?, clock::now());
    thread::sleep(IDLE);
    let took = (clock::now() - started).as_secs_f64();
    let (waits, sent) = (waits_of(agent.process.pid())?.saturating_sub(waits), packets()?.saturating_sub(sent));
    Ok([waits as f64 / took, sent as f64 / took * 60.0])
}
