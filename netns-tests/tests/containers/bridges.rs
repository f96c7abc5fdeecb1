//! Two bridges, between which an engine lets nothing pass: what is published on the machine leads across, and nothing else
//! is tried.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use netns_tests::{
    containers::{Bridge, Coordinator, Ground, MACHINE, Published, Transport, Worker, in_containers},
    eventually,
};

const PORT: u16 = 51820;
const API_PORT: u16 = 8000;
const INGRESS_PORT: u16 = 8001;
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn published_ports_and_the_engines_own_proxy_carry_the_overlay_and_the_api_across_bridges() {
    in_containers(|ground| {
        let (alpha, beta, coordinator) = two_bridges(ground)?;
        let published = |name: &str, bridge: &Bridge, service: &str, number: u16| {
            let (udp, api) = (PORT + number, API_PORT + number);
            ground
                .worker(name, bridge)
                .serving(service)
                .publishing(at(udp, PORT, Transport::Udp))
                .publishing(at(api, API_PORT, Transport::Tcp))
                .with_a_key()
                .with_configuration(&format!("[overlay]\nadvertise = [\"{MACHINE}:{udp}\"]"))
                .join(&coordinator)
        };
        let one = published("worker-1", &alpha, "translation", 1)?;
        let two = published("worker-2", &beta, "ocr", 2)?;
        coordinator.expect_offering("translation", &one)?;
        coordinator.expect_offering("ocr", &two)?;

        for (from, service, to) in [(&one, "ocr", &two), (&two, "translation", &one)] {
            let answer = from.post(&format!("/service/{service}"), "a request")?.expect_ok()?;
            assert!(answer.route().starts_with(&format!("{} overlay", to.name())), "{}", answer.route());
            let candidates = candidates(from, to.name())?;
            assert!(candidates.iter().all(|candidate| candidate.ip() != to.address()), "{candidates:?}");
        }
        for (worker, number, service, by) in [(&one, 1, "ocr", "worker-2"), (&two, 2, "translation", "worker-1")] {
            let url = format!("http://{MACHINE}:{}/service/{service}", API_PORT + number);
            let bearer = format!("Bearer {}", worker.api_key()?);
            let known = ground.fetch(&url, &[("authorization", &bearer)])?.expect_ok()?;
            assert_eq!(known.route(), format!("{by} overlay cache"));
            assert_eq!(ground.fetch(&url, &[])?.status, 401);
            assert_eq!(ground.fetch(&url, &[("authorization", "Bearer guessed")])?.status, 401);
        }
        Ok(())
    });
}

#[test]
fn workers_of_different_bridges_meet_by_tunnel_and_an_address_on_a_bridge_is_known_on_that_bridge_alone() {
    in_containers(|ground| {
        let (alpha, beta, coordinator) = two_bridges(ground)?;
        let with_tunnel = |name: &str, bridge: &Bridge, service: &str, port: u16| {
            ground
                .worker(name, bridge)
                .serving(service)
                .publishing(at(port, INGRESS_PORT, Transport::Tcp))
                .with_tunnel_at(&format!("http://{MACHINE}:{port}"))
                .join(&coordinator)
        };
        let one = with_tunnel("worker-1", &alpha, "translation", 8101)?;
        let near = with_tunnel("near", &alpha, "speech", 8102)?;
        let two = with_tunnel("worker-2", &beta, "ocr", 8201)?;
        for (service, worker) in [("translation", &one), ("speech", &near), ("ocr", &two)] {
            coordinator.expect_offering(service, worker)?;
        }

        let route = |from: &Worker, service: &str| -> anyhow::Result<String> {
            let route = from.post(&format!("/service/{service}"), "a request")?.expect_ok()?.route();
            Ok(route.rsplit_once(' ').context("a route")?.0.to_owned())
        };
        for _ in 0..3 {
            assert_eq!(route(&one, "ocr")?, "worker-2 tunnel");
            assert_eq!(route(&two, "translation")?, "worker-1 tunnel");
            assert_eq!(route(&two, "speech")?, "near tunnel");
        }
        eventually("those on one bridge meet on the overlay", LIMIT, || {
            let routes = [route(&one, "speech")?, route(&near, "translation")?];
            anyhow::ensure!(routes == ["near overlay", "worker-1 overlay"], "{routes:?}");
            Ok(())
        })?;

        assert_eq!(candidates(&one, "near")?, [SocketAddr::new(near.address(), PORT)]);
        assert_eq!(candidates(&near, "worker-1")?, [SocketAddr::new(one.address(), PORT)]);
        for (from, to) in [(&one, "worker-2"), (&near, "worker-2"), (&two, "worker-1"), (&two, "near")] {
            assert_eq!(candidates(from, to)?, [], "{} tries {to}", from.name());
        }
        for worker in [&one, &near, &two] {
            let overlay = &worker.status()?["overlay"];
            assert_eq!(overlay["endpoints"], serde_json::json!([]), "{overlay}");
            assert_eq!(overlay["nearby"], serde_json::json!([format!("{}:{PORT}", worker.address())]), "{overlay}");
        }
        Ok(())
    });
}

fn two_bridges(ground: &Ground) -> anyhow::Result<(Bridge, Bridge, Coordinator)> {
    let (alpha, beta) = (ground.bridge("alpha")?, ground.bridge("beta")?);
    let coordinator = Coordinator::on_the_machine(ground, &[&alpha, &beta], "heartbeat_interval = \"2s\"")?;
    Ok((alpha, beta, coordinator))
}

fn at(port: u16, of_the_container: u16, transport: Transport) -> Published {
    Published { at: SocketAddr::new(MACHINE, port), port: of_the_container, transport }
}

/// Where an agent would try to reach a member over UDP. Nowhere, if it has nothing to do with it.
fn candidates(from: &Worker, to: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let peers = from.command_json(&["peers"])?;
    let peers = peers["peers"].as_array().with_context(|| format!("no peers in {peers}"))?;
    let Some(peer) = peers.iter().find(|peer| peer["name"] == to) else { return Ok(Vec::new()) };
    let candidates = peer["candidates"].as_array().with_context(|| format!("no candidates in {peer}"))?;
    candidates.iter().map(|text| Ok(text.as_str().context("an address")?.parse()?)).collect()
}
