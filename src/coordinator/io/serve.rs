//! Connections: accepted up to a bound, given a time for each step, and let finish when the coordinator stops.

use std::{
    future::Future,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::Request, middleware::Next};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;

use super::{http, shared::Shared};
use crate::{
    open_files,
    places::{Places, network_of},
    task::CancellationToken,
};

/// Connections at once, if as many files may be open. Agents keep one each; at the bound new ones are closed at once and
/// come back later.
pub const MAX_CONNECTIONS: usize = 8192;
/// Of all files that may be open, one in so many is kept for the database, the operator's socket and looks at tunnels.
const FILES_KEPT: usize = 4;
/// No source has more of the connections than one in so many: a site of agents behind one NAT, and not everybody's room.
const SHARES: usize = 4;
/// Connections at once on the Unix socket.
const MAX_LOCAL_CONNECTIONS: usize = 16;
/// A peer that has not finished its handshake by then is not one of ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request whose header takes longer is given up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// From its beginning, handshake and all, a connection has so long to ask for something.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// After that, one on which nothing was asked for so long is closed.
const IDLE_FOR: Duration = Duration::from_secs(120);
/// The same for whoever has not shown who it is: anybody may ask how we are, and hold a place by it.
const STRANGER_IDLE_FOR: Duration = Duration::from_secs(30);
/// What is kept unread of a connection: the head of a request, or what a body is ahead of whoever reads it.
const UNREAD_BYTES: u32 = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 32;
/// Requests in flight may take this long to end when the coordinator stops.
pub const DRAIN: Duration = Duration::from_secs(10);
/// After a failed accept (too many open files), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves HTTPS until stopped, then lets requests in flight end.
pub async fn https(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = http::public(shared.clone());
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    let (in_all, each) = room(open_files::limit());
    let places = Places::new(in_all, each);
    loop {
        let (stream, from) = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => { pause("https", error).await; continue }
            },
        };
        let Some(place) = places.take(network_of(from.ip())) else {
            shared.metrics.connections_refused.inc();
            continue;
        };
        let first = tokio::time::sleep(FIRST_WITHIN);
        let (acceptor, shared, watcher) = (acceptor.clone(), shared.clone(), graceful.watcher());
        let router = http::with_source(router.clone(), from.ip().to_canonical());
        connections.spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    exchange(stream, router, Arc::default(), first, |connection| watcher.watch(connection)).await;
                }
                Ok(Err(error)) => {
                    shared.metrics.handshake_failures.inc();
                    tracing::debug!(%from, why = %error, "TLS handshake failed");
                }
                Err(_) => {
                    shared.metrics.handshake_failures.inc();
                }
            }
        });
    }
    drop(listener);
    drain(graceful, connections).await;
    Ok(())
}

/// Serves the operator's commands on a Unix socket until stopped, then removes it.
pub async fn socket(
    listener: UnixListener,
    path: &Path,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = http::admin(shared);
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    let places = Places::new(MAX_LOCAL_CONNECTIONS, MAX_LOCAL_CONNECTIONS);
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => { pause("socket", error).await; continue }
            },
        };
        let Some(place) = places.take(()) else { continue };
        // Nothing is done for somebody who could not be named in the audit.
        let uid = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(error) => {
                pause("socket", error).await;
                continue;
            }
        };
        let (router, watcher) = (http::with_operator(router.clone(), uid), graceful.watcher());
        connections.spawn(async move {
            let _place = place;
            // Whoever may open it is the operator.
            let (peer, first) = (Arc::new(Peer::default()), tokio::time::sleep(IDLE_FOR));
            peer.is_known();
            exchange(stream, router, peer, first, |connection| watcher.watch(connection)).await;
        });
    }
    drop(listener);
    let _ = tokio::fs::remove_file(path).await;
    drain(graceful, connections).await;
    Ok(())
}

/// Opens the Unix socket, mode 0600. What is left of a coordinator that crashed is removed; the data directory's lock
/// says that none is running.
pub fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("could not remove {}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("could not listen on {}", path.display()))?;
    // Its directory is the owner's alone (0700) from before, so nobody got in between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("could not protect {}", path.display()))?;
    Ok(listener)
}

type HttpConnection<S> = auto::Connection<'static, TokioIo<S>, TowerToHyperService<Router>, TokioExecutor>;

