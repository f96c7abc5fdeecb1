//! `bench overlay`: wiremesh's packet path beside every other userspace one that is installed.
//!
//! ```text
//!   round 1:  nebula · raw · wiremesh · wireguard-go · …      in random order; each does every measure once
//!   round 2:  wireguard-go · wiremesh · raw · nebula · …
//!   …
//!   figure of one round ÷ the reference's of the same round → median over the rounds → verdict
//! ```
//!
//! Each runs between the same two namespaces over one veth pair, in fresh ones every time. What the machine does
//! meanwhile changes from minute to minute: only ratios within a round count, and only those of five rounds or more.

mod bisect;
mod counters;
mod daemons;
mod figures;
mod implementations;
mod many;
mod measures;
mod place;
mod report;
mod silent;
mod traffic;
mod udp;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use wiremesh::clock;

use self::{
    figures::Measure,
    implementations::Implementation,
    measures::Numbers,
    place::{Cable, Place},
};
use crate::{programs::Missing, table};

/// Until the other end answers for the first time.
const REACHABLE_LIMIT: Duration = Duration::from_secs(20);
/// When they are asked for by `--only` and no number is given.
const DEFAULT_PEERS: u16 = 100;
const DEFAULT_SILENT_PEERS: u16 = 10;
/// What ours is called when it is the build beside this program.
const OURS: &str = "wiremesh";

/// What is measured, and how often
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds; under five nothing is judged
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a measure, in seconds
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Only these measures
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Not these measures
    #[arg(long, value_enum, value_delimiter = ',')]
    skip: Vec<Measure>,
    /// Only these implementations
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Not these implementations
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// One more build of wiremesh, under a name of its own; may be repeated
    #[arg(long, value_name = "NAME=PATH", value_parser = named_path)]
    wiremesh: Vec<(String, PathBuf)>,
    /// The underlay's MTU; overlays have 80 bytes less
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1400..=65535))]
    mtu: u32,
    /// Turns tx-udp-segmentation off on the underlay (needs ethtool)
    #[arg(long)]
    no_udp_segmentation: bool,
    /// Also one stream of 135 s, across a rekey, in the first round
    #[arg(long)]
    rekey: bool,
    /// Also so many peers at once, for those that speak WireGuard
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    peers: Option<u16>,
    /// Also an agent among so many silent ones, in the first round
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=200))]
    silent_peers: Option<u16>,
    /// The order of the implementations is drawn from this; drawn itself when not given
    #[arg(long)]
    seed: Option<u64>,
}

/// What was measured of one implementation: numbers, or why there are none.
pub type Measured = BTreeMap<Measure, Result<Numbers, String>>;

/// What was measured in one round, by implementation.
pub type Round = BTreeMap<String, Measured>;

/// Everything that was measured, and where.
pub struct Results<'a> {
    options: &'a Options,
    seed: u64,
    cable: Cable,
    load_before: String,
    implementations: Vec<Implementation>,
    missing: Vec<Missing>,
    /// The MTU that each had inside.
    mtus: BTreeMap<String, u32>,
    orders: Vec<Vec<String>>,
    rounds: Vec<Round>,
}

/// Measures and prints.
pub fn run(scratch: &Path, wiremesh: &Path, options: &Options, as_json: bool) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.seconds > 0.0, "nothing to measure");
    let ours = [vec![(OURS.to_owned(), wiremesh.to_owned())], options.wiremesh.clone()].concat();
    let (implementations, missing) = options.choose(Implementation::all(&ours))?;
    let seed = options.seed.unwrap_or_else(|| netns_tests::forge::randomness().random());
    let mut results = Results {
        options,
        seed,
        cable: Cable { mtu: options.mtu, udp_segmentation: !options.no_udp_segmentation },
        load_before: table::load(),
        implementations,
        missing,
        mtus: BTreeMap::new(),
        orders: Vec::new(),
        rounds: Vec::new(),
    };
    results.measure(scratch)?;
    if as_json {
        println!("{:#}", report::json(&results));
    } else {
        report::table(&results);
    }
    Ok(())
}

impl Options {
    /// Those that are wanted and installed, and those that are wanted and not.
    fn choose(&self, all: Vec<Result<Implementation, Missing>>) -> anyhow::Result<(Vec<Implementation>, Vec<Missing>)> {
        let name = |one: &Result<Implementation, Missing>| match one {
            Ok(implementation) => implementation.name.clone(),
            Err(missing) => missing.name.clone(),
        };
        for wanted in self.with.iter().chain(&self.without) {
            let known: Vec<String> = all.iter().map(name).collect();
            anyhow::ensure!(known.contains(wanted), "no implementation is called {wanted}: there are {known:?}");
        }
        let wanted = |one: &Result<Implementation, Missing>| {
            let name = name(one);
            (self.with.is_empty() || self.with.contains(&name)) && !self.without.contains(&name)
        };
        let (mut installed, mut missing) = (Vec::new(), Vec::new());
        for one in all.into_iter().filter(wanted) {
            match one {
                Ok(implementation) => installed.push(implementation),
                Err(one) => missing.push(one),
            }
        }
        anyhow::ensure!(!installed.is_empty(), "nothing is left to measure");
        Ok((installed, missing))
    }

