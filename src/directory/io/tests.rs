//! Several real directories on loopback: real QUIC, real certificates, one port on 127.0.10.x.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures::FutureExt;
use wiremesh_certs::{AllowedServices, NodeRecord, Policy, RevocationList, Rule};

use super::*;
use crate::{
    clock,
    directory::{
        entry::{
            Entry,
            testing::{Mesh, Node},
        },
        fingers::{Answer, Fingers, Source},
    },
};

/// Long enough for a busy machine; nothing here takes a tenth of it when all is well.
const PATIENCE: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(90);
/// Each record is later than all before it, also one of a member that was started again.
static SIGNED: AtomicUsize = AtomicUsize::new(1);

#[tokio::test(flavor = "multi_thread")]
async fn two_members_find_each_other_and_ten_questions_are_one_lookup() {
    let lab = Lab::new();
    let (a, b) = (lab.member(1), lab.member(2));
    b.knows(&[&a]);
    a.publish(&["ocr"]);
    b.publish(&["asr"]);

    eventually("they have written to each other", || [&a, &b].iter().all(|m| m.handle.status().stored >= 6)).await;
    let from_b = b.find("ocr").await;
    let from_a = a.find("asr").await;
    for _ in 0..9 {
        assert_eq!(b.handle.find(&service("ocr")).await.unwrap().source, Source::Cache);
    }

    assert_eq!((from_b.workers[0].id(), from_b.source), (a.node.id(), Source::Dht));
    assert_eq!((from_a.workers[0].id(), from_a.source), (b.node.id(), Source::Dht));
    assert_eq!(b.asked_over_http(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_learns_of_the_first_through_the_second() {
    let lab = Lab::new();
    let (a, b, c) = (lab.member(1), lab.member(2), lab.member(3));
    b.knows(&[&a]);
    a.publish(&["ocr"]);
    b.publish(&[]);
    eventually("b stores a's record", || b.handle.status().stored >= 3).await;

    c.knows(&[&b]);
    let found = c.find("ocr").await;
    let resolved = c.handle.resolve(a.node.address()).await.unwrap();
    let named = c.handle.resolve_name(&a.node.name()).await.unwrap();

    assert_eq!((found.workers[0].id(), found.source), (a.node.id(), Source::Dht));
    assert_eq!((resolved.id(), named.id()), (a.node.id(), a.node.id()));
    eventually("c keeps a as a contact", || c.handle.contacts().len() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_never_heard_of_is_found_in_the_table() {
    let lab = Lab::new();
    let (a, b, c) = (lab.member(1), lab.member(2), lab.member(3));
    b.knows(&[&a]);
    a.publish(&[]);
    eventually("b stores a's record", || b.handle.status().stored >= 2).await;
    c.knows(&[&b]);

    let resolved = c.handle.resolve(a.node.address()).await.unwrap();
    let unknown = c.handle.resolve(OverlayIp([127, 0, 10, 99].into())).await;

    assert_eq!(resolved.id(), a.node.id());
    assert!(unknown.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_stored_nowhere_is_found_through_whoever_has_met_its_member() {
    let lab = Lab::new();
    let (b, c) = (lab.member(2), lab.member(3));
    let met = lab.mesh.node(1);
    b.handle.add_contacts(&[met.sign(&[], 1, clock::unix().plus(LIFE))]);
    c.knows(&[&b]);

    let resolved = c.handle.resolve(met.address()).await.unwrap();

    assert_eq!(resolved.id(), met.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_what_is_said_in_our_name_says_whether_anybody_answered() {
    let lab = Lab::new();
    let (a, b) = (lab.member(1), lab.member(2));
    a.publish(&[]);
    let while_alone = a.handle.look_for_ourselves(a.node.address()).await;
    a.knows(&[&b]);
    eventually("b stores a's record", || b.handle.status().stored >= 2).await;
    a.handle.take_heard_of_us();

    // Another machine with the keys of a has told b this, and could not write it.
    b.handle.add_contacts(&[a.sign(&["ocr"], LIFE)]);
    let beside_another = a.handle.look_for_ourselves(a.node.address()).await;

    assert_eq!((while_alone, beside_another), (false, true));
    let heard = a.handle.take_heard_of_us();
    assert!(heard.iter().any(|entry| !entry.record().services.is_empty()), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_met_once_and_is_in_no_table_is_met_again() {
    let lab = Lab::new();
    let often = |n| {
        let node = lab.mesh.node(n);
        let settings = Settings { look_back_every: Duration::from_millis(200), ..lab.settings(node.address()) };
        lab.start(&lab.mesh, node, &settings)
    };
    let (a, b, c, d) = (often(1), lab.member(2), lab.member(3), lab.member(4));
    a.knows(&[&b]);
    c.knows(&[&d]);
    eventually("there are two pairs", || [&a, &c].iter().all(|m| m.handle.status().connections == 1)).await;

    let met = a.handle.shared.open(&c.latest.lock().unwrap()).unwrap();
    a.handle.shared.memory().contacts.add(&met);

    c.publish(&["ocr"]);
    eventually("they are one mesh", || a.handle.status().connections > 1 && d.handle.status().members > 1).await;
    assert_eq!(b.find("ocr").await.workers[0].id(), c.node.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_finds_its_own_and_tells_the_first_who_comes() {
    let lab = Lab::new();
    let a = lab.member(1);
    a.publish(&["ocr"]);
    let own = a.find("ocr").await;

    let b = lab.member(2);
    b.knows(&[&a]);

    assert_eq!((own.workers[0].id(), own.source), (a.node.id(), Source::Dht));
    assert_eq!(b.find("ocr").await.workers[0].id(), a.node.id());
    eventually("a's record is at b without being published anew", || b.handle.status().stored >= 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_vanishes_within_its_records_life_and_costs_little() {
    let lab = Lab::new();
    let (a, b, c) = (lab.member(1), lab.member(2), lab.member(3));
    b.knows(&[&a]);
    c.knows(&[&a, &b]);
    let life = Duration::from_secs(6);
    a.publish_for(&["ocr"], life);
    b.publish(&["ocr"]);
    assert_eq!(c.find_all("ocr", 2).await.workers.len(), 2);

    let published_at = clock::unix();
    a.kill().await;
    let cold = lab.member(4);
    cold.knows(&[&b, &c]);
    let found = cold.find("ocr").await;

    assert!(!found.workers.is_empty());
    while clock::unix() <= published_at.plus(life) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = c.handle.find(&service("ocr")).await.unwrap();
    assert_eq!(after.workers.iter().map(Entry::id).collect::<Vec<_>>(), [b.node.id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_worker_is_gone_at_once() {
    let lab = Lab::new();
    let (a, b, c) = (lab.member(1), lab.member(2), lab.member(3));
    b.knows(&[&a]);
    c.knows(&[&a, &b]);
    a.publish(&["ocr"]);
    b.publish(&[]);
    eventually("b stores a's offer", || b.handle.status().stored >= 5).await;

    a.handle.withdraw(&a.sign(&[], LIFE)).await.unwrap();
    a.kill().await;

    assert!(c.handle.find(&service("ocr")).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_mesh_is_not_let_in_and_lets_nobody_in() {
    let (lab, other) = (Lab::new(), Mesh::at(clock::unix()));
    let a = lab.member(1);
    let stranger = lab.member_of(&other, other.node(2));
    a.publish(&["ocr"]);
    stranger.publish(&["ocr"]);

    // Each refuses the other's record, so the stranger is made to dial by a record of its own mesh for a's address.
    let disguised = other.node(1).sign(&["ocr"], 5, clock::unix().plus(LIFE));
    assert_eq!(stranger.handle.add_contacts(&[a.sign(&["ocr"], LIFE)]), 0);
    assert_eq!(stranger.handle.add_contacts(&[disguised]), 1);
    eventually("the stranger has tried", || stranger.handle.status().absent == 1).await;

    assert_eq!((a.handle.status().connections, a.handle.status().members), (0, 0));
    assert_eq!(stranger.handle.status().connections, 0);
    assert_eq!(a.find("ocr").await.workers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_another_address_is_not_let_in() {
    let lab = Lab::new();
    let a = lab.member(1);
    let mut settings = lab.settings(OverlayIp([127, 0, 10, 3].into()));
    settings.deadline = Duration::from_secs(1);
    let misplaced = lab.start(&lab.mesh, lab.mesh.node(2), &settings);

    misplaced.knows(&[&a]);
    assert!(misplaced.handle.find(&service("ocr")).await.is_none());
    eventually("it is out again", || misplaced.handle.status().connections == 0).await;

    assert_eq!((a.handle.status().members, a.handle.status().connections), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_members_connection_is_closed_and_its_offers_are_gone() {
    let lab = Lab::new();
    let (a, b) = (lab.member(1), lab.member(2));
    b.knows(&[&a]);
    b.publish(&["ocr"]);
    assert_eq!(a.find("ocr").await.workers[0].id(), b.node.id());
    eventually("they are connected", || a.handle.status().connections > 0).await;

    lab.mesh.revoke(RevocationList { number: 1, identities: [b.node.id()].into(), ..RevocationList::default() });
    a.handle.trust_changed();

    eventually("the connection is closed", || a.handle.status().connections == 0).await;
    eventually("it is out of the table", || a.handle.status().members == 0).await;
    eventually("nothing of it is stored or remembered", || a.handle.status().stored == 0).await;
    assert!(a.handle.find(&service("ocr")).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_no_longer_be_offered_is_told_by_nobody_and_what_may_be_again_is_found_again() {
    let lab = Lab::new();
    let (a, b, c) = (lab.member(1), lab.member(3), lab.member(2));
    b.knows(&[&a]);
    c.knows(&[&a, &b]);
    b.publish(&["ocr"]);
    eventually("a stores it", || a.handle.status().stored >= 3).await;
    assert_eq!(c.find("ocr").await.workers[0].id(), b.node.id());

    let only_even = Rule { offer: Some(["even".parse().unwrap()].into()), call: None };
    let policy = Policy { services: [("ocr".parse().unwrap(), only_even)].into(), ..Policy::default() };
    lab.mesh.revoke(RevocationList { number: 1, policy, ..RevocationList::default() });
    for member in [&a, &b, &c] {
        member.handle.trust_changed();
    }

    assert!(c.handle.find(&service("ocr")).await.is_none(), "neither by memory nor by anybody's word");
    c.publish(&["ocr"]);
    assert_eq!(a.find("ocr").await.workers[0].id(), c.node.id(), "whose group may");
    lab.mesh.revoke(RevocationList { number: 2, ..RevocationList::default() });
    b.publish(&["ocr"]);
    a.find_all("ocr", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate_and_a_new_one_needs_no_restart() {
    let lab = Lab::new();
    let a = lab.member(1);
    let short = lab.mesh.issue(2, AllowedServices::Any, Duration::from_secs(10));
    let b = lab.member_of(&lab.mesh, short);
    b.knows(&[&a]);
    b.publish(&["ocr"]);
    assert_eq!(a.find("ocr").await.workers[0].id(), b.node.id());

    let renewed = lab.mesh.renew(&b.node);
    b.handle.set_chain(&renewed.chain).unwrap();
    b.handle.publish(&renewed.sign(&["asr"], 9_000, clock::unix().plus(LIFE))).unwrap();
    eventually("a hears of it", || {
        a.handle.known(b.node.address()).is_some_and(|entry| entry.record().claims(&service("asr")))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(11)).await;

    let found = a.find("asr").await;
    assert_eq!(found.workers[0].verified().serial(), a.handle.known(b.node.address()).unwrap().verified().serial());
    assert_eq!(a.handle.status().absent, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_killed_and_started_again_on_its_port_is_back_at_once() {
    let lab = Lab::new();
    // A runtime of its own, which can end in mid-sentence: nobody is told that the member is gone.
    let doomed = tokio::runtime::Runtime::new().unwrap();
    let a = {
        let _inside = doomed.enter();
        lab.member(1)
    };
    let b = lab.member(2);
    b.knows(&[&a]);
    a.publish(&["ocr"]);
    assert_eq!(b.find("ocr").await.workers[0].id(), a.node.id());

    let (node, at) = (a.node.clone(), SocketAddr::new(a.node.address().0, lab.port));
    drop(a);
    doomed.shutdown_background();
    eventually("its port is free", || std::net::UdpSocket::bind(at).is_ok()).await;
    let again = lab.member_of(&lab.mesh, node);
    again.knows(&[&b]);
    again.publish(&["asr"]);

    assert_eq!(b.find("asr").await.workers[0].id(), again.node.id());
    assert_eq!(again.find("asr").await.workers[0].id(), again.node.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_table_the_coordinator_is_asked() {
    let lab = Lab::new();
    let worker = lab.mesh.node(7);
    lab.coordinator.tell("ocr", worker.sign(&["ocr"], 1, clock::unix().plus(LIFE)));
    let settings = Settings { table: false, ..lab.settings(OverlayIp([127, 0, 10, 1].into())) };
    let a = lab.start(&lab.mesh, lab.mesh.node(1), &settings);
    a.publish(&["asr"]);

    let first = a.handle.find(&service("ocr")).await.unwrap();
    let second = a.handle.find(&service("ocr")).await.unwrap();
    let nobody = a.handle.find(&service("asr")).await;
    let resolved = a.handle.resolve(worker.address()).await.unwrap();

    assert_eq!((first.workers[0].id(), first.source), (worker.id(), Source::Http));
    assert_eq!(second.source, Source::Cache);
    assert!(nobody.is_none());
    assert_eq!(resolved.id(), worker.id());
    let counters = a.handle.counters();
    assert_eq!((counters.dht_lookups, counters.http_lookups), (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_worker_is_not_offered_from_memory_with_or_without_the_table() {
    let lab = Lab::new();
    let worker = lab.mesh.node(7);
    lab.coordinator.tell("ocr", worker.sign(&["ocr"], 1, clock::unix().plus(LIFE)));
    let settings = Settings { table: false, ..lab.settings(OverlayIp([127, 0, 10, 1].into())) };
    let a = lab.start(&lab.mesh, lab.mesh.node(1), &settings);
    assert!(a.handle.find(&service("ocr")).await.is_some());

    lab.mesh.revoke(RevocationList { number: 1, identities: [worker.id()].into(), ..RevocationList::default() });

    assert!(a.handle.find(&service("ocr")).await.is_none());
    a.handle.trust_changed();
    assert_eq!((a.handle.status().services, a.handle.status().records), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_table_knows_nobody_the_coordinator_is_asked_and_then_the_table_again() {
    let lab = Lab::new();
    let (a, b) = (lab.member(1), lab.member(2));
    lab.coordinator.tell("ocr", b.sign(&["ocr"], LIFE));
    let by_http = a.find("ocr").await;

    a.knows(&[&b]);
    b.publish(&["asr"]);
    let by_table = a.find("asr").await;

    assert_eq!((by_http.source, by_table.source), (Source::Http, Source::Dht));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_coordinator_forges_is_not_believed() {
    let (lab, other) = (Lab::new(), Mesh::at(clock::unix()));
    let a = lab.member(1);
    lab.coordinator.tell("ocr", other.node(2).sign(&["ocr"], 1, clock::unix().plus(LIFE)));

    assert!(a.handle.find(&service("ocr")).await.is_none());
    assert_eq!(a.handle.status().rejected.get("another_authority"), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_does_not_make_every_question_wait() {
    let lab = Lab::new();
    let (a, b) = (lab.member(1), lab.member(2));
    a.publish(&["ocr"]);
    let dead = lab.mesh.node(9);
    // Somebody who looks like a member and never answers: a socket that is bound and not read.
    let _deaf = std::net::UdpSocket::bind(SocketAddr::new(dead.address().0, lab.port)).unwrap();
    b.handle.add_contacts(&[dead.sign(&[], 1, clock::unix().plus(LIFE)), a.sign(&["ocr"], LIFE)]);

    let found = b.find("ocr").await;
    eventually("the dead one is known to be", || b.handle.status().absent == 1).await;
    let others = b.handle.find(&service("asr")).await;

    assert_eq!(found.workers[0].id(), a.node.id());
    assert!(others.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozen_members_know_all_workers() {
    let lab = Lab::new();
    let mut members = Vec::new();
    for n in 1..=12 {
        let member = lab.member(n);
        if let Some(first) = members.first() {
            member.knows(&[first]);
        }
        member.publish(&["ocr"]);
        members.push(member);
    }

    for member in &members {
        assert_eq!(member.find_all("ocr", 12).await.workers.len(), 12);
    }
    let last = &members.last().unwrap().handle;
    eventually("most storers have taken the last one's record", || last.status().stored_by >= 4).await;
    assert!(last.status().average_lookup_ms.is_some());
}

fn service(name: &str) -> Offer {
    Offer::Service(name.parse().unwrap())
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = clock::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not so");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A mesh on loopback, and its coordinator.
struct Lab {
    mesh: Mesh,
    port: u16,
    coordinator: Arc<Coordinator>,
}

/// A running directory.
struct Member {
    node: Node,
    handle: Handle,
    tasks: Tasks,
    latest: Mutex<Signed<NodeRecord>>,
    coordinator: Arc<Coordinator>,
}

/// Tells what it was told.
#[derive(Default)]
struct Coordinator {
    workers: Mutex<Vec<(Offer, Signed<NodeRecord>)>>,
    asked: AtomicUsize,
}

impl Lab {
    fn new() -> Lab {
        // RUST_LOG=wiremesh=debug shows what the members do; nothing is printed without it.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let free = std::net::UdpSocket::bind("127.0.10.1:0").unwrap().local_addr().unwrap().port();
        Lab { mesh: Mesh::at(clock::unix()), port: free, coordinator: Arc::default() }
    }

    fn settings(&self, address: OverlayIp) -> Settings {
        // The deadline is for busy test machines; the default is tried where time matters.
        Settings { port: self.port, deadline: Duration::from_secs(2), ..Settings::at(address) }
    }

    fn member(&self, n: u8) -> Member {
        self.member_of(&self.mesh, self.mesh.node(n))
    }

    fn member_of(&self, mesh: &Mesh, node: Node) -> Member {
        let settings = self.settings(node.address());
        self.start(mesh, node, &settings)
    }

    fn start(&self, mesh: &Mesh, node: Node, settings: &Settings) -> Member {
        let tasks = Tasks::new();
        let discover = self.coordinator.clone();
        let handle = start(settings, mesh.store.clone(), &node.identity, &node.chain, discover, &tasks).unwrap();
        let coordinator = self.coordinator.clone();
        let latest = Mutex::new(node.sign(&[], 0, clock::unix().plus(LIFE)));
        Member { node, handle, tasks, latest, coordinator }
    }
}

impl Member {
    fn knows(&self, others: &[&Member]) {
        let records: Vec<_> = others.iter().map(|other| other.latest.lock().unwrap().clone()).collect();
        assert_eq!(self.handle.add_contacts(&records), others.len());
    }

    fn sign(&self, services: &[&str], life: Duration) -> Signed<NodeRecord> {
        let order = SIGNED.fetch_add(1, Ordering::Relaxed);
        let signed = self.node.sign(services, order as u64, clock::unix().plus(life));
        *self.latest.lock().unwrap() = signed.clone();
        signed
    }

    fn publish(&self, services: &[&str]) {
        self.publish_for(services, LIFE);
    }

    fn publish_for(&self, services: &[&str], life: Duration) {
        self.handle.publish(&self.sign(services, life)).unwrap();
    }

    /// Asks until somebody is found: what was just published is on its way.
    async fn find(&self, name: &str) -> Answer {
        self.find_all(name, 1).await
    }

    async fn find_all(&self, name: &str, workers: usize) -> Answer {
        let begun = clock::now();
        loop {
            self.handle.shared.memory().fingers = Fingers::default();
            let found = self.handle.find(&service(name)).await;
            if let Some(answer) = found.filter(|answer| answer.workers.len() >= workers) {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody offers {name}: {:?}", self.handle.status());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn asked_over_http(&self) -> usize {
        self.coordinator.asked.load(Ordering::Relaxed)
    }

    /// Stops without having withdrawn anything.
    async fn kill(self) {
        assert!(self.tasks.drain(PATIENCE).await);
    }
}

impl Discover for Coordinator {
    fn discover<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, anyhow::Result<Vec<Signed<NodeRecord>>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let workers = self.workers.lock().unwrap();
        let offering = workers.iter().filter(|(offered, _)| offered == offer).map(|(_, record)| record.clone());
        let offering: Vec<_> = offering.collect();
        async move { Ok(offering) }.boxed()
    }

    fn node<'a>(&'a self, _: &'a Sought) -> BoxFuture<'a, anyhow::Result<Option<Signed<NodeRecord>>>> {
        let any = self.workers.lock().unwrap().first().map(|(_, record)| record.clone());
        async move { Ok(any) }.boxed()
    }
}

impl Coordinator {
    fn tell(&self, name: &str, record: Signed<NodeRecord>) {
        self.workers.lock().unwrap().push((service(name), record));
    }
}
