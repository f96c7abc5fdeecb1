//! What a worker says about one service at one moment: the value of `x-wiremesh-load`, and one line of a report.
//!
//! ```text
//! c=4;r=3;q=2;l=75;s=812;st=ready
//! ```
//!
//! | key  | means                                    | value                         | without it   |
//! |------|------------------------------------------|-------------------------------|--------------|
//! | `c`  | requests it takes at once                | 1 to [`MAX_REQUESTS`]         | refused      |
//! | `r`  | running                                  | 0 to [`MAX_REQUESTS`]         | refused      |
//! | `q`  | waiting                                  | 0 to [`MAX_REQUESTS`]         | refused      |
//! | `l`  | load in percent                          | 0 to 100                      | `(r + q)/c`  |
//! | `s`  | smoothed service time in milliseconds    | 0 to [`MAX_SERVICE_TIME_MS`]  | 0: unknown   |
//! | `st` | state                                    | `ready` `loading` `draining`  | `ready`      |
//!
//! Keys of later versions are ignored; a key that stands there twice, a bad value and more than [`MAX_WORK_BYTES`] are
//! refused. What is printed never exceeds these bounds, whatever the figures are.

use std::{fmt, str::FromStr};

use wiremesh_certs::Load;

/// The longest text that is read.
pub const MAX_WORK_BYTES: usize = 96;
/// The most requests a worker can say it takes, runs or holds: sums of such figures cannot overflow.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// The longest service time a worker can speak of: a day.
pub const MAX_SERVICE_TIME_MS: u32 = 86_400_000;

/// What a worker says about one service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Work {
    /// Requests it takes at once, at least 1.
    pub capacity: u32,
    /// Requests that execute; the upstream's own figure if that is higher than the agent's.
    pub running: u32,
    /// Requests that wait, at the agent and in the upstream.
    pub queued: u32,
    /// How busy it is, the machine's other work included.
    pub load: Load,
    /// How long a request executes, smoothed; 0 if unknown.
    pub service_time_ms: u32,
    /// Whether work is welcome.
    pub state: State,
}

/// Whether work is welcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum State {
    /// It is.
    #[default]
    Ready,
    /// It will wait: the upstream starts, or its model is cold.
    Loading,
    /// It will be refused.
    Draining,
}

impl State {
    const ALL: [State; 3] = [State::Ready, State::Loading, State::Draining];

    /// The word in the text form.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Ready => "ready",
            State::Loading => "loading",
            State::Draining => "draining",
        }
    }
}