    /// What is done in a round.
    fn measures(&self, round: usize) -> Vec<Measure> {
        let usual = |measure: &Measure| match measure {
            Measure::Rekey => self.rekey || self.only.contains(measure),
            Measure::Peers => self.peers.is_some() || self.only.contains(measure),
            Measure::Silent => self.silent_peers.is_some() || self.only.contains(measure),
            _ => true,
        };
        let wanted = <Measure as clap::ValueEnum>::value_variants().iter().copied();
        wanted
            .filter(usual)
            .filter(|measure| self.only.is_empty() || self.only.contains(measure) || *measure == Measure::Memory)
            .filter(|measure| !self.skip.contains(measure) && (round == 0 || !measure.is_once()))
            .collect()
    }
}

impl Results<'_> {
    fn measure(&mut self, scratch: &Path) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut number = 0;
        for round in 0..self.options.rounds {
            let mut order: Vec<usize> = (0..self.implementations.len()).collect();
            order.shuffle(&mut rng);
            let names = order.iter().map(|at| self.implementations[*at].name.clone()).collect::<Vec<_>>();
            eprintln!("round {} of {}: {}", round + 1, self.options.rounds, names.join(", "));
            self.orders.push(names);
            let mut measured = Round::new();
            for at in order {
                number += 1;
                let folder = scratch.join(format!("{number}"));
                fs::create_dir_all(&folder)?;
                let name = self.implementations[at].name.clone();
                measured.insert(name, self.measure_one(at, round, number, &folder));
            }
            self.rounds.push(measured);
        }
        Ok(())
    }

    /// Every measure of a round, on one implementation. A failure is a result as any other.
    fn measure_one(&mut self, at: usize, round: usize, number: usize, folder: &Path) -> Measured {
        let implementation = &self.implementations[at];
        let (own, between): (Vec<Measure>, Vec<Measure>) =
            self.options.measures(round).into_iter().partition(|measure| measure.has_its_own_place());
        let (mut measured, mtu) = self.measure_between(implementation, &between, number, folder);
        for measure in own.into_iter().filter(|measure| implementation.can(*measure)) {
            let taken = self.measure_apart(implementation, measure, number, &folder.join(measure.name()));
            measured.insert(measure, self.note(implementation, measure, taken));
        }
        if let Some(mtu) = mtu {
            self.mtus.insert(implementation.name.clone(), mtu);
        }
        measured
    }

    /// What is measured between the two ends, and the MTU there.
    fn measure_between(
        &self,
        implementation: &Implementation,
        measures: &[Measure],
        number: usize,
        folder: &Path,
    ) -> (Measured, Option<u32>) {
        // Memory alone is nothing to begin for.
        if measures.iter().all(|measure| *measure == Measure::Memory) && !self.options.only.is_empty() {
            return (Measured::new(), None);
        }
        let started = Place::new(self.cable).and_then(|place| {
            let mut running = implementation.start(&place, folder, number)?;
            traffic::reachable(&place, &mut running, clock::now() + REACHABLE_LIMIT)?;
            Ok((place, running))
        });
        let (place, mut running) = match started {
            Ok(started) => started,
            Err(error) => {
                eprintln!("  {}: could not be started: {error:#}", implementation.name);
                let why = format!("not started: {error:#}");
                return (measures.iter().map(|measure| (*measure, Err(why.clone()))).collect(), None);
            }
        };
        let mut measured = Measured::new();
        for measure in measures {
            // A daemon that has ended says more about it than whoever waited for it in vain.
            let taken = measures::take(*measure, &place, &mut running, self.length())
                .map_err(|error| running.daemons.expect_running().err().unwrap_or(error));
            measured.insert(*measure, self.note(implementation, *measure, taken));
        }
        (measured, Some(running.mtu))
    }

    /// What has machines of its own.
    fn measure_apart(
        &self,
        implementation: &Implementation,
        measure: Measure,
        number: usize,
        folder: &Path,
    ) -> anyhow::Result<Numbers> {
        match (measure, &implementation.program) {
            (Measure::Silent, Some(program)) => {
                let peers = self.options.silent_peers.unwrap_or(DEFAULT_SILENT_PEERS);
                silent::measure(program, folder, number, peers.into())
            }
            _ => {
                let peers = self.options.peers.unwrap_or(DEFAULT_PEERS);
                many::measure(implementation, self.cable, folder, number, peers.into(), self.length())
            }
        }
    }

    fn note(
        &self,
        implementation: &Implementation,
        measure: Measure,
        taken: anyhow::Result<Numbers>,
    ) -> Result<Numbers, String> {
        let taken = taken.map_err(|error| format!("{error:#}"));
        eprintln!("  {}: {}", implementation.name, report::progress(measure, &taken));
        taken
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }
}

fn named_path(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("NAME=PATH is wanted")?;
    if name.is_empty() { Err("the name is empty".to_owned()) } else { Ok((name.to_owned(), PathBuf::from(path))) }
}
