//! How workers do, told at each change: our services to whoever follows them, and those of the workers we use to us.
//!
//! ```text
//! GET /reports/{service}   on the overlay: a line as in `x-wiremesh-load` at once, and one at each change, until the
//!                          asker leaves or the service does
//! ```
//!
//! A line costs a stream on a connection that is open anyway; through tunnels nobody is followed.

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
use wiremesh_certs::ServiceName;

use super::{Shared, lock, overlay::Lease};
use crate::{
    clock,
    router::{
        MAX_WORK_BYTES, State as WorkState, Work,
        followed::{Line, MAX_FOLLOWED},
    },
    services::{self, ServiceReport, ServiceState},
};

/// Lines of one stream are no closer than this: what changes in between is told together.
pub const REPORT_AT_MOST_EVERY: Duration = Duration::from_millis(200);
/// How often it is looked whether a silent line is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(10);
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

/// Follows the workers that requests go to, until `stop`.
pub(super) async fn run(shared: &Arc<Shared>, stop: CancellationToken) {
    let mut lines = FuturesUnordered::new();
    loop {
        while lines.len() < MAX_FOLLOWED
            && let Some(line) = lock(&shared.followed).poll_line(clock::now())
        {
            lines.push(follow(shared, line));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.to_follow.notified() => {}
            Some(line) = lines.next() => lock(&shared.followed).on_closed(&line, clock::now()),
        }
    }
}

/// Listens to one worker about one service, until it has nothing more to say or nobody wants to hear it.
async fn follow(shared: &Shared, line: Line) -> Line {
    let opened = tokio::time::timeout(BEGIN_WITHIN, open(shared, &line)).await.ok().flatten();
    let Some((mut body, _lease)) = opened else { return line };
    let mut heard = BytesMut::new();
    while lock(&shared.followed).is_wanted(&line, clock::now()) {
        match tokio::time::timeout(LOOK_EVERY, body.frame()).await {
            Err(_) => continue,
            Ok(Some(Ok(frame))) => heard.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Ok(None | Some(Err(_))) => return line,
        }
        while let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
            let said = heard.split_to(end + 1);
            let Some(work) = std::str::from_utf8(&said[..end]).ok().and_then(|said| said.parse().ok()) else {
                return line;
            };
            lock(&shared.fleet).on_report(&line.service, line.worker, work, clock::now());
        }
        if heard.len() > MAX_WORK_BYTES {
            return line;
        }
    }
    line
}

async fn open(shared: &Shared, line: &Line) -> Option<(Incoming, Lease)> {
    let lease = shared.pool.lease(line.address).await.ok()?;
    let path = format!("/reports/{}", line.service);
    let uri = Uri::builder().scheme("http").authority(line.address.to_string()).path_and_query(path).build().ok()?;
    let answer = lease.get(uri).await.ok()?;
    (answer.status() == StatusCode::OK).then(|| (answer.into_body(), lease))
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
