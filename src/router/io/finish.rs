//! Our answer, made of a worker's or an upstream's.

use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;

use super::{
    Shared,
    answer::{Answer, AnswerBody, Held, InFlight},
    believed::Believed,
    outgoing::Outgoing,
    upgrade,
    upstreams::Arriving,
};
use crate::router::{Path, Source, headers, sse, timing::Timing};

/// How an answer came.
pub(super) struct Way {
    pub worker: HeaderValue,
    pub path: Path,
    pub source: Source,
    /// Where the time to it went.
    pub timing: Timing,
    /// Whose answer it is, if another member's.
    pub by: Option<Believed>,
}

impl Shared {
    /// Makes our answer of a worker's or upstream's. `held` and what the request holds are given up at its end.
    pub(super) fn finish(&self, outgoing: Outgoing, answer: Response<Arriving>, mut held: Held, way: Way) -> Answer {
        let took = self.first_byte(outgoing.arrived_at);
        let Outgoing { replay, upgrade, turn, to_client, in_flight, called, account, .. } = outgoing;
        let (mut parts, body) = answer.into_parts();
        let events = to_client.then(|| sse::Events::in_answer(&parts.headers)).flatten();
        let switches = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let theirs = parts.extensions.remove::<OnUpgrade>();
        headers::strip_hop_by_hop(&mut parts.headers);
        headers::strip_ours(&mut parts.headers, None);
        parts.headers.insert(headers::WORKER, way.worker);
        parts.headers.insert(headers::PATH, HeaderValue::from_static(way.path.as_str()));
        parts.headers.insert(headers::SOURCE, HeaderValue::from_static(way.source.as_str()));
        let timing = if to_client { way.timing.with("total", took) } else { way.timing };
        if let Some(timing) = timing.header() {
            parts.headers.append(headers::SERVER_TIMING, timing);
        }
        // What belongs to their connection is not ours.
        parts.extensions.clear();
        parts.version = http::Version::HTTP_11;
        held.in_flight = Some(in_flight);
        held.called = called;
        if switches {
            // Both sides may be silent for as long as they like.
            held.watched = None;
        } else {
            held.replay = Some(replay);
            let body = AnswerBody::stream(body, held, events, way.by, self.counters.interrupted_answers.clone());
            return Response::from_parts(parts, body);
        }
        parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = upgrade {
            parts.headers.insert(http::header::UPGRADE, protocol);
        }
        if let (Some(turn), Some(theirs)) = (turn, theirs) {
            let upgraded = InFlight::new(&self.counters.upgraded);
            upgrade::splice(turn, theirs, way.by, (held, upgraded, account));
        }
        Response::from_parts(parts, AnswerBody::bytes(""))
    }
}
