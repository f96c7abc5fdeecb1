//! `bench router`: what a request costs through wiremesh and through the routers that others use.
//!
//! ```text
//!   clients ─────────────────────────────► upstream      direct
//!   clients ─► nginx · haproxy · … ──────► upstream      each router
//!   clients ─► agent ────────────────────► upstream      wiremesh
//!   clients ─► agent ══ overlay ══► agent ─► upstream    wiremesh-overlay, on two machines
//! ```
//!
//! All run at once and take turns in every round, in random order: what else the machine does meets all of them alike.
//! Clients, routers and upstream share its processors, so that requests a second say what a request costs in all. What is
//! added is the difference to `direct` of the same round.

mod figures;
mod load;
mod report;

use std::{collections::BTreeMap, path::Path, time::Duration};

use netns_tests::Lab;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use wiremesh::sandbox::Node;

use self::{
    figures::{CONCURRENCIES, FIGURES},
    load::Target,
};
use crate::{
    programs::Missing,
    routers::{Mesh, Router, Running, WIREMESH, WIREMESH_TWO_HOPS},
    table,
    tree::Tree,
    upstream::{Behaviour, Stream, Upstream},
};

/// The upstream itself.
const DIRECT: &str = "direct";
/// Streams at once while their events are timed.
const STREAMS: usize = 8;
/// Those streams: short ones, so that many begin.
const SHORT_STREAM: Stream = Stream { every: Duration::from_millis(20), events: 12 };
/// Streams that are held open.
const HELD_STREAM: Stream = Stream { every: Duration::from_secs(1), events: 3600 };
/// To open them all.
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// Ports of the routers, some of which take two.
const FIRST_PORT: u16 = 20_000;
const PORTS_EACH: u16 = 10;

/// What is measured, and how often
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds; under five nothing is judged
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a measure, in seconds
    #[arg(long, default_value_t = 1.2)]
    seconds: f64,
    /// Only these: direct, wiremesh, wiremesh-overlay, nginx, haproxy, sglang-router, vllm-router, smg, litellm
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Not these
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Streams that are held open, at the end; 0 for none
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// The order within the rounds is drawn from this; drawn itself when not given
    #[arg(long)]
    seed: Option<u64>,
}

/// What one measured of another in one round.
type Numbers = BTreeMap<String, f64>;
/// What was measured in one round, by name.
type Round = BTreeMap<String, Measured>;

/// What one measured of another in one round, and what could not be.
#[derive(Clone, Debug, Default)]
struct Measured {
    numbers: Numbers,
    failed: Vec<String>,
}

/// Everything that was measured, and where.
pub struct Results<'a> {
    options: &'a Options,
    seed: u64,
    load_before: String,
    /// Name and version, in the order of the table.
    measured: Vec<(String, String)>,
    missing: Vec<Missing>,
    orders: Vec<Vec<String>>,
    rounds: Vec<Round>,
}

/// Measures and prints.
pub fn run(scratch: &Path, options: &Options, as_json: bool) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.seconds > 0.0, "nothing to measure");
    options.check()?;
    let seed = options.seed.unwrap_or_else(|| netns_tests::forge::randomness().random());
    let mut results = Results {
        options,
        seed,
        load_before: table::load(),
        measured: Vec::new(),
        missing: Vec::new(),
        orders: Vec::new(),
        rounds: Vec::new(),
    };
    let mut place = Place::start(scratch, options, &mut results)?;
    results.measure(&mut place)?;
    drop(place);
    if as_json {
        println!("{:#}", report::json(&results));
    } else {
        report::table(&results);
    }
    Ok(())
}

impl Options {
    fn check(&self) -> anyhow::Result<()> {
        let known: Vec<&str> = [DIRECT, WIREMESH, WIREMESH_TWO_HOPS].into_iter().chain(Router::names()).collect();
        for name in self.with.iter().chain(&self.without) {
            anyhow::ensure!(known.contains(&name.as_str()), "nothing is called {name}: there are {known:?}");
        }
        Ok(())
    }

