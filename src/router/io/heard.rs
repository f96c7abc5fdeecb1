//! A connection that notes whether anything is heard from its other end, and when.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock;

/// Counts what was heard. Clones read the same count.
#[derive(Clone, Debug)]
pub struct Heard(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    opened_at: Instant,
    count: AtomicU64,
    /// After `opened_at`.
    last_millis: AtomicU64,
}

impl Heard {
    /// Of a connection that is open, and so was heard, now.
    pub fn new() -> Heard {
        Heard(Arc::new(Counts {
            opened_at: clock::now(),
            count: AtomicU64::default(),
            last_millis: AtomicU64::default(),
        }))
    }

    /// Grows with everything that arrives.
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// When something arrived last.
    pub fn at(&self) -> Instant {
        self.0.opened_at + Duration::from_millis(self.0.last_millis.load(Ordering::Relaxed))
    }

    fn on_bytes(&self) {
        let passed = clock::now().saturating_duration_since(self.0.opened_at);
        self.0.count.fetch_add(1, Ordering::Relaxed);
        self.0.last_millis.store(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Passes bytes through and counts reads.
pub struct Listening<T> {
    inner: T,
    heard: Heard,
}

impl<T> Listening<T> {
    /// Counts what `inner` reads in `heard`.
    pub fn new(inner: T, heard: Heard) -> Listening<T> {
        Listening { inner, heard }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Listening<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.heard.on_bytes();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listening<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
