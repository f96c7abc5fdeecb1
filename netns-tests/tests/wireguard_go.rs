//! A standard WireGuard implementation, configured by hand, on the other side of a session.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{
    Agent, Coordinator, Lab, Node, Process, datagrams_pass, eventually,
    forge::{self, Identity},
    requests_pass, story_within, transfer,
};
use wiremesh::clock;
use wiremesh_certs::WgPrivateKey;

/// WireGuard makes new keys after 120 s; the story waits for that.
const REKEY_WITHIN: Duration = Duration::from_secs(150);
const HALF: usize = 50_000_000;
/// Each way.
const BULK: u64 = 100_000_000;
const PEER: &str = "10.42.255.10";

#[test]
fn wireguard_go_pings_and_transfers_a_hundred_megabytes_with_a_rekey_in_between() {
    story_within(Duration::from_secs(280), |lab| {
        let pair = paired(lab)?;
        let (agent, standard) = (&pair.agent, &pair.standard);
        let agent_ip = agent.overlay_ip()?;

        ping(standard, &agent_ip)?;
        ping(&agent.node, &PEER.parse()?)?;
        let first_handshake = wg(standard, &["show", "wg0", "latest-handshakes"])?;

        // One connection, with the rekey in the middle of it.
        let listener = agent.node.run(|| TcpListener::bind((agent_ip, 7000)))??;
        let receiving = thread::spawn(move || -> anyhow::Result<u64> {
            let (mut stream, _) = listener.accept()?;
            let mut sum = 0;
            let mut bytes = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut bytes)? {
                    0 => return Ok(sum),
                    length => sum += bytes[..length].iter().map(|byte| u64::from(*byte)).sum::<u64>(),
                }
            }
        });
        let mut stream = standard.run(|| TcpStream::connect((agent_ip, 7000)))??;
        let block = vec![1; HALF];
        stream.write_all(&block)?;
        let deadline = clock::now() + REKEY_WITHIN;
        let mut trickled = 0;
        while wg(standard, &["show", "wg0", "latest-handshakes"])? == first_handshake {
            anyhow::ensure!(clock::now() < deadline, "no rekey within {REKEY_WITHIN:?}");
            stream.write_all(&[1])?;
            trickled += 1;
            thread::sleep(Duration::from_millis(500));
        }
        stream.write_all(&block)?;
        drop(stream);

        let received = receiving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        assert_eq!(received, 2 * HALF as u64 + trickled);
        ping(&agent.node, &PEER.parse()?)?;
        Ok(())
    });
}

#[test]
fn bulk_and_bursts_pass_both_ways_between_wireguard_go_and_an_agent() {
    story_within(Duration::from_secs(120), |lab| {
        let pair = paired(lab)?;
        let (agent, standard) = (&pair.agent, &pair.standard);
        let agent_ip = agent.overlay_ip()?;

        datagrams_pass(standard, &agent.node, agent_ip, 1420)?;
        datagrams_pass(&agent.node, standard, PEER.parse()?, 1420)?;
        requests_pass(standard, &agent.node, agent_ip)?;
        for streams in [1, 8] {
            println!("{}", transfer(standard, &agent.node, agent_ip, streams, BULK)?.summary());
        }
        Ok(())
    });
}

/// An agent and a standard WireGuard implementation that know each other.
struct Pair {
    agent: Agent,
    standard: Node,
    _daemon: Process,
    _coordinator: Coordinator,
}

fn paired(lab: &mut Lab) -> anyhow::Result<Pair> {
    for program in ["wireguard-go", "wg", "ping"] {
        installed(program)?;
    }
    let coordinator = lab.coordinator()?;
    let standard = lab.bare_node("standard")?;
    let key = WgPrivateKey::generate(&mut forge::randomness());
    let configuration = format!(
        "[[overlay.peer]]\npublic_key = \"{}\"\naddress = \"{PEER}\"\nendpoint = \"{}:51820\"",
        key.public(),
        standard.address()
    );
    let agent = lab.node("agent")?.with_configuration(&configuration).join(&coordinator)?;

    let authority = forge::authority_of(&coordinator)?;
    let asker = Identity::by(&authority, "asker", "10.42.200.9".parse()?)?;
    let agent_key = eventually("the coordinator knows the agent", Duration::from_secs(15), || {
        Ok(forge::who_is(&standard, &coordinator, &authority, &asker, "agent")?.wg())
    })?;
    let folder = lab.folder("standard")?;
    let key_file = folder.join("key");
    fs::write(&key_file, &*key.to_base64())?;
    let mut daemon = standard.command("wireguard-go")?;
    daemon.args(["--foreground", "wg0"]).env("LOG_LEVEL", "verbose");
    let mut daemon = Process::start("wireguard-go", daemon, &folder.join("wireguard-go.log"))?;
    eventually("wireguard-go is up", Duration::from_secs(10), || {
        daemon.expect_running()?;
        wg(&standard, &["show", "wg0"])
    })?;
    let (key_file, agent_key) = (key_file.display().to_string(), agent_key.to_string());
    let endpoint = format!("{}:51820", agent.node.address());
    let ours = ["set", "wg0", "listen-port", "51820", "private-key", &key_file];
    let peer = ["peer", &agent_key, "endpoint", &endpoint, "allowed-ips", "10.42.0.0/16"];
    wg(&standard, &[&ours[..], &peer].concat())?;
    standard.bring_up("wg0", PEER.parse()?, 16)?;
    Ok(Pair { agent, standard, _daemon: daemon, _coordinator: coordinator })
}

fn installed(program: &str) -> anyhow::Result<()> {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output()?.status.success();
    anyhow::ensure!(found, "{program} is not installed: netns-tests/run installs it as root");
    Ok(())
}

fn wg(node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    let output = node.command("wg")?.args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "wg {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn ping(from: &Node, to: &IpAddr) -> anyhow::Result<()> {
    let output = from.command("ping")?.args(["-c", "3", "-i", "0.2", "-W", "5", &to.to_string()]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "{} cannot ping {to}: {said}", from.name());
    said.contains(" 0% packet loss").then_some(()).with_context(|| format!("packets were lost: {said}"))
}