/// One connection, HTTP/1.1 or 2, until it ends. Something must be asked on it before `first` is over.
async fn exchange<S, F, R>(stream: S, router: Router, peer: Arc<Peer>, first: Sleep, watch: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: FnOnce(HttpConnection<S>) -> R,
    R: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(UNREAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(UNREAD_BYTES)
        .initial_connection_window_size(UNREAD_BYTES);
    let counted = peer.clone();
    let router = router.layer(axum::middleware::from_fn(move |mut request: Request, next: Next| {
        let answering = counted.asked();
        request.extensions_mut().insert(counted.clone());
        async move {
            let answer = next.run(request).await;
            drop(answering);
            answer
        }
    }));
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    tokio::select! {
        ended = watch(connection) => if let Err(error) = ended {
            tracing::debug!(why = %error, "connection ended");
        },
        () = idle(&peer, first) => tracing::debug!("nothing asked for long, connection closed"),
    }
}

/// Who is at the other end of a connection, as far as it matters to how long it may be silent.
#[derive(Debug, Default)]
pub struct Peer {
    is_known: AtomicBool,
    asked: AtomicUsize,
    being_answered: AtomicUsize,
}

impl Peer {
    /// It has shown who it is.
    pub fn is_known(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// It asks something, which is being answered until what this returns is dropped.
    fn asked(self: &Arc<Peer>) -> BeingAnswered {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.being_answered.fetch_add(1, Ordering::Relaxed);
        BeingAnswered(self.clone())
    }

    /// How often it has asked; none while it is being answered.
    fn silent_since(&self) -> Option<usize> {
        (self.being_answered.load(Ordering::Relaxed) == 0).then(|| self.asked.load(Ordering::Relaxed))
    }

    /// How long it may be silent.
    pub fn patience(&self) -> Duration {
        if self.is_known.load(Ordering::Relaxed) { IDLE_FOR } else { STRANGER_IDLE_FOR }
    }
}

struct BeingAnswered(Arc<Peer>);

impl Drop for BeingAnswered {
    fn drop(&mut self) {
        self.0.being_answered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends when nothing was asked before `first` is over, or nothing more for as long as there is patience with this peer.
async fn idle(peer: &Peer, first: Sleep) {
    first.await;
    let mut before = Some(0);
    loop {
        let silent_since = peer.silent_since();
        if silent_since.is_some() && silent_since == before {
            return;
        }
        before = silent_since;
        tokio::time::sleep(peer.patience()).await;
    }
}

/// How many connections there may be, in all and from one source, if so many files may be open.
fn room(files: usize) -> (usize, usize) {
    let in_all = (files - files / FILES_KEPT).clamp(SHARES, MAX_CONNECTIONS);
    (in_all, in_all / SHARES)
}

async fn drain(graceful: GracefulShutdown, mut connections: JoinSet<()>) {
    let ended = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
    };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("requests in flight did not end in time");
    }
}

async fn pause(listener: &'static str, error: io::Error) {
    tracing::warn!(listener, why = %error, "could not accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_is_asked_soon_gives_its_place_up() {
        for beginning in ["", "G", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\n"] {
            let (mut theirs, ours) = tokio::io::duplex(1024);
            theirs.write_all(beginning.as_bytes()).await.unwrap();
            let first = tokio::time::sleep(FIRST_WITHIN);
            let serving = exchange(ours, Router::new(), Arc::default(), first, |connection| connection);

            let served = tokio::time::timeout(FIRST_WITHIN + Duration::from_secs(1), serving).await;

            assert!(served.is_ok(), "{beginning:?}");
            let _ = theirs.read(&mut [0; 16]).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_shown_who_it_is_may_be_silent_for_longer() {
        for (is_known, patience) in [(false, STRANGER_IDLE_FOR), (true, IDLE_FOR)] {
            let peer = Arc::new(Peer::default());
            drop(peer.asked());
            if is_known {
                peer.is_known();
            }
            let idle = idle(&peer, tokio::time::sleep(FIRST_WITHIN));
            tokio::pin!(idle);

            let early = tokio::time::timeout(FIRST_WITHIN + patience - Duration::from_secs(1), &mut idle).await;
            let late = tokio::time::timeout(Duration::from_secs(2), &mut idle).await;

            assert!(early.is_err() && late.is_ok(), "{patience:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_not_silent_while_it_waits_for_an_answer() {
        let peer = Arc::new(Peer::default());
        let answering = peer.asked();

        let idle = idle(&peer, tokio::time::sleep(FIRST_WITHIN));

        assert!(tokio::time::timeout(10 * IDLE_FOR, idle).await.is_err());
        drop(answering);
    }

    #[test]
    fn connections_leave_some_of_the_files_to_the_database_and_the_operator() {
        assert_eq!(room(1024), (768, 192));
        assert_eq!(room(1_048_576), (MAX_CONNECTIONS, MAX_CONNECTIONS / SHARES));
    }
}
