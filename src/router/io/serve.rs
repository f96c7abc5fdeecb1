//! A listener: accepts connections, serves HTTP/1.1 and HTTP/2 on them, and leaves in order.
//!
//! On leaving, no connection is accepted any more, HTTP/2 peers get a GOAWAY, idle connections close, answers in flight
//! end. What has not ended after the grace is aborted.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, StatusCode, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Surface,
    overlay::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, STREAM_WINDOW_BYTES},
};
use crate::{
    open_files,
    places::{Places, network_of},
};

/// Connections of one listener, if as many files may be open. Beyond, they wait in the kernel's queue until one ends.
pub const MAX_CONNECTIONS: usize = 4096;
/// Of all files that may be open, a listener takes one in so many: there are three and a socket, and the other half is
/// for what they ask upstream and of other agents.
const FILES_PER_CONNECTION: usize = 8;
/// Connections from one overlay address: far more than an agent opens, and too few to keep the others out.
pub const MAX_CONNECTIONS_PER_MEMBER: usize = 256;
/// Nobody has more of a listener's places than one in so many.
const SHARES: usize = 4;
/// A connection on which nothing was asked by then, or only what was refused for want of a proof or a key, is closed.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// A connection on which nothing was asked for so long is closed, whatever else it says. Longer than other agents keep
/// an unused one, so that it is they who close.
const IDLE_FOR: Duration = Duration::from_secs(120);
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// How long a connection may be idle, or take for the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(75);
/// What is read ahead of an HTTP/1.1 body, and the end of what we read of headers (431 without a body).
const READ_BUFFER_BYTES: usize = 128 * 1024;
/// The end of what we read of HTTP/2 headers.
const MAX_HEADER_LIST_BYTES: u32 = 128 * 1024;
/// While HTTP/2 requests are in flight, a client that vanished is noticed within twice this, and its work cancelled.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A client on a dead path is noticed by the kernel after this and a few minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// What may wait unsent in the kernel: an answer to a question must not stand behind megabytes.
const UNSENT_BYTES: u32 = 256 * 1024;
/// After an accept that failed for lack of files: something has to end first.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The connections of one listener, for what outlives its request.
#[derive(Clone)]
pub(super) struct Connections {
    pub tracker: TaskTracker,
    /// Cancelled when the grace is over.
    pub killed: CancellationToken,
}

/// Where connections come from.
pub trait Listen: Send + Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection, and says where it is from.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.accept().await?;
        // All are optimisations; a socket that refuses them is as good.
        let _ = stream.set_nodelay(true);
        let socket = socket2::SockRef::from(&stream);
        let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
        Ok((stream, peer))
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    /// Whoever opens the socket is on this machine.
    async fn next(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, (Ipv4Addr::LOCALHOST, 0).into()))
    }
}

/// Serves `surface` on `listener` until `stop`, then lets what is in flight end for at most `grace`.
pub async fn serve(
    listener: impl Listen,
    surface: Surface,
    stop: CancellationToken,
    grace: Duration,
) -> anyhow::Result<()> {
    let surface = Arc::new(surface);
    let connections = Connections { tracker: TaskTracker::new(), killed: CancellationToken::new() };
    let room = Room::among(open_files::limit());
    let places = Arc::new(Semaphore::new(room.in_all));
    let sources = Places::new(room.in_all, if surface.is_shared_by_members() { room.member } else { room.network });
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = places.clone().acquire_owned() => place?,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.next() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let who = match surface.is_shared_by_members() {
                    true => Some(peer.ip().to_canonical()),
                    false => stranger(peer.ip()),
                };
                let source = who.map(|who| sources.take(who));
                if matches!(source, Some(None)) {
                    tracing::debug!(%peer, "has connections enough");
                    continue;
                }
                let serving = connection(stream, peer, surface.clone(), connections.clone(), stop.clone());
                connections.tracker.spawn(async move {
                    serving.await;
                    drop((place, source));
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
    }
    drop(listener);
    connections.tracker.close();
    if tokio::time::timeout(grace, connections.tracker.wait()).await.is_err() {
        tracing::warn!(left = connections.tracker.len(), "connections aborted: the drain is over");
        connections.killed.cancel();
        connections.tracker.wait().await;
    }
    Ok(())
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: SocketAddr,
    surface: Arc<Surface>,
    connections: Connections,
    stop: CancellationToken,
) {
    let for_requests = Arc::new(connections.clone());
    // One more holds it for each request until the end of its answer.
    let busy = Arc::new(AtomicUsize::new(0));
    let asked = busy.clone();
    let door = surface.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (surface, connections) = (surface.clone(), for_requests.clone());
        let (kept, version) = (asked.clone(), request.version());
        // Boxed: hyper keeps room for it as long as the connection lives, and a long stream needs it only at its beginning.
        Box::pin(async move {
            let mut answer = surface.answer(request, peer, connections).await;
            if answer.status() != StatusCode::UNAUTHORIZED {
                kept.fetch_add(1, Ordering::Relaxed);
            } else if version < Version::HTTP_2 {
                // Whoever is in front is told, and sends nothing more on it.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer.map(|body| body.keeping(kept)))
        })
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(READ_BUFFER_BYTES)
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);

    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = door.deserted(peer) => {
            tracing::info!(%peer, "its member is revoked, its connection is closed");
            return;
        }
        () = unheard(&busy) => {
            tracing::trace!(%peer, "nothing asked that could be answered");
            return;
        }
        () = idle(&busy) => {
            tracing::trace!(%peer, "nothing asked for long");
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(HEADERS_WITHIN, serving.as_mut()).await.unwrap_or(Ok(()))
        }
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                ended = serving.as_mut() => ended,
                () = connections.killed.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, %error, "connection ended");
    }
}

