use std::collections::BTreeSet;

use rand::{SeedableRng, rngs::StdRng};
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, Chain, Claims, IdentityKey, Load, MeshName, Policy, RECORD_LIFE,
    RevocationList, Rule,
};

use super::*;
use crate::api::{MAX_DISCOVERED, MAX_SEEDS};

const T0: UnixTime = UnixTime(1_800_000_000);
const INTERVAL: Duration = Duration::from_secs(10);

fn after(seconds: u64) -> UnixTime {
    T0.plus(Duration::from_secs(seconds))
}

fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// An authority and whom it signed for.
struct Mesh {
    authority: Authority,
    trust: Trust,
    registry: Registry,
    rng: StdRng,
}

struct Node {
    key: IdentityKey,
    chain: Chain,
    verified: Verified,
}

impl Mesh {
    fn new() -> Mesh {
        let mut rng = StdRng::seed_from_u64(1);
        let parameters = CaParameters {
            mesh: MeshName::new("lab").unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400 * 365),
        };
        let authority = Authority::create(&parameters, T0, &mut rng).unwrap();
        let trust = Trust::new(authority.certificate().clone());
        Mesh { authority, trust, registry: Registry::new(INTERVAL), rng }
    }

    fn node(&mut self, number: u8, services: AllowedServices) -> Node {
        self.node_of(number, services, &[])
    }

    fn node_of(&mut self, number: u8, services: AllowedServices, groups: &[&str]) -> Node {
        let key = IdentityKey::generate(&mut self.rng);
        let claims = Claims {
            identity: key.id(),
            wg: WgPublicKey([number; 32]),
            name: NodeName::new(&format!("n{number:03}")).unwrap(),
            address: format!("10.42.1.{number}").parse().unwrap(),
            groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
            services,
            lifetime: Duration::from_secs(86_400),
        };
        let chain = self.authority.issue(&claims, T0, &mut self.rng).unwrap();
        let verified = self.trust.verify(&chain, T0).unwrap();
        Node { key, chain, verified }
    }

    /// Enrolled and heard from at `at`.
    fn worker(&mut self, number: u8, offers: &[&str], load: f64, at: UnixTime) -> Node {
        let node = self.node(number, AllowedServices::Any);
        self.registry.admit(member(&node));
        self.beat(&node, offers, load, at).unwrap();
        node
    }

    fn record(&self, node: &Node, offers: &[&str], load: f64, at: UnixTime) -> Opened<NodeRecord> {
        let record = NodeRecord {
            sequence: at.0 * 1000,
            expires_at: at.plus(RECORD_LIFE),
            endpoints: Vec::new(),
            services: offers.iter().map(|name| service(name)).collect(),
            load: Load::from_share(load),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        };
        self.trust.open(&Signed::sign(&record, &node.key, &node.chain).unwrap(), T0).unwrap()
    }

    fn beat(
        &mut self,
        node: &Node,
        offers: &[&str],
        load: f64,
        at: UnixTime,
    ) -> Result<Vec<Signed<NodeRecord>>, RecordRefused> {
        let record = self.record(node, offers, load, at);
        self.registry.handle_heartbeat(&self.trust, &node.verified, record, at)
    }

    fn found(&self, name: &str, now: UnixTime) -> Vec<String> {
        let workers = self.registry.discover(&service(name).into(), now);
        workers.into_iter().map(|worker| worker.worker_id.to_string()).collect()
    }
}

fn member(node: &Node) -> Member {
    let by = &node.verified;
    Member { identity: by.id(), name: by.name().clone(), address: by.address(), wg: by.wg() }
}

#[test]
fn who_is_removed_does_not_take_the_next_holder_of_its_name_along() {
    let mut mesh = Mesh::new();
    let (old, new) = (mesh.node(1, AllowedServices::Any), mesh.node(1, AllowedServices::Any));
    mesh.registry.admit(member(&old));
    mesh.registry.admit(member(&new));

    mesh.registry.remove(old.verified.id());

    for key in ["n001", "10.42.1.1"] {
        let (found, _) = mesh.registry.node(&NodeKey::parse(key).unwrap()).unwrap();
        assert_eq!(found.identity, new.verified.id(), "{key}");
    }
}

