//! One QUIC connection to a member and its streams, in the shape libp2p wants them.
//!
//! A QUIC receiving stream that is dropped tells the other side to stop sending. libp2p drops streams it has closed
//! while the other side may still be writing the end of its negotiation, which then fails and takes the message that
//! was sent with it. A stream that was closed properly is therefore read to its end here before it is dropped.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    AsyncRead, AsyncWrite, FutureExt, StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
    future::BoxFuture,
};
use libp2p_core::muxing::{StreamMuxer, StreamMuxerEvent};
use quinn::{ConnectionError, RecvStream, SendStream, VarInt};

use super::gate::Admitted;

/// Streams being read to their end at a time; beyond it they are dropped as they are. As many as may be open.
const MAX_DRAINING: usize = 256;
/// Bytes thrown away at a time while draining.
const DRAIN_BYTES: usize = 1024;
const CLOSED: VarInt = VarInt::from_u32(0);

type Streams = Result<(SendStream, RecvStream), ConnectionError>;

/// A connection to a member.
pub struct Muxer {
    admitted: Admitted,
    inbound: Option<BoxFuture<'static, Streams>>,
    outbound: Option<BoxFuture<'static, Streams>>,
    closing: Option<BoxFuture<'static, ()>>,
    /// Bounded by the streams that may be open on one connection.
    closed: (UnboundedSender<RecvStream>, UnboundedReceiver<RecvStream>),
    draining: Vec<RecvStream>,
}

impl Muxer {
    /// A connection that the gate let in.
    pub fn new(admitted: Admitted) -> Muxer {
        Muxer { admitted, inbound: None, outbound: None, closing: None, closed: unbounded(), draining: Vec::new() }
    }

    fn substream(&self, (send, receive): (SendStream, RecvStream)) -> Substream {
        Substream { send, receive: Some(receive), is_closed: false, drain: self.closed.0.clone() }
    }

    fn drain(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(stream)) = self.closed.1.poll_next_unpin(cx) {
            if self.draining.len() < MAX_DRAINING {
                self.draining.push(stream);
            }
        }
        let mut discarded = [0; DRAIN_BYTES];
        self.draining.retain_mut(|stream| {
            loop {
                match stream.poll_read(cx, &mut discarded) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return false,
                    Poll::Pending => return true,
                }
            }
        });
    }
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = ConnectionError;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let connection = &self.admitted.connection;
        let accepting = connection.clone();
        let inbound = self.inbound.get_or_insert_with(|| async move { accepting.accept_bi().await }.boxed());
        let streams = futures::ready!(inbound.poll_unpin(cx));
        self.inbound = None;
        Poll::Ready(streams.map(|streams| self.substream(streams)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, ConnectionError>> {
        let opening = self.admitted.connection.clone();
        let outbound = self.outbound.get_or_insert_with(|| async move { opening.open_bi().await }.boxed());
        let streams = futures::ready!(outbound.poll_unpin(cx));
        self.outbound = None;
        Poll::Ready(streams.map(|streams| self.substream(streams)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let connection = self.admitted.connection.clone();
        let closing = self.closing.get_or_insert_with(|| {
            connection.close(CLOSED, b"");
            async move { drop(connection.closed().await) }.boxed()
        });
        closing.poll_unpin(cx).map(Ok)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        self.drain(cx);
        Poll::Pending
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        self.admitted.connection.close(CLOSED, b"");
    }
}

/// A stream in both directions.
pub struct Substream {
    send: SendStream,
    receive: Option<RecvStream>,
    is_closed: bool,
    drain: UnboundedSender<RecvStream>,
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &mut self.receive {
            Some(receive) => receive.poll_read(cx, buffer).map_err(io::Error::from),
            None => Poll::Ready(Ok(0)),
        }
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, bytes).map_err(io::Error::from)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // quinn sends by itself what was written.
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // libp2p closes a stream more than once; the first counts. A stream the other side has stopped is closed too.
        if !self.is_closed {
            self.is_closed = true;
            let _ = self.send.finish();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Substream {
    fn drop(&mut self) {
        // The sending half is finished by quinn if it is not yet; resetting it would take back an answer under way.
        if let Some(receive) = self.receive.take().filter(|_| self.is_closed) {
            // The connection is gone if this fails, and its streams with it.
            let _ = self.drain.unbounded_send(receive);
        }
    }
}
