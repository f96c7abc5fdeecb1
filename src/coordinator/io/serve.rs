//! Connections: accepted up to a bound, given a time for each step, and let finish when the coordinator stops.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use axum::{Router, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{http, shared::Shared};
use crate::{coordinator::limiter, task::CancellationToken};

/// Connections at once. Agents keep one each; at the bound new ones are closed at once and come back later.
pub const MAX_CONNECTIONS: usize = 8192;
/// Connections at once on the Unix socket.
const MAX_LOCAL_CONNECTIONS: usize = 16;
/// A peer that has not finished its handshake by then is not one of ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request whose header takes longer is given up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections from one address: a site of agents behind one NAT, and not everybody's room.
pub const MAX_CONNECTIONS_PER_SOURCE: usize = MAX_CONNECTIONS / 4;
/// A connection on which nothing was asked for so long is closed: it may not even have said which HTTP it speaks.
const IDLE_FOR: Duration = Duration::from_secs(120);
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
    let (limit, graceful, mut connections) = opened(MAX_CONNECTIONS);
    let sources = Sources::default();
    loop {
        let (stream, from) = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => { pause("https", error).await; continue }
            },
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            shared.metrics.connections_refused.inc();
            continue;
        };
        let Some(source) = sources.enter(limiter::network_of(from.ip().to_canonical())) else {
            shared.metrics.connections_refused.inc();
            continue;
        };
        let (acceptor, shared, watcher) = (acceptor.clone(), shared.clone(), graceful.watcher());
        let router = http::with_source(router.clone(), from.ip().to_canonical());
        connections.spawn(async move {
            let _source = source;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => exchange(stream, router, permit, |connection| watcher.watch(connection)).await,
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
    let (limit, graceful, mut connections) = opened(MAX_LOCAL_CONNECTIONS);
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => { pause("socket", error).await; continue }
            },
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        // Nothing is done for somebody who could not be named in the audit.
        let uid = match stream.peer_cred() {
            Ok(peer) => peer.uid(),
            Err(error) => {
                pause("socket", error).await;
                continue;
            }
        };
        let (router, watcher) = (http::with_operator(router.clone(), uid), graceful.watcher());
        connections.spawn(exchange(stream, router, permit, |connection| watcher.watch(connection)));
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

fn opened(bound: usize) -> (Arc<Semaphore>, GracefulShutdown, JoinSet<()>) {
    (Arc::new(Semaphore::new(bound)), GracefulShutdown::new(), JoinSet::new())
}

type HttpConnection<S> = auto::Connection<'static, TokioIo<S>, TowerToHyperService<Router>, TokioExecutor>;

/// One connection, HTTP/1.1 or 2, until it ends.
async fn exchange<S, F, R>(stream: S, router: Router, permit: OwnedSemaphorePermit, watch: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: FnOnce(HttpConnection<S>) -> R,
    R: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let router = router.layer(axum::middleware::map_request(move |request: Request| {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(request)
    }));
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    tokio::select! {
        ended = watch(connection) => if let Err(error) = ended {
            tracing::debug!(why = %error, "connection ended");
        },
        () = idle(&asked) => tracing::debug!("nothing asked for long, connection closed"),
    }
    drop(permit);
}

/// Ends when nothing was asked for [`IDLE_FOR`], which is longer than an answer may take.
async fn idle(asked: &AtomicUsize) {
    let mut before = None;
    loop {
        let now = asked.load(Ordering::Relaxed);
        if before == Some(now) {
            return;
        }
        before = Some(now);
        tokio::time::sleep(IDLE_FOR).await;
    }
}

/// How many connections each source has.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Sources {
    /// One more, if it has not enough.
    fn enter(&self, from: IpAddr) -> Option<Source> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = sources.entry(from).or_default();
        if *open >= MAX_CONNECTIONS_PER_SOURCE {
            return None;
        }
        *open += 1;
        Some(Source(self.clone(), from))
    }
}

/// The place of one connection among its source's, until dropped.
struct Source(Sources, IpAddr);

impl Drop for Source {
    fn drop(&mut self) {
        let mut sources = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sources.get_mut(&self.1) {
            Some(open) if *open > 1 => *open -= 1,
            _ => _ = sources.remove(&self.1),
        }
    }
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
    async fn a_connection_on_which_nothing_is_asked_gives_its_place_up() {
        for beginning in ["", "PRI * HTTP/2.0", "GET / HTTP/1.1\r\n"] {
            let (mut theirs, ours) = tokio::io::duplex(1024);
            let limit = Arc::new(Semaphore::new(1));
            let permit = limit.clone().acquire_owned().await.unwrap();
            let serving = exchange(ours, Router::new(), permit, |connection| connection);
            theirs.write_all(beginning.as_bytes()).await.unwrap();

            tokio::time::timeout(3 * IDLE_FOR, serving).await.expect(beginning);

            assert_eq!(limit.available_permits(), 1, "{beginning:?}");
            let _ = theirs.read(&mut [0; 16]).await;
        }
    }

    #[test]
    fn one_source_does_not_take_all_places() {
        let (sources, from) = (Sources::default(), IpAddr::from([192, 0, 2, 1]));
        let mut open: Vec<_> = (0..MAX_CONNECTIONS_PER_SOURCE).map(|_| sources.enter(from).unwrap()).collect();

        assert!(sources.enter(from).is_none());
        assert!(sources.enter([192, 0, 2, 2].into()).is_some());
        open.pop();
        assert!(sources.enter(from).is_some());
        drop(open);
        assert_eq!(sources.0.lock().unwrap().len(), 0);
    }
}
