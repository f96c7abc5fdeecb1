//! The two threads that carry packets: `outbound` from the TUN device to the UDP socket, `inbound` the other way.
//!
//! Each waits, carries what came, and waits again, as [`super::moderation`] says: no queue and no other thread is between
//! a packet and its way out, and one thread a direction keeps the order of packets. They end when the device is gone and
//! the socket is closed.

use std::{
    io::{self, IoSlice},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};

use super::{
    moderation::{Batch, Moderation, Next},
    tun::{MAX_FRAME_BYTES, Tun, is_gone},
    udp::{Received, Udp, Wait},
};
use crate::{
    clock,
    overlay::{
        Aside, Counters, Dropped, Inbound, Outbound,
        batch::Packets,
        offload::{Cut, Joined, MAX_PIECES, VirtioHeader},
    },
    task::CancellationToken,
};

/// Frames read at once. More gain nothing and make the first of them wait.
const FRAMES_AT_ONCE: usize = 64;
/// A frame of this size is worth a system call by itself and waits for no other.
const LARGE_FRAME: usize = 8 * 1024;
/// While frames come alone, only after every so many is looked whether another is there: looking costs a system call.
const LOOK_EVERY: u32 = 4;
/// How long to hold back after a read or receive failed, so that an error that stays does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(50);
/// How long a thread may take to notice that it is over.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// Where a thread leaves what it cannot decide. What has no room is dropped and counted: a flood of handshakes holds up
/// no data.
pub struct Asides {
    sender: mpsc::Sender<Aside>,
    counters: Arc<Counters>,
}

impl Asides {
    /// Into `sender`.
    pub fn new(sender: mpsc::Sender<Aside>, counters: Arc<Counters>) -> Asides {
        Asides { sender, counters }
    }

    fn leave(&self, aside: Aside) {
        if self.sender.try_send(aside).is_err() {
            self.counters.count(Dropped::Overload);
        }
    }
}

/// Runs `carry` on a thread of its own until it ends, or is not over soon after `stop`.
pub async fn run(
    name: &str,
    stop: CancellationToken,
    carry: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let (done, ended) = oneshot::channel();
    let span = tracing::Span::current();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _entered = span.enter();
        // Whoever waits for it may have gone.
        let _: Result<(), _> = done.send(carry());
    })?;
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(LEAVE_WITHIN).await;
    };
    let ended = tokio::select! {
        ended = ended => ended.context("the thread panicked")?,
        () = too_late => anyhow::bail!("the thread does not end"),
    };
    match ended {
        Err(error) if stop.is_cancelled() => {
            tracing::debug!("{error:#}");
            Ok(())
        }
        ended => ended,
    }
}

/// Carries packets of ours until the device is gone.
pub fn outbound(
    mut machine: Outbound,
    tun: &impl Tun,
    udp: &impl Udp,
    asides: &Asides,
    mut moderation: Moderation,
) -> anyhow::Result<()> {
    let mut frames = Packets::new();
    let mut reader = Reader::default();
    loop {
        let read = match reader.read(tun, &mut frames) {
            Ok(read) => read,
            Err(error) if is_gone(&error) => {
                return Err(error).context("the TUN device is gone: its interface was removed");
            }
            Err(error) => {
                // A packet that the kernel could not hand over, and no reason to have none of the others.
                tracing::debug!(%error, "reading from the TUN device failed");
                asides.counters.count(Dropped::Device);
                thread::sleep(AFTER_ERROR);
                continue;
            }
        };
        let now = clock::now();
        machine.handle_frames(&mut frames, now, |aside| asides.leave(aside));
        while let Some(transmit) = machine.poll_transmit() {
            if let Err(dropped) = udp.send(&transmit, Wait::Yes) {
                asides.leave(Aside::Refused(transmit.to, dropped));
            }
        }
        match moderation.on_batch(read, now) {
            Next::Sleep => reader.look_until = None,
            Next::Gather(pause) => {
                thread::sleep(pause);
                reader.expect_more();
            }
            Next::Look(duration) => reader.look_until = Some(clock::now() + duration),
        }
    }
}

