//! Our own upstreams, over HTTP/1.1: one connection per request in flight, so that no request shares the fate of another.
//!
//! A connection is driven by the request that has it. What arrives wakes that request and nobody else, nothing is handed
//! from task to task, and whoever drops the request has closed the connection.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::{TrySendError, http1},
    rt::Executor,
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::HttpConnector,
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpStream;
use tower::Service;

use super::{lock, outgoing::Outgoing, overlay::CONNECT_TIMEOUT, replay::AttemptBody, resolve::Resolver};
use crate::{clock, services::Upstream};

/// Idle connections are closed sooner than common servers close them (2 s and more): a request on a connection that is
/// being closed from the other side would be lost, and nobody could tell whether it was executed.
const IDLE_FOR: Duration = Duration::from_millis(1500);
/// Idle connections kept per upstream.
const MAX_IDLE: usize = 256;

type Connector = HttpsConnector<HttpConnector<Resolver>>;
type Driver = http1::Connection<MaybeHttpsStream<TokioIo<TcpStream>>, AttemptBody>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Nobody took the connection.
    #[error("{0}")]
    NoConnection(Box<dyn std::error::Error + Send + Sync>),
    /// The connection ended, or what came was no HTTP.
    #[error(transparent)]
    Broken(hyper::Error),
}

/// The connections to all upstreams.
pub(super) struct Upstreams {
    connector: Connector,
    pool: Arc<Pool>,
}

/// By upstream, the longest unused first. As many upstreams as are configured: an entry is never given up.
#[derive(Default)]
struct Pool(Mutex<Vec<(Upstream, VecDeque<Idle>)>>);

struct Idle {
    connection: Connection,
    since: Instant,
}

/// One connection, and what moves its bytes.
struct Connection {
    sender: http1::SendRequest<AttemptBody>,
    driver: Box<Driver>,
    host: HeaderValue,
    /// Where it goes when its request has ended, and under which number there.
    pool: Arc<Pool>,
    place: usize,
}

impl Upstreams {
    /// None is connected yet.
    pub fn new(connector: Connector) -> Upstreams {
        Upstreams { connector, pool: Arc::default() }
    }

    /// Sends the request of `outgoing`, over a connection that is open or a new one, and waits for the head of its answer.
    pub async fn request(
        &self,
        upstream: &Upstream,
        path: &PathAndQuery,
        outgoing: &Outgoing,
    ) -> Result<Response<Arriving>, NoAnswer> {
        let place = self.pool.place(upstream);
        loop {
            let (connection, is_used) = match self.pool.take(place, clock::now()) {
                Some(connection) => (connection, true),
                None => (Box::pin(self.connect(upstream, place)).await?, false),
            };
            let mut request = outgoing.request_here(Uri::from(path.clone()));
            request.headers_mut().insert(header::HOST, connection.host.clone());
            if outgoing.upgrade.is_some() {
                return Box::pin(connection.upgrade(request)).await;
            }
            match connection.send(request).await {
                Ok((answer, connection)) if outgoing.replay.is_passed_on() => {
                    return Ok(answer.map(|body| Arriving::over(body, connection)));
                }
                Ok((answer, connection)) => {
                    if let Some(connection) = connection {
                        connection.let_go();
                    }
                    return Ok(answer.map(Arriving::from));
                }
                // It was being closed, and nothing was sent: the next one, or a new one at last.
                Err(error) if is_used && error.message().is_some() => {}
                Err(error) => return Err(NoAnswer::Broken(error.into_error())),
            }
        }
    }

    /// Closes what was not used for a while.
    pub fn sweep(&self, now: Instant) {
        for (_, idle) in lock(&self.pool.0).iter_mut() {
            let stale = idle.partition_point(|idle| !idle.is_fresh(now));
            close(idle.drain(..stale).collect());
        }
    }

    async fn connect(&self, upstream: &Upstream, place: usize) -> Result<Connection, NoAnswer> {
        let uri = upstream.uri(&PathAndQuery::from_static("/")).unwrap_or_default();
        let host = host(&uri).map_err(|error| NoAnswer::NoConnection(error.into()))?;
        let mut connector = self.connector.clone();
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connector.call(uri));
        let stream =
            connecting.await.map_err(|late| NoAnswer::NoConnection(late.into()))?.map_err(NoAnswer::NoConnection)?;
        let (sender, driver) = http1::handshake(stream).await.map_err(NoAnswer::Broken)?;
        Ok(Connection { sender, driver: Box::new(driver), host, pool: self.pool.clone(), place })
    }
}

impl Pool {
    fn place(&self, upstream: &Upstream) -> usize {
        let mut places = lock(&self.0);
        places.iter().position(|(known, _)| known == upstream).unwrap_or_else(|| {
            places.push((upstream.clone(), VecDeque::new()));
            places.len() - 1
        })
    }

