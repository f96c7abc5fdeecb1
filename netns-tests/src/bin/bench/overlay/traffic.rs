//! TCP between the two ends: streams as fast as they go, and one byte there and back.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use wiremesh::clock;

use super::{
    counters::Tcp,
    implementations::Running,
    place::{Place, SIDES, Side},
};
use crate::statistics::percentile;

/// What a program hands over at once; iperf3 takes as much.
const BLOCK_BYTES: usize = 128 * 1024;
/// Until windows have grown.
const WARM_UP: Duration = Duration::from_millis(500);
/// How often memory is looked at while streams flow.
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A path over which nothing comes back for so long does not work.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For queues to empty between two measurements.
const REST: Duration = Duration::from_millis(200);
/// Exchanges before any is counted.
const WARM_UP_EXCHANGES: usize = 200;

/// What streams achieved together.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// What arrived.
    pub bytes: u64,
    /// In how long.
    pub took: Duration,
    /// What the daemons at both ends needed for it.
    pub cpu: Duration,
    /// What TCP at both ends had to say about the way.
    pub tcp: Tcp,
    /// What arrived in each whole second.
    pub per_second: Vec<u64>,
}

/// Times of exchanges, in µs.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged {
    /// Half took no longer.
    pub median: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

/// One connection with a program at each end of it.
struct Stream {
    arrived: Arc<AtomicU64>,
    ends: [TcpStream; 2],
    threads: [JoinHandle<()>; 2],
}

impl Streamed {
    /// What arrived, in Gbit a second.
    pub fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.took.as_secs_f64()
    }

    /// What the daemons needed for each GB that arrived.
    pub fn cpu_per_gigabyte(&self) -> f64 {
        self.cpu.as_secs_f64() / (self.bytes as f64 / 1e9)
    }
}

impl Exchanged {
    /// Of all that were measured.
    pub fn of(micros: &[f64]) -> anyhow::Result<Exchanged> {
        let at = |percent| percentile(micros, percent).context("nothing was exchanged");
        Ok(Exchanged { median: at(50.0)?, p99: at(99.0)? })
    }
}

/// One stream from each of `senders` to its other end, all at once, for so long.
pub fn stream(place: &Place, running: &mut Running, senders: &[Side], length: Duration) -> anyhow::Result<Streamed> {
    let streams =
        senders.iter().map(|from| Stream::start(place, running, *from)).collect::<anyhow::Result<Vec<_>>>()?;
    let arrived = || streams.iter().map(|stream| stream.arrived.load(Ordering::Relaxed)).sum::<u64>();
    thread::sleep(WARM_UP);

    let (tcp, cpu, bytes, started) = (tcp_of(place)?, running.daemons.cpu_time()?, arrived(), clock::now());
    let mut per_second = Vec::new();
    let (mut second_ends, mut so_far) = (started + Duration::from_secs(1), bytes);
    while clock::now() < started + length {
        thread::sleep(SAMPLE_EVERY.min((started + length).saturating_duration_since(clock::now())));
        running.daemons.sample_memory()?;
        if clock::now() >= second_ends {
            let total = arrived();
            per_second.push(total - so_far);
            (second_ends, so_far) = (second_ends + Duration::from_secs(1), total);
        }
    }
    let (bytes, took) = (arrived() - bytes, clock::now() - started);
    let (cpu, tcp) = (running.daemons.cpu_time()? - cpu, tcp_of(place)?.since(tcp));

    for stream in streams {
        stream.stop()?;
    }
    thread::sleep(REST);
    running.daemons.expect_running()?;
    anyhow::ensure!(bytes > 0, "nothing arrived in {took:?}");
    Ok(Streamed { bytes, took, cpu, tcp, per_second })
}

/// One byte there and back, over and over, for so long.
pub fn exchange(place: &Place, running: &Running, length: Duration) -> anyhow::Result<Exchanged> {
    let [mut client, mut server] = connect(place, running, Side::Near)?;
    let answering = thread::spawn(move || {
        let mut byte = [0];
        while server.read_exact(&mut byte).and_then(|()| server.write_all(&byte)).is_ok() {}
    });
    let mut ask = || -> anyhow::Result<f64> {
        let (asked_at, mut byte) = (clock::now(), [1]);
        client.write_all(&byte)?;
        client.read_exact(&mut byte).context("no answer")?;
        Ok((clock::now() - asked_at).as_secs_f64() * 1e6)
    };
    for _ in 0..WARM_UP_EXCHANGES {
        ask()?;
    }
    let (ends_at, mut micros) = (clock::now() + length, Vec::new());
    while clock::now() < ends_at {
        micros.push(ask()?);
    }
    client.shutdown(Shutdown::Both)?;
    answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))?;
    Exchanged::of(&micros)
}

/// Waits until a byte goes there and back.
pub fn reachable(place: &Place, running: &mut Running, deadline: Instant) -> anyhow::Result<()> {
    loop {
        running.daemons.expect_running()?;
        let tried = connect(place, running, Side::Near).and_then(|[mut near, mut far]| {
            near.write_all(&[1])?;
            far.read_exact(&mut [0])?;
            Ok(())
        });
        match tried {
            Ok(()) => return Ok(()),
            Err(error) if clock::now() >= deadline => return Err(error.context("the other end cannot be reached")),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Stream {
    fn start(place: &Place, running: &Running, from: Side) -> anyhow::Result<Stream> {
        let [mut sender, mut receiver] = connect(place, running, from)?;
        let (ends, arrived) = ([sender.try_clone()?, receiver.try_clone()?], Arc::new(AtomicU64::new(0)));
        let counted = arrived.clone();
        let sending = thread::spawn(move || {
            let block = vec![0x5a; BLOCK_BYTES];
            while sender.write(&block).is_ok() {}
        });
        let receiving = thread::spawn(move || {
            let mut block = vec![0; BLOCK_BYTES];
            loop {
                match receiver.read(&mut block) {
                    Ok(length) if length > 0 => counted.fetch_add(length as u64, Ordering::Relaxed),
                    // Quiet for long: whoever counts will see that nothing arrives.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Ok(_) | Err(_) => return,
                };
            }
        });
        Ok(Stream { arrived, ends, threads: [sending, receiving] })
    }

    fn stop(self) -> anyhow::Result<()> {
        for end in &self.ends {
            // The other end may have gone first.
            let _ = end.shutdown(Shutdown::Both);
        }
        drop(self.ends);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a stream's thread panicked"))?;
        }
        Ok(())
    }
}

/// A connection from `from` to its other end: both of its sockets, the caller's first.
fn connect(place: &Place, running: &Running, from: Side) -> anyhow::Result<[TcpStream; 2]> {
    let to = from.other();
    let listener = place.namespace(to).run(|| TcpListener::bind((running.address(to), 0)))??;
    let address: SocketAddr = listener.local_addr()?;
    let calling = place.namespace(from).run(|| TcpStream::connect_timeout(&address, CONNECT_LIMIT))?;
    let calling = calling.with_context(|| format!("connecting to {address}"))?;
    let (called, _) = listener.accept()?;
    for end in [&calling, &called] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(ANSWER_LIMIT))?;
    }
    Ok([calling, called])
}

fn tcp_of(place: &Place) -> anyhow::Result<Tcp> {
    let [near, far] = SIDES.map(|side| Tcp::of(place.namespace(side)));
    Ok(near?.plus(far?))
}
