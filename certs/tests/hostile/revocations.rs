//! Lists of what is no longer believed: by who may not sign one, older than ours, or in another than their one form.

use minicbor::Encoder;
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
fn a_list_in_its_one_form_is_believed() {
    assert_eq!(apply(&by_root(&serials(&[[1; 16], [2; 16]]))), Ok(true));
}

#[test]
fn an_intermediate_may_sign_a_list() {
    let intermediate = root().intermediate("lab", |_| {});
    let list = RevocationList { number: 1, ..RevocationList::default() };

    assert_eq!(
        root().trust().apply_revocations(&intermediate.authority().sign_revocations(&list).unwrap(), NOW),
        Ok(true)
    );
}

pub fn cases() -> Vec<Case> {
    by_others().into_iter().chain(in_other_forms()).chain(of_policies()).collect()
}

fn by_others() -> Vec<Case> {
    let member = member();
    let list = |number| RevocationList { number, ..RevocationList::default() };
    let mut trust = root().trust();
    trust.apply_revocations(&root().authority().sign_revocations(&list(9)).unwrap(), NOW).unwrap();
    let by_a_node = Signed::sign(&list(10), &member.key, &member.chain).unwrap();
    let by_another = Ca::root("lab").authority().sign_revocations(&list(10)).unwrap();
    let older = root().authority().sign_revocations(&list(8)).unwrap();
    let none = root().authority().sign_revocations(&list(0)).unwrap();
    let under_our_name = sign(&member.key, &root().der, REVOCATIONS, &minicbor::to_vec(list(10)).unwrap());
    let under_our_name = SignedRevocations::from_bytes(&under_our_name).unwrap();
    let ended = root().intermediate("lab", |p| p.not_after = moment(NOW)).authority();
    let ended = ended.sign_revocations(&list(10)).unwrap();
    let of_another_mesh = root().intermediate("other", |_| {}).authority().sign_revocations(&list(10)).unwrap();
    let record = SignedRevocations::from_bytes(&sign(&root().key, &root().der, RECORD, &serials(&[]))).unwrap();
    let no_authority = outside_the_profile("an extension that an authority's certificate does not have");
    let wrong = "its signature is not that of its certificate's key, or it was changed";
    let mut apply = |list: &SignedRevocations| trust.apply_revocations(list, NOW);
    vec![
        Case::new("a list by a node", apply(&by_a_node), "bad_certificate", no_authority),
        Case::new("a list by another authority", apply(&by_another), "another_authority", another_authority()),
        Case::new("a list under our authority's certificate", apply(&under_our_name), "wrong_signature", wrong),
        Case::new("a list signed as a record", apply(&record), "wrong_signature", wrong),
        Case::new(
            "a list by an intermediate that ended",
            apply(&ended),
            "expired",
            "its certificate ended at 2027-01-15T08:00:00Z, and it is 2027-01-15T08:00:00Z",
        ),
        Case::new(
            "a list by an intermediate of another mesh",
            apply(&of_another_mesh),
            "another_mesh",
            "it names the mesh other, which is not ours",
        ),
        Case::new(
            "a list older than ours",
            apply(&older),
            "older_revocations",
            "revocation list 8 is older than 9, which we have",
        ),
        Case::new(
            "a list of number 0",
            apply(&none),
            "older_revocations",
            "revocation list 0 is older than 9, which we have",
        ),
    ]
}

fn in_other_forms() -> Vec<Case> {
    let many = RevocationList {
        number: 1,
        serials: (0..=MAX_REVOCATIONS as u128).map(|n| Serial(n.to_be_bytes())).collect(),
        ..RevocationList::default()
    };
    let second = "a payload in another than its one encoding";
    let other = "a payload of another form";
    let indefinite = cbor(|e| {
        e.array(3).unwrap().u8(1).unwrap().begin_array().unwrap().bytes(&[1; 16]).unwrap().end().unwrap();
        e.array(0).unwrap();
    });
    let long_serial = cbor(|e| {
        e.array(3).unwrap().u8(1).unwrap().array(1).unwrap().bytes(&[1; 17]).unwrap().array(0).unwrap();
    });
    let short_identity = cbor(|e| {
        e.array(3).unwrap().u8(1).unwrap().array(0).unwrap().array(1).unwrap().bytes(&[1; 31]).unwrap();
    });
    let endless = cbor(|e| _ = e.array(3).unwrap().u8(1).unwrap().array(u64::MAX).unwrap());
    let mut cases: Vec<Case> = [
        ("serials out of order", serials(&[[2; 16], [1; 16]]), second),
        ("a serial twice", serials(&[[1; 16], [1; 16]]), second),
        ("serials of indefinite length", indefinite, second),
        ("a serial of 17 bytes", long_serial, other),
        ("an identity of 31 bytes", short_identity, other),
        ("serials without end", endless, other),
    ]
    .into_iter()
    .map(|(name, payload, why)| Case::new(name, apply(&by_root(&payload)), "malformed", no_message(why)))
    .collect();
    cases.push(Case::new(
        "10,001 revocations to be signed",
        root().authority().sign_revocations(&many),
        "not_signed",
        "cannot be signed: more than 10,000 revocations",
    ));
    cases.push(Case::new(
        "10,001 revocations",
        apply(&by_root(&minicbor::to_vec(&many).unwrap())),
        "malformed",
        no_message("more than 10,000 revocations"),
    ));
    cases.push(Case::new(
        "a list of more than a megabyte",
        SignedRevocations::from_bytes(&vec![0; (1 << 20) + 1]),
        "malformed",
        no_message("too long"),
    ));
    cases
}

