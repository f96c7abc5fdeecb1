//! Bulk in both directions at once over TCP, every byte compared with what was sent.
//!
//! Content is made of blocks. Each begins with its number and goes on with a piece of a pool of random bytes that
//! depends on the number: a block that is damaged, missing, doubled or in a place of another's is found out.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use wiremesh::{clock, sandbox::Node};

use crate::TcpInfo;

/// Compared at once.
const BLOCK_BYTES: usize = 1 << 16;
const NUMBER_BYTES: usize = 8;
/// Where pieces are taken from.
const POOL_BYTES: usize = 1 << 20;
/// From one block's piece to the next one's. A prime, so that all places in the pool get their turn.
const STRIDE: u64 = 7919;
/// The number of a block has the number of its stream in front.
const STREAM_SHIFT: u32 = 40;
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A connection on which nothing moves for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(40);

/// A transfer under way.
#[derive(Debug)]
pub struct Transfer {
    streams: Vec<TcpStream>,
    tasks: Vec<JoinHandle<()>>,
    /// What went wrong first.
    failed: Arc<Mutex<Option<anyhow::Error>>>,
    moved: Arc<AtomicU64>,
    total: u64,
    begun_at: Instant,
}

/// A transfer that is over, with content that was right to the last byte.
#[derive(Clone, Debug)]
pub struct Transferred {
    /// Bytes, both directions together.
    pub bytes: u64,
    /// From the first byte to the last.
    pub took: Duration,
    /// What the kernel knows of each connection, at either end.
    pub connections: Vec<TcpInfo>,
}

/// Moves `bytes` from `near` to `far` and as many back, spread over so many connections, and waits for it.
pub fn transfer(near: &Node, far: &Node, far_ip: IpAddr, streams: u64, bytes: u64) -> anyhow::Result<Transferred> {
    Transfer::begin(near, far, far_ip, streams, bytes)?.finish()
}

impl Transfer {
    /// Begins to move `bytes` from `near` to `far` and as many back, spread over so many connections. `far_ip` is where
    /// `near` reaches `far`.
    pub fn begin(near: &Node, far: &Node, far_ip: IpAddr, streams: u64, bytes: u64) -> anyhow::Result<Transfer> {
        Transfer::begin_paced(near, far, far_ip, streams, bytes, Duration::ZERO)
    }

    /// Like [`Transfer::begin`], with a pause after each 64 KiB of a connection: for long, and for little of the machine.
    pub fn begin_paced(
        near: &Node,
        far: &Node,
        far_ip: IpAddr,
        streams: u64,
        bytes: u64,
        pause: Duration,
    ) -> anyhow::Result<Transfer> {
        let listener = far.run(|| TcpListener::bind((far_ip, 0)))?.with_context(|| format!("listening at {far_ip}"))?;
        let to: SocketAddr = listener.local_addr()?;
        let blocks = bytes.div_ceil(streams * BLOCK_BYTES as u64);
        let pool = Arc::new(Pool::new());
        let moved = Arc::new(AtomicU64::new(0));
        let total = 2 * streams * blocks * BLOCK_BYTES as u64;
        let mut transfer = Transfer {
            streams: Vec::new(),
            tasks: Vec::new(),
            failed: Arc::default(),
            moved,
            total,
            begun_at: clock::now(),
        };
        for stream in 0..streams {
            let near_end = near.run(|| TcpStream::connect_timeout(&to, CONNECT_LIMIT))?.context("connecting")?;
            let (far_end, _) = listener.accept()?;
            let there = (stream * 2) << STREAM_SHIFT;
            let back = (stream * 2 + 1) << STREAM_SHIFT;
            for (end, out, back) in [(near_end, there, back), (far_end, back, there)] {
                end.set_read_timeout(Some(STALL_LIMIT))?;
                end.set_write_timeout(Some(STALL_LIMIT))?;
                let (sender, receiver) = (end.try_clone()?, end.try_clone()?);
                let (sent, expected) = (pool.clone(), pool.clone());
                let moved = transfer.moved.clone();
                transfer.spawn(sender, move |stream| send(stream, &sent, out..out + blocks, pause));
                transfer.spawn(receiver, move |stream| receive(stream, &expected, back..back + blocks, &moved));
                transfer.streams.push(end);
            }
        }
        Ok(transfer)
    }

    /// Bytes that have arrived, both directions together.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Bytes that will have arrived at the end.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether it has ended, well or not.
    pub fn is_over(&self) -> bool {
        self.tasks.iter().all(JoinHandle::is_finished)
    }

