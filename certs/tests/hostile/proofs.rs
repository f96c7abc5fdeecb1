//! Proofs of who sends a request: for another, of another time, used before, or none at all.

use std::time::Duration;

use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn a_proof_is_believed_once_for_a_minute_whatever_the_case_of_its_scheme() {
    let member = member();
    let mut checker = checker(NOW);
    let header = member.proof("coordinator.lab", "POST", "/api/x?a=1", NOW);

    let proved = checker.check(&header.to_lowercase_scheme(), "POST", "/api/x?a=1", &root().trust(), NOW).unwrap();

    assert_eq!(proved.id(), member.key.id());
}

pub fn cases() -> Vec<Case> {
    [for_another(), of_another_time(), used_before(), no_proofs()].into_iter().flatten().collect()
}

fn for_another() -> Vec<Case> {
    let member = member();
    let check = |audience: &str, method: &str, path: &str| {
        let header = member.proof(audience, method, path, NOW);
        checker(NOW).check(&header, "POST", "/api/x?a=1", &root().trust(), NOW)
    };
    [
        ("a proof for another audience", check("coordinator.other", "POST", "/api/x?a=1"), "audience"),
        ("a proof for a worker", check(&member.key.id().to_hex(), "POST", "/api/x?a=1"), "audience"),
        ("a proof for nobody", check("", "POST", "/api/x?a=1"), "audience"),
        ("a proof for another method", check("coordinator.lab", "GET", "/api/x?a=1"), "method"),
        ("a proof for a method in small letters", check("coordinator.lab", "post", "/api/x?a=1"), "method"),
        ("a proof for another path", check("coordinator.lab", "POST", "/api/y?a=1"), "path"),
        ("a proof for a path without its query", check("coordinator.lab", "POST", "/api/x"), "path"),
        ("a proof for another query", check("coordinator.lab", "POST", "/api/x?a=2"), "path"),
        ("a proof for a path with a dot in it", check("coordinator.lab", "POST", "/api/./x?a=1"), "path"),
    ]
    .map(|(name, outcome, what)| {
        Case::new(name, outcome, "proof_for_another", format!("the proof is for another {what}"))
    })
    .into()
}

fn of_another_time() -> Vec<Case> {
    let member = member();
    let seconds = Duration::from_secs;
    let check = |issued_at: UnixTime, started_at: UnixTime, now: UnixTime| {
        checker(started_at).check(&member.proof_at(issued_at), "POST", "/", &root().trust(), now)
    };
    let set_back = {
        let mut checker = checker(NOW);
        let old = member.proof_at(NOW);
        let later = NOW.plus(2 * PROOF_LIFE);
        checker.check(&old, "POST", "/", &root().trust(), NOW).unwrap();
        checker.check(&member.proof_at(later), "POST", "/", &root().trust(), later).unwrap();
        checker.check(&old, "POST", "/", &root().trust(), NOW)
    };
    let says = |issued_at: UnixTime, now: UnixTime| {
        format!("the proof was made at {issued_at}, and it is {now}: more than 60 s apart")
    };
    let (ahead, behind, after) = (NOW.plus(seconds(61)), NOW.minus(seconds(61)), NOW.plus(seconds(10)));
    vec![
        Case::new("a proof of a minute ago", check(behind, NOW.minus(DAY), NOW), "stale_proof", says(behind, NOW)),
        Case::new("a proof of a minute ahead", check(ahead, NOW, NOW), "stale_proof", says(ahead, NOW)),
        Case::new(
            "a proof of the end of time",
            check(UnixTime(u64::MAX), NOW, NOW),
            "stale_proof",
            says(UnixTime(u64::MAX), NOW),
        ),
        Case::new(
            "a proof from before its checker, which may have been used",
            check(NOW.plus(seconds(9)), after, after),
            "stale_proof",
            says(NOW.plus(seconds(9)), after),
        ),
        Case::new("a proof that was used, after the clock was set back", set_back, "stale_proof", says(NOW, NOW)),
    ]
}

