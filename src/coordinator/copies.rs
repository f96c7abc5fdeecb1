//! Which identity is used by two machines at once: a state directory was copied, or stolen.
//!
//! Each run of an agent draws an instance number and says it with every heartbeat. A restart brings a new one, and the
//! one before never speaks again. Two machines with the same keys speak in turn:
//!
//! ```text
//! A A A B B B      a restart, or a machine that moved
//! A A B A          A is back after B had begun: both run
//! A A B a          a heartbeat of A that was under way when A ended: made before B began, and heard once
//! ```
//!
//! What tells the last two apart is the record in the heartbeat: its sequence is the time at which it was made. One that
//! was made after B began cannot have been under way. A clock that is behind hides that; then the second return tells.
//!
//! Where requests come from, and the numbers that proofs are used with, tell nothing: a laptop moves, and two machines
//! never draw the same number.
//!
//! **Invariant:** a restart alone, however often, is never taken for a copy.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use wiremesh_certs::{NodeId, UnixTime};

use crate::api::{Copied, Instance};

/// Runs remembered of one member besides the one heard last. An agent that was restarted more often within the life of
/// a heartbeat has other troubles.
pub const MAX_EARLIER: usize = 4;
/// So long after the two were last heard in turn it is over: one of them was stopped. In heartbeats, and at least
/// [`ENDS_AFTER_AT_LEAST`].
pub const ENDS_AFTER_INTERVALS: u32 = 4;
/// The same, where heartbeats are frequent.
pub const ENDS_AFTER_AT_LEAST: Duration = Duration::from_secs(10);
/// Members not heard for so long are forgotten; what they hold here is rebuilt when they speak.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// Returns of a run that its last words, still under way, can be the reason for.
const LATE_AT_MOST: u32 = 1;

/// The runs of all members.
#[derive(Debug)]
pub struct Copies {
    interval: Duration,
    members: BTreeMap<NodeId, Runs>,
}

#[derive(Debug)]
struct Runs {
    last: Run,
    /// Newest first.
    earlier: VecDeque<Run>,
    episode: Option<Episode>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    instance: Instance,
    /// The sequence of the first record it was heard with.
    began_at: u64,
    from: IpAddr,
    heard_at: UnixTime,
    /// How often it was heard after another had begun.
    returns: u32,
}

#[derive(Clone, Copy, Debug)]
struct Episode {
    since: UnixTime,
    renewed_at: UnixTime,
}

/// What a heartbeat says about copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Heard {
    /// The other one, for whoever was heard.
    pub copied: Option<Copied>,
    /// Whether it was found out with this very heartbeat: worth a word to the operator.
    pub is_news: bool,
}

impl Copies {
    /// Nobody was heard yet.
    pub fn new(interval: Duration) -> Copies {
        Copies { interval, members: BTreeMap::new() }
    }

    /// A process says that it is `identity`, with a record of this sequence.
    pub fn handle_heartbeat(
        &mut self,
        identity: NodeId,
        instance: Instance,
        from: IpAddr,
        sequence: u64,
        now: UnixTime,
    ) -> Heard {
        let run = Run { instance, began_at: sequence, from, heard_at: now, returns: 0 };
        let ends_after = self.ends_after();
        let runs = self.members.entry(identity).or_insert_with(|| Runs::new(run));
        runs.expire(ends_after, now);
        let is_news = runs.handle(run, now);
        Heard { copied: runs.other_than(instance), is_news }
    }

    /// How it stands with a member: where it was last heard from besides the last place, if it is used twice.
    pub fn of(&self, identity: &NodeId, now: UnixTime) -> Option<Copied> {
        let runs = self.members.get(identity)?;
        runs.is_open(self.ends_after(), now).then(|| runs.other_than(runs.last.instance)).flatten()
    }

    /// How many members are used twice.
    pub fn count(&self, now: UnixTime) -> usize {
        let ends_after = self.ends_after();
        self.members.values().filter(|runs| runs.is_open(ends_after, now)).count()
    }

    /// Forgets a member: its identity is no longer one.
    pub fn remove(&mut self, identity: &NodeId) {
        self.members.remove(identity);
    }

    /// Forgets whoever was not heard for long.
    pub fn sweep(&mut self, now: UnixTime) {
        self.members.retain(|_, runs| now.saturating_since(runs.last.heard_at) < FORGOTTEN_AFTER);
    }

    fn ends_after(&self) -> Duration {
        (self.interval * ENDS_AFTER_INTERVALS).max(ENDS_AFTER_AT_LEAST)
    }
}

impl Runs {
    fn new(run: Run) -> Runs {
        Runs { last: run, earlier: VecDeque::new(), episode: None }
    }

    /// True if this is how it is found out that two are heard in turn.
    fn handle(&mut self, run: Run, now: UnixTime) -> bool {
        if self.last.instance == run.instance {
            self.last = Run { began_at: self.last.began_at, returns: self.last.returns, ..run };
            return false;
        }
        let Some(at) = self.earlier.iter().position(|earlier| earlier.instance == run.instance) else {
            self.succeed(run);
            return false;
        };
        let known = &mut self.earlier[at];
        known.returns = known.returns.saturating_add(1);
        let was_under_way = run.began_at <= self.last.began_at && known.returns <= LATE_AT_MOST;
        if was_under_way {
            return false;
        }
        let back = Run { began_at: known.began_at, returns: known.returns, ..run };
        self.earlier.remove(at);
        self.succeed(back);
        let known = self.episode.map(|episode| episode.since);
        self.episode = Some(Episode { since: known.unwrap_or(now), renewed_at: now });
        known.is_none()
    }

