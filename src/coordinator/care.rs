//! What an operator should see to before it becomes an outage.

use std::time::Duration;

use wiremesh_certs::{CaCertificate, UnixTime};

use super::rotation::{Authorities, Stage};
use crate::settings::Span;

/// Of an authority's life. Less than this left is time to see to its successor.
const LEFT_AT_LEAST: f64 = 0.2;
/// A rotation that takes longer than this waits for somebody.
const ROTATION_WITHIN: Duration = Duration::from_secs(86_400);

/// Something to see to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Care {
    /// What.
    pub what: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// What there is to see to about the authorities.
pub fn of(authorities: &Authorities, now: UnixTime) -> Vec<Care> {
    let issuing = authorities.issuing();
    let mut found = Vec::new();
    let stage = authorities.stage();
    for certificate in [&issuing.certificate].into_iter().chain(&issuing.above) {
        if stage == Stage::Idle && is_old(certificate, now) {
            let kind = if certificate.is_root() { "the CA" } else { "the intermediate CA" };
            let left = certificate.not_after().saturating_since(now);
            let what = if left.is_zero() {
                format!("{kind} ended at {}", certificate.not_after())
            } else {
                format!("{kind} ends in {}", coarse(left))
            };
            found.push(Care { what, hint: "wiremesh cert rotate" });
        }
    }
    let since = match stage {
        Stage::Idle => None,
        Stage::Announced(next) => Some(next.since),
        Stage::Replacing(leaving) => Some(leaving.since),
    };
    if let Some(since) = since.filter(|since| now.saturating_since(*since) > ROTATION_WITHIN) {
        let what = format!("the rotation of the CA waits since {}", coarse(now.saturating_since(since)));
        found.push(Care { what, hint: "wiremesh cert rotate --status" });
    }
    found
}

fn is_old(certificate: &CaCertificate, now: UnixTime) -> bool {
    let life = certificate.not_after().saturating_since(certificate.not_before());
    certificate.not_after().saturating_since(now) < life.mul_f64(LEFT_AT_LEAST)
}

/// The two largest units say enough: `40d3h`, not `40d3h59m41s`.
pub fn coarse(duration: Duration) -> String {
    let text = Span(duration).to_string();
    let ends = text.match_indices(|c: char| c.is_ascii_alphabetic()).map(|(at, _)| at + 1);
    let end = ends.take(2).last().unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{Authority, CaParameters};

    use super::*;
    use crate::coordinator::rotation::Step;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn authority(seed: u64) -> Authority {
        let network = "10.42.0.0/16".parse().unwrap();
        let parameters = CaParameters { mesh: "lab".parse().unwrap(), network, lifetime: 100 * DAY };
        Authority::create(&parameters, NOW, &mut StdRng::seed_from_u64(seed)).unwrap()
    }

    fn whats(authorities: &Authorities, at: UnixTime) -> Vec<String> {
        of(authorities, at).into_iter().map(|care| format!("{}: {}", care.what, care.hint)).collect()
    }

    #[test]
    fn an_authority_with_less_than_a_fifth_of_its_life_left_needs_a_successor() {
        let authorities = Authorities::first(authority(1).certificate().clone(), Vec::new(), NOW);

        assert_eq!(whats(&authorities, NOW.plus(79 * DAY)), [""; 0]);
        assert_eq!(whats(&authorities, NOW.plus(81 * DAY)), ["the CA ends in 19d: wiremesh cert rotate"]);
        assert!(whats(&authorities, NOW.plus(101 * DAY))[0].starts_with("the CA ended at "));
    }

    #[test]
    fn a_rotation_that_does_not_get_on_is_told_of() {
        let first = Authorities::first(authority(1).certificate().clone(), Vec::new(), NOW);
        let announced = first.begin(authority(2).certificate().clone(), Vec::new(), 2, NOW).unwrap();
        let replacing = announced.after(Step::Issue, NOW).unwrap();

        for authorities in [announced, replacing] {
            assert_eq!(whats(&authorities, NOW.plus(DAY)), [""; 0]);
            let said = whats(&authorities, NOW.plus(90 * DAY));
            assert_eq!(said, ["the rotation of the CA waits since 90d: wiremesh cert rotate --status"]);
        }
    }
}