fn used_before() -> Vec<Case> {
    let (one, other) = (member(), member());
    let says = "the proof was used before";
    let twice = {
        let (mut checker, header) = (checker(NOW), one.proof_at(NOW));
        checker.check(&header, "POST", "/", &root().trust(), NOW).unwrap();
        checker.check(&header, "POST", "/", &root().trust(), NOW.plus(PROOF_LIFE))
    };
    let nonce_of = |member: &Member, path: &str| {
        let proof = RequestProof {
            audience: "coordinator.lab".to_owned(),
            method: "POST".to_owned(),
            path: path.to_owned(),
            issued_at: NOW,
            nonce: [7; 16],
        };
        format!("Wiremesh {}", Signed::sign(&proof, &member.key, &member.chain).unwrap().to_base64())
    };
    let again = |second: &Member, path: &str| {
        let mut checker = checker(NOW);
        checker.check(&nonce_of(&one, "/"), "POST", "/", &root().trust(), NOW).unwrap();
        checker.check(&nonce_of(second, path), "POST", path, &root().trust(), NOW)
    };
    vec![
        Case::new("a proof used twice", twice, "replayed_proof", says),
        Case::new("a nonce used for another request", again(&one, "/other"), "replayed_proof", says),
        Case::new("another's nonce", again(&other, "/"), "replayed_proof", says),
    ]
}

fn no_proofs() -> Vec<Case> {
    let member = member();
    let check = |header: &str| checker(NOW).check(header, "POST", "/", &root().trust(), NOW);
    let payload = minicbor::to_vec(record()).unwrap();
    let record = Signed::<RequestProof>::from_bytes(&member.message(&payload)).unwrap();
    let header = member.proof_at(NOW);
    let encoded = header.strip_prefix("Wiremesh ").unwrap();
    let no_scheme = "not \"Wiremesh\" and a proof";
    let short_nonce = cbor(|e| {
        e.array(5).unwrap().str("coordinator.lab").unwrap().str("POST").unwrap().str("/").unwrap();
        e.u64(NOW.0).unwrap().bytes(&[7; 15]).unwrap();
    });
    let long_audience = cbor(|e| {
        e.array(5).unwrap().str(&"a".repeat(129)).unwrap().str("POST").unwrap().str("/").unwrap();
        e.u64(NOW.0).unwrap().bytes(&[7; 16]).unwrap();
    });
    let signed = |payload: &[u8]| {
        let bytes = member.signed(PROOF, payload);
        format!("Wiremesh {}", Signed::<RequestProof>::from_bytes(&bytes).unwrap().to_base64())
    };
    let mut cases: Vec<Case> = [
        ("no proof", String::new(), no_scheme),
        ("a bearer's key", "Bearer abc".to_owned(), no_scheme),
        ("a proof without its scheme", encoded.to_owned(), no_scheme),
        ("a proof that is no base64url", "Wiremesh !!!".to_owned(), "not base64url"),
        ("a proof with a space before it", format!("Wiremesh  {encoded}"), "not base64url"),
        ("a proof with padding", format!("{header}=="), "not base64url"),
        ("a proof of 8 KiB", format!("Wiremesh {}", "A".repeat(8192)), "too long"),
        ("a record as a proof in a header", format!("Wiremesh {}", record.to_base64()), "a payload of another form"),
        ("a proof with a short nonce", signed(&short_nonce), "a payload of another form"),
        ("a proof for a long audience", signed(&long_audience), "an audience or method longer than it can be"),
    ]
    .into_iter()
    .map(|(name, header, why)| Case::new(name, check(&header), "malformed", no_message(why)))
    .collect();
    let stranger = member_of(&Ca::root("lab").authority());
    let by_a_stranger = check(&stranger.proof_at(NOW));
    cases.push(Case::new("a stranger's proof", by_a_stranger, "another_authority", another_authority()));
    cases
}

fn checker(started_at: UnixTime) -> ProofChecker {
    ProofChecker::new("coordinator.lab".to_owned(), started_at)
}

impl Member {
    fn proof(&self, audience: &str, method: &str, path: &str, now: UnixTime) -> String {
        proof_header(&self.key, &self.chain, audience, method, path, now, &mut rand::rng()).unwrap()
    }

    fn proof_at(&self, now: UnixTime) -> String {
        self.proof("coordinator.lab", "POST", "/", now)
    }
}

trait LowercaseScheme {
    fn to_lowercase_scheme(&self) -> String;
}

impl LowercaseScheme for String {
    fn to_lowercase_scheme(&self) -> String {
        self.replacen("Wiremesh", "wiremesh", 1)
    }
}
