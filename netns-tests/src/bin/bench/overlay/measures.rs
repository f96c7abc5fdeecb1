//! Doing one measure to one implementation that runs.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::Context;
use wiremesh::clock;

use super::{
    bisect,
    figures::Measure,
    implementations::Running,
    place::{Place, SIDES, Side},
    traffic::{self, Exchanged, Streamed},
    udp::{self, Packets},
};
use crate::statistics::percentile;

/// Numbers by the keys of their figures.
pub type Numbers = BTreeMap<&'static str, f64>;

/// WireGuard answers what came last by a keepalive after 10 s; what follows is idleness.
const SETTLE: Duration = Duration::from_secs(11);
/// For counting rare things.
const IDLE: Duration = Duration::from_secs(20);
/// WireGuard takes a new key after 120 s.
const ACROSS_A_REKEY: Duration = Duration::from_secs(135);
/// A request takes well under a millisecond: a share of the time gives thousands.
const EXCHANGES_SHARE: u32 = 2;
/// Of the time of a measure, for one trial of a rate.
const TRIAL_SHARE: u32 = 8;
const SHORTEST_TRIAL: Duration = Duration::from_millis(300);
const FIXED_RATE: f64 = 20_000.0;
const SMALL_PACKET: usize = 200;
const LARGE_PACKET: usize = 1300;

/// One measure, for about so long where it is up to us.
pub fn take(measure: Measure, place: &Place, running: &mut Running, length: Duration) -> anyhow::Result<Numbers> {
    match measure {
        Measure::Idle => idle(place, running),
        Measure::Tcp1 => {
            let streamed = traffic::stream(place, running, &[Side::Near], length)?;
            Ok(one_stream(&streamed, running))
        }
        Measure::Tcp4 => streams("tcp4", place, running, &[Side::Near; 4], length),
        Measure::Reverse => streams("reverse", place, running, &[Side::Far], length),
        Measure::Both => streams("both", place, running, &SIDES, length),
        Measure::Rr => {
            let exchanged = traffic::exchange(place, running, length / EXCHANGES_SHARE)?;
            Ok(exchanges("rr_p50", "rr_p99", exchanged))
        }
        Measure::Udprr => {
            let exchanged = udp::exchange(place, running, length / EXCHANGES_SHARE)?;
            Ok(exchanges("udp_rr_p50", "udp_rr_p99", exchanged))
        }
        Measure::Pps200 => lossless("pps200", place, running, SMALL_PACKET, length),
        Measure::Pps1300 => lossless("pps1300", place, running, LARGE_PACKET, length),
        Measure::Cpu20k => fixed_rate(place, running, length),
        Measure::Rekey => rekey(place, running),
        Measure::Memory => memory(running),
        Measure::Peers | Measure::Silent => anyhow::bail!("is measured with a mesh of its own"),
    }
}

fn idle(place: &Place, running: &mut Running) -> anyhow::Result<Numbers> {
    thread::sleep(SETTLE);
    let (waits, cpu, packets) = (running.daemons.waits()?, running.daemons.cpu_time()?, place.packets()?);
    let started = clock::now();
    thread::sleep(IDLE);
    let took = (clock::now() - started).as_secs_f64();
    let packets = place.packets()? - packets;
    let mut numbers = Numbers::from([("idle_packets", packets as f64 / took * 60.0)]);
    let woken = running.daemons.waits()?.into_iter().zip(waits).map(|(after, before)| after.saturating_sub(before));
    if let Some(most) = woken.max() {
        numbers.insert("wakeups", most as f64 / took);
        let cpu = running.daemons.cpu_time()? - cpu;
        numbers.insert("idle_cpu", cpu.as_secs_f64() * 1e3 / took);
    }
    running.daemons.expect_running()?;
    Ok(numbers)
}

fn one_stream(streamed: &Streamed, running: &Running) -> Numbers {
    let gigabytes = streamed.bytes as f64 / 1e9;
    let mut numbers = Numbers::from([
        ("tcp1", streamed.gigabits()),
        ("retransmitted", streamed.tcp.retransmitted as f64 / gigabytes),
        ("out_of_order", streamed.tcp.out_of_order as f64 / gigabytes),
        ("reordered", streamed.tcp.reordered as f64),
        ("duplicates", streamed.tcp.duplicates as f64),
    ]);
    if !running.daemons.is_empty() {
        numbers.insert("cpu_per_gb", streamed.cpu_per_gigabyte());
    }
    numbers
}

fn streams(
    key: &'static str,
    place: &Place,
    running: &mut Running,
    senders: &[Side],
    length: Duration,
) -> anyhow::Result<Numbers> {
    Ok(Numbers::from([(key, traffic::stream(place, running, senders, length)?.gigabits())]))
}

fn exchanges(median: &'static str, p99: &'static str, exchanged: Exchanged) -> Numbers {
    Numbers::from([(median, exchanged.median), (p99, exchanged.p99)])
}

fn lossless(
    key: &'static str,
    place: &Place,
    running: &mut Running,
    bytes: usize,
    length: Duration,
) -> anyhow::Result<Numbers> {
    let mut packets = Packets::start(place, running)?;
    let trial = (length / TRIAL_SHARE).max(SHORTEST_TRIAL);
    let rate = bisect::highest(|rate| packets.send(running, rate, bytes, trial).map(|paced| paced.trial()))?;
    anyhow::ensure!(rate > 0.0, "packets are lost at every rate");
    Ok(Numbers::from([(key, rate / 1e3)]))
}

fn fixed_rate(place: &Place, running: &mut Running, length: Duration) -> anyhow::Result<Numbers> {
    let paced = Packets::start(place, running)?.send(running, FIXED_RATE, SMALL_PACKET, length)?;
    anyhow::ensure!(paced.received > 0, "no packet arrived");
    let mut numbers = Numbers::from([("lost_at_20k", paced.trial().lost * 100.0)]);
    if !running.daemons.is_empty() {
        numbers.insert("cpu_per_packet", paced.cpu.as_secs_f64() * 1e6 / paced.received as f64);
    }
    Ok(numbers)
}

fn rekey(place: &Place, running: &mut Running) -> anyhow::Result<Numbers> {
    let streamed = traffic::stream(place, running, &[Side::Near], ACROSS_A_REKEY)?;
    let seconds: Vec<f64> = streamed.per_second.iter().map(|bytes| *bytes as f64 * 8.0 / 1e9).collect();
    let of = |percent| percentile(&seconds, percent).context("not one whole second");
    let (worst, median) = (of(0.0)?, of(50.0)?);
    Ok(Numbers::from([("rekey_worst", worst / median), ("rekey_median", median)]))
}

fn memory(running: &Running) -> anyhow::Result<Numbers> {
    let Some(memory) = running.daemons.memory() else { return Ok(Numbers::new()) };
    Ok(Numbers::from([("memory_idle", memory.idle), ("memory_load", memory.peak), ("memory_added", memory.added)]))
}
