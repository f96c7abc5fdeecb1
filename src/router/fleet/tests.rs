use wiremesh_certs::Load;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const WORKER: NodeId = NodeId([1; 32]);

#[test]
fn a_request_is_in_flight_until_its_end_and_no_longer() {
    let mut it = Bench::new();

    let first = it.dispatch();
    let second = it.dispatch();
    assert_eq!((it.view().own, it.view().estimate), (2, 2.0));
    it.fleet.on_end(first, Ended::Well, it.now);
    it.fleet.on_end(second, Ended::Otherwise, it.now);

    assert_eq!((it.view().own, it.view().estimate), (0, 0.0));
    assert!(it.view().is_idle());
}

#[test]
fn what_is_in_flight_is_the_report_and_what_we_sent_since() {
    let mut it = Bench::new();
    let before = it.dispatch();
    it.report(3, 2);
    let after = it.dispatch();
    let kappa = it.view().kappa;
    assert_eq!(it.view().estimate, 5.0 + kappa);

    it.fleet.on_end(after, Ended::Well, it.now);
    assert_eq!(it.view().estimate, 5.0, "what came after the report and ended is out of both");
    it.fleet.on_end(before, Ended::Well, it.now);
    assert_eq!(it.view().estimate, 4.0, "what the report counts and ended is out of it");
}

#[test]
fn a_worker_whose_answer_counted_the_answered_request_is_idle_after_it() {
    let mut it = Bench::new();
    let dispatch = it.dispatch();
    let work = Work { load: Load::from_share(0.25), ..work(1, 0) };

    it.fleet.on_head(&dispatch, Some(work), it.now);
    assert!(!it.view().is_idle());
    it.fleet.on_end(dispatch, Ended::Well, it.now);

    assert!(it.view().is_idle());
    assert_eq!(it.view().load, Some(Load::default()));
}

#[test]
fn kappa_is_one_over_our_part_of_a_workers_work_between_1_and_3() {
    for (own, all, kappa) in [(4, 4, 1.0), (2, 4, 2.0), (1, 50, 3.0), (3, 0, 1.0)] {
        let mut it = Bench::new();
        let held: Vec<Dispatch> = (0..own).map(|_| it.dispatch()).collect();
        assert_eq!(it.view().kappa, 1.0, "before the first report we are alone");

        (0..10).for_each(|_| it.report(all, 0));

        assert_eq!(it.view().kappa, kappa, "{own} of {all}");
        drop(held);
    }
}

#[test]
fn a_report_counts_less_and_less_once_three_did_not_come() {
    let mut it = Bench::new();
    it.report(8, 0);

    it.now += FRESH_FOR;
    assert_eq!((it.view().estimate, it.view().trust), (8.0, 1.0));
    it.now += DOUBT_HALF_LIFE;
    assert_eq!(it.view().estimate, 4.0);
    it.now += 60 * SECOND;

    assert!(it.view().is_idle());
    assert_eq!(it.view().load, None);
}

#[test]
fn a_service_time_nobody_reports_is_learned_from_requests_less_their_wait() {
    let mut it = Bench::new();
    it.fleet.on_report(&it.service, WORKER, Work { capacity: 1, service_time_ms: 0, ..work(1, 0) }, it.now);

    let dispatch = it.dispatch();
    it.now += 4 * SECOND;
    it.fleet.on_end(dispatch, Ended::Well, it.now);
    assert_eq!(it.view().service_time, Some(2.0), "one was before it");

    it.fleet.on_report(&it.service, WORKER, work(0, 0), it.now);
    assert_eq!(it.view().service_time, Some(1.0), "the worker knows better");
}

#[test]
fn what_fails_teaches_no_service_time() {
    let mut it = Bench::new();
    let dispatch = it.dispatch();

    it.fleet.on_end(dispatch, Ended::Failed(Blame::Service), it.now);

    assert_eq!((it.view().service_time, it.view().failures), (None, 1.0));
}

#[test]
fn failures_of_a_path_a_worker_and_a_service_are_kept_apart() {
    let mut it = Bench::new();
    let other: ServiceName = "other".parse().unwrap();
    it.fleet.consider(&other, WORKER, it.now);

    it.fleet.on_failure(&it.service, WORKER, Blame::Path(Path::Overlay), it.now);
    it.fleet.on_failure(&it.service, WORKER, Blame::Service, it.now);
    it.fleet.on_failure(&it.service, WORKER, Blame::Worker, it.now);

    let view = it.view();
    assert_eq!((view.failures, view.path_failures(Path::Overlay), view.path_failures(Path::Tunnel)), (2.0, 1.0, 0.0));
    assert_eq!(it.fleet.consider(&other, WORKER, it.now).failures, 1.0);
    it.now += Fading::HALF_LIFE;
    assert_eq!(it.view().failures, 1.0);
}

