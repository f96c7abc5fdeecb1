//! UDP between the two ends: packets at a given rate, the highest rate without loss, and one packet there and back.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::sys::{
    prctl,
    socket::{setsockopt, sockopt},
};
use wiremesh::clock;

use super::{
    bisect::Trial,
    implementations::Running,
    place::{Place, Side},
    traffic::Exchanged,
};

/// Room for what arrives while the receiver does not run: losses are to be the path's.
const RECEIVE_BUFFER_BYTES: usize = 32 * 1024 * 1024;
/// The sender catches up by this much after it did not run; the rest is not sent. More would be a burst that no queue
/// holds.
const CATCH_UP: Duration = Duration::from_millis(2);
const MIN_BURST: f64 = 64.0;
const MAX_BURST: f64 = 256.0;
/// Shorter than any gap that matters: a sender that waits is given back the processor that daemons need.
const NAP: Duration = Duration::from_micros(20);
/// After the last packet was sent, until none is expected any more.
const STRAGGLERS: Duration = Duration::from_millis(100);
const STRAGGLERS_LIMIT: Duration = Duration::from_secs(2);
/// How soon the receiver notices that it should end.
const RECEIVE_LIMIT: Duration = Duration::from_millis(50);
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const WARM_UP_EXCHANGES: usize = 200;
/// Of exchanges, when more are lost the path does not work.
const MAX_LOST: usize = 20;
/// The number of the run, at the start of each packet.
const RUN_BYTES: usize = 4;

/// A sender at one end and a receiver at the other.
pub struct Packets {
    sender: UdpSocket,
    received: Arc<Received>,
    receiver: Option<JoinHandle<()>>,
    run: u32,
}

struct Received {
    /// Only packets of this run count.
    run: AtomicU32,
    packets: AtomicU64,
    /// When the last of them came, in ns since `epoch`.
    last_at: AtomicU64,
    epoch: Instant,
    stop: AtomicBool,
}

/// What became of packets that were sent at a rate.
#[derive(Clone, Copy, Debug)]
pub struct Paced {
    /// How many were sent.
    pub sent: u64,
    /// How many arrived.
    pub received: u64,
    /// From the first that was sent to the last that was sent or arrived.
    pub took: Duration,
    /// What the daemons at both ends needed, until the last had arrived.
    pub cpu: Duration,
}

impl Paced {
    /// The rate at which they arrived, and what share was lost. What only fills queues takes its time to arrive.
    pub fn trial(&self) -> Trial {
        Trial {
            rate: self.received as f64 / self.took.as_secs_f64(),
            lost: 1.0 - self.received.min(self.sent) as f64 / self.sent.max(1) as f64,
        }
    }
}

impl Packets {
    /// From the near end to the far one.
    pub fn start(place: &Place, running: &Running) -> anyhow::Result<Packets> {
        let [sender, receiver] = sockets(place, running)?;
        // Outside of the sandbox's own rights the system's limit holds.
        if setsockopt(&receiver.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            setsockopt(&receiver.as_fd(), sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
        }
        receiver.set_read_timeout(Some(RECEIVE_LIMIT))?;
        let received = Arc::new(Received {
            run: AtomicU32::new(0),
            packets: AtomicU64::new(0),
            last_at: AtomicU64::new(0),
            epoch: clock::now(),
            stop: AtomicBool::new(false),
        });
        let counting = received.clone();
        let receiver = thread::spawn(move || counting.receive(&receiver));
        Ok(Packets { sender, received, receiver: Some(receiver), run: 0 })
    }

    /// Sends packets with so many bytes, evenly, for so long.
    pub fn send(&mut self, running: &mut Running, rate: f64, bytes: usize, length: Duration) -> anyhow::Result<Paced> {
        self.run += 1;
        self.received.packets.store(0, Ordering::Relaxed);
        self.received.run.store(self.run, Ordering::Relaxed);
        let cpu = running.daemons.cpu_time()?;

        let started = clock::now();
        let sent = self.send_paced(rate, bytes, length)?;
        let sent_in = clock::now() - started;

        let received = self.wait_for_stragglers(sent);
        let last_at = self.received.epoch + Duration::from_nanos(self.received.last_at.load(Ordering::Relaxed));
        let took = sent_in.max(last_at.saturating_duration_since(started));
        running.daemons.sample_memory()?;
        running.daemons.expect_running()?;
        Ok(Paced { sent, received, took, cpu: running.daemons.cpu_time()? - cpu })
    }

    fn send_paced(&self, rate: f64, bytes: usize, length: Duration) -> anyhow::Result<u64> {
        // On a thread of its own, as the timer's precision is a thread's.
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                prctl::set_timerslack(1)?;
                let mut packet = vec![0x5a; bytes.max(RUN_BYTES)];
                packet[..RUN_BYTES].copy_from_slice(&self.run.to_be_bytes());
                let burst = (rate * CATCH_UP.as_secs_f64()).clamp(MIN_BURST, MAX_BURST) as u64;
                let (started, mut sent, mut forgone) = (clock::now(), 0, 0);
                loop {
                    let elapsed = clock::now() - started;
                    if elapsed >= length {
                        return Ok(sent);
                    }
                    let due = (elapsed.as_secs_f64() * rate) as u64 - forgone;
                    if due <= sent {
                        thread::sleep(NAP);
                        continue;
                    }
                    forgone += (due - sent).saturating_sub(burst);
                    for _ in 0..(due - sent).min(burst) {
                        match self.sender.send(&packet) {
                            Ok(_) => sent += 1,
                            // A full queue is a loss as any other.
                            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => sent += 1,
                            Err(error) => return Err(error).context("sending"),
                        }
                    }
                }
            });
            sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
        })
    }

    fn wait_for_stragglers(&self, sent: u64) -> u64 {
        let deadline = clock::now() + STRAGGLERS_LIMIT;
        loop {
            let before = self.received.packets.load(Ordering::Relaxed);
            if before >= sent {
                return before;
            }
            thread::sleep(STRAGGLERS);
            let after = self.received.packets.load(Ordering::Relaxed);
            if after == before || clock::now() >= deadline {
                return after;
            }
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.received.stop.store(true, Ordering::Relaxed);
        if let Some(receiver) = self.receiver.take() {
            // It has nothing to say.
            let _ = receiver.join();
        }
    }
}