    /// What is added is added to something: the upstream itself is always asked.
    fn wants(&self, name: &str) -> bool {
        let with = |wanted: &String| wanted == name;
        name == DIRECT || (self.with.is_empty() || self.with.iter().any(with)) && !self.without.iter().any(with)
    }
}

/// The machine of the clients and what runs on it.
struct Place {
    node: Node,
    upstreams: Vec<Upstream>,
    targets: Vec<(String, Target)>,
    _routers: Vec<Running>,
    _mesh: Option<Mesh>,
    _lab: Lab,
}

impl Place {
    fn start(scratch: &Path, options: &Options, results: &mut Results<'_>) -> anyhow::Result<Place> {
        let mut lab = Lab::new(scratch)?;
        let (client, worker) = (lab.node("client")?, lab.node("worker")?);
        let (node, far) = (client.node.clone(), worker.node.clone());
        let upstreams = [("near", &node), ("far", &far)];
        let upstreams = upstreams.map(|(name, node)| Upstream::start(node, &scratch.join(name)));
        let upstreams: Vec<Upstream> = upstreams.into_iter().collect::<anyhow::Result<_>>()?;
        let upstream = upstreams[0].local();

        let path = crate::routers::CHAT;
        let mut targets = vec![(DIRECT.to_owned(), Target { address: upstream, path, tree: Tree::default() })];
        results.measured.push((DIRECT.to_owned(), "the upstream itself".to_owned()));
        let mesh = if options.wants(WIREMESH) || options.wants(WIREMESH_TWO_HOPS) {
            eprintln!("starting wiremesh");
            let mesh = Mesh::start(&mut lab, client, Some(&upstreams[0]), [worker])?;
            let version = crate::programs::version_of(&netns_tests::wiremesh_binary()?, "--version");
            let (address, one, both) = (mesh.address(), mesh.client()?, mesh.all()?);
            for (name, path, tree) in [(WIREMESH, Mesh::NEAR, one), (WIREMESH_TWO_HOPS, Mesh::FAR, both)] {
                if options.wants(name) {
                    targets.push((name.to_owned(), Target { address, path, tree }));
                    results.measured.push((name.to_owned(), version.clone()));
                }
            }
            Some(mesh)
        } else {
            None
        };

        let mut routers = Vec::new();
        for (port, router) in (FIRST_PORT..).step_by(PORTS_EACH.into()).zip(Router::all(|name| options.wants(name))) {
            let router = match router {
                Ok(router) => router,
                Err(missing) => {
                    eprintln!("{} is not measured: {}", missing.name, missing.looked);
                    results.missing.push(missing);
                    continue;
                }
            };
            eprintln!("starting {}", router.name);
            match router.start(&node, &[upstream], port, &scratch.join(router.name)) {
                Ok(running) => {
                    let target = Target { address: running.address, path: running.path, tree: running.tree() };
                    targets.push((router.name.to_owned(), target));
                    results.measured.push((router.name.to_owned(), router.version));
                    routers.push(running);
                }
                Err(error) => {
                    eprintln!("{} could not be started: {error:#}", router.name);
                    let looked = format!("it could not be started: {error:#}");
                    results.missing.push(Missing { name: router.name.to_owned(), looked });
                }
            }
        }
        Ok(Place { node, upstreams, targets, _routers: routers, _mesh: mesh, _lab: lab })
    }

    fn streams(&mut self, stream: Stream) -> anyhow::Result<()> {
        self.upstreams.iter_mut().try_for_each(|upstream| upstream.behave(Behaviour::Answer, stream))
    }
}

