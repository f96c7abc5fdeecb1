use wiremesh_certs::{Policy, RevocationList, Rule};

use super::*;
use crate::directory::entry::testing::{LIFE, Mesh, T0, t0};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn ten_requests_are_one_lookup_and_nine_hits() {
    let mut asker = Asker::new();
    let found = asker.offers(1, 0);

    let Asked::Look(lookup) = asker.ask() else { panic!("nothing is known yet") };
    asker.fingers.on_asked(Source::Dht);
    let first = asker.end(lookup, Outcome::Found(vec![found], Source::Dht)).unwrap();
    for _ in 0..9 {
        assert!(matches!(asker.ask(), Asked::Now(answer, None) if answer.source == Source::Cache));
    }

    let counters = asker.fingers.counters();
    assert_eq!(first.source, Source::Dht);
    assert_eq!((counters.cache_hits, counters.cache_misses, counters.dht_lookups, counters.refreshes), (9, 1, 1, 0));
}

#[test]
fn however_many_ask_one_lookup_runs() {
    let mut asker = Asker::new();

    let Asked::Look(lookup) = asker.ask() else { panic!("nothing is known yet") };
    let waiting = (0..20).filter(|_| matches!(asker.ask(), Asked::Wait(id) if id == lookup)).count();

    assert_eq!(waiting, 20);
}

#[test]
fn a_stale_answer_is_given_at_once_and_refreshed_behind_once() {
    let mut asker = Asker::knowing(&[1]);
    asker.pass(FRESH_FOR + SECOND);

    let Asked::Now(answer, Some(lookup)) = asker.ask() else { panic!("stale is better than waiting") };
    let again = asker.ask();
    let refreshed = asker.offers(1, 61);
    asker.end(lookup, Outcome::Found(vec![refreshed], Source::Dht));

    assert_eq!(answer.age, FRESH_FOR + SECOND);
    assert!(matches!(again, Asked::Now(_, None)));
    assert!(matches!(asker.ask(), Asked::Now(answer, None) if answer.age == Duration::ZERO));
    assert_eq!((asker.fingers.counters().cache_misses, asker.fingers.counters().refreshes), (1, 1));
}

#[test]
fn workers_whose_record_has_expired_are_not_offered_while_anybody_can_be_asked() {
    let mut asker = Asker::knowing(&[1]);
    asker.pass(LIFE + SECOND);

    let Asked::Look(lookup) = asker.ask() else { panic!("the only worker has expired") };

    assert!(asker.end(lookup, Outcome::Nobody).is_none());
    assert!(matches!(asker.ask(), Asked::Nobody));
}

#[test]
fn expired_workers_are_offered_when_nobody_can_be_asked() {
    let mut asker = Asker::knowing(&[1]);
    asker.pass(LIFE + SECOND);

    let Asked::Look(lookup) = asker.ask() else { panic!("the only worker has expired") };
    let told = asker.end(lookup, Outcome::Unreachable).unwrap();
    let next = asker.ask();
    asker.pass(MISSING_FOR);

    assert_eq!((told.workers.len(), told.source), (1, Source::Cache));
    assert!(matches!(next, Asked::Now(_, None)), "and without a lookup for every question");
    assert!(matches!(asker.ask(), Asked::Look(_)), "but before long somebody is asked again");
}

#[test]
fn a_service_nobody_offers_is_asked_for_again_soon() {
    let mut asker = Asker::new();
    let Asked::Look(lookup) = asker.ask() else { panic!("nothing is known yet") };
    asker.end(lookup, Outcome::Nobody);

    assert!(matches!(asker.ask(), Asked::Nobody));
    asker.pass(MISSING_FOR);
    assert!(matches!(asker.ask(), Asked::Look(_)));
    assert_eq!(asker.fingers.counters().missing_hits, 1);
}

#[test]
fn only_the_worker_that_failed_is_forgotten() {
    let mut asker = Asker::knowing(&[1, 2]);
    let failed = asker.nodes[&1].address();

    asker.fingers.forget(&ocr(), &asker.id(1), asker.now);

    let Asked::Now(answer, None) = asker.ask() else { panic!("the other is still known") };
    assert_eq!(answer.workers.len(), 1);
    assert_ne!(answer.workers[0].address(), failed);
}

#[test]
fn a_failed_worker_comes_back_by_a_later_record_and_not_by_the_same() {
    let mut asker = Asker::knowing(&[1, 2]);
    asker.fingers.forget(&ocr(), &asker.id(1), asker.now);
    let (same, later) = (asker.offers(1, 0), asker.offers(1, 5));

    asker.fingers.on_more(&ocr(), &[same], &asker.mesh.trust(), T0, asker.now);
    let before = asker.workers();
    asker.fingers.on_more(&ocr(), &[later], &asker.mesh.trust(), T0, asker.now);

    assert_eq!((before, asker.workers()), (1, 2));
}

#[test]
fn a_failed_worker_that_is_heard_of_again_is_back_without_being_asked_for() {
    let mut asker = Asker::knowing(&[1, 2]);
    asker.fingers.forget(&ocr(), &asker.id(1), asker.now);
    let (same, later, stranger) = (asker.offers(1, 0), asker.offers(1, 5), asker.offers(3, 5));

    asker.fingers.observe(&same, &asker.mesh.trust());
    asker.fingers.observe(&stranger, &asker.mesh.trust());
    let before = asker.workers();
    asker.fingers.observe(&later, &asker.mesh.trust());

    assert_eq!((before, asker.workers()), (1, 2));
}

#[test]
fn forgetting_the_last_worker_asks_anew() {
    let mut asker = Asker::knowing(&[1]);

    asker.fingers.forget(&ocr(), &asker.id(1), asker.now);

    assert!(matches!(asker.ask(), Asked::Look(_)));
}