/// Who holds the count of what was asked, if nothing is being answered: a connection, and what makes the others.
const NOBODYS: usize = 2;

/// Ends when nothing was asked within [`FIRST_WITHIN`] that could be answered, and nothing is being answered.
async fn unheard(busy: &Arc<AtomicUsize>) {
    loop {
        tokio::time::sleep(FIRST_WITHIN).await;
        if busy.load(Ordering::Relaxed) > 0 {
            return std::future::pending().await;
        }
        if Arc::strong_count(busy) <= NOBODYS {
            return;
        }
    }
}

/// Ends when nothing was asked for [`IDLE_FOR`] and nothing is being answered.
async fn idle(busy: &Arc<AtomicUsize>) {
    let mut asked_before = None;
    loop {
        let asked = busy.load(Ordering::Relaxed);
        if asked_before == Some(asked) && Arc::strong_count(busy) <= NOBODYS {
            return;
        }
        asked_before = Some(asked);
        tokio::time::sleep(IDLE_FOR).await;
    }
}

/// The places of one listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Room {
    in_all: usize,
    /// Of one member.
    pub member: usize,
    /// Of one network elsewhere.
    network: usize,
}

impl Room {
    /// What there is of it if so many files may be open.
    pub fn among(files: usize) -> Room {
        let in_all = (files / FILES_PER_CONNECTION).clamp(SHARES, MAX_CONNECTIONS);
        let network = in_all / SHARES;
        Room { in_all, member: network.min(MAX_CONNECTIONS_PER_MEMBER), network }
    }
}

/// Whose a connection is that comes from elsewhere in the world. One from this machine, or from nearby, may be that of a
/// tunnel or a proxy, behind which everybody is: there is no share for it.
fn stranger(peer: IpAddr) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    let is_near = match peer {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    (!is_near).then(|| network_of(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listeners_of_an_agent_leave_half_of_the_files_to_what_they_ask_for() {
        assert_eq!(Room::among(1024), Room { in_all: 128, member: 32, network: 32 });
        assert_eq!(Room::among(1_048_576), Room { in_all: MAX_CONNECTIONS, member: 256, network: 1024 });
        for files in [256, 1024, 4096, 65_536] {
            assert!(4 * Room::among(files).in_all <= files / 2, "{files}");
        }
    }

    #[test]
    fn the_end_of_a_tunnel_is_nobody_in_particular_and_a_network_of_strangers_is_one() {
        for near in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "192.168.1.1", "172.17.0.2", "fd00::1"] {
            assert_eq!(stranger(near.parse().unwrap()), None, "{near}");
        }
        let one = stranger("2001:db8::1".parse().unwrap());
        assert!(one.is_some() && one == stranger("2001:db8::2".parse().unwrap()));
        assert_ne!(stranger("203.0.113.1".parse().unwrap()), stranger("203.0.113.2".parse().unwrap()));
    }
}