/// Who may offer and call what, in another than its one form or beyond its bounds.
fn of_policies() -> Vec<Case> {
    // Rules by name, in this order, each for everybody.
    let rules = |names: &[&str]| {
        with_policy(|e| {
            e.array(2).unwrap().array(0).unwrap().map(names.len() as u64).unwrap();
            names
                .iter()
                .for_each(|name| _ = e.str(name).unwrap().array(1).unwrap().array(1).unwrap().str("g").unwrap());
        })
    };
    let groups = |names: &[&str]| {
        with_policy(|e| {
            e.array(2).unwrap().array(1).unwrap().array(names.len() as u64).unwrap();
            names.iter().for_each(|name| _ = e.str(name).unwrap());
            e.map(0).unwrap();
        })
    };
    let open = with_policy(|e| _ = e.array(2).unwrap().array(0).unwrap().map(0).unwrap());
    let list = |policy: Policy| RevocationList { number: 1, policy, ..RevocationList::default() };
    let rule = |n: usize| (ServiceName::new(&format!("s{n}")).unwrap(), Rule { offer: Some([].into()), call: None });
    let many = list(Policy { services: (0..=MAX_RULES).map(rule).collect(), ..Policy::default() });
    let names = (0..=MAX_RULE_GROUPS).map(|n| GroupName::new(&format!("g{n}")).unwrap()).collect();
    let wide = list(Policy { otherwise: Rule { offer: None, call: Some(names) }, ..Policy::default() });
    let encoded = |list: &RevocationList| minicbor::to_vec(list).unwrap();
    let second = "a payload in another than its one encoding";
    let other = "a payload of another form";
    assert_eq!(apply(&by_root(&rules(&["llm", "ocr"]))), Ok(true));
    assert_eq!(apply(&by_root(&groups(&["cpu", "gpu"]))), Ok(true));
    [
        ("rules out of order", rules(&["ocr", "llm"]), second),
        ("a rule twice", rules(&["llm", "llm"]), second),
        ("a rule for a service that is a path", rules(&["a/b"]), other),
        ("groups of a rule out of order", groups(&["gpu", "cpu"]), second),
        ("a group of a rule twice", groups(&["gpu", "gpu"]), second),
        ("a group of a rule that is no label", groups(&["GPU"]), other),
        ("an open policy that is written out", open, other),
        ("1,025 rules", encoded(&many), "a policy of more than 1,024 rules"),
        ("a rule of 33 groups", encoded(&wide), "a rule of more than 32 groups"),
        ("a policy that is text", with_policy(|e| _ = e.str("open").unwrap()), other),
    ]
    .map(|(name, payload, why)| Case::new(name, apply(&by_root(&payload)), "malformed", no_message(why)))
    .into()
}

/// Number 1, nothing revoked, and a policy.
fn with_policy(write: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    cbor(|e| {
        e.array(4).unwrap().u8(1).unwrap().array(0).unwrap().array(0).unwrap();
        write(e);
    })
}

fn apply(bytes: &[u8]) -> Result<bool, Refused> {
    root().trust().apply_revocations(&SignedRevocations::from_bytes(bytes)?, NOW)
}

fn by_root(payload: &[u8]) -> Vec<u8> {
    sign(&root().key, &root().der, REVOCATIONS, payload)
}

/// Number 1, these serials in this order, no identities.
fn serials(serials: &[[u8; 16]]) -> Vec<u8> {
    cbor(|e| {
        e.array(3).unwrap().u8(1).unwrap().array(serials.len() as u64).unwrap();
        serials.iter().for_each(|serial| _ = e.bytes(serial).unwrap());
        e.array(0).unwrap();
    })
}
