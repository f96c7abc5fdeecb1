//! `revoke`: a list that only grows, and only by its authority's hand.

use super::*;
use crate::{Policy, RevocationList, Rule, SignedRevocations};

const SERIAL: &str = "4f0c6a7e1d9b42358a6f0b1c2d3e4f50";

#[test]
fn a_revoked_certificate_is_refused_by_verify_from_then_on() {
    let desk = Desk::with_node();
    let verify = "verify --crt ./worker-1.crt --revocations ./revocations.bin";

    let first = desk.json(&format!("revoke --serial {SERIAL}"), NOW);
    desk.line(verify, NOW).1.unwrap();
    let second = desk.json("revoke --crt ./worker-1.crt", NOW);
    let refused = desk.fails(verify, NOW);

    assert_eq!((&first["number"], &second["number"]), (&1.into(), &2.into()));
    assert_eq!(second["serials"], serde_json::json!([SERIAL]));
    assert_eq!(refused.exit, Exit::NotSo);
    assert!(refused.to_string().contains("is revoked"), "{refused}");
}

#[test]
fn a_certificate_stands_for_its_identity_and_all_it_has() {
    let desk = Desk::with_node();
    desk.line("renew --crt ./worker-1.crt --out-crt ./renewed.crt", NOW).1.unwrap();

    desk.line("revoke --crt ./worker-1.crt", NOW).1.unwrap();

    assert_eq!(desk.fails("verify --crt ./renewed.crt --revocations ./revocations.bin", NOW).exit, Exit::NotSo);
}

#[test]
fn what_is_on_the_list_already_changes_nothing() {
    let desk = Desk::with_node();
    desk.line("revoke --crt ./worker-1.crt", NOW).1.unwrap();
    let before = fs::read(desk.path("./revocations.bin")).unwrap();

    let again = desk.json("revoke --crt ./worker-1.crt", NOW);

    assert_eq!((&again["number"], &again["changed"]), (&1.into(), &false.into()));
    assert_eq!(fs::read(desk.path("./revocations.bin")).unwrap(), before);
}

#[test]
fn a_list_that_is_not_ours_is_refused_and_left_alone() {
    let desk = Desk::with_node();
    desk.line("ca --name lab --out-crt ./other.crt --out-key ./other.key", NOW).1.unwrap();
    let key = IdentityKey::from_pkcs8_pem(&desk.read("./identity.key")).unwrap();
    let theirs = Authority::from_pem(&desk.read("./other.crt"), &desk.read("./other.key")).unwrap();
    let list = RevocationList { number: 7, ..RevocationList::default() };
    let mut damaged = desk.authority().sign_revocations(&list).unwrap().as_bytes().to_vec();
    *damaged.last_mut().unwrap() ^= 1;

    for (bytes, exit) in [
        (theirs.sign_revocations(&list).unwrap().as_bytes().to_vec(), Exit::NotSo),
        (SignedRevocations::sign(&list, &key, &desk.chain()).unwrap().as_bytes().to_vec(), Exit::NotSo),
        (damaged, Exit::NotSo),
        (b"hello".to_vec(), Exit::NotSo),
        (desk.read("./ca.key").into_bytes(), Exit::NotSo),
        (Vec::new(), Exit::NotSo),
    ] {
        fs::write(desk.path("./revocations.bin"), &bytes).unwrap();
        let failure = desk.fails("revoke --crt ./worker-1.crt", NOW);
        assert!(failure.to_string().contains("is not believed"), "{failure}");
        assert_eq!(failure.exit, exit);
        assert_eq!(fs::read(desk.path("./revocations.bin")).unwrap(), bytes);
    }
}

#[test]
fn a_list_in_base64_is_read_too() {
    let desk = Desk::with_node();
    let list = RevocationList { number: 7, serials: [SERIAL.parse().unwrap()].into(), ..RevocationList::default() };
    fs::write(desk.path("./revocations.bin"), desk.authority().sign_revocations(&list).unwrap().to_base64()).unwrap();

    let said = desk.json("revoke --crt ./worker-1.crt", NOW);

    assert_eq!((&said["number"], &said["serials"]), (&8.into(), &serde_json::json!([SERIAL])));
}

#[test]
fn everything_else_that_the_list_rules_stays() {
    let desk = Desk::with_intermediate();
    let rule = Rule { offer: Some(["gpu".parse().unwrap()].into()), call: None };
    let authorities = [desk.authority().certificate(), desk.authority().root()].map(|ca| ca.der().to_vec());
    let before = RevocationList {
        number: 7,
        policy: Policy { otherwise: rule, ..Policy::default() },
        authorities: authorities.into(),
        ..RevocationList::default()
    };
    fs::write(desk.path("./revocations.bin"), desk.authority().sign_revocations(&before).unwrap().as_bytes()).unwrap();

    desk.line("revoke --crt ./worker-1.crt", NOW).1.unwrap();

    let signed = SignedRevocations::from_bytes(&fs::read(desk.path("./revocations.bin")).unwrap()).unwrap();
    let mut trust = desk.root_trust();
    assert_eq!(trust.apply_revocations(&signed, NOW), Ok(true));
    let identities = trust.revocations().identities.clone();
    assert_eq!(*trust.revocations(), RevocationList { number: 8, identities, ..before });
    assert_eq!(trust.revocations().identities.len(), 1);
}

#[test]
fn a_root_takes_back_an_intermediate_and_all_that_it_signed() {
    let desk = Desk::with_intermediate();
    desk.line(&format!("revoke --serial {SERIAL}"), NOW).1.unwrap();
    let verify = "verify --crt ./worker-1.crt --ca-crt ./root.crt --revocations ./revocations.bin";
    desk.line(verify, NOW).1.unwrap();

    let said = desk.json("revoke --crt ./ca.crt --ca-crt ./root.crt --ca-key ./root.key", NOW);

    assert_eq!(said["number"], 2, "it goes on from the list of the intermediate");
    assert!(desk.fails(verify, NOW).to_string().contains("is revoked"));
    let rows = desk.json("list ./worker-1.crt ./ca.crt --ca-crt ./root.crt --revocations ./revocations.bin", NOW);
    let statuses: Vec<&str> =
        rows["certificates"].as_array().unwrap().iter().map(|row| row["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["revoked", "revoked", "valid"], "node, intermediate, root");
}

#[test]
fn an_authority_does_not_revoke_itself() {
    let desk = Desk::with_node();

    let failure = desk.fails("revoke --crt ./ca.crt", NOW);

    assert!(failure.to_string().contains("does not revoke itself"), "{failure}");
    assert!(!desk.path("./revocations.bin").exists());
}
