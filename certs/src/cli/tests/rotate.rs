//! `rotate`: the next authority of a mesh, and the way to it.

use super::*;
use crate::RevocationList;

#[test]
fn the_next_authority_is_believed_through_the_cross_certificate() {
    let desk = Desk::with_node();

    let said = desk.line("rotate", NOW.plus(DAY)).0;
    desk.line(
        "renew --crt ./worker-1.crt --ca-crt ./next.crt --ca-key ./next.key --old-ca-crt ./ca.crt --out-crt ./new.crt",
        NOW.plus(DAY),
    )
    .1
    .unwrap();

    let (old, next) = (desk.authority(), ca_of(&desk, "./next.crt"));
    assert!(next.is_root() && next.key() != old.certificate().key());
    assert_eq!((next.mesh(), next.network()), (old.certificate().mesh(), old.certificate().network()));
    assert_eq!(
        next.not_after().0 - next.not_before().0,
        old.certificate().not_after().0 - old.certificate().not_before().0
    );
    let cross = ca_of(&desk, "./cross.crt");
    assert!(cross.is_issued_by(old.certificate()) && cross.key() == next.key() && !cross.is_root());
    assert_eq!((desk.mode("./next.key"), desk.mode("./cross.crt") & 0o044), (0o600, 0o044));
    assert!(said.contains("what to do next:\n  1. have every member believe both"), "{said}");
    assert!(!said.contains("PRIVATE KEY"), "{said}");

    let chain = desk.read("./new.crt") + &desk.read("./cross.crt");
    let later = NOW.plus(DAY);
    assert!(desk.trust().verify(&Chain::from_pem(&chain).unwrap(), later).is_ok());
    assert!(desk.trust().verify(&Chain::from_pem(&desk.read("./new.crt")).unwrap(), later).is_err());
}

#[test]
fn while_both_are_believed_certificates_of_both_pass() {
    let desk = Desk::with_node();
    desk.line("rotate", NOW).1.unwrap();
    let renew = "renew --ca-crt ./next.crt --ca-key ./next.key --old-ca-crt ./ca.crt";
    desk.line(&format!("{renew} --crt ./worker-1.crt --out-crt ./new.crt"), NOW).1.unwrap();
    fs::write(desk.path("./both.crt"), desk.read("./next.crt") + &desk.read("./ca.crt")).unwrap();

    for (crt, ca) in [("./worker-1.crt", "./ca.crt"), ("./new.crt", "./next.crt")] {
        let said = desk.json(&format!("verify --crt {crt} --ca-crt ./both.crt"), NOW);
        assert_eq!(said["authority"], ca_of(&desk, ca).fingerprint().to_string());
    }
    assert_eq!(desk.fails("verify --crt ./worker-1.crt --ca-crt ./next.crt", NOW).exit, Exit::NotSo);
    let stranger = desk.fails("renew --ca-crt ./next.crt --ca-key ./next.key --crt ./worker-1.crt --out-crt -", NOW);
    assert!(stranger.to_string().contains("another authority"), "{stranger}");
}

#[test]
fn the_list_of_revocations_goes_on_under_the_next_authority() {
    let desk = Desk::with_node();
    let serial = desk.trust().verify(&desk.chain(), NOW).unwrap().serial();
    desk.line("revoke --serial 4f0c6a7e1d9b42358a6f0b1c2d3e4f50", NOW).1.unwrap();
    desk.line("rotate", NOW).1.unwrap();
    let revoke = format!("revoke --serial {serial} --ca-crt ./next.crt --ca-key ./next.key");

    let alone = desk.fails(&revoke, NOW);
    let said = desk.json(&format!("{revoke} --old-ca-crt ./ca.crt"), NOW);

    assert!(alone.to_string().contains("is not believed"), "{alone}");
    assert_eq!((&said["number"], said["serials"].as_array().unwrap().len()), (&2.into(), 2));
}

#[test]
fn an_authority_that_the_list_has_put_out_signs_nothing_more() {
    let desk = Desk::with_node();
    desk.line("rotate", NOW).1.unwrap();
    let (next, cross) = (ca_of(&desk, "./next.crt"), ca_of(&desk, "./cross.crt"));
    let authorities = vec![next.der().to_vec()];
    let list =
        RevocationList { number: 5, authorities, crosses: vec![cross.der().to_vec()], ..RevocationList::default() };
    fs::write(desk.path("./revocations.bin"), desk.authority().sign_revocations(&list).unwrap().as_bytes()).unwrap();

    let revoke = desk.fails("revoke --crt ./worker-1.crt", NOW);
    let renew = desk.fails("renew --crt ./worker-1.crt --revocations ./revocations.bin --out-crt -", NOW);
    let said = desk.json("print ./revocations.bin", NOW);

    for failure in [revoke, renew] {
        assert!(failure.to_string().contains("names other authorities than --ca-crt"), "{failure}");
    }
    assert_eq!((&said["authorities"][0]["kind"], &said["crosses"][0]["kind"]), (&"ca".into(), &"cross".into()));
    let next_revokes = "revoke --crt ./worker-1.crt --ca-crt ./next.crt --ca-key ./next.key --old-ca-crt ./ca.crt";
    assert_eq!(desk.json(next_revokes, NOW)["number"], 6);
}

#[test]
fn nothing_is_left_of_a_rotation_that_did_not_work() {
    let desk = Desk::with_intermediate();
    let before = fs::read_dir(desk.folder.path()).unwrap().count();

    for (options, why) in [
        ("", "only a root may sign for another authority"),
        ("--ca-crt ./root.crt --ca-key ./root.key --duration 5s", "at least 10 s"),
        ("--ca-crt ./root.crt --ca-key ./root.key --out-cross ./next.crt", "name the same file"),
        ("--ca-crt ./root.crt --ca-key ./root.key --out-crt ./no/such/folder", "does not exist"),
        ("--ca-crt ./root.crt --ca-key ./root.key --out-key ./ca.key", "exists already"),
    ] {
        let failure = desk.fails(&format!("rotate {options}"), NOW);
        assert!(failure.to_string().contains(why), "{options}: {failure}");
        assert!(!desk.path("./next.key").exists(), "{options}");
    }
    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), before);
}

fn ca_of(desk: &Desk, file: &str) -> CaCertificate {
    CaCertificate::from_pem(&desk.read(file)).unwrap()
}
