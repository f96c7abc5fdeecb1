//! `bench basics`: what a request costs locally and over the overlay, a lookup, a start; what an idle agent needs.
//!
//! Latencies are taken interleaved: direct, local and forwarded requests take turns, so that whatever else the machine
//! does meets all of them alike. What is added is the difference of the same percentile.

use std::time::Duration;

use anyhow::Context;
use netns_tests::{Agent, Lab, client};
use serde_json::{Value, json};
use wiremesh::clock;

/// Services looked up once each: as many as one node may offer.
const LOOKUPS: usize = 16;
/// Requests before any is counted: connections are made, code is paged in.
const WARM_UP: usize = 50;
const IDLE: Duration = Duration::from_secs(20);
const START_LIMIT: Duration = Duration::from_secs(30);

/// How much is measured
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Requests of each kind
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Restarts of an agent
    #[arg(long, default_value_t = 5)]
    starts: usize,
}

/// One figure.
struct Figure {
    what: &'static str,
    median: f64,
    p99: f64,
    unit: &'static str,
    /// What the median should stay under.
    target: f64,
}

/// Measures and prints.
pub fn run(lab: &mut Lab, options: &Options, as_json: bool) -> anyhow::Result<()> {
    let say = |line: &str| {
        if !as_json {
            eprintln!("{line}");
        }
    };
    say("starting a coordinator and three agents");
    let coordinator = lab.coordinator()?;
    let mut caller = lab.node("caller")?.serving("local").join(&coordinator)?;
    let mut worker = lab.node("worker")?;
    for number in 0..LOOKUPS {
        worker = worker.serving(&format!("remote-{number}"));
    }
    let mut worker = worker.join(&coordinator)?;
    let mut third = lab.node("third")?.join(&coordinator)?;
    for agent in [&caller, &worker, &third] {
        agent.expect_published()?;
    }

    say("DHT lookups");
    let lookups = lookups(&caller)?;
    say("requests: direct, local, forwarded, taking turns");
    let [direct, local, forwarded] = latencies(&caller, &worker, options.requests)?;
    say("an idle agent");
    std::thread::sleep(IDLE);
    let mut memory = Vec::new();
    for agent in [&mut caller, &mut worker, &mut third] {
        memory.push(agent.running()?.memory_kib()? as f64 / 1024.0);
    }
    say("starts");
    let starts = (0..options.starts).map(|_| start(&mut caller)).collect::<anyhow::Result<Vec<f64>>>()?;

    let added = |what, measured: &[f64], target| Figure {
        what,
        median: percentile(measured, 50.0) - percentile(&direct, 50.0),
        p99: percentile(measured, 99.0) - percentile(&direct, 99.0),
        unit: "ms",
        target,
    };
    let forwarded_median = percentile(&forwarded, 50.0);
    let looked_up: Vec<f64> = lookups.iter().map(|took| took - forwarded_median).collect();
    let of = |what, measured: &[f64], unit, target| Figure {
        what,
        median: percentile(measured, 50.0),
        p99: percentile(measured, 99.0),
        unit,
        target,
    };
    let figures = [
        added("added to a local request", &local, 1.0),
        added("added to a request over the overlay, fresh finger", &forwarded, 2.0),
        of("a DHT lookup", &looked_up, "ms", 20.0),
        of("from start to the first routed request", &starts, "s", 3.0),
        of("resident memory of an idle agent", &memory, "MB", 40.0),
    ];
    if as_json {
        print_json(&figures)
    } else {
        print_table(&figures)
    }
    Ok(())
}

/// Milliseconds that the first request for each service takes.
fn lookups(caller: &Agent) -> anyhow::Result<Vec<f64>> {
    // The session between the two is made by the first of them, and connections are kept.
    let took = (0..LOOKUPS).map(|number| {
        let answer = caller.get(&format!("/service/remote-{number}/alive"))?.expect_ok()?;
        anyhow::ensure!(answer.header("x-wiremesh-source") == "dht", "found by {}", answer.header("x-wiremesh-source"));
        Ok(answer.took.as_secs_f64() * 1000.0)
    });
    let took: Vec<f64> = took.collect::<anyhow::Result<_>>()?;
    Ok(took[1..].to_vec())
}

/// Milliseconds of a request straight to a service, through the agent beside it, and through two agents.
fn latencies(caller: &Agent, worker: &Agent, requests: usize) -> anyhow::Result<[Vec<f64>; 3]> {
    anyhow::ensure!(!worker.services.is_empty(), "nothing to ask for");
    let direct = format!("{}/alive", caller.services.first().context("nothing local to ask for")?.url());
    let urls = [
        direct,
        "http://127.0.0.1:8000/service/local/alive".to_owned(),
        "http://127.0.0.1:8000/service/remote-0/alive".to_owned(),
    ];
    caller.node.block_on(|| async {
        let client = client()?;
        let mut measured = [Vec::new(), Vec::new(), Vec::new()];
        for number in 0..WARM_UP + requests {
            for (url, measured) in urls.iter().zip(&mut measured) {
                let started = clock::now();
                client.get(url).send().await?.error_for_status()?.bytes().await?;
                if number >= WARM_UP {
                    measured.push((clock::now() - started).as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(measured)
    })
}

/// Seconds from the start of an agent that has joined before until a request through it reaches another worker.
fn start(agent: &mut Agent) -> anyhow::Result<f64> {
    agent.terminate(Duration::from_secs(20))?;
    let started = clock::now();
    agent.launch()?;
    agent.node.block_on(|| async {
        let client = client()?;
        loop {
            let request = client.get("http://127.0.0.1:8000/service/remote-0/alive").timeout(Duration::from_secs(5));
            if request.send().await.is_ok_and(|response| response.status().is_success()) {
                return Ok((clock::now() - started).as_secs_f64());
            }
            anyhow::ensure!(clock::now() - started < START_LIMIT, "no request was routed within {START_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

fn percentile(measured: &[f64], percent: f64) -> f64 {
    let mut sorted = measured.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len().saturating_sub(1)) as f64 * percent / 100.0).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn print_table(figures: &[Figure]) {
    println!("\n{:<52} {:>9} {:>9}  target", "", "median", "p99");
    for figure in figures {
        let Figure { what, median, p99, unit, target } = figure;
        let verdict = if median < target { "" } else { "  MISSED" };
        println!("{what:<52} {median:>9.2} {p99:>9.2}  < {target} {unit}{verdict}");
    }
}

fn print_json(figures: &[Figure]) {
    let figures: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({
                "what": figure.what,
                "median": figure.median,
                "p99": figure.p99,
                "unit": figure.unit,
                "target": figure.target,
                "met": figure.median < figure.target,
            })
        })
        .collect();
    println!("{:#}", json!({ "figures": figures }));
}
