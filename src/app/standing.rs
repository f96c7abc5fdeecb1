//! How it stands with our own certificate, and what to say about it.

use wiremesh_certs::{Trust, UnixTime, Verified};

/// With less than this share of its life left a certificate should have been renewed long ago.
const LATE_BELOW: f64 = 0.25;

/// What is true of our certificate at a moment; the worst of it, if several things are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The mesh's list names it.
    Revoked,
    /// The clock says that it has not begun.
    NotYetValid,
    /// Its time is over.
    Ended,
    /// Its authority is believed no more.
    Retired,
    /// It should have been renewed by now.
    Late,
    /// It is good, and its authority is being replaced: it is renewed soon.
    Replaced,
    /// It is good.
    Good,
}

impl Standing {
    /// Of `own`, in the mesh that `trust` knows.
    pub fn of(own: &Verified, trust: &Trust, now: UnixTime) -> Standing {
        let life = own.not_after().saturating_since(own.not_before()).as_secs_f64();
        let left = own.not_after().saturating_since(now).as_secs_f64();
        if trust.revocations().names(own) {
            Standing::Revoked
        } else if now < own.not_before() {
            Standing::NotYetValid
        } else if own.not_after() <= now {
            Standing::Ended
        } else if trust.is_revoked(own) {
            Standing::Retired
        } else if left < life * LATE_BELOW {
            Standing::Late
        } else if own.authority() != trust.authority().fingerprint() {
            Standing::Replaced
        } else {
            Standing::Good
        }
    }

    /// For programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Revoked => "revoked",
            Standing::NotYetValid => "not_yet_valid",
            Standing::Ended => "ended",
            Standing::Retired => "authority_retired",
            Standing::Late => "renewal_late",
            Standing::Replaced => "authority_replaced",
            Standing::Good => "good",
        }
    }

    /// Whether others believe it at all.
    pub fn is_believed(self) -> bool {
        match self {
            Standing::Revoked | Standing::NotYetValid | Standing::Ended | Standing::Retired => false,
            Standing::Late | Standing::Replaced | Standing::Good => true,
        }
    }

    /// For people, if it is a trouble.
    pub fn trouble(self, own: &Verified, now: UnixTime) -> Option<String> {
        Some(match self {
            Standing::Revoked => {
                "our certificate is revoked: nobody talks to us; to be a member again, move the state directory away and \
                 join with a new token"
                    .to_owned()
            }
            Standing::NotYetValid => format!(
                "our certificate is valid from {}, and it is {now}: is this machine's clock right?",
                own.not_before()
            ),
            Standing::Ended => format!(
                "our certificate ended at {}: nobody talks to us until a coordinator renews it, which is tried again and \
                 again",
                own.not_after()
            ),
            Standing::Retired => "the authority of our certificate is believed no more: nobody talks to us until a \
                 coordinator renews it, which is tried again and again"
                .to_owned(),
            Standing::Late => "our certificate could not be renewed in time; is the coordinator reachable?".to_owned(),
            Standing::Replaced | Standing::Good => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::{
        AllowedServices, Authority, CaParameters, Claims, RevocationList, SignedRevocations, generate_keys,
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn root() -> Authority {
        let (mesh, network) = ("lab".parse().unwrap(), "10.42.0.0/16".parse().unwrap());
        Authority::create(&CaParameters { mesh, network, lifetime: 365 * DAY }, NOW, &mut rand::rng()).unwrap()
    }

    fn member(authority: &Authority) -> Verified {
        let (key, wg) = generate_keys(&mut rand::rng());
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: "a".parse().unwrap(),
            address: "10.42.0.2".parse().unwrap(),
            groups: Vec::new(),
            services: AllowedServices::Any,
            lifetime: 10 * DAY,
        };
        let chain = authority.issue(&claims, NOW, &mut rand::rng()).unwrap();
        Trust::new(authority.certificate().clone()).verify(&chain, NOW).unwrap()
    }

    fn with(trust: &Trust, signed: &SignedRevocations) -> Trust {
        let mut trust = trust.clone();
        trust.apply_revocations(signed, NOW).unwrap();
        trust
    }

    #[test]
    fn each_standing_is_told_from_the_others_and_says_what_comes_next() {
        let (old, new) = (root(), root());
        let own = member(&old);
        let trust = Trust::new(old.certificate().clone());
        let cross = old.cross_sign(new.certificate(), NOW, &mut rand::rng()).unwrap().der().to_vec();
        let naming = |number, authorities: &[&Authority]| RevocationList {
            number,
            authorities: authorities.iter().map(|authority| authority.certificate().der().to_vec()).collect(),
            crosses: vec![cross.clone()],
            ..RevocationList::default()
        };
        let replaced = with(&trust, &new.sign_revocations(&naming(1, &[&new, &old])).unwrap());
        let retired = with(&trust, &new.sign_revocations(&naming(1, &[&new])).unwrap());
        let revoking = RevocationList { number: 1, identities: [own.id()].into(), ..RevocationList::default() };
        let revoked = with(&trust, &old.sign_revocations(&revoking).unwrap());

        for (trust, at, expected, says) in [
            (&trust, NOW, Standing::Good, None),
            (&trust, NOW.minus(DAY), Standing::NotYetValid, Some("clock")),
            (&trust, NOW.plus(8 * DAY), Standing::Late, Some("reachable")),
            (&trust, NOW.plus(11 * DAY), Standing::Ended, Some("renews it")),
            (&replaced, NOW, Standing::Replaced, None),
            (&retired, NOW, Standing::Retired, Some("renews it")),
            (&revoked, NOW.plus(11 * DAY), Standing::Revoked, Some("new token")),
        ] {
            let standing = Standing::of(&own, trust, at);

            assert_eq!(standing, expected);
            let trouble = standing.trouble(&own, at);
            assert_eq!(trouble.is_some(), says.is_some(), "{trouble:?}");
            assert!(says.is_none_or(|says| trouble.unwrap().contains(says)));
            assert_eq!(standing.is_believed(), trust.verify(own.chain(), at).is_ok(), "as others see it");
        }
    }
}
