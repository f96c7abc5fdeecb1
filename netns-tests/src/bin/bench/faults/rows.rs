//! The faults, and what is seen of each: one function each.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::ValueEnum;
use futures::{StreamExt, stream};
use netns_tests::eventually;
use nix::sys::signal::Signal;
use wiremesh::clock;

use super::{
    Place,
    client::{Seen, StreamSeen, Target},
    outcome::Outcome,
};
use crate::{
    routers::Mesh,
    upstream::{BREAKS_AFTER, Behaviour, Stream, nanos},
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// The workers answer 500
    Fails,
    /// The workers answer 429, and when to come again
    Busy,
    /// The worker crashes after reading a POST
    Crashes,
    /// The worker crashes after ten events of a stream
    Breaks,
    /// The client stalls while the worker sends 1 GB
    Stalls,
    /// The client leaves in the middle of a stream
    Leaves,
    /// One of two workers refuses connections
    Refuses,
    /// One of two workers hangs: its server is stopped
    Hangs,
    /// One of two workers hangs with all that runs on it (wiremesh)
    Freezes,
}

/// Questions when each is answered in the same way.
const FEW: u64 = 10;
const FEW_AT_ONCE: usize = 5;
/// Questions to two workers of which one is bad.
const MANY: u64 = 200;
const MANY_AT_ONCE: usize = 8;
/// How many are answered before a worker hangs.
const BEFORE_IT_HANGS: u64 = 40;
/// Faults that end a worker are tried so often.
const TRIES: u64 = 3;
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same while a worker hangs: those who wait for it are many.
const LITTLE_PATIENCE: Duration = Duration::from_secs(2);
/// Until a worker that crashed is used again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);
/// A client that stalls reads this first.
const READ_BEFORE_STALLING: usize = 64 * 1024;
const STALLS_FOR: Duration = Duration::from_secs(4);
/// A worker that is not told by then never is, for us.
const TOLD_LIMIT: Duration = Duration::from_secs(3);
/// Slow enough that nobody is told by an event that could not be passed on.
const SLOW_STREAM: Stream = Stream { every: Duration::from_secs(1), events: 60 };
/// What a worker that hung still does when it goes on.
const AFTERMATH: Duration = Duration::from_millis(700);

impl Fault {
    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Fault::Fails => "the workers answer 500",
            Fault::Busy => "the workers answer 429 with retry-after",
            Fault::Crashes => "the worker crashes after reading a POST",
            Fault::Breaks => "the worker crashes after ten events of a stream",
            Fault::Stalls => "the client stalls while the worker sends 1 GB",
            Fault::Leaves => "the client leaves in the middle of a stream",
            Fault::Refuses => "one of two workers refuses connections, 200 requests",
            Fault::Hangs => "one of two workers hangs (SIGSTOP), 200 requests",
            Fault::Freezes => "one of two workers hangs with its agent (SIGSTOP), 200 requests",
        }
    }

    /// What is seen of it through what is in place, which may be `mesh`.
    pub fn show(self, place: &mut Place, mesh: Option<&Mesh>) -> anyhow::Result<Outcome> {
        match self {
            Fault::Fails => place.same_answers(Behaviour::Fail),
            Fault::Busy => place.same_answers(Behaviour::Busy),
            Fault::Crashes => place.crashes(),
            Fault::Breaks => place.breaks(),
            Fault::Stalls => place.stalls(),
            Fault::Leaves => place.leaves(),
            Fault::Refuses => place.refuses(),
            Fault::Hangs => place.hangs(None),
            Fault::Freezes => place.hangs(mesh),
        }
    }
}

impl Place {
    fn same_answers(&mut self, behaviour: Behaviour) -> anyhow::Result<Outcome> {
        self.behave(behaviour, Stream::default())?;
        let numbers = self.numbers(FEW);
        let target = self.target;
        let seen = self.node.block_on(|| async move { Ok(ask_all(target, &numbers, FEW_AT_ONCE, PATIENCE).await) })?;
        self.executions(Outcome::of(seen.values().copied()), seen.keys())
    }