    /// Waits for its end.
    pub fn finish(mut self) -> anyhow::Result<Transferred> {
        for task in self.tasks.drain(..) {
            task.join().map_err(|_| anyhow::anyhow!("a task of the transfer panicked"))?;
        }
        if let Some(error) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error.context(format!("after {} of {} bytes", self.moved(), self.total)));
        }
        let took = clock::now() - self.begun_at;
        let connections = self.streams.iter().map(TcpInfo::of).collect::<anyhow::Result<_>>()?;
        Ok(Transferred { bytes: self.moved(), took, connections })
    }

    /// Does `work` with one end of a connection. When that fails the connection ends, so that nobody waits for it.
    fn spawn(&mut self, stream: TcpStream, work: impl FnOnce(&TcpStream) -> anyhow::Result<()> + Send + 'static) {
        let failed = self.failed.clone();
        self.tasks.push(thread::spawn(move || {
            if let Err(error) = work(&stream) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                abandon(&stream);
            }
        }));
    }
}

impl Transferred {
    /// The sum of a number over all connections, both ends.
    pub fn sum(&self, of: impl Fn(&TcpInfo) -> u32) -> u64 {
        self.connections.iter().map(|connection| u64::from(of(connection))).sum()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let megabits = self.bytes as f64 * 8.0 / 1e6 / self.took.as_secs_f64();
        format!(
            "{} MB in {:.1} s, {megabits:.0} Mbit/s; sent again {} segments, {} for nothing; order changed {} times, \
             {} came before an earlier one",
            self.bytes / 1_000_000,
            self.took.as_secs_f64(),
            self.sum(TcpInfo::retransmissions),
            self.sum(TcpInfo::needless),
            self.sum(TcpInfo::reorderings),
            self.sum(TcpInfo::out_of_order),
        )
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.streams.iter().for_each(abandon);
    }
}

struct Pool {
    bytes: Vec<u8>,
}

impl Pool {
    fn new() -> Pool {
        let mut bytes = vec![0; POOL_BYTES + BLOCK_BYTES];
        SmallRng::seed_from_u64(0x57).fill_bytes(&mut bytes);
        Pool { bytes }
    }

    /// What follows the number in a block.
    fn piece(&self, number: u64) -> &[u8] {
        let at = (number.wrapping_mul(STRIDE) % POOL_BYTES as u64) as usize;
        &self.bytes[at..at + BLOCK_BYTES - NUMBER_BYTES]
    }
}

fn send(mut stream: &TcpStream, pool: &Pool, numbers: std::ops::Range<u64>, pause: Duration) -> anyhow::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    for number in numbers {
        block[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        block[NUMBER_BYTES..].copy_from_slice(pool.piece(number));
        stream.write_all(&block).context("sending")?;
        thread::sleep(pause);
    }
    Ok(())
}

fn receive(
    mut stream: &TcpStream,
    pool: &Pool,
    numbers: std::ops::Range<u64>,
    moved: &AtomicU64,
) -> anyhow::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    for number in numbers {
        stream.read_exact(&mut block).context("receiving")?;
        check(&block, pool, number)?;
        moved.fetch_add(block.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn check(block: &[u8], pool: &Pool, number: u64) -> anyhow::Result<()> {
    let (came, piece) = block.split_at(NUMBER_BYTES);
    let (stream, block) = (number >> STREAM_SHIFT, number & ((1 << STREAM_SHIFT) - 1));
    anyhow::ensure!(
        came == number.to_be_bytes(),
        "stream {stream}, block {block}: another came, or was damaged: {came:02x?}"
    );
    let expected = pool.piece(number);
    if piece != expected {
        let at = piece.iter().zip(expected).position(|(came, expected)| came != expected).unwrap_or_default();
        let wrong = piece.iter().zip(expected).filter(|(came, expected)| came != expected).count();
        anyhow::bail!(
            "stream {stream}, block {block}: {wrong} bytes are wrong, the first is number {}",
            at + NUMBER_BYTES
        );
    }
    Ok(())
}

fn abandon(stream: &TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(pool: &Pool, number: u64) -> Vec<u8> {
        [&number.to_be_bytes(), pool.piece(number)].concat()
    }

    #[test]
    fn a_block_that_is_not_the_one_that_was_sent_is_found_out() {
        let pool = Pool::new();
        let right = block(&pool, 7);
        check(&right, &pool, 7).unwrap();

        for at in [0, 7, 8, 4711, BLOCK_BYTES - 1] {
            let mut damaged = right.clone();
            damaged[at] ^= 1;
            assert!(check(&damaged, &pool, 7).is_err(), "byte {at}");
        }
        let mut moved = right.clone();
        moved.copy_within(1000..2000, 3000);
        assert!(check(&moved, &pool, 7).is_err());
        assert!(check(&block(&pool, 8), &pool, 7).is_err());
        assert!(check(&block(&pool, 7 + (1 << STREAM_SHIFT)), &pool, 7).is_err());
    }

    #[test]
    fn pieces_of_blocks_that_are_near_each_other_differ() {
        let pool = Pool::new();
        let pieces: std::collections::BTreeSet<_> = (0..500).map(|number| pool.piece(number)).collect();

        assert_eq!(pieces.len(), 500);
    }
}