/// Why a text is no [`Work`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadWork {
    /// Nobody writes so much.
    #[error("longer than {MAX_WORK_BYTES} bytes")]
    TooLong,
    /// A part that is no `key=value`.
    #[error("a part without \"=\"")]
    NoPair,
    /// Not a figure, or one out of its bounds.
    #[error("the value of {0} is not one that it can have")]
    Value(&'static str),
    /// It stands there twice.
    #[error("{0} is said twice")]
    Twice(&'static str),
    /// It has to be there.
    #[error("{0} is missing")]
    Missing(&'static str),
}

impl FromStr for Work {
    type Err = BadWork;

    fn from_str(text: &str) -> Result<Work, BadWork> {
        if text.len() > MAX_WORK_BYTES {
            return Err(BadWork::TooLong);
        }
        let mut said = [None; 5];
        let mut state = None;
        for part in text.split(';') {
            let (key, value) = part.split_once('=').ok_or(BadWork::NoPair)?;
            if key == "st" {
                let word = State::ALL.into_iter().find(|state| state.as_str() == value).ok_or(BadWork::Value("st"))?;
                if state.replace(word).is_some() {
                    return Err(BadWork::Twice("st"));
                }
            }
            let Some(place) = FIGURES.iter().position(|figure| figure.key == key) else { continue };
            if said[place].replace(FIGURES[place].parse(value)?).is_some() {
                return Err(BadWork::Twice(FIGURES[place].key));
            }
        }
        let [capacity, running, queued, load, service_time_ms] = said;
        let capacity = capacity.ok_or(BadWork::Missing("c"))?;
        let running = running.ok_or(BadWork::Missing("r"))?;
        let queued = queued.ok_or(BadWork::Missing("q"))?;
        let share =
            load.map_or(f64::from(running + queued) / f64::from(capacity), |percent| f64::from(percent) / 100.0);
        Ok(Work {
            capacity,
            running,
            queued,
            load: Load::from_share(share),
            service_time_ms: service_time_ms.unwrap_or(0),
            state: state.unwrap_or_default(),
        })
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = [self.capacity, self.running, self.queued, u32::from(self.load.percent()), self.service_time_ms];
        for (figure, value) in FIGURES.iter().zip(values) {
            write!(f, "{}={};", figure.key, value.clamp(figure.least, figure.most))?;
        }
        write!(f, "st={}", self.state.as_str())
    }
}

/// A figure of the text form, in the order in which they are written.
struct Figure {
    key: &'static str,
    least: u32,
    most: u32,
}

const FIGURES: [Figure; 5] = [
    Figure { key: "c", least: 1, most: MAX_REQUESTS },
    Figure { key: "r", least: 0, most: MAX_REQUESTS },
    Figure { key: "q", least: 0, most: MAX_REQUESTS },
    Figure { key: "l", least: 0, most: 100 },
    Figure { key: "s", least: 0, most: MAX_SERVICE_TIME_MS },
];

impl Figure {
    fn parse(&self, value: &str) -> Result<u32, BadWork> {
        // `u32::from_str` takes a sign.
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let value = value.parse().ok().filter(|value| digits && (self.least..=self.most).contains(value));
        value.ok_or(BadWork::Value(self.key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "c=4;r=3;q=2;l=75;s=812;st=ready";

    #[test]
    fn the_documented_text_is_what_it_says() {
        let work: Work = TEXT.parse().unwrap();

        let expected = Work {
            capacity: 4,
            running: 3,
            queued: 2,
            load: Load::from_share(0.75),
            service_time_ms: 812,
            state: State::Ready,
        };
        assert_eq!(work, expected);
        assert_eq!(work.to_string(), TEXT);
    }

    #[test]
    fn keys_of_later_versions_are_ignored_in_any_order() {
        let work: Work = "kv=12.5;st=draining;q=0;c=2;r=1".parse().unwrap();

        assert_eq!((work.capacity, work.running, work.queued, work.state), (2, 1, 0, State::Draining));
        assert_eq!((work.load.percent(), work.service_time_ms), (50, 0));
    }

    #[test]
    fn what_it_cannot_mean_is_refused_with_the_reason() {
        let long = format!("{TEXT};note={}", "x".repeat(MAX_WORK_BYTES));
        for (text, why) in [
            ("", BadWork::NoPair),
            ("c=1;r=0;q=0;", BadWork::NoPair),
            ("r=0;q=0", BadWork::Missing("c")),
            ("c=1;q=0", BadWork::Missing("r")),
            ("c=1;r=0", BadWork::Missing("q")),
            ("c=0;r=0;q=0", BadWork::Value("c")),
            ("c=1;r=-1;q=0", BadWork::Value("r")),
            ("c=1;r=+1;q=0", BadWork::Value("r")),
            ("c=1;r=0;q=1000001", BadWork::Value("q")),
            ("c=1;r=0;q=0;l=101", BadWork::Value("l")),
            ("c=1;r=0;q=0;s=1e3", BadWork::Value("s")),
            ("c=1;r=0;q=0;st=Ready", BadWork::Value("st")),
            ("c=1;r=0;q=0;c=1", BadWork::Twice("c")),
            ("c=1;r=0;q=0;st=ready;st=ready", BadWork::Twice("st")),
            (&long, BadWork::TooLong),
        ] {
            assert_eq!(text.parse::<Work>(), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,120}") { let _ = text.parse::<Work>(); }

        #[test]
        fn whatever_is_printed_is_read_again_cut_to_its_bounds(
            capacity: u32, running: u32, queued: u32, percent in 0..=100u8, service_time_ms: u32, state in 0..3usize,
        ) {
            let load = Load::from_share(f64::from(percent) / 100.0);
            let state = State::ALL[state];
            let work = Work { capacity, running, queued, load, service_time_ms, state };

            let text = work.to_string();

            let cut = Work {
                capacity: capacity.clamp(1, MAX_REQUESTS),
                running: running.min(MAX_REQUESTS),
                queued: queued.min(MAX_REQUESTS),
                service_time_ms: service_time_ms.min(MAX_SERVICE_TIME_MS),
                ..work
            };
            prop_assert!(text.len() <= MAX_WORK_BYTES);
            prop_assert_eq!(text.parse::<Work>(), Ok(cut));
        }
    }
}
