//! Why a request goes where it goes, for people: the ways that were considered, best first, and what speaks against the
//! others.
//!
//! As the header `x-wiremesh-route`, for a request of a local client with `x-wiremesh-explain: 1`:
//!
//! ```text
//! source=dht; bob/overlay score=0.812 load=0.50 age=3s, ann/tunnel load=0.10 age=2s out="ejected"; tried=bob/overlay
//! ```

use std::{fmt::Write, time::Duration};

use http::HeaderValue;
use serde_json::{Map, Value, json};
use wiremesh_certs::{NodeName, UnixTime};

use super::{Considered, Excluded, Path, Score, Source, Worker};

/// Longer explanations are cut at a way's end: other servers refuse large headers.
const MAX_HEADER_BYTES: usize = 2048;
/// The last word of one that was cut, and attempts.
const TAIL_BYTES: usize = 512;

/// Why a request goes where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// How the workers are known.
    pub source: Source,
    /// In the order in which they are tried.
    pub ways: Vec<Way>,
    /// Whether there are workers that the mesh's policy does not let this node call.
    pub forbidden: bool,
}

/// One way to one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// Who.
    pub worker: NodeName,
    /// By which path.
    pub path: Path,
    /// How busy it said it was, 0 to 1.
    pub load: f64,
    /// How long ago it said so in its record; `None` for this node.
    pub age: Option<Duration>,
    /// By what it is compared with others, if they are compared: seconds, smaller is better.
    pub score: Option<f64>,
    /// What the score is made of.
    pub parts: Vec<(&'static str, f64)>,
    /// How long ago it last reported its work to us.
    pub report_age: Option<Duration>,
    /// Why it does not come first.
    pub excluded: Option<&'static str>,
}

impl Route {
    /// For `GET /routes/{service}`.
    pub fn json(&self, service: &str) -> Value {
        let ways: Vec<Value> = self.ways.iter().map(Way::json).collect();
        json!({ "service": service, "source": self.source.as_str(), "ways": ways, "forbidden": self.forbidden })
    }

    /// As a header, with the ways that were `tried` and why they failed.
    pub fn header<'a>(&self, tried: impl Iterator<Item = (&'a str, Path, Option<&'a str>)>) -> HeaderValue {
        let mut text = format!("source={}", self.source.as_str());
        for (number, way) in self.ways.iter().enumerate() {
            let way = way.text();
            if text.len() + way.len() > MAX_HEADER_BYTES - TAIL_BYTES {
                // Writing to memory does not fail.
                let _ = write!(text, ", and {} more", self.ways.len() - number);
                break;
            }
            text.push_str(if number == 0 { "; " } else { ", " });
            text.push_str(&way);
        }
        for (number, (worker, path, why)) in tried.enumerate() {
            text.push_str(if number == 0 { "; tried=" } else { ", " });
            let _ = write!(text, "{worker}/{path}");
            if let Some(why) = why {
                let _ = write!(text, " \"{}\"", why.replace('"', "'"));
            }
        }
        // Reasons come from libraries: what is no ASCII would be no header.
        text.retain(|c| c == ' ' || c.is_ascii_graphic());
        text.truncate(MAX_HEADER_BYTES);
        HeaderValue::try_from(text).expect("visible ASCII makes a header")
    }
}

impl Way {
    /// Of a way that selection considered.
    pub fn of(worker: &Worker, considered: &Considered, now: UnixTime) -> Way {
        let Score { estimate, capacity, service_time, weight, work, rtt, failures, tunnel, cold, total } =
            considered.score;
        let parts = [
            ("work", work),
            ("rtt", rtt),
            ("failures", failures),
            ("tunnel", tunnel),
            ("cold", cold),
            ("estimate", estimate),
            ("own", considered.own.into()),
            ("capacity", capacity),
            ("service_time", service_time),
            ("weight", weight),
        ];
        Way {
            worker: worker.name.clone(),
            path: considered.candidate.path,
            load: considered.candidate.load.share(),
            age: Some(now.saturating_since(worker.published_at)),
            score: Some(total),
            parts: parts.into(),
            report_age: considered.report_age,
            excluded: considered.excluded.map(Excluded::as_str),
        }
    }

    fn json(&self) -> Value {
        let parts: Map<String, Value> =
            self.parts.iter().map(|(name, part)| ((*name).to_owned(), json!(part))).collect();
        json!({
            "path": self.path.as_str(),
            "worker": self.worker.as_str(),
            "load": self.load,
            "age_seconds": self.age.map(|age| age.as_secs()),
            "score": self.score,
            "parts": parts,
            "report_age_seconds": self.report_age.map(|age| age.as_secs_f64()),
            "ejected": self.excluded == Some("ejected"),
            "excluded": self.excluded,
        })
    }

    fn text(&self) -> String {
        let mut text = format!("{}/{}", self.worker, self.path);
        if let Some(score) = self.score {
            let _ = write!(text, " score={score:.3}");
        }
        let _ = write!(text, " load={:.2}", self.load);
        if let Some(age) = self.report_age.or(self.age) {
            let _ = write!(text, " age={}s", age.as_secs());
        }
        if let Some(why) = self.excluded {
            let _ = write!(text, " out=\"{why}\"");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_tells_the_ways_in_order_with_what_speaks_against_them_and_what_was_tried() {
        let ann = Way { score: None, excluded: Some("ejected"), path: Path::Tunnel, ..way("ann") };
        let route = Route { source: Source::Dht, ways: vec![way("bob"), ann], forbidden: false };

        let header =
            route.header([("bob", Path::Overlay, Some("\"gone\" é\r\n")), ("ann", Path::Tunnel, None)].into_iter());

        assert_eq!(
            header,
            "source=dht; bob/overlay score=0.812 load=0.50 age=3s, ann/tunnel load=0.50 age=3s out=\"ejected\"; \
             tried=bob/overlay \"'gone' \", ann/tunnel"
        );
    }

    #[test]
    fn the_header_is_bounded_however_many_ways_there_are() {
        let route = Route { source: Source::Cache, ways: vec![way(&"b".repeat(60)); 128], forbidden: false };

        let header = route.header([("bob", Path::Overlay, Some(&"x".repeat(256)[..])); 8].into_iter());

        let text = header.to_str().unwrap();
        assert!(text.len() <= MAX_HEADER_BYTES, "{}", text.len());
        assert!(text.contains(" more; tried=bob/overlay"), "{text}");
    }

    #[test]
    fn the_page_has_every_part() {
        let route = Route { source: Source::Dht, ways: vec![way("bob")], forbidden: false };

        assert_eq!(
            route.json("ocr"),
            json!({"service": "ocr", "source": "dht", "forbidden": false, "ways": [{
                "path": "overlay", "worker": "bob", "load": 0.5, "age_seconds": 3, "score": 0.812,
                "parts": {"work": 0.8, "rtt": 0.012}, "report_age_seconds": null, "ejected": false, "excluded": null,
            }]})
        );
    }

    fn way(worker: &str) -> Way {
        Way {
            worker: worker.parse().unwrap(),
            path: Path::Overlay,
            load: 0.5,
            age: Some(Duration::from_secs(3)),
            score: Some(0.812),
            parts: vec![("work", 0.8), ("rtt", 0.012)],
            report_age: None,
            excluded: None,
        }
    }
}
