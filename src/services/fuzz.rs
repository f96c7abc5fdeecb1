//! What is made of an upstream's answers, and of what is written of it in a configuration: see [`wiremesh_certs::fuzz`].

use super::{
    Expected, Kind, Upstream,
    adapters::{MAX_REQUESTS, RECOGNISED_BY},
    models,
};
use crate::fuzz::{Verdict, told};

/// An answer to any question, from any kind of upstream; or its URL.
pub fn answers(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes);
    let mut taken = false;
    for question in Kind::ALL.iter().flat_map(|kind| kind.questions()) {
        let Some(reading) = (question.parse)(&text) else { continue };
        taken = true;
        let figures = [reading.running, reading.waiting, reading.capacity];
        assert!(figures.iter().flatten().all(|figure| *figure <= MAX_REQUESTS), "{reading:?}");
        assert!(reading.kv_usage.is_none_or(|share| (0.0..=1.0).contains(&share)), "{reading:?}");
        assert_eq!(reading.or(reading), reading);
    }
    for (_, tells) in RECOGNISED_BY {
        taken |= tells(&text).is_some();
    }
    if let Some(names) = models::listed(&text) {
        assert!(names.len() <= models::MAX_MODELS);
        assert!(names.iter().all(|name| name.len() <= models::MAX_NAME_BYTES && !name.contains(char::is_control)));
    }
    let _ = told(Expected::of(&[text.to_string()]));
    if let Some(upstream) = told(text.parse::<Upstream>()) {
        taken = true;
        assert_eq!(upstream.to_string().parse().as_ref(), Ok(&upstream), "a URL of two forms");
    }
    Verdict::taken_if(taken)
}