impl Received {
    fn receive(&self, socket: &UdpSocket) {
        let mut packet = [0; 2048];
        while !self.stop.load(Ordering::Relaxed) {
            // A time-out is a chance to see that we should stop.
            let Ok(length) = socket.recv(&mut packet) else { continue };
            let run = packet[..length].first_chunk().map(|run| u32::from_be_bytes(*run));
            if run == Some(self.run.load(Ordering::Relaxed)) {
                let at = (clock::now() - self.epoch).as_nanos();
                self.last_at.store(u64::try_from(at).unwrap_or(u64::MAX), Ordering::Relaxed);
                self.packets.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// One byte there and back, over and over, for so long.
pub fn exchange(place: &Place, running: &Running, length: Duration) -> anyhow::Result<Exchanged> {
    let [client, server] = sockets(place, running)?;
    client.set_read_timeout(Some(ANSWER_LIMIT))?;
    server.set_read_timeout(Some(RECEIVE_LIMIT))?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let answering = thread::spawn(move || {
        let mut bytes = [0; 16];
        while !stopping.load(Ordering::Relaxed) {
            let Ok((length, from)) = server.recv_from(&mut bytes) else { continue };
            // An answer that cannot be sent is lost, as the one who asks will see.
            let _ = server.send_to(&bytes[..length], from);
        }
    });
    let asked = ask(&client, length);
    stop.store(true, Ordering::Relaxed);
    answering.join().map_err(|_| anyhow::anyhow!("the answering thread panicked"))?;
    Exchanged::of(&asked?)
}

/// How long each exchange took, in µs. Those that were lost are left out, unless they are too many.
fn ask(client: &UdpSocket, length: Duration) -> anyhow::Result<Vec<f64>> {
    let (mut micros, mut lost, mut number) = (Vec::new(), 0, 0_u64);
    let mut ends_at = clock::now() + length;
    while clock::now() < ends_at {
        number += 1;
        if number == WARM_UP_EXCHANGES as u64 {
            micros.clear();
            ends_at = clock::now() + length;
        }
        let (asked_at, mut answer) = (clock::now(), [0; 16]);
        client.send(&number.to_be_bytes())?;
        loop {
            match client.recv(&mut answer) {
                Ok(_) if answer[..8] == number.to_be_bytes() => {
                    micros.push((clock::now() - asked_at).as_secs_f64() * 1e6);
                    break;
                }
                // One that was taken for lost.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    lost += 1;
                    anyhow::ensure!(lost <= MAX_LOST, "{lost} of {number} exchanges were lost");
                    break;
                }
                Err(error) => return Err(error).context("waiting for an answer"),
            }
        }
    }
    Ok(micros)
}

/// A socket at the near end that sends to the one at the far end.
fn sockets(place: &Place, running: &Running) -> anyhow::Result<[UdpSocket; 2]> {
    let bind = |side: Side| place.namespace(side).run(|| UdpSocket::bind((running.address(side), 0)));
    let (near, far) = (bind(Side::Near)??, bind(Side::Far)??);
    near.connect(far.local_addr()?)?;
    Ok([near, far])
}