impl Results<'_> {
    fn measure(&mut self, place: &mut Place) -> anyhow::Result<()> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        for number in 0..self.options.rounds {
            let mut order: Vec<usize> = (0..place.targets.len()).collect();
            order.shuffle(&mut rng);
            let names: Vec<String> = order.iter().map(|at| place.targets[*at].0.clone()).collect();
            eprintln!("round {} of {}: {}", number + 1, self.options.rounds, names.join(", "));
            self.orders.push(names);
            place.streams(SHORT_STREAM)?;
            let mut round = Round::new();
            for at in &order {
                let (name, target) = &place.targets[*at];
                let measured = place.node.block_on(|| async { Ok(measure_one(target, self.length()).await) })?;
                round.insert(name.clone(), measured);
            }
            // At the end: some are not themselves after it.
            if number + 1 == self.options.rounds && self.options.streams > 0 {
                place.streams(HELD_STREAM)?;
                for at in &order {
                    let (name, target) = &place.targets[*at];
                    let held = place.node.block_on(|| load::hold(target, self.options.streams, HOLD_LIMIT));
                    let measured = round.entry(name.clone()).or_default();
                    match held {
                        Ok(held) => {
                            measured.numbers.insert("resident_streams".to_owned(), held.resident_mb);
                            measured.numbers.insert("open_streams".to_owned(), held.open as f64);
                        }
                        Err(error) => measured.failed.push(format!("open streams: {error:#}")),
                    }
                }
            }
            add(&mut round);
            for (name, measured) in &round {
                eprintln!("  {name}: {}", report::progress(measured));
            }
            self.rounds.push(round);
        }
        Ok(())
    }

    fn length(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }
}

/// Every measure of a round. One that fails leaves its figures out and the others in.
async fn measure_one(target: &Target, length: Duration) -> Measured {
    let Measured { mut numbers, mut failed } = Measured::default();
    for connections in CONCURRENCIES {
        let asked = match load::ask(target, connections, length).await {
            Ok(asked) => asked,
            Err(error) => {
                failed.push(format!("{connections} connections: {error:#}"));
                continue;
            }
        };
        let mut put = |key: &str, number: f64| _ = numbers.insert(format!("{key}_{connections}"), number);
        put("p50", asked.p50);
        put("p99", asked.p99);
        put("rate", asked.rate);
        // Of the upstream itself nothing is known.
        if asked.resident_mb > 0.0 {
            put("cpu", asked.cpu_micros);
            put("resident", asked.resident_mb);
        }
    }
    match load::stream(target, STREAMS, length).await {
        Ok(streamed) => numbers.extend([
            ("first".to_owned(), streamed.first_micros),
            ("event".to_owned(), streamed.event_micros),
            ("event_p99".to_owned(), streamed.event_p99_micros),
        ]),
        Err(error) => failed.push(format!("streams: {error:#}")),
    }
    Measured { numbers, failed }
}

/// Says for each what it added to the upstream itself.
fn add(round: &mut Round) {
    let Some(Measured { numbers: direct, .. }) = round.get(DIRECT).cloned() else { return };
    for (_, Measured { numbers, .. }) in round.iter_mut().filter(|(name, _)| *name != DIRECT) {
        for figure in FIGURES {
            let Some(of) = figure.added_to else { continue };
            if let (Some(number), Some(direct)) = (numbers.get(of), direct.get(of)) {
                let added = number - direct;
                numbers.insert(figure.key.to_owned(), added);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_the_difference_to_the_upstream_of_the_same_round() {
        let measured = |p50: f64| Measured { numbers: [("p50_1".to_owned(), p50)].into(), failed: Vec::new() };
        let mut round = Round::from([
            (DIRECT.to_owned(), measured(40.0)),
            (WIREMESH.to_owned(), measured(100.0)),
            ("nginx".to_owned(), Measured::default()),
        ]);

        add(&mut round);

        assert_eq!(round[WIREMESH].numbers["added_p50_1"], 60.0);
        assert!(!round[DIRECT].numbers.contains_key("added_p50_1"));
    }
}
