//! A connection on which an answer is read even if the other side reads no more of the request: who refuses an upload
//! answers and closes, and what it said must not be lost to the broken pipe that follows.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// Writing that fails waits instead, until reading has come to its own end.
pub struct Patient {
    stream: UnixStream,
    unheard: bool,
}

impl Patient {
    /// Around a connection.
    pub fn new(stream: UnixStream) -> Patient {
        Patient { stream, unheard: false }
    }

    /// Whoever waits here is woken by what is read.
    fn heard<T>(&mut self, written: io::Result<T>) -> Poll<io::Result<T>> {
        match written {
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.unheard = true;
                Poll::Pending
            }
            written => Poll::Ready(written),
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.unheard {
            return Poll::Pending;
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.heard(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.heard(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
