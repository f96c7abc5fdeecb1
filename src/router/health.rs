//! Which ways to which workers failed lately, and when they are tried again.
//!
//! ```text
//! healthy ── transport failure ──► ejected ── wait 2 s, doubling to 8 s ──► probe ── answered ──► healthy
//!    ▲                               ▲                                        └── not ──► wait longer
//!    └───────── a request succeeded ─┘
//! ```
//!
//! Probes, not requests, find out whether a way is open again; requests go that way before only if nothing else is left.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use wiremesh_certs::{NodeId, TunnelUrl};

use super::{Path, Worker};

const EJECT_BASE: Duration = Duration::from_secs(2);
/// A path that is open again is noticed within two of these, should the first probe come while WireGuard waits to repeat
/// its handshake: well within half a minute.
const EJECT_CAP: Duration = Duration::from_secs(8);
/// A way nobody wanted to go for so long is not probed any more; it counts as healthy again.
const UNWANTED_AFTER: Duration = Duration::from_secs(300);
/// Beyond this the way unwanted for longest is forgotten, and so counts as healthy.
pub const MAX_EJECTED: usize = 256;

/// What a probe has to reach.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// An agent's address in the overlay.
    Overlay(SocketAddr),
    /// The URL that leads to the ingress of this node.
    Tunnel(NodeId, TunnelUrl),
}

/// A way to a worker.
pub type Way = (NodeId, Path);

/// The ways that failed lately. All others are healthy.
#[derive(Debug, Default)]
pub struct Health {
    ejected: BTreeMap<Way, Ejected>,
}

#[derive(Debug)]
struct Ejected {
    target: Target,
    failures: u32,
    probe_at: Instant,
    probing: bool,
    wanted_at: Instant,
}

impl Health {
    /// An attempt to reach `worker` by `path` failed on the way, not at its end.
    pub fn on_failure(&mut self, worker: &Worker, path: Path, now: Instant) {
        let Some(target) = target(worker, path) else { return };
        if let Some(ejected) = self.ejected.get_mut(&(worker.id, path)) {
            // Requests that failed together are one failure: the way is known to be closed already.
            ejected.wanted_at = now;
            ejected.target = target;
            return;
        }
        if self.ejected.len() >= MAX_EJECTED
            && let Some(oldest) = self.ejected.iter().min_by_key(|(_, ejected)| ejected.wanted_at).map(|(way, _)| *way)
        {
            self.ejected.remove(&oldest);
        }
        let ejected = Ejected { target, failures: 1, probe_at: now + EJECT_BASE, probing: false, wanted_at: now };
        self.ejected.insert((worker.id, path), ejected);
    }

    /// A request or a probe came through.
    pub fn on_success(&mut self, way: Way) {
        self.ejected.remove(&way);
    }

    /// A probe went unanswered.
    pub fn on_probe_failed(&mut self, way: Way, now: Instant) {
        if let Some(ejected) = self.ejected.get_mut(&way) {
            ejected.failures += 1;
            ejected.probing = false;
            ejected.probe_at = now + delay(ejected.failures);
        }
    }

    /// Whether the way is closed, as far as we know. Somebody wants to go it.
    pub fn is_ejected(&mut self, way: Way, now: Instant) -> bool {
        self.ejected.get_mut(&way).is_some_and(|ejected| {
            ejected.wanted_at = now;
            true
        })
    }

    /// The next way to probe; answered by [`Health::on_success`] or [`Health::on_probe_failed`].
    pub fn poll_probe(&mut self, now: Instant) -> Option<(Way, Target)> {
        self.ejected.retain(|_, ejected| now.saturating_duration_since(ejected.wanted_at) < UNWANTED_AFTER);
        let (way, ejected) =
            self.ejected.iter_mut().find(|(_, ejected)| !ejected.probing && ejected.probe_at <= now)?;
        ejected.probing = true;
        Some((*way, ejected.target.clone()))
    }

    /// When [`Health::poll_probe`] has something next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waiting = self.ejected.values().filter(|ejected| !ejected.probing);
        waiting.map(|ejected| (ejected.probe_at, "an ejected way is due for a probe")).min()
    }

    /// How many ways are closed.
    pub fn ejected(&self) -> usize {
        self.ejected.len()
    }
}

fn target(worker: &Worker, path: Path) -> Option<Target> {
    match path {
        Path::Local => None,
        Path::Overlay => worker.overlay.map(Target::Overlay),
        Path::Tunnel => worker.tunnel.clone().map(|url| Target::Tunnel(worker.id, url)),
    }
}

fn delay(failures: u32) -> Duration {
    EJECT_BASE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16))).min(EJECT_CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_failed_way_is_ejected_and_the_other_way_to_the_same_worker_is_not() {
        let (mut health, now) = (Health::default(), crate::clock::now());

        health.on_failure(&worker(1), Path::Overlay, now);

        assert!(health.is_ejected((NodeId([1; 32]), Path::Overlay), now));
        assert!(!health.is_ejected((NodeId([1; 32]), Path::Tunnel), now));
        assert!(!health.is_ejected((NodeId([2; 32]), Path::Overlay), now));
    }

    #[test]
    fn probes_come_after_2_4_and_then_every_8_seconds() {
        let (mut health, mut now) = (Health::default(), crate::clock::now());
        health.on_failure(&worker(1), Path::Overlay, now);

        for wait in [2, 4, 8, 8, 8] {
            assert_eq!(health.poll_timeout().map(|(at, _)| at), Some(now + wait * SECOND));
            assert_eq!(health.poll_probe(now + wait * SECOND - SECOND / 10), None);
            now += wait * SECOND;
            let (way, target) = health.poll_probe(now).unwrap();
            assert_eq!(target, Target::Overlay("127.0.0.1:8000".parse().unwrap()));
            assert_eq!(health.poll_probe(now), None, "one probe at a time");
            health.on_probe_failed(way, now);
        }
    }

    #[test]
    fn an_answered_probe_makes_the_way_healthy() {
        let (mut health, now) = (Health::default(), crate::clock::now());
        health.on_failure(&worker(1), Path::Overlay, now);
        let (way, _) = health.poll_probe(now + 2 * SECOND).unwrap();

        health.on_success(way);

        assert!(!health.is_ejected(way, now));
        assert_eq!(health.poll_timeout(), None);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let (mut health, now) = (Health::default(), crate::clock::now());

        for _ in 0..100 {
            health.on_failure(&worker(1), Path::Overlay, now);
        }

        assert_eq!(health.poll_timeout().map(|(at, _)| at), Some(now + EJECT_BASE));
    }

    #[test]
    fn ejections_are_bounded_and_the_unwanted_end() {
        let (mut health, now) = (Health::default(), crate::clock::now());

        for number in 0..=MAX_EJECTED {
            let id = u16::try_from(number).unwrap().to_be_bytes();
            health.on_failure(&worker_with(id), Path::Overlay, now + Duration::from_millis(number as u64));
        }

        assert_eq!(health.ejected(), MAX_EJECTED);
        assert_eq!(health.poll_probe(now + UNWANTED_AFTER + SECOND), None);
        assert_eq!(health.ejected(), 0);
    }

    fn worker(id: u8) -> Worker {
        worker_with([id, id])
    }

    fn worker_with(id: [u8; 2]) -> Worker {
        let mut bytes = [id[0]; 32];
        bytes[1] = id[1];
        Worker {
            id: NodeId(bytes),
            name: "worker".parse().unwrap(),
            overlay: Some("127.0.0.1:8000".parse().unwrap()),
            tunnel: None,
            load: Default::default(),
            published_at: Default::default(),
        }
    }
}