    fn crashes(&mut self) -> anyhow::Result<Outcome> {
        let mut seen = BTreeMap::new();
        for _ in 0..TRIES {
            self.recover()?;
            self.behave(Behaviour::Crash, Stream::default())?;
            let (target, number) = (self.target, self.number());
            seen.insert(number, self.node.block_on(|| async move { Ok(target.ask(number, PATIENCE).await) })?);
        }
        let outcome = self.executions(Outcome::of(seen.values().copied()), seen.keys())?;
        Ok(Outcome { at_most_once: true, ..outcome })
    }

    fn breaks(&mut self) -> anyhow::Result<Outcome> {
        let mut seen: BTreeMap<u64, StreamSeen> = BTreeMap::new();
        for _ in 0..TRIES {
            self.recover()?;
            self.behave(Behaviour::Break, Stream::default())?;
            let (target, number) = (self.target, self.number());
            seen.insert(number, self.node.block_on(|| async move { Ok(target.read_stream(number, PATIENCE).await) })?);
        }
        let mut outcome = self.executions(Outcome::of(seen.values().map(|stream| stream.seen)), seen.keys())?;
        outcome.clean_ends = Some(seen.values().filter(|stream| stream.is_clean()).count());
        let events = seen.values().map(|stream| stream.events);
        let (least, most) = (events.clone().min().unwrap_or_default(), events.max().unwrap_or_default());
        if (least, most) != (BREAKS_AFTER, BREAKS_AFTER) {
            outcome.remarks.push(format!("{least} to {most} of {BREAKS_AFTER} events"));
        }
        if seen.values().any(|stream| stream.error) {
            outcome.remarks.push("said so in the stream".to_owned());
        }
        Ok(outcome)
    }

    fn stalls(&mut self) -> anyhow::Result<Outcome> {
        self.behave(Behaviour::Flood, Stream::default())?;
        let (target, number, tree) = (self.target, self.number(), self.tree.clone());
        let before = tree.resident_mb();
        let most = self.node.block_on(|| async move {
            let (mut connection, mut body) = target.open_stream(number).await?;
            let mut read = 0;
            while read < READ_BEFORE_STALLING {
                read += connection.piece(&mut body).await?.context("the flood ended")?.len();
            }
            let (mut most, until) = (before, clock::now() + STALLS_FOR);
            while clock::now() < until {
                tokio::time::sleep(Duration::from_millis(100)).await;
                most = tree.resident_mb().max(most);
            }
            Ok(most)
        })?;
        let outcome = self.executions(Outcome::default(), [number].iter())?;
        Ok(Outcome { memory_mb: Some(most - before), ..outcome })
    }

    fn leaves(&mut self) -> anyhow::Result<Outcome> {
        self.behave(Behaviour::Answer, SLOW_STREAM)?;
        let (mut told, mut numbers) = (Vec::new(), Vec::new());
        for _ in 0..TRIES {
            let (target, number) = (self.target, self.number());
            let left_at = self.node.block_on(|| async move {
                let (mut connection, mut body) = target.open_stream(number).await?;
                connection.piece(&mut body).await?.context("no event")?;
                drop(connection);
                Ok(nanos())
            })?;
            let upstreams = &self.upstreams;
            let told_at = eventually("the worker is told", TOLD_LIMIT, || {
                let told = upstreams.iter().find_map(|upstream| upstream.noted().ok()?.left.get(&number).copied());
                told.context("not yet")
            });
            told.push(told_at.ok().map(|at| Duration::from_nanos(at.saturating_sub(left_at))));
            numbers.push(number);
        }
        let outcome = self.executions(Outcome::default(), numbers.iter())?;
        // The longest; none if it was never told.
        let longest = told.into_iter().reduce(|a, b| Some(a?.max(b?))).flatten();
        Ok(Outcome { told: Some(longest), ..outcome })
    }