    /// The one used last, if it is still good.
    fn take(&self, place: usize, now: Instant) -> Option<Connection> {
        loop {
            let mut newest = {
                let mut places = lock(&self.0);
                let idle = &mut places.get_mut(place)?.1;
                if idle.back().is_some_and(|newest| !newest.is_fresh(now)) {
                    close(std::mem::take(idle));
                }
                idle.pop_back()?
            };
            if newest.connection.is_ready() {
                return Some(newest.connection);
            }
        }
    }

    fn give_back(&self, connection: Connection, now: Instant) {
        let place = connection.place;
        let mut places = lock(&self.0);
        let Some((_, idle)) = places.get_mut(place) else { return };
        // One in, one out: it may be the last of hundreds.
        if idle.len() >= MAX_IDLE || idle.front().is_some_and(|oldest| !oldest.is_fresh(now)) {
            idle.pop_front();
        }
        idle.push_back(Idle { connection, since: now });
    }
}

impl Idle {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < IDLE_FOR
    }
}

impl Connection {
    /// Moves what can be moved. Ready when the connection is over.
    fn drive(&mut self, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut *self.driver).poll(context).map(drop)
    }

    /// Whether it takes another request. Nobody is woken for it: nothing is awaited on an idle connection.
    fn is_ready(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }

    async fn send(
        mut self,
        request: Request<AttemptBody>,
    ) -> Result<(Response<Incoming>, Option<Connection>), TrySendError<Request<AttemptBody>>> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let mut driver = Some(self.driver);
        let answer = std::future::poll_fn(|context| {
            // Once it is over it is dropped: only then a request that it never took comes back.
            driver.take_if(|driver| Pin::new(&mut **driver).poll(context).is_ready());
            answer.as_mut().poll(context)
        })
        .await?;
        Ok((answer, driver.map(|driver| Connection { driver, ..self })))
    }

    /// Sends a request after which the connection may be something else: it lives on by itself.
    async fn upgrade(mut self, request: Request<AttemptBody>) -> Result<Response<Arriving>, NoAnswer> {
        let driver = self.driver.with_upgrades();
        TokioExecutor::new().execute(async move {
            let _ = driver.await;
        });
        let answer = self.sender.send_request(request).await.map_err(NoAnswer::Broken)?;
        Ok(answer.map(Arriving::from))
    }

    /// Lives on by itself until its request ends. The answer began before the body was passed on: a client that reads
    /// nothing before it has sent everything must not stand in its own way.
    fn let_go(self) {
        let driver = self.driver;
        TokioExecutor::new().execute(async move {
            let _ = driver.await;
        });
    }
}

/// The body of an answer, as it comes.
pub(super) struct Arriving {
    body: Incoming,
    /// If nobody else drives it. Given back when the body has ended.
    connection: Option<Connection>,
}

impl Arriving {
    fn over(body: Incoming, connection: Option<Connection>) -> Arriving {
        let mut arriving = Arriving { body, connection };
        if arriving.body.is_end_stream() {
            arriving.settle();
        }
        arriving
    }

    /// After its end the connection is free for the next request.
    fn settle(&mut self) {
        if let Some(mut connection) = self.connection.take()
            && connection.is_ready()
        {
            connection.pool.clone().give_back(connection, clock::now());
        }
    }
}

impl From<Incoming> for Arriving {
    /// Somebody else drives its connection.
    fn from(body: Incoming) -> Arriving {
        Arriving { body, connection: None }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending()
            && let Some(connection) = &mut self.connection
        {
            // Now it knows that more is wanted.
            if connection.drive(context).is_ready() {
                self.connection = None;
            }
            polled = Pin::new(&mut self.body).poll_frame(context);
        }
        match polled {
            Poll::Ready(None) => self.settle(),
            Poll::Ready(Some(_)) if self.body.is_end_stream() => self.settle(),
            Poll::Ready(Some(_)) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Closes connections, which takes some 20 µs each: of hundreds no request is to wait for that.
fn close(stale: VecDeque<Idle>) {
    if stale.is_empty() {
        return;
    }
    TokioExecutor::new().execute(async move {
        for idle in stale {
            drop(idle);
            tokio::task::yield_now().await;
        }
    });
}

/// What the upstream is called in the requests to it (RFC 9110, section 7.2).
fn host(uri: &Uri) -> Result<HeaderValue, header::InvalidHeaderValue> {
    let name = uri.host().unwrap_or_default();
    match uri.port_u16() {
        Some(port) => HeaderValue::try_from(format!("{name}:{port}")),
        None => HeaderValue::from_str(name),
    }
}