#[test]
fn a_retry_after_is_believed_up_to_a_minute() {
    let mut it = Bench::new();

    it.fleet.on_full(&it.service, WORKER, 86_400 * SECOND, it.now);

    assert_eq!(it.view().full_for, Some(MAX_RETRY_AFTER));
    it.now += MAX_RETRY_AFTER;
    assert_eq!(it.view().full_for, None);
}

#[test]
fn a_worker_is_new_for_half_a_minute() {
    let mut it = Bench::new();
    assert_eq!(it.view().weight, LEAST_WEIGHT);

    it.now += SLOW_START / 2;
    assert_eq!(it.view().weight, 0.5);
    it.now += SLOW_START;
    assert_eq!(it.view().weight, 1.0);
}

#[test]
fn the_round_trip_is_the_measured_one_or_that_of_connections() {
    let mut it = Bench::new();
    assert_eq!(it.view().rtt(Path::Overlay), 0.0);

    let dispatch = it.dispatch();
    it.fleet.on_connect(&dispatch, SECOND / 10, it.now);
    assert_eq!(it.view().rtt(Path::Overlay), 0.1);
    it.fleet.on_rtt(&it.service, WORKER, Path::Overlay, SECOND / 20, it.now);

    assert_eq!((it.view().rtt(Path::Overlay), it.view().rtt(Path::Tunnel)), (0.05, 0.0));
    it.fleet.on_end(dispatch, Ended::Otherwise, it.now);
}

#[test]
fn who_is_wanted_and_silent_is_asked_and_again_after_as_long() {
    let mut it = Bench::new();
    it.report(0, 0);
    assert_eq!(it.fleet.poll_question(it.now + FRESH_FOR / 2), None);

    assert!(!it.fleet.take_missed());
    it.now += FRESH_FOR;
    it.view();
    assert!(it.fleet.take_missed() && !it.fleet.take_missed());
    assert_eq!(it.fleet.poll_question(it.now), Some((it.service.clone(), WORKER)));
    assert_eq!(it.fleet.poll_question(it.now), None);
    it.now += FRESH_FOR;
    assert!(it.fleet.poll_question(it.now).is_some());

    // That it answers does not make it wanted.
    it.report(0, 0);
    it.now += WANTED_FOR - FRESH_FOR;
    assert_eq!(it.fleet.poll_question(it.now), None, "nobody wants it");
}

#[test]
fn knowledge_is_bounded_and_the_unused_goes_first_and_takes_no_later_request_with_it() {
    let mut it = Bench::new();
    let held = it.dispatch();
    let idle = NodeId([2; 32]);
    it.fleet.consider(&it.service, idle, it.now);
    let fill = |it: &mut Bench, from: usize| {
        for number in 0..MAX_KNOWN {
            it.now += SECOND;
            let mut id = [from as u8; 32];
            id[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
            let other = it.fleet.on_dispatch(&it.service, NodeId(id), Path::Overlay, it.now);
            assert!(it.fleet.len() <= MAX_KNOWN);
            drop(other);
        }
    };

    fill(&mut it, 3);
    assert!(!it.fleet.services[&it.service].contains_key(&idle));
    fill(&mut it, 4);
    let after = it.dispatch();
    it.fleet.on_end(held, Ended::Well, it.now);

    assert_eq!(it.view().own, 1, "the end of a forgotten request is not that of another");
    it.fleet.on_end(after, Ended::Well, it.now);
    assert_eq!(it.view().own, 0);
}

#[test]
fn a_clock_that_seems_to_go_back_breaks_nothing() {
    let mut it = Bench::new();
    it.now += 60 * SECOND;
    let dispatch = it.dispatch();
    it.report(2, 0);
    it.now -= 30 * SECOND;

    assert!(it.view().estimate.is_finite());
    it.fleet.on_end(dispatch, Ended::Well, it.now);
    assert!(it.view().service_time.is_some_and(|seconds| seconds >= 0.0));
}

/// One worker, looked at from one agent.
struct Bench {
    fleet: Fleet,
    service: ServiceName,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        Bench { fleet: Fleet::default(), service: "llm".parse().unwrap(), now: crate::clock::now() }
    }

    fn dispatch(&mut self) -> Dispatch {
        self.fleet.on_dispatch(&self.service, WORKER, Path::Overlay, self.now)
    }

    fn report(&mut self, running: u32, queued: u32) {
        self.fleet.on_report(&self.service, WORKER, work(running, queued), self.now);
    }

    fn view(&mut self) -> View {
        self.fleet.consider(&self.service, WORKER, self.now)
    }
}

fn work(running: u32, queued: u32) -> Work {
    Work { capacity: 4, running, queued, load: Load::default(), service_time_ms: 1000, state: State::Ready }
}