#[test]
fn the_least_busy_worker_comes_first() {
    let mut mesh = Mesh::new();
    mesh.worker(1, &["ocr"], 0.9, T0);
    mesh.worker(2, &["ocr"], 0.1, T0);
    mesh.worker(3, &["ocr", "llm"], 0.5, T0);

    assert_eq!(mesh.found("ocr", T0), ["n002", "n003", "n001"]);
    assert_eq!(mesh.found("llm", T0), ["n003"]);
    assert_eq!(mesh.found("nothing", T0), <[String; 0]>::default());
}

#[test]
fn a_worker_is_healthy_until_it_missed_three_heartbeats() {
    let mut mesh = Mesh::new();
    mesh.worker(1, &["ocr"], 0.0, T0);
    let second = mesh.worker(2, &["ocr"], 0.5, T0);

    mesh.beat(&second, &["ocr"], 0.5, after(20)).unwrap();

    assert_eq!(mesh.found("ocr", after(29)), ["n001", "n002"]);
    assert_eq!(mesh.found("ocr", after(30)), ["n002"]);
    let counts = mesh.registry.counts(after(30));
    assert_eq!((counts.enrolled, counts.registered, counts.healthy), (2, 2, 1));
    assert_eq!(mesh.found("ocr", after(50)), <[String; 0]>::default());
}

#[test]
fn a_service_no_longer_offered_is_no_longer_found() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr", "llm"], 0.0, T0);

    mesh.beat(&node, &["llm"], 0.0, after(1)).unwrap();

    assert_eq!(mesh.found("ocr", after(1)), <[String; 0]>::default());
    assert_eq!(mesh.found("llm", after(1)), ["n001"]);
}

#[test]
fn a_newer_record_wins_and_an_older_one_still_shows_life() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr"], 0.2, after(20));
    let older = mesh.record(&node, &["llm"], 0.9, after(10));

    mesh.registry.handle_heartbeat(&mesh.trust, &node.verified, older, after(45)).unwrap();

    let workers = mesh.registry.discover(&service("ocr").into(), after(60));
    assert_eq!(workers.len(), 1);
    assert_eq!(workers[0].load, 0.2);
    assert_eq!(workers[0].last_heartbeat, after(45));
}

#[test]
fn each_record_that_must_not_be_believed_is_refused_with_its_reason() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr"], 0.0, T0);
    let other = mesh.worker(2, &["ocr"], 0.0, T0);
    let stranger = mesh.node(3, AllowedServices::Any);
    let narrow = mesh.node(4, AllowedServices::Only(vec![service("llm")]));
    mesh.registry.admit(member(&narrow));
    let moved = mesh.node(5, AllowedServices::Any);
    mesh.registry.admit(Member { address: "10.42.9.9".parse().unwrap(), ..member(&moved) });

    let cases = [
        ("record_of_another", &other, mesh.record(&node, &[], 0.0, T0), T0),
        ("unknown_member", &stranger, mesh.record(&stranger, &[], 0.0, T0), T0),
        ("superseded", &moved, mesh.record(&moved, &[], 0.0, T0), T0),
        ("record_ended", &node, mesh.record(&node, &[], 0.0, T0), after(RECORD_LIFE.as_secs())),
        ("record_from_the_future", &node, mesh.record(&node, &[], 0.0, after(61)), T0),
        ("service_not_allowed", &narrow, mesh.record(&narrow, &["ocr"], 0.0, T0), T0),
    ];

    for (expected, sender, record, now) in cases {
        let refused = mesh.registry.handle_heartbeat(&mesh.trust, &sender.verified, record, now).unwrap_err();
        assert_eq!(refused.kind(), expected);
    }
}