    fn succeed(&mut self, run: Run) {
        self.earlier.push_front(std::mem::replace(&mut self.last, run));
        self.earlier.truncate(MAX_EARLIER);
    }

    fn expire(&mut self, ends_after: Duration, now: UnixTime) {
        if self.episode.is_some() && !self.is_open(ends_after, now) {
            self.episode = None;
        }
    }

    fn is_open(&self, ends_after: Duration, now: UnixTime) -> bool {
        self.episode.is_some_and(|episode| now.saturating_since(episode.renewed_at) < ends_after)
    }

    /// The one heard last of all others.
    fn other_than(&self, instance: Instance) -> Option<Copied> {
        let since = self.episode?.since;
        let others = std::iter::once(&self.last).chain(&self.earlier).filter(|run| run.instance != instance);
        let other = others.max_by_key(|run| run.heard_at)?;
        Some(Copied { seen_from: other.from, last_seen: other.heard_at, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixTime = UnixTime(1_800_000_000);
    const INTERVAL: Duration = Duration::from_secs(10);
    const ME: NodeId = NodeId([1; 32]);
    const A: Instance = Instance([1; 16]);
    const B: Instance = Instance([2; 16]);

    /// A coordinator that hears heartbeats `seconds` after the beginning, each with a record made at that time.
    struct Scene(Copies);

    impl Scene {
        fn new() -> Scene {
            Scene(Copies::new(INTERVAL))
        }

        fn beat(&mut self, instance: Instance, seconds: u64) -> Heard {
            self.beat_made(instance, seconds, seconds)
        }

        fn beat_made(&mut self, instance: Instance, made: u64, seconds: u64) -> Heard {
            let from = IpAddr::from([203, 0, 113, instance.0[0]]);
            self.0.handle_heartbeat(ME, instance, from, (T0.0 + made) * 1000, at(seconds))
        }
    }

    fn at(seconds: u64) -> UnixTime {
        T0.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn restarts_are_never_taken_for_a_copy() {
        let mut scene = Scene::new();

        for n in 0..50 {
            let heard = scene.beat(Instance([n; 16]), u64::from(n));
            assert_eq!(heard, Heard { copied: None, is_news: false }, "{n}");
        }
        assert_eq!(scene.0.members[&ME].earlier.len(), MAX_EARLIER);
    }

    #[test]
    fn the_last_words_of_a_run_that_arrive_after_the_next_began_are_no_copy() {
        let mut scene = Scene::new();
        scene.beat(A, 0);
        scene.beat(B, 5);

        let late = scene.beat_made(A, 4, 6);

        assert_eq!(late.copied, None);
        assert_eq!(scene.beat(B, 15).copied, None);
        assert_eq!(scene.0.count(at(15)), 0);
    }

    #[test]
    fn two_that_speak_in_turn_are_told_of_one_another_and_the_operator_once() {
        let mut scene = Scene::new();
        scene.beat(A, 0);
        scene.beat(B, 5);

        let found = scene.beat(A, 10);
        let told = scene.beat(B, 15);

        assert!(found.is_news && !told.is_news);
        let other = |heard: Heard| heard.copied.map(|copied| (copied.seen_from, copied.since));
        assert_eq!(other(found), Some((IpAddr::from([203, 0, 113, 2]), at(10))));
        assert_eq!(other(told), Some((IpAddr::from([203, 0, 113, 1]), at(10))));
        assert_eq!((scene.0.count(at(16)), scene.0.of(&ME, at(16)).is_some()), (1, true));
    }

    #[test]
    fn a_copy_with_a_clock_that_is_behind_is_found_at_its_second_return() {
        let mut scene = Scene::new();
        scene.beat_made(B, 0, 0);
        scene.beat_made(A, 4000, 5);

        let first = scene.beat_made(B, 10, 10);
        let second = scene.beat_made(B, 20, 20);

        assert_eq!(first.copied, None);
        assert!(second.is_news);
    }

    #[test]
    fn it_ends_when_one_of_them_is_stopped() {
        let mut scene = Scene::new();
        scene.beat(A, 0);
        scene.beat(B, 5);
        scene.beat(A, 10);
        let ends = 10 + u64::from(ENDS_AFTER_INTERVALS) * INTERVAL.as_secs();

        assert!(scene.beat(A, ends - 1).copied.is_some());
        assert_eq!(scene.beat(A, ends).copied, None);
        assert_eq!(scene.0.count(at(ends)), 0);
        // The other is back: it is another episode.
        assert!(scene.beat(B, ends + 10).is_news);
    }

    #[test]
    fn whoever_is_silent_or_removed_is_forgotten() {
        let mut scene = Scene::new();
        scene.beat(A, 0);
        scene.0.sweep(at(FORGOTTEN_AFTER.as_secs()));
        assert!(scene.0.members.is_empty());

        scene.beat(A, 0);
        scene.0.remove(&ME);
        assert!(scene.0.members.is_empty());
    }
}
