//! Connections to other agents through the overlay: HTTP/2, few per worker, kept while they are used.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    heard::{Heard, Listening},
    replay::AttemptBody,
};
use crate::clock;

/// A worker's machine that takes longer is not there.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a question to a silent worker may go unanswered: two retransmissions of a lost segment fit in.
pub const QUESTION_TIMEOUT: Duration = Duration::from_millis(1200);
/// Requests on one connection before another is opened.
const STREAMS_PER_CONNECTION: u32 = 32;
/// Connections to one worker. Beyond, they share.
const MAX_CONNECTIONS: usize = 16;
/// Workers with connections. Beyond, the connections longest unused are given up.
const MAX_WORKERS: usize = 1024;
/// A connection unused for so long is closed.
const IDLE_FOR: Duration = Duration::from_secs(90);
/// A connection on which nothing was heard for so long is asked for a sign of life before it gets a request that must
/// not be lost: its other end may have vanished or stand still. One round trip more, for a request after a pause; and the
/// requests of so long are in doubt when an agent stands still under load.
const STALE_AFTER: Duration = Duration::from_millis(250);
/// What is read of the answer to a question.
pub const MAX_WORD_BYTES: usize = 1024;
/// What one answer may run ahead of a client that does not read.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Room for all streams of a connection: one that stalls never holds up another.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_PER_CONNECTION;
/// Fewer and larger frames for bulk, small enough not to hold up other streams.
pub const FRAME_BYTES: u32 = 64 * 1024;
/// While an answer is awaited or runs and nothing is heard, the other side's connection is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(3);
/// How long that may take. With the above: a machine that vanished in mid-stream is noticed after eight seconds.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What may wait unsent in the kernel: a ping must not stand behind megabytes of upload.
const UNSENT_BYTES: u32 = 256 * 1024;

/// Why there is no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoConnection {
    /// Its machine answers, but nobody listens.
    #[error("connection refused")]
    Refused,
    /// No way there, or no answer in time.
    #[error("not reachable over the overlay")]
    Unreachable,
}

/// The connections to all workers.
#[derive(Default)]
pub struct Pool {
    workers: Mutex<BTreeMap<SocketAddr, Arc<Connections>>>,
}

impl Pool {
    /// A place on a connection to the agent at `address`: one that is open, or a new one.
    pub async fn lease(&self, address: SocketAddr) -> Result<Lease, NoConnection> {
        let connections = self.connections(address);
        match connections.open_one() {
            Some(lease) => Ok(lease),
            None => {
                let asked_at = clock::now();
                let mut lease = connections.connect(address).await?;
                lease.waited_for = clock::now().saturating_duration_since(asked_at);
                Ok(lease)
            }
        }
    }

    /// Closes what was not used for a while.
    pub fn sweep(&self, now: Instant) {
        lock(&self.workers).retain(|_, connections| {
            let mut open = lock(&connections.open);
            open.retain(|connection| !connection.is_closed() && !connection.is_idle(now));
            // Somebody may be connecting.
            !open.is_empty() || Arc::strong_count(connections) > 1
        });
    }

    /// Gives up the connections to agents that are not to be kept, and with them every request there.
    pub fn retain(&self, is_kept: impl Fn(&SocketAddr) -> bool) {
        lock(&self.workers).retain(|address, connections| {
            let stays = is_kept(address);
            if !stays {
                lock(&connections.open).iter().for_each(|connection| connection.dead.cancel());
            }
            stays
        });
    }

    fn connections(&self, address: SocketAddr) -> Arc<Connections> {
        let mut workers = lock(&self.workers);
        if workers.len() >= MAX_WORKERS && !workers.contains_key(&address) {
            let oldest = workers.iter().min_by_key(|(_, connections)| connections.used_at()).map(|(oldest, _)| *oldest);
            oldest.and_then(|oldest| workers.remove(&oldest));
        }
        workers.entry(address).or_default().clone()
    }
}

/// The connections to one worker.
#[derive(Default)]
struct Connections {
    open: Mutex<Vec<Arc<Connection>>>,
    /// Held by the one who connects; others wait for it. Remembers when the last attempt failed and how.
    connecting: tokio::sync::Mutex<Option<(Instant, NoConnection)>>,
}

impl Connections {
    /// The least used open connection, unless it is time for another.
    fn open_one(&self) -> Option<Lease> {
        let mut open = lock(&self.open);
        open.retain(|connection| !connection.is_closed());
        let least = open.iter().min_by_key(|connection| connection.streams())?;
        let full = least.streams() >= STREAMS_PER_CONNECTION as usize && open.len() < MAX_CONNECTIONS;
        (!full).then(|| Lease::new(least.clone()))
    }

