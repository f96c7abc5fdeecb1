//! A mesh in discrete events: workers with slots and queues, agents that choose among them by what they have heard.
//!
//! Twelve workers of unequal speed and capacity at 70 % of what they can do together; Poisson arrivals at several agents,
//! log-normal service times. A worker reports every five seconds to every agent, each worker at its own time, and says
//! how it does on the head of every answer, which comes with its end. Nobody else tells anybody anything.
//!
//! The oracle joins the shortest queue: it sees every queue as it is, knows every worker's speed, and takes the worker of
//! least work per slot, which is our score with the truth in it. It is the better of two by its mean; the other one goes
//! by the expected time to the answer, `max(1, (q + 1) / c) · s`, avoids slow workers even when they are idle, and so has
//! a mean like ours and a shorter tail (ours is 1.3 to 1.6 times that). Power of two choices hears what the agents hear,
//! its own requests in flight added to the last reported ones.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use wiremesh_certs::{Load, ServiceName};

use super::super::*;
use crate::router::{Dispatch, Ended, Work};

/// Requests at once, and seconds for one on average.
const WORKERS: [(u32, f64); 12] = [
    (1, 0.4),
    (1, 0.8),
    (2, 0.3),
    (2, 0.5),
    (2, 1.0),
    (4, 0.3),
    (4, 0.6),
    (4, 0.9),
    (4, 1.2),
    (8, 0.5),
    (8, 0.8),
    (8, 1.5),
];
const LOAD: f64 = 0.7;
const REPORT_EVERY: f64 = 5.0;
/// Of the logarithm of service times: the longest of a hundred takes five times the usual.
const SIGMA: f64 = 0.7;
const REQUESTS: usize = 8_000;
/// The mesh fills first.
const NOT_COUNTED: usize = 2_000;

/// How a request finds its worker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    Ours,
    PowerOfTwo,
    /// By work per slot.
    Oracle,
    /// By the time to the answer.
    OracleOfTime,
}

/// Seconds to the end of the answer.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    pub mean: f64,
    pub p99: f64,
}

/// Runs the mesh under `policy`; the same seed brings the same requests at the same times.
pub fn run(policy: Policy, agents: usize, seed: u64, t0: Instant) -> Latency {
    let mut mesh = Mesh::new(policy, agents, seed, t0);
    while let Some(Reverse(event)) = mesh.events.pop() {
        mesh.handle(event);
    }
    let mut took = mesh.took.split_off(NOT_COUNTED);
    took.sort_by(f64::total_cmp);
    Latency { mean: took.iter().sum::<f64>() / took.len() as f64, p99: took[took.len() * 99 / 100] }
}

struct Mesh {
    policy: Policy,
    t0: Instant,
    service: ServiceName,
    offers: Vec<Worker>,
    /// Brings requests and decides how long they execute.
    fate: SmallRng,
    /// Draws for the agents.
    chance: SmallRng,
    workers: Vec<Simulated>,
    agents: Vec<Agent>,
    events: BinaryHeap<Reverse<Event>>,
    arrived: usize,
    rate: f64,
    took: Vec<f64>,
}

#[derive(Default)]
struct Simulated {
    running: u32,
    waiting: VecDeque<Request>,
    /// As its agent measures it.
    service_time: Option<f64>,
}

#[derive(Default)]
struct Agent {
    fleet: Fleet,
    health: Health,
    /// For power of two: own in flight, and the last report.
    own: [u32; WORKERS.len()],
    heard: [u32; WORKERS.len()],
}

#[derive(Debug)]
struct Request {
    agent: usize,
    arrived_at: f64,
    /// Relative to the worker's average.
    size: f64,
    dispatch: Dispatch,
}

#[derive(Debug)]
struct Event {
    at: f64,
    number: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    Arrival,
    Report(usize),
    End(usize, Request),
}

impl Mesh {
    fn new(policy: Policy, agents: usize, seed: u64, t0: Instant) -> Mesh {
        let offers = (0..WORKERS.len()).map(|index| super::worker(index as u8, 0, false)).collect();
        let mut mesh = Mesh {
            policy,
            t0,
            service: ServiceName::new("llm").unwrap(),
            offers,
            fate: SmallRng::seed_from_u64(seed),
            chance: SmallRng::seed_from_u64(seed ^ 0xa5a5),
            workers: (0..WORKERS.len()).map(|_| Simulated::default()).collect(),
            agents: (0..agents).map(|_| Agent::default()).collect(),
            events: BinaryHeap::new(),
            arrived: 0,
            rate: LOAD * WORKERS.iter().map(|&(slots, seconds)| f64::from(slots) / seconds).sum::<f64>(),
            took: Vec::new(),
        };
        for worker in 0..WORKERS.len() {
            let first = REPORT_EVERY * worker as f64 / WORKERS.len() as f64;
            mesh.push(first, What::Report(worker));
        }
        mesh.push(0.0, What::Arrival);
        mesh
    }

    fn push(&mut self, at: f64, what: What) {
        self.events.push(Reverse(Event { at, number: self.events.len() + self.arrived * 1000, what }));
    }

