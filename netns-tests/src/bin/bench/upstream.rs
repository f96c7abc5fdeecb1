//! The model server that everything is measured in front of: answers at once, or misbehaves as it is told.
//!
//! One thread, as little work for a request as can be: what is measured is what stands before it. It speaks enough of the
//! OpenAI API for the routers that want a model server, and is told what to do by `/lab/do`:
//!
//! | path | answer |
//! |---|---|
//! | `POST` anything | as the [`Behaviour`] says; a stream if the body says `"stream": true` |
//! | `/lab/do?behaviour=drip&every_ms=20&events=100` | behaves so from here on |
//! | `/v1/models`, `/health`, … | what model servers say |
//!
//! What it began to execute, and when it was told that a client left, it writes to a file: that outlives it.

mod program;
mod started;

use std::{fmt, str::FromStr, time::Duration};

pub use program::{Arguments, run};
pub use started::{UPSTREAM_PORT, Upstream};

/// What stands before and behind the time in every event of a stream.
pub const STAMP: u8 = b'@';
/// What a request says so that its executions are counted: `lab-` and digits.
const COUNTED: &[u8] = b"lab-";

/// What it does with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Answers it.
    #[default]
    Answer,
    /// Says 500.
    Fail,
    /// Says 429, and when to come again.
    Busy,
    /// Ends without a word, as a program that ran out of memory does.
    Crash,
    /// Ends after ten events of a stream.
    Break,
    /// Streams 1 GB as fast as it is taken.
    Flood,
}

/// How a stream goes, unless it is broken or a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// From one event to the next.
    pub every: Duration,
    /// How many of them.
    pub events: u64,
}

/// Events before a stream breaks.
pub const BREAKS_AFTER: u64 = 10;
/// What a flood has in all.
pub const FLOOD_BYTES: u64 = 1_000_000_000;
/// When to come again, in seconds.
pub const RETRY_AFTER: &str = "2";

impl Default for Stream {
    fn default() -> Stream {
        Stream { every: Duration::from_millis(20), events: 50 }
    }
}

impl Behaviour {
    const ALL: [(Behaviour, &str); 6] = [
        (Behaviour::Answer, "answer"),
        (Behaviour::Fail, "fail"),
        (Behaviour::Busy, "busy"),
        (Behaviour::Crash, "crash"),
        (Behaviour::Break, "break"),
        (Behaviour::Flood, "flood"),
    ];
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Behaviour::ALL.iter().find(|(behaviour, _)| behaviour == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Behaviour {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Behaviour> {
        let found = Behaviour::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(behaviour, _)| *behaviour).ok_or_else(|| anyhow::anyhow!("{text} is no behaviour"))
    }
}

/// Nanoseconds of the machine's monotonic clock: the same in every process, as `Instant` is not.
pub fn nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to the structure it is given and to nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    seconds.unwrap_or_default() * 1_000_000_000 + nanos.unwrap_or_default()
}

/// A question of about 1 KB, to be answered whole or as a stream. `says` is somewhere in it.
pub fn question(says: &str, stream: bool) -> String {
    let filling = "what is the airspeed velocity of an unladen swallow? ".repeat(16);
    let content = format!("{says} {filling}");
    serde_json::json!({
        "model": "bench",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "stream": stream,
    })
    .to_string()
}

/// The number that a body has after `lab-`.
fn number_of(body: &[u8]) -> Option<u64> {
    let at = body.windows(COUNTED.len()).position(|bytes| bytes == COUNTED)? + COUNTED.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    str::from_utf8(&body[at..at + digits]).ok()?.parse().ok()
}

/// The time that an event says it was sent at.
pub fn stamp_of(event: &[u8]) -> Option<u64> {
    let at = event.iter().position(|byte| *byte == STAMP)? + 1;
    let length = event[at..].iter().position(|byte| *byte == STAMP)?;
    str::from_utf8(&event[at..at + length]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_says_its_number_and_is_of_about_a_kilobyte() {
        let question = question("lab-42", true);

        assert_eq!(number_of(question.as_bytes()), Some(42));
        assert!((900..1200).contains(&question.len()), "{}", question.len());
        assert_eq!(number_of(b"collab-"), None);
    }

    #[test]
    fn an_event_says_when_it_was_sent() {
        assert_eq!(stamp_of(br#"{"content":"@123456@"}"#), Some(123_456));
        assert_eq!(stamp_of(b"[DONE]"), None);
    }

    #[test]
    fn every_behaviour_is_told_by_its_name() {
        for (behaviour, name) in Behaviour::ALL {
            assert_eq!(name.parse::<Behaviour>().unwrap(), behaviour);
            assert_eq!(behaviour.to_string(), name);
        }
    }
}