#[test]
fn a_service_that_policy_keeps_for_a_group_is_taken_from_that_group_alone() {
    let mut mesh = Mesh::new();
    let with_gpu = mesh.node_of(1, AllowedServices::Any, &["gpu"]);
    let without = mesh.node_of(2, AllowedServices::Any, &["cpu"]);
    mesh.registry.admit(member(&with_gpu));
    mesh.registry.admit(member(&without));
    let before = mesh.record(&without, &["llm"], 0.0, T0);
    let rule = Rule { offer: Some(["gpu".parse().unwrap()].into()), call: None };
    let policy = Policy { services: [(service("llm"), rule)].into(), ..Policy::default() };
    let list = RevocationList { number: 1, policy, ..RevocationList::default() };
    mesh.trust.apply_revocations(&mesh.authority.sign_revocations(&list).unwrap(), T0).unwrap();

    assert!(mesh.beat(&with_gpu, &["llm", "ocr"], 0.0, T0).is_ok());
    assert!(mesh.beat(&without, &["ocr"], 0.0, T0).is_ok());
    let refused = mesh.beat(&without, &["llm"], 0.0, after(1)).unwrap_err();
    assert_eq!(refused, RecordRefused::ServiceNotAllowed(service("llm")));
    assert_eq!(mesh.found("llm", after(1)), ["n001"]);
    let restored = mesh.registry.restore(&mesh.trust, before, None, 8468, T0, Duration::ZERO);
    assert_eq!(restored, Err(RecordRefused::ServiceNotAllowed(service("llm"))), "nor what was said before the rule");
}

#[test]
fn who_was_asked_for_learns_who_asked() {
    let mut mesh = Mesh::new();
    let target = mesh.worker(1, &[], 0.0, T0);
    let caller = mesh.worker(2, &[], 0.0, T0);
    let unseen = mesh.node(3, AllowedServices::Any);
    mesh.registry.admit(member(&unseen));

    for asker in [&caller, &caller, &unseen, &target] {
        mesh.registry.introduce(asker.verified.id(), target.verified.id());
    }
    let first = mesh.beat(&target, &[], 0.0, after(10)).unwrap();
    let second = mesh.beat(&target, &[], 0.0, after(20)).unwrap();

    assert_eq!(first, [mesh.record(&caller, &[], 0.0, T0).signed]);
    assert!(second.is_empty());
}

#[test]
fn introductions_are_bounded_and_the_latest_are_kept() {
    let mut mesh = Mesh::new();
    let target = mesh.worker(1, &[], 0.0, T0);
    let callers: Vec<_> = (2..40).map(|number| mesh.worker(number, &[], 0.0, T0)).collect();

    for caller in &callers {
        mesh.registry.introduce(caller.verified.id(), target.verified.id());
    }

    let introduced = mesh.beat(&target, &[], 0.0, after(10)).unwrap();
    assert_eq!(introduced.len(), MAX_INTRODUCTIONS);
    assert_eq!(introduced.last(), Some(&mesh.record(callers.last().unwrap(), &[], 0.0, T0).signed));
}

#[test]
fn seeds_are_a_bounded_sample_of_the_healthy_without_the_asker() {
    let mut mesh = Mesh::new();
    let nodes: Vec<_> = (1..=60).map(|number| mesh.worker(number, &[], 0.0, T0)).collect();
    let dead = mesh.worker(61, &[], 0.0, T0);
    for node in &nodes {
        mesh.beat(node, &[], 0.0, after(20)).unwrap();
    }
    let asker = nodes[0].verified.id();

    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let seeds = mesh.registry.seeds(Some(asker), after(35), &mut mesh.rng);
        assert_eq!(seeds.len(), MAX_SEEDS);
        seen.extend(seeds.into_iter().map(|seed| seed.worker_id));
    }

    assert!(!seen.contains(nodes[0].verified.name()));
    assert!(!seen.contains(dead.verified.name()));
    assert_eq!(seen.len(), 59, "every other member is drawn sooner or later");
}

#[test]
fn discovery_is_bounded() {
    let mut mesh = Mesh::new();
    for number in 1..=MAX_DISCOVERED as u8 + 5 {
        mesh.worker(number, &["ocr"], 0.0, T0);
    }

    assert_eq!(mesh.found("ocr", T0).len(), MAX_DISCOVERED);
}