    fn at(&self, seconds: f64) -> Instant {
        self.t0 + Duration::from_secs_f64(seconds)
    }

    fn handle(&mut self, Event { at, what, .. }: Event) {
        match what {
            What::Arrival => self.on_arrival(at),
            What::Report(worker) => {
                let work = self.work(worker);
                for agent in 0..self.agents.len() {
                    self.hear(agent, worker, work, at);
                }
                if self.took.len() < REQUESTS {
                    self.push(at + REPORT_EVERY, What::Report(worker));
                }
            }
            What::End(worker, request) => self.on_end(worker, request, at),
        }
    }

    fn on_arrival(&mut self, at: f64) {
        self.arrived += 1;
        let agent = self.fate.random_range(0..self.agents.len());
        // Box and Muller's normal distribution, and a mean of 1.
        let (u, v): (f64, f64) = (self.fate.random_range(f64::MIN_POSITIVE..1.0), self.fate.random());
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        let size = (SIGMA * normal - SIGMA * SIGMA / 2.0).exp();
        let gap = -self.fate.random_range(f64::MIN_POSITIVE..1.0f64).ln() / self.rate;

        let worker = self.choose(agent, at);
        let (now, id) = (self.at(at), self.offers[worker].id);
        let dispatch = self.agents[agent].fleet.on_dispatch(&self.service, id, Path::Overlay, now);
        self.agents[agent].own[worker] += 1;
        self.workers[worker].waiting.push_back(Request { agent, arrived_at: at, size, dispatch });
        self.start(worker, at);
        if self.arrived < REQUESTS {
            self.push(at + gap, What::Arrival);
        }
    }

    fn start(&mut self, worker: usize, at: f64) {
        let (slots, seconds) = WORKERS[worker];
        while self.workers[worker].running < slots
            && let Some(request) = self.workers[worker].waiting.pop_front()
        {
            self.workers[worker].running += 1;
            let executes = seconds * request.size;
            let average = &mut self.workers[worker].service_time;
            *average = Some(average.map_or(executes, |old| old + 0.1 * (executes - old)));
            self.push(at + executes, What::End(worker, request));
        }
    }

    fn on_end(&mut self, worker: usize, request: Request, at: f64) {
        self.hear(request.agent, worker, self.work(worker), at);
        let now = self.at(at);
        let agent = &mut self.agents[request.agent];
        agent.fleet.on_end(request.dispatch, Ended::Well, now);
        agent.own[worker] -= 1;
        agent.heard[worker] = agent.heard[worker].saturating_sub(1);
        self.took.push(at - request.arrived_at);
        self.workers[worker].running -= 1;
        self.start(worker, at);
    }

    fn work(&self, worker: usize) -> Work {
        let Simulated { running, ref waiting, service_time } = self.workers[worker];
        let capacity = WORKERS[worker].0;
        let queued = u32::try_from(waiting.len()).unwrap();
        Work {
            capacity,
            running,
            queued,
            load: Load::from_share(f64::from(running + queued) / f64::from(capacity)),
            service_time_ms: (service_time.unwrap_or(0.0) * 1000.0) as u32,
            state: State::Ready,
        }
    }

    fn hear(&mut self, agent: usize, worker: usize, work: Work, at: f64) {
        let (now, id) = (self.at(at), self.offers[worker].id);
        self.agents[agent].fleet.on_report(&self.service, id, work, now);
        self.agents[agent].heard[worker] = work.running + work.queued;
    }

    fn choose(&mut self, agent: usize, at: f64) -> usize {
        let now = self.at(at);
        let best =
            |score: &dyn Fn(usize) -> f64| (0..WORKERS.len()).min_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap();
        let truly = |worker: usize| f64::from(self.workers[worker].running) + self.workers[worker].waiting.len() as f64;
        let slots = |worker: usize| f64::from(WORKERS[worker].0);
        match self.policy {
            Policy::Oracle => best(&|worker| (truly(worker) + 1.0) / slots(worker) * WORKERS[worker].1),
            Policy::OracleOfTime => {
                best(&|worker| ((truly(worker) + 1.0) / slots(worker)).max(1.0) * WORKERS[worker].1)
            }
            Policy::PowerOfTwo => {
                let a = self.chance.random_range(0..WORKERS.len());
                let b = (a + self.chance.random_range(1..WORKERS.len())) % WORKERS.len();
                let Agent { own, heard, .. } = &self.agents[agent];
                let busy = |worker: usize| f64::from(own[worker] + heard[worker]) / slots(worker);
                if busy(b) < busy(a) { b } else { a }
            }
            Policy::Ours => {
                let asked = Asked { service: &self.service, workers: &self.offers, overlay: true, affinity: None };
                let Agent { fleet, health, .. } = &mut self.agents[agent];
                select(&asked, fleet, health, &mut self.chance, now).ways[0].worker
            }
        }
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        self.at.total_cmp(&other.at).then(self.number.cmp(&other.number))
    }
}