/// Carries packets of others until the socket is closed.
pub fn inbound(
    mut machine: Inbound,
    tun: &impl Tun,
    udp: &impl Udp,
    asides: &Asides,
    mut moderation: Moderation,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut received = Received::default();
    let mut scratch = vec![0; MAX_FRAME_BYTES];
    loop {
        match udp.recv(&mut received) {
            Ok(()) if received.is_empty() && stop.is_cancelled() => return Ok(()),
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(%error, "receiving failed");
                thread::sleep(AFTER_ERROR);
                continue;
            }
        }
        let now = clock::now();
        let mut batch = Batch::default();
        for buffer in received.buffers() {
            batch.add(buffer.datagrams().len(), buffer.bytes());
            if !machine.has_room() {
                write_all(&mut machine, tun, &mut scratch, asides);
            }
            machine.handle_datagrams(buffer.from, buffer.datagrams(), now, |aside| asides.leave(aside));
        }
        write_all(&mut machine, tun, &mut scratch, asides);
        match moderation.on_batch(batch, now) {
            // One of the two that looks is enough: it keeps a processor awake, which is what saves time.
            Next::Sleep | Next::Look(_) => {}
            Next::Gather(pause) => thread::sleep(pause),
        }
    }
}

/// Hands one packet to the device as it is.
pub fn write_plain(tun: &impl Tun, packet: &[u8]) -> io::Result<()> {
    tun.write(&[IoSlice::new(&VirtioHeader::NONE.to_bytes()), IoSlice::new(packet)])
}

/// Reads from the device as much as is there, and does not ask for more where there was none lately.
#[derive(Default)]
struct Reader {
    /// So many frames in a row came alone.
    alone: u32,
    /// Look until then, before sleeping.
    look_until: Option<Instant>,
}

impl Reader {
    /// Waits for a frame, and takes what else is there.
    fn read(&mut self, tun: &impl Tun, frames: &mut Packets) -> io::Result<Batch> {
        let mut batch = Batch::default();
        while let Some(spare) = frames.spare(MAX_FRAME_BYTES) {
            let len = match batch.packets {
                0 => self.first(tun, &mut spare[..MAX_FRAME_BYTES])?,
                _ => match tun.read_now(&mut spare[..MAX_FRAME_BYTES])? {
                    Some(len) => len,
                    None => break,
                },
            };
            frames.push(len);
            batch.add(1, len);
            let looks = self.alone.is_multiple_of(LOOK_EVERY) || batch.packets > 1;
            if len >= LARGE_FRAME || batch.packets == FRAMES_AT_ONCE || !looks {
                break;
            }
        }
        self.alone = if batch.packets > 1 { 0 } else { self.alone.wrapping_add(1) };
        Ok(batch)
    }

    fn first(&mut self, tun: &impl Tun, frame: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.look_until.take() {
            while clock::now() < until {
                if let Some(len) = tun.read_now(frame)? {
                    return Ok(len);
                }
                thread::yield_now();
            }
        }
        tun.read(frame)
    }

    /// Frames had time to gather.
    fn expect_more(&mut self) {
        self.alone = 0;
    }
}

fn write_all(machine: &mut Inbound, tun: &impl Tun, scratch: &mut [u8], asides: &Asides) {
    while let Some(joined) = machine.poll_joined() {
        if let Err(error) = write(tun, &joined, scratch) {
            tracing::trace!(%error, "the TUN device refused a packet");
            asides.counters.count(Dropped::Device);
        }
    }
}

fn write(tun: &impl Tun, joined: &Joined<'_>, scratch: &mut [u8]) -> io::Result<()> {
    let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
    let pieces = joined.fill(&mut pieces);
    match tun.write(pieces) {
        // A kernel that does not take this kind of large packet: it gets what it is made of.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) && joined.packets() > 1 => {
            write_cut(tun, pieces, scratch)
        }
        done => done,
    }
}

fn write_cut(tun: &impl Tun, pieces: &[IoSlice<'_>], scratch: &mut [u8]) -> io::Result<()> {
    let mut len = 0;
    for piece in pieces {
        scratch[len..len + piece.len()].copy_from_slice(piece);
        len += piece.len();
    }
    let mut cut = Cut::new(&mut scratch[..len]).map_err(io::Error::other)?;
    while let Some(packet) = cut.next() {
        write_plain(tun, packet)?;
    }
    Ok(())
}
