//! How workers do, told at each change: our services to whoever follows them, and those of the workers we use to us.
//!
//! ```text
//! GET /reports/{service}   on the overlay: a line as in `x-wiremesh-load` at once, and one at each change, until the
//!                          asker leaves or the service does
//! ```
//!
//! A line costs a stream on a connection that is open anyway; through tunnels nobody is followed. A worker that requests may
//! go to, but went to none of late, is asked for one line.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router as Pages,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wiremesh_certs::{NodeId, Offer, ServiceName};

use super::{Shared, lock, overlay::Lease};
use crate::{
    clock,
    router::{
        self, MAX_WORK_BYTES, State as WorkState, Work,
        followed::{Line, MAX_FOLLOWED},
    },
    services::{self, ServiceReport, ServiceState},
};

/// Lines of one stream are no closer than this: what changes in between is told together.
pub const REPORT_AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether a silent line is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Silent workers that are asked at once.
const MAX_QUESTIONS: usize = 8;
/// How long a worker has to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

/// What we say about our services to other members.
pub(super) fn pages(services: services::Handle) -> Pages {
    Pages::new().route("/reports/{service}", get(report)).with_state(services)
}

impl Shared {
    /// What we say about one of our services.
    pub(super) fn work(&self, service: &ServiceName) -> Option<Work> {
        self.parts.services.report(service).map(work)
    }

    /// The same as a header.
    pub(super) fn work_header(&self, service: &ServiceName) -> Option<HeaderValue> {
        HeaderValue::try_from(self.work(service)?.to_string()).ok()
    }
}

/// Follows the workers that requests go to, and asks those that were silent for long, until `stop`.
pub(super) async fn run(shared: &Arc<Shared>, stop: CancellationToken) {
    let mut lines = FuturesUnordered::new();
    let mut questions = FuturesUnordered::new();
    loop {
        while questions.len() < MAX_QUESTIONS
            && let Some((service, worker)) = lock(&shared.fleet).poll_question(clock::now())
        {
            questions.push(ask(shared, service, worker));
        }
        while lines.len() < MAX_FOLLOWED
            && let Some(line) = lock(&shared.followed).poll_line(clock::now())
        {
            lines.push(follow(shared, line));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.to_follow.notified() => {}
            Some(line) = lines.next() => lock(&shared.followed).on_closed(&line, clock::now()),
            Some(()) = questions.next() => {}
        }
    }
}

/// Listens to one worker about one service, until it has nothing more to say or nobody wants to hear it.
async fn follow(shared: &Shared, line: Line) -> Line {
    let opened = tokio::time::timeout(BEGIN_WITHIN, open(shared, &line)).await.ok().flatten();
    let Some(mut saying) = opened else { return line };
    while lock(&shared.followed).is_wanted(&line, clock::now()) {
        match tokio::time::timeout(LOOK_EVERY, saying.next()).await {
            Err(_) => {}
            Ok(Some(work)) => lock(&shared.fleet).on_report(&line.service, line.worker, work, clock::now()),
            Ok(None) => return line,
        }
    }
    line
}

/// Asks a worker once how it does, over the overlay alone, and learns how far away it is.
async fn ask(shared: &Shared, service: ServiceName, worker: NodeId) {
    let found = shared.find(&Offer::Service(service.clone())).await;
    let address = found.workers.iter().find(|known| known.id == worker).and_then(|known| known.overlay);
    let Some(address) = address.filter(|_| shared.parts.overlay) else { return };
    let line = Line { worker, address, service };
    let asking = async {
        let mut saying = open(shared, &line).await?;
        Some((saying.next().await?, saying.round_trip))
    };
    let Ok(Some((work, round_trip))) = tokio::time::timeout(BEGIN_WITHIN, asking).await else { return };
    let (mut fleet, now) = (lock(&shared.fleet), clock::now());
    fleet.on_report(&line.service, worker, work, now);
    fleet.on_rtt(&line.service, worker, router::Path::Overlay, round_trip, now);
}

/// What a worker says, line by line.
struct Saying {
    body: Incoming,
    heard: BytesMut,
    /// How long it took to begin.
    round_trip: Duration,
    _lease: Lease,
}

impl Saying {
    /// The next line. `None` at its end, and after what is none. A call that was given up has lost nothing.
    async fn next(&mut self) -> Option<Work> {
        loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let said = self.heard.split_to(end + 1);
                return std::str::from_utf8(&said[..end]).ok()?.parse().ok();
            }
            if self.heard.len() > MAX_WORK_BYTES {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            self.heard.extend_from_slice(&frame.into_data().unwrap_or_default());
        }
    }
}

async fn open(shared: &Shared, line: &Line) -> Option<Saying> {
    let lease = shared.pool.lease(line.address).await.ok()?;
    let path = format!("/reports/{}", line.service);
    let uri = Uri::builder().scheme("http").authority(line.address.to_string()).path_and_query(path).build().ok()?;
    let asked_at = clock::now();
    let answer = lease.get(uri).await.ok()?;
    let round_trip = clock::now().saturating_duration_since(asked_at);
    let body = (answer.status() == StatusCode::OK).then(|| answer.into_body())?;
    Some(Saying { body, heard: BytesMut::new(), round_trip, _lease: lease })
}

/// One line after the other, from the worker's side.
struct Telling {
    services: services::Handle,
    service: ServiceName,
    changes: watch::Receiver<u64>,
    told: Option<(Work, Instant)>,
}

impl Telling {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Telling)> {
        if self.told.is_some_and(|(work, _)| work.state == WorkState::Draining) {
            return None;
        }
        loop {
            self.changes.borrow_and_update();
            let work = work(self.services.report(&self.service)?);
            match self.told {
                Some((told, _)) if told == work => self.changes.changed().await.ok()?,
                Some((_, at)) if clock::now() < at + REPORT_AT_MOST_EVERY => {
                    tokio::time::sleep_until((at + REPORT_AT_MOST_EVERY).into()).await;
                }
                _ => {
                    self.told = Some((work, clock::now()));
                    return Some((Ok(Bytes::from(format!("{work}\n"))), self));
                }
            }
        }
    }
}

async fn report(
    State(services): State<services::Handle>,
    Path(service): Path<String>,
) -> Result<impl IntoResponse, StatusCode> {
    let service: ServiceName = service.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    services.report(&service).ok_or(StatusCode::NOT_FOUND)?;
    let telling = Telling { changes: services.report_changes(), services, service, told: None };
    let lines = futures::stream::unfold(telling, Telling::next);
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(lines)))
}

fn work(report: ServiceReport) -> Work {
    Work {
        capacity: report.capacity,
        running: report.running,
        queued: report.queued,
        load: report.load,
        service_time_ms: report.service_time_ms,
        state: match report.state {
            ServiceState::Ready => WorkState::Ready,
            ServiceState::Loading => WorkState::Loading,
            ServiceState::Draining => WorkState::Draining,
        },
    }
}