#[test]
fn a_withdrawal_takes_a_worker_out() {
    let mut asker = Asker::knowing(&[1, 2]);
    let withdrawn = asker.nodes[&1].offering(&[], 7);

    asker.fingers.observe(&withdrawn, &asker.mesh.trust());

    assert_eq!(asker.workers(), 1);
}

#[test]
fn a_withdrawal_in_an_answer_wins_over_an_older_offer_in_it() {
    let mut asker = Asker::knowing(&[1]);
    asker.pass(FRESH_FOR);
    let Asked::Now(_, Some(lookup)) = asker.ask() else { panic!("stale") };
    let withdrawn = asker.nodes[&1].offering(&[], 7);

    let told = asker.end(lookup, Outcome::Found(vec![withdrawn], Source::Dht));

    assert!(told.is_none());
}

#[test]
fn who_is_revoked_or_may_not_offer_it_by_policy_is_in_no_answer_however_fresh() {
    let mut asker = Asker::knowing(&[1, 2, 3, 4]);
    let revoked = asker.id(4);

    asker.mesh.revoke(RevocationList {
        number: 1,
        identities: [revoked].into(),
        policy: for_even(),
        ..Default::default()
    });
    let Asked::Now(answer, _) = asker.ask() else { panic!("the second may") };
    asker.mesh.revoke(RevocationList { number: 2, policy: for_nobody(), ..Default::default() });

    assert_eq!(answer.workers.iter().map(Entry::id).collect::<Vec<_>>(), [asker.id(2)]);
    assert!(matches!(asker.ask(), Asked::Look(_)), "others may be known elsewhere");
}

#[test]
fn a_worker_found_where_others_do_not_apply_the_policy_is_not_taken_over() {
    let mut asker = Asker::new();
    asker.mesh.revoke(RevocationList { number: 1, policy: for_even(), ..Default::default() });
    let found = vec![asker.offers(1, 0), asker.offers(2, 0)];

    let Asked::Look(lookup) = asker.ask() else { panic!("nothing is known yet") };
    let told = asker.end(lookup, Outcome::Found(found, Source::Http)).unwrap();

    assert_eq!(told.workers.iter().map(Entry::id).collect::<Vec<_>>(), [asker.id(2)]);
}

#[test]
fn after_a_change_of_policy_answers_are_asked_for_again_soon_for_a_while() {
    let mut asker = Asker::knowing(&[1]);
    asker.fingers.on_trust_changed(asker.now);
    asker.pass(MISSING_FOR);

    let Asked::Now(_, Some(lookup)) = asker.ask() else { panic!("others may offer it now") };
    let newcomer = asker.offers(2, 5);
    asker.end(lookup, Outcome::Found(vec![newcomer], Source::Dht));
    asker.pass(SETTLES_WITHIN);

    assert!(matches!(asker.ask(), Asked::Now(answer, None) if answer.workers.len() == 2));
}

#[test]
fn memory_is_bounded() {
    let mut asker = Asker::new();

    for n in 0..MAX_OFFERS + 10 {
        asker.now += SECOND;
        asker.fingers.ask(&offer(&format!("s{n}")), &asker.mesh.trust(), T0, asker.now);
    }

    assert_eq!(asker.fingers.offers.len(), MAX_OFFERS);
    assert!(!asker.fingers.offers.contains_key(&offer("s0")), "the oldest is out");
}

/// Only members of this group may offer anything.
fn for_even() -> Policy {
    Policy { otherwise: Rule { offer: Some(["even".parse().unwrap()].into()), call: None }, ..Policy::default() }
}

fn for_nobody() -> Policy {
    Policy { otherwise: Rule { offer: Some([].into()), call: None }, ..Policy::default() }
}

fn ocr() -> Offer {
    offer("ocr")
}

fn offer(service: &str) -> Offer {
    Offer::Service(service.parse().unwrap())
}

/// Someone who asks for one service, with time in hand.
struct Asker {
    mesh: Mesh,
    nodes: BTreeMap<u8, crate::directory::entry::testing::Node>,
    fingers: Fingers,
    unix: UnixTime,
    now: Instant,
}

impl Asker {
    fn new() -> Asker {
        Asker { mesh: Mesh::new(), nodes: BTreeMap::new(), fingers: Fingers::default(), unix: T0, now: t0() }
    }

    fn knowing(workers: &[u8]) -> Asker {
        let mut asker = Asker::new();
        let found = workers.iter().map(|n| asker.offers(*n, 0)).collect();
        let Asked::Look(lookup) = asker.ask() else { panic!("nothing is known yet") };
        asker.end(lookup, Outcome::Found(found, Source::Dht)).unwrap();
        asker
    }

    fn offers(&mut self, n: u8, second: u64) -> Entry {
        self.nodes.entry(n).or_insert_with(|| self.mesh.node(n)).offering(&["ocr"], second)
    }

    fn id(&self, n: u8) -> NodeId {
        self.nodes[&n].id()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.unix = self.unix.plus(time);
    }

    fn ask(&mut self) -> Asked {
        self.fingers.ask(&ocr(), &self.mesh.trust(), self.unix, self.now)
    }

    fn end(&mut self, lookup: LookupId, outcome: Outcome) -> Option<Answer> {
        self.fingers.on_outcome(&ocr(), lookup, outcome, &self.mesh.trust(), self.unix, self.now)
    }

    fn workers(&mut self) -> usize {
        match self.ask() {
            Asked::Now(answer, _) => answer.workers.len(),
            _ => 0,
        }
    }
}
