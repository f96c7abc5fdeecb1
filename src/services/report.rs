//! What this node says about one of its services at one moment.

use std::time::Duration;

use wiremesh_certs::Load;

use super::{Admission, Busy, Reading, load_of};

/// How a service is, for whoever chooses among workers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServiceReport {
    /// Requests it takes at once, at least one.
    pub capacity: u32,
    /// Requests that are worked on, those included that others than us sent to the upstream.
    pub running: u32,
    /// Requests that wait, here and in the upstream.
    pub queued: u32,
    /// How busy it is.
    pub load: Load,
    /// How long one request takes from when it is let in, smoothed; at least 1, and 0 before the first.
    pub service_time_ms: u32,
    /// Whether it takes requests.
    pub state: ServiceState,
}

/// Whether a service takes requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServiceState {
    /// Now.
    Ready,
    /// Into its line; the upstream is being started.
    Loading,
    /// None: the node is leaving.
    Draining,
}

impl ServiceState {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceState::Ready => "ready",
            ServiceState::Loading => "loading",
            ServiceState::Draining => "draining",
        }
    }
}

impl ServiceReport {
    /// Of the requests at our door, what the upstream said last, and how busy the machine is.
    pub fn of(admission: &Admission, reading: Option<Reading>, busy: Busy, state: ServiceState) -> ServiceReport {
        let (running, queued) = requests(admission, reading);
        ServiceReport {
            capacity: figure(admission.capacity()),
            running: figure(running),
            queued: figure(queued),
            load: load_of(of_one(admission, reading, busy)),
            service_time_ms: admission.service_time().map_or(0, |took| millis(took).max(1)),
            state,
        }
    }
}

/// The same with what one service adds to how busy the machine is.
pub fn of_one(admission: &Admission, reading: Option<Reading>, machine: Busy) -> Busy {
    let (running, queued) = requests(admission, reading);
    let kv_usage = reading.and_then(|reading| reading.kv_usage).unwrap_or(0.0);
    Busy {
        requests: machine.requests.max((running + queued) as f64 / admission.capacity() as f64),
        kv_usage: machine.kv_usage.max(kv_usage),
        ..machine
    }
}

/// Requests running and waiting. Ours are among those that the upstream counts, unless its figures are older than they.
fn requests(admission: &Admission, reading: Option<Reading>) -> (usize, usize) {
    let reading = reading.unwrap_or_default();
    let said = |figure: Option<u32>| figure.map_or(0, |figure| figure as usize);
    let waiting = said(reading.waiting);
    let running = said(reading.running).max(admission.running().saturating_sub(waiting));
    (running, admission.waiting() + waiting)
}

fn figure(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Asker;

    fn door(running: usize) -> Admission {
        let mut door = Admission::new(4, 4);
        (0..running).for_each(|_| _ = door.admit(Asker::Own));
        door
    }

    fn report(door: &Admission, reading: Option<Reading>) -> ServiceReport {
        ServiceReport::of(door, reading, Busy::default(), ServiceState::Ready)
    }

    #[test]
    fn an_upstream_that_says_nothing_is_measured_by_our_own_permits() {
        let report = report(&door(5), None);

        assert_eq!((report.capacity, report.running, report.queued), (4, 4, 1));
        assert_eq!((report.load.percent(), report.service_time_ms), (100, 0));
    }

    #[test]
    fn what_others_sent_to_the_upstream_shows() {
        let reading = Reading { running: Some(3), waiting: Some(2), ..Reading::default() };

        let report = report(&door(0), Some(reading));

        assert_eq!((report.running, report.queued, report.load.percent()), (3, 2, 100));
    }

    #[test]
    fn ours_that_wait_in_the_upstream_are_not_counted_twice() {
        let reading = Reading { running: Some(1), waiting: Some(3), ..Reading::default() };

        let report = report(&door(4), Some(reading));

        assert_eq!((report.running, report.queued), (1, 3));
    }

    #[test]
    fn a_figure_older_than_our_requests_does_not_hide_them() {
        let reading = Reading { running: Some(0), waiting: Some(0), ..Reading::default() };

        assert_eq!(report(&door(2), Some(reading)).running, 2);
    }

    #[test]
    fn a_full_kv_cache_is_a_full_service() {
        let reading = Reading { kv_usage: Some(0.9), ..Reading::default() };

        assert_eq!(report(&door(1), Some(reading)).load.percent(), 90);
    }
}