#[test]
fn who_left_is_gone_everywhere_but_stays_a_member() {
    let mut mesh = Mesh::new();
    let first = mesh.worker(1, &["ocr"], 0.0, T0);
    let second = mesh.worker(2, &["ocr"], 0.0, T0);

    assert!(mesh.registry.unregister(first.verified.id()));
    assert!(!mesh.registry.unregister(first.verified.id()));

    assert_eq!(mesh.found("ocr", T0), ["n002"]);
    assert_eq!(mesh.registry.seeds(None, T0, &mut mesh.rng).len(), 1);
    let (_, record) = mesh.registry.node(&NodeKey::parse("n001").unwrap()).unwrap();
    assert!(record.is_none());
    mesh.beat(&first, &["ocr"], 0.0, after(1)).unwrap();
    assert!(mesh.registry.unregister(second.verified.id()));
    assert_eq!(mesh.found("ocr", after(1)), ["n001"]);
}

#[test]
fn a_revoked_member_leaves_nothing_behind() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr"], 0.0, T0);

    mesh.registry.remove(node.verified.id());

    for key in ["n001", "10.42.1.1", &node.verified.id().to_hex()] {
        assert!(mesh.registry.node(&NodeKey::parse(key).unwrap()).is_none(), "{key}");
    }
    assert_eq!(mesh.registry.counts(T0), Default::default());
}

#[test]
fn changes_are_given_out_once_and_come_back_when_they_could_not_be_written() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr"], 0.0, T0);
    let id = node.verified.id();

    let taken = mesh.registry.take_dirty(100);
    assert!(matches!(taken.as_slice(), [(who, Dirty::Said(_))] if *who == id));
    assert!(mesh.registry.take_dirty(100).is_empty());

    mesh.registry.give_back(taken);
    let again = mesh.record(&node, &["ocr"], 0.0, T0);
    mesh.registry.handle_heartbeat(&mesh.trust, &node.verified, again, after(10)).unwrap();
    assert!(matches!(mesh.registry.take_dirty(100).as_slice(), [(_, Dirty::Said(_))]));

    let again = mesh.record(&node, &["ocr"], 0.0, T0);
    mesh.registry.handle_heartbeat(&mesh.trust, &node.verified, again, after(20)).unwrap();
    assert!(matches!(mesh.registry.take_dirty(100).as_slice(), [(_, Dirty::Heard(at))] if *at == after(20)));

    mesh.registry.unregister(id);
    let gone = mesh.registry.take_dirty(100);
    assert!(matches!(gone.as_slice(), [(_, Dirty::Gone)]));
    mesh.beat(&node, &["ocr"], 0.0, after(30)).unwrap();
    mesh.registry.give_back(gone);
    assert!(matches!(mesh.registry.take_dirty(100).as_slice(), [(_, Dirty::Said(_))]));
}

#[test]
fn silence_while_the_coordinator_was_down_is_not_held_against_anybody() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(1, &["ocr"], 0.0, T0);
    let record = mesh.record(&node, &["ocr"], 0.0, T0);
    let mut restarted = Registry::new(INTERVAL);
    restarted.admit(member(&node));

    let deaf = Duration::from_secs(3600);
    restarted.restore(&mesh.trust, record, None, 8468, T0, deaf).unwrap();

    let up_at = after(3605);
    assert_eq!(restarted.discover(&service("ocr").into(), up_at).len(), 1);
    assert_eq!(restarted.discover(&service("ocr").into(), after(3630)).len(), 0);
    assert!(restarted.take_dirty(100).is_empty());
}

#[test]
fn a_node_is_found_by_name_address_and_identity() {
    let mut mesh = Mesh::new();
    let node = mesh.worker(7, &[], 0.0, T0);

    for key in ["n007", "10.42.1.7", &node.verified.id().to_hex()] {
        let (found, record) = mesh.registry.node(&NodeKey::parse(key).unwrap()).unwrap();
        assert_eq!((found, record.is_some()), (&member(&node), true), "{key}");
    }
    assert_eq!(NodeKey::parse("not a name"), None);
}
