//! How far this machine's clock is from the coordinator's, as the dates of its answers tell.
//!
//! ```text
//! ours   sent ────────────────────── received
//! theirs          date (somewhere between, if the clocks agree)
//!        ◄─ ahead by at least ─┘└─ behind by at least ─►
//! ```
//!
//! A question may wait long for its answer, so a date between the two proves nothing wrong; one outside is wrong by at
//! least its distance. Of a few answers the middle counts: one that was held up, or a clock that was set meanwhile, does
//! not decide alone.

use std::{collections::VecDeque, fmt, time::Duration};

use wiremesh_certs::{PROOF_LIFE, UnixTime};

/// Beyond this it is said: records dated so far into the future are refused by the others' directories, and proofs soon.
pub const TOLERATED: Duration = Duration::from_secs(30);
/// Answers that count. With three, a clock that was set right counts as right after two heartbeats.
const SAMPLES: usize = 3;
/// Dates are in whole seconds.
const DATE_IS_EXACT_TO: Duration = Duration::from_secs(1);

/// How far, and in which direction. Displayed as "1 h 0 min ahead of".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offset {
    /// Our time less the coordinator's, in seconds.
    pub seconds: i64,
}

impl Offset {
    /// Ours is later by this.
    pub fn ahead(by: Duration) -> Offset {
        Offset { seconds: i64::try_from(by.as_secs()).unwrap_or(i64::MAX) }
    }

    /// Ours is earlier by this.
    pub fn behind(by: Duration) -> Offset {
        Offset { seconds: -Offset::ahead(by).seconds }
    }

    /// Without its direction.
    pub fn distance(self) -> Duration {
        Duration::from_secs(self.seconds.unsigned_abs())
    }

    /// Whether it is too much to go on without a word.
    pub fn is_wrong(self) -> bool {
        self.distance() > TOLERATED
    }

    /// Whether no coordinator takes a proof of ours.
    pub fn refutes_proofs(self) -> bool {
        self.distance() > PROOF_LIFE
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.seconds < 0 { "behind" } else { "ahead of" };
        write!(f, "{} {direction}", spelled(self.distance()))
    }
}

/// What the answers of coordinators say about our clock.
#[derive(Clone, Debug, Default)]
pub struct Skew {
    samples: VecDeque<i64>,
}

impl Skew {
    /// A coordinator dated its answer so, to a question of then, and we have it now.
    pub fn handle_date(&mut self, date: UnixTime, sent_at: UnixTime, received_at: UnixTime) {
        let latest = date.plus(DATE_IS_EXACT_TO);
        let offset = if sent_at > latest {
            Offset::ahead(sent_at.saturating_since(latest))
        } else {
            Offset::behind(date.saturating_since(received_at))
        };
        self.handle_offset(offset);
    }

    /// It is off by at least so much, as was found out otherwise.
    pub fn handle_offset(&mut self, offset: Offset) {
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(offset.seconds);
    }

    /// By the middle of the last answers; `None`: none has come yet.
    pub fn offset(&self) -> Option<Offset> {
        let mut sorted: Vec<i64> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map(|seconds| Offset { seconds: *seconds })
    }

    /// The same, if it is too much to go on without a word.
    pub fn wrong(&self) -> Option<Offset> {
        self.offset().filter(|offset| offset.is_wrong())
    }
}

/// Two units, always: a time that is off by 1 h 0 min is most likely one of another time zone.
fn spelled(duration: Duration) -> String {
    let seconds = duration.as_secs();
    // Beyond some minutes, seconds are noise.
    let minutes = (seconds + 30) / 60;
    match minutes {
        _ if seconds < 60 => format!("{seconds} s"),
        0..10 => format!("{} min {} s", seconds / 60, seconds % 60),
        10..60 => format!("{minutes} min"),
        60..2880 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", minutes / 1440, minutes / 60 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn clocks_that_agree_are_not_off_however_long_an_answer_took() {
        for (sent, date, received) in [(0, 0, 0), (0, 1, 1), (0, 25, 50), (0, 50, 50), (1, 0, 1)] {
            let mut skew = Skew::default();
            skew.handle_date(NOW.plus(seconds(date)), NOW.plus(seconds(sent)), NOW.plus(seconds(received)));

            assert_eq!(skew.offset(), Some(Offset { seconds: 0 }), "{sent} {date} {received}");
        }
    }

    #[test]
    fn an_hour_either_way_is_told_for_what_it_is() {
        let mut skew = Skew::default();
        skew.handle_date(NOW, NOW.plus(HOUR), NOW.plus(HOUR));
        assert_eq!(skew.wrong().unwrap().to_string(), "1 h 0 min ahead of");

        let mut skew = Skew::default();
        skew.handle_date(NOW.plus(HOUR), NOW, NOW.plus(seconds(1)));
        assert_eq!(skew.wrong().unwrap().to_string(), "1 h 0 min behind");
    }

    #[test]
    fn half_a_minute_is_nobodys_business() {
        let mut skew = Skew::default();
        skew.handle_date(NOW, NOW.plus(seconds(31)), NOW.plus(seconds(31)));
        assert_eq!((skew.offset().unwrap().seconds, skew.wrong()), (30, None));

        skew.handle_date(NOW, NOW.plus(seconds(32)), NOW.plus(seconds(32)));
        assert!(skew.wrong().is_some());
    }

    #[test]
    fn one_answer_alone_changes_nothing_and_a_clock_that_was_set_is_right_after_two() {
        let mut skew = Skew::default();
        for _ in 0..5 {
            skew.handle_date(NOW, NOW, NOW);
        }
        skew.handle_date(NOW, NOW.plus(HOUR), NOW.plus(HOUR));
        assert_eq!(skew.wrong(), None);
        skew.handle_date(NOW, NOW.plus(HOUR), NOW.plus(HOUR));
        assert!(skew.wrong().is_some());

        skew.handle_date(NOW, NOW, NOW);
        skew.handle_date(NOW, NOW, NOW);
        assert_eq!(skew.wrong(), None);
    }

    #[test]
    fn how_far_it_is_off_is_read_at_a_glance() {
        for (by, expected) in [
            (31, "31 s"),
            (95, "1 min 35 s"),
            (3599, "1 h 0 min"),
            (3600 * 30, "30 h 0 min"),
            (86_400 * 3 + 7200, "3 d 2 h"),
            (86_400 * 365 * 57, "20805 d 0 h"),
        ] {
            assert_eq!(Offset::behind(seconds(by)).to_string(), format!("{expected} behind"));
        }
        assert_eq!(Offset { seconds: i64::MIN }.distance(), Duration::from_secs(1 << 63));
    }
}
