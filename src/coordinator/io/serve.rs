//! Connections: accepted up to a bound, given a time for each step, and let finish when the coordinator stops.

use std::{future::Future, io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use axum::Router;
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
use crate::task::CancellationToken;

/// Connections at once. Agents keep one each; at the bound new ones are closed at once and come back later.
pub const MAX_CONNECTIONS: usize = 8192;
/// Connections at once on the Unix socket.
const MAX_LOCAL_CONNECTIONS: usize = 16;
/// A peer that has not finished its handshake by then is not one of ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request whose header takes longer is given up.
const HEADER_TIMEOUT: Duration = Duration::from_secs(20);
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
        let (acceptor, shared, watcher) = (acceptor.clone(), shared.clone(), graceful.watcher());
        let router = http::with_source(router.clone(), from.ip().to_canonical());
        connections.spawn(async move {
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
    let router = http::with_source(http::admin(shared), IpAddr::from([127, 0, 0, 1]));
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
        let (router, watcher) = (router.clone(), graceful.watcher());
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
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    if let Err(error) = watch(connection).await {
        tracing::debug!(why = %error, "connection ended");
    }
    drop(permit);
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