    async fn connect(&self, address: SocketAddr) -> Result<Lease, NoConnection> {
        let asked_at = clock::now();
        let mut last = self.connecting.lock().await;
        if let Some(lease) = self.open_one() {
            return Ok(lease);
        }
        // Who waited while another's attempt failed need not try it again.
        if let Some((failed_at, why)) = *last
            && failed_at >= asked_at
        {
            return Err(why);
        }
        match open(address).await {
            Ok(connection) => {
                let mut lease = Lease::new(connection.clone());
                lease.connected_in = Some(clock::now().saturating_duration_since(asked_at));
                lock(&self.open).push(connection);
                Ok(lease)
            }
            Err(why) => {
                *last = Some((clock::now(), why));
                Err(why)
            }
        }
    }

    fn used_at(&self) -> Option<Instant> {
        lock(&self.open).iter().map(|connection| *lock(&connection.used_at)).max()
    }
}

/// One HTTP/2 connection to another agent.
struct Connection {
    send: http2::SendRequest<AttemptBody>,
    streams: AtomicUsize,
    used_at: Mutex<Instant>,
    heard: Heard,
    /// Cancelled when the connection is given up for dead.
    dead: CancellationToken,
}

impl Connection {
    fn is_closed(&self) -> bool {
        self.dead.is_cancelled() || self.send.is_closed()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.streams() == 0 && now.saturating_duration_since(*lock(&self.used_at)) >= IDLE_FOR
    }

    fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

/// What became of a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sign {
    /// Answered.
    Alive,
    /// Nothing was heard.
    Silent,
    /// The connection has ended; whoever has a request on it is told so.
    Closed,
}

/// A place on a connection, for one request until the end of its answer.
pub struct Lease {
    connection: Arc<Connection>,
    waited_for: Duration,
    /// How long the connection took, if it was made for this request.
    pub connected_in: Option<Duration>,
}

impl Lease {
    /// Sends a request. A request that comes back in the error was not sent.
    pub async fn send(
        &self,
        request: Request<AttemptBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<AttemptBody>>> {
        self.connection.send.clone().try_send_request(request).await
    }

    /// Asks for a page of the agent at the other end.
    pub async fn get(&self, page: Uri) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::new(AttemptBody::empty());
        *request.uri_mut() = page;
        self.connection.send.clone().send_request(request).await
    }

    /// Asks the agent at the other end something, and returns its word; or what is known without one.
    pub async fn question(&self, question: Uri, within: Duration) -> Result<Bytes, Sign> {
        let heard = self.connection.heard.count();
        let asking = async {
            let answer = self.get(question).await.map_err(|_| Sign::Closed)?;
            let word = Limited::new(answer.into_body(), MAX_WORD_BYTES).collect().await;
            word.map(|word| word.to_bytes()).map_err(|_| Sign::Alive)
        };
        match tokio::time::timeout(within, asking).await {
            Ok(word) => word,
            // More of what it was saying already: the answer may have to wait behind it.
            Err(_) if self.connection.heard.count() != heard => Err(Sign::Alive),
            Err(_) => Err(Sign::Silent),
        }
    }

    /// Asks the agent at the other end for a sign of life.
    pub async fn ask(&self, live: Uri) -> Sign {
        self.question(live, QUESTION_TIMEOUT).await.map_or_else(|sign| sign, |_| Sign::Alive)
    }

    /// Whether nothing was heard for so long that the other end may be gone.
    pub fn is_stale(&self) -> bool {
        clock::now().saturating_duration_since(self.connection.heard.at()) >= STALE_AFTER
    }

    /// The other end is gone without having closed the connection: nobody is to use it again.
    pub fn give_up(&self) {
        self.connection.dead.cancel();
    }

    /// How long the request waited for the connection to be made; nothing if it was open.
    pub fn waited_for(&self) -> Duration {
        self.waited_for
    }

    fn new(connection: Arc<Connection>) -> Lease {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Lease { connection, waited_for: Duration::ZERO, connected_in: None }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::Relaxed);
        *lock(&self.connection.used_at) = clock::now();
    }
}

/// A plain connection to an agent in the overlay.
pub async fn dial(address: SocketAddr) -> Result<TcpStream, NoConnection> {
    let connecting = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_nodelay(true)?;
        // An optimisation; the kernel's default works too.
        let _ = socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES);
        socket.connect(address).await
    };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
    connected.map_err(|_| NoConnection::Unreachable)?.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => NoConnection::Refused,
        _ => NoConnection::Unreachable,
    })
}

async fn open(address: SocketAddr) -> Result<Arc<Connection>, NoConnection> {
    let stream = dial(address).await?;
    let heard = Heard::new();
    let (send, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake::<_, AttemptBody>(TokioIo::new(Listening::new(stream, heard.clone())))
        .await
        .map_err(|_| NoConnection::Unreachable)?;
    let dead = CancellationToken::new();
    let given_up = dead.clone();
    TokioExecutor::new().execute(async move {
        tokio::select! {
            ended = connection => tracing::debug!(%address, ?ended, "overlay connection ended"),
            () = given_up.cancelled() => tracing::debug!(%address, "overlay connection given up"),
        }
    });
    Ok(Arc::new(Connection { send, streams: AtomicUsize::new(0), used_at: Mutex::new(clock::now()), heard, dead }))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