    fn refuses(&mut self) -> anyhow::Result<Outcome> {
        self.behave(Behaviour::Answer, Stream::default())?;
        self.recover()?;
        self.upstreams[1].end()?;
        let (target, numbers) = (self.target, self.numbers(MANY));
        let seen = self.node.block_on(|| async move { Ok(ask_all(target, &numbers, MANY_AT_ONCE, PATIENCE).await) })?;
        let unanswered = seen.values().filter(|seen| **seen != Seen::Whole(200)).count();
        let outcome = self.executions(Outcome::of(seen.values().copied()), seen.keys())?;
        Ok(Outcome { unanswered: Some(unanswered), ..outcome })
    }

    fn hangs(&mut self, mesh: Option<&Mesh>) -> anyhow::Result<Outcome> {
        self.recover()?;
        let (target, numbers) = (self.target, self.numbers(MANY));
        let signal = |signal: Signal| -> anyhow::Result<()> {
            self.upstreams[1].signal(signal)?;
            mesh.map_or(Ok(()), |mesh| mesh.signal(1, signal))
        };
        let answered = AtomicU64::new(0);
        let seen = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                self.node.block_on(|| async {
                    let one = async |number: &u64| {
                        let seen = target.ask(*number, LITTLE_PATIENCE).await;
                        answered.fetch_add(1, Ordering::Relaxed);
                        (*number, seen)
                    };
                    Ok(stream::iter(&numbers).map(one).buffer_unordered(MANY_AT_ONCE).collect::<BTreeMap<_, _>>().await)
                })
            });
            while answered.load(Ordering::Relaxed) < BEFORE_IT_HANGS && !asking.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            let stopped = signal(Signal::SIGSTOP);
            let seen = asking.join().map_err(|_| anyhow::anyhow!("the clients panicked"))?;
            stopped.and(seen)
        });
        signal(Signal::SIGCONT)?;
        let seen = seen?;
        // What it was given, it does now.
        thread::sleep(AFTERMATH);

        let hung = self.upstreams[1].noted()?;
        let unanswered = seen.iter().filter(|(_, seen)| **seen != Seen::Whole(200));
        let (on_it, elsewhere): (Vec<u64>, Vec<u64>) =
            unanswered.map(|(number, _)| *number).partition(|number| hung.executed.contains_key(number));
        let mut outcome = self.executions(Outcome::of(seen.values().copied()), seen.keys())?;
        outcome.unanswered = Some(elsewhere.len());
        outcome.remarks.push(format!("{} were on the worker that hung", on_it.len()));
        Ok(outcome)
    }

    /// Waits until both workers are back and a question is answered.
    fn recover(&mut self) -> anyhow::Result<()> {
        self.behave(Behaviour::Answer, Stream::default())?;
        let target = self.target;
        eventually("a question is answered", RECOVERY_LIMIT, || {
            // Of no number that counts.
            let seen = self.node.block_on(|| async move { Ok(target.ask(0, PATIENCE).await) })?;
            anyhow::ensure!(seen == Seen::Whole(200), "{}", seen.name());
            Ok(())
        })
    }

    fn executions<'a>(&self, outcome: Outcome, numbers: impl Iterator<Item = &'a u64>) -> anyhow::Result<Outcome> {
        let noted: Vec<_> = self.upstreams.iter().map(|upstream| upstream.noted()).collect::<anyhow::Result<_>>()?;
        let times = |number: &u64| noted.iter().filter_map(|noted| noted.executed.get(number)).sum::<u64>();
        Ok(Outcome { executions: numbers.map(times).collect(), ..outcome })
    }
}

async fn ask_all(target: Target, numbers: &[u64], at_once: usize, patience: Duration) -> BTreeMap<u64, Seen> {
    let one = async |number: &u64| (*number, target.ask(*number, patience).await);
    stream::iter(numbers).map(one).buffer_unordered(at_once).collect().await
}
