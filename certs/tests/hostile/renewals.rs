//! Who asks to renew though it may not: too late, revoked, from an authority of the past, or for something else.

use std::time::Duration;

use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

const AUDIENCE: &str = "coordinator.lab";
const PATH: &str = "/api/certs/renew";
/// How long after its end a certificate is still good for its renewal.
const WINDOW: Duration = Duration::from_secs(3 * 86_400);
/// After the end of every member's certificate, and within the window.
const LATER: UnixTime = UnixTime(NOW.0 + 2 * 86_400);

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn within_the_window_a_certificate_that_ended_is_good_for_its_renewal() {
    let member = member();

    let by = renew(&root().trust(), &[], &member.proof_of(PATH, LATER), LATER).unwrap();

    assert_eq!(by.id(), member.key.id());
}

/// A retired intermediate is revoked, or its root would still vouch for it; those it signed are members all the same.
/// Whoever has its key can sign for keys of their own and for no member's: a coordinator renews identities it knows.
#[test]
fn a_revoked_authority_of_the_past_takes_nobody_s_renewal_away_and_lets_nobody_in() {
    let former = Ca::root("lab");
    let member = member_of(&former.authority());
    let mut trust = root().trust();
    let identities = [former.key.id()].into();
    let list = RevocationList { number: 1, identities, ..RevocationList::default() };
    trust.apply_revocations(&root().authority().sign_revocations(&list).unwrap(), NOW).unwrap();

    let by = renew(&trust, &[former.certificate()], &member.proof_of(PATH, LATER), LATER).unwrap();

    assert_eq!(by.id(), member.key.id(), "the key that signed the proof, and no other");
    assert!(trust.verify(&member.chain, NOW).is_err(), "nothing but its renewal");
}

pub fn cases() -> Vec<Case> {
    let (member, former) = (member(), Ca::root("lab"));
    let of_former = member_of(&former.authority());
    let trust = root().trust();
    let beyond = NOW.plus(DAY + WINDOW);
    let ended = NOW.plus(DAY);
    let before = NOW.minus(DAY);
    let number = trust.verify(&member.chain, NOW).unwrap().serial();
    let revoking = |list: RevocationList| {
        let mut trust = root().trust();
        let list = RevocationList { number: 1, ..list };
        trust.apply_revocations(&root().authority().sign_revocations(&list).unwrap(), NOW).unwrap();
        renew(&trust, &[], &member.proof_of(PATH, LATER), LATER)
    };
    let twice = {
        let (mut checker, header) = (ProofChecker::new(AUDIENCE.to_owned(), NOW), member.proof_of(PATH, LATER));
        let mut check =
            || checker.check_renewable(&header, "POST", PATH, &root().trust(), &[], WINDOW, LATER).map(drop);
        check().unwrap();
        check()
    };
    let anything_else =
        ProofChecker::new(AUDIENCE.to_owned(), NOW).check(&member.proof_of(PATH, LATER), "POST", PATH, &trust, LATER);
    let serials = [number].into();
    let by_serial = revoking(RevocationList { serials, ..RevocationList::default() });
    let by_key = revoking(RevocationList { identities: [member.key.id()].into(), ..RevocationList::default() });
    let revoked = format!("its certificate {number} is revoked");
    vec![
        Case::new(
            "a renewal beyond its window",
            renew(&trust, &[], &member.proof_of(PATH, beyond), beyond),
            "expired",
            format!("its certificate ended at {ended}, and it is {beyond}"),
        ),
        Case::new(
            "anything but a renewal after the end",
            anything_else,
            "expired",
            format!("its certificate ended at {ended}, and it is {LATER}"),
        ),
        Case::new(
            "a renewal before the beginning",
            trust.renewable(&member.chain, &[], WINDOW, before),
            "not_yet_valid",
            format!("its certificate is valid from {}, and it is {before}", NOW.minus(BACKDATED)),
        ),
        Case::new("a renewal of a revoked certificate", by_serial, "revoked", revoked.clone()),
        Case::new("a renewal by a revoked key", by_key, "revoked", revoked),
        Case::new(
            "a renewal under an authority that never was",
            renew(&trust, &[], &of_former.proof_of(PATH, LATER), LATER),
            "another_authority",
            another_authority(),
        ),
        Case::new(
            "a proof of something else as one to renew",
            renew(&trust, &[], &member.proof_of("/api/worker/heartbeat", LATER), LATER),
            "proof_for_another",
            "the proof is for another path",
        ),
        Case::new("a proof to renew used twice", twice, "replayed_proof", "the proof was used before"),
        Case::new(
            "a proof to renew of two days ago",
            renew(&trust, &[], &member.proof_of(PATH, NOW), LATER),
            "stale_proof",
            format!("the proof was made at {NOW}, and it is {LATER}: more than 60 s apart"),
        ),
    ]
}

fn renew(trust: &Trust, former: &[CaCertificate], header: &str, now: UnixTime) -> Result<Renewable, Refused> {
    ProofChecker::new(AUDIENCE.to_owned(), NOW).check_renewable(header, "POST", PATH, trust, former, WINDOW, now)
}

impl Member {
    fn proof_of(&self, path: &str, now: UnixTime) -> String {
        proof_header(&self.key, &self.chain, AUDIENCE, "POST", path, now, &mut rand::rng()).unwrap()
    }
}
