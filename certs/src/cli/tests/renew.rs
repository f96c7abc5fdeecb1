//! `renew`: the same node again, by the authority that had signed it.

use super::*;
use crate::{ServiceName, Verified};

#[test]
fn a_fresh_certificate_says_what_the_old_one_said() {
    let desk = Desk::with_node();
    let sign = "sign --in-req ./worker-1.req --networks 10.42.0.9 --groups gpu,big --services ocr --duration 3d";
    desk.line(&format!("{sign} --out-crt ./old.crt"), NOW).1.unwrap();
    let later = NOW.plus(2 * DAY);

    let said = desk.line("renew --crt ./old.crt --out-crt ./new.crt", later);

    said.1.unwrap();
    let (old, new) = (verified(&desk, "./old.crt", NOW), verified(&desk, "./new.crt", later));
    assert_eq!((old.id(), old.wg(), old.name(), old.address()), (new.id(), new.wg(), new.name(), new.address()));
    assert_eq!((old.groups(), old.services()), (new.groups(), new.services()));
    assert!(!new.services().allows(&ServiceName::new("llm").unwrap()));
    assert_ne!(old.serial(), new.serial());
    assert_eq!(new.not_after(), later.plus(3 * DAY), "it lives as long as the old one");
    desk.line("renew --crt ./old.crt --out-crt ./long.crt --duration 30d", later).1.unwrap();
    assert_eq!(verified(&desk, "./long.crt", later).not_after(), later.plus(30 * DAY));
}

#[test]
fn one_that_has_expired_is_renewed_too() {
    let desk = Desk::with_node();
    let later = NOW.plus(400 * DAY);

    desk.line("renew --crt ./worker-1.crt --out-crt ./new.crt", later).1.unwrap();

    assert_eq!(verified(&desk, "./new.crt", later).name().as_str(), "worker-1");
}

#[test]
fn the_old_one_is_replaced_only_if_that_is_said() {
    let desk = Desk::with_node();
    let before = desk.read("./worker-1.crt");

    let unclear = desk.fails("renew --crt ./worker-1.crt", NOW);
    assert_eq!(unclear.exit, Exit::Usage);
    assert!(unclear.to_string().contains("--out-crt FILE somewhere else"), "{unclear}");
    let there = desk.fails("renew --crt ./worker-1.crt --out-crt ./worker-1.crt", NOW);
    assert!(there.to_string().contains("exists already"), "{there}");
    assert_eq!(desk.read("./worker-1.crt"), before);

    desk.line("renew --crt ./worker-1.crt --force", NOW).1.unwrap();
    assert_ne!(desk.read("./worker-1.crt"), before);
    let piped = desk.run(&["renew", "--crt", "-"], NOW, &before);
    piped.1.unwrap();
    assert!(Chain::from_pem(&piped.0).is_ok());
}

#[test]
fn what_is_another_authoritys_or_revoked_or_none_is_not_renewed() {
    let desk = Desk::with_node();
    desk.line("ca --name lab --out-crt ./other.crt --out-key ./other.key", NOW).1.unwrap();
    desk.line("revoke --crt ./worker-1.crt", NOW).1.unwrap();

    for (options, why, exit) in [
        ("--crt ./worker-1.crt --ca-crt ./other.crt --ca-key ./other.key", "another authority", Exit::NotSo),
        ("--crt ./worker-1.crt --revocations ./revocations.bin", "is revoked", Exit::NotSo),
        ("--crt ./worker-1.crt --revocations ./worker-1.crt", "is not believed", Exit::NotSo),
        ("--crt ./worker-1.req", "no CERTIFICATE", Exit::Failed),
        ("--crt ./ca.crt", "is not renewed", Exit::NotSo),
        ("--crt ./missing.crt", "does not exist", Exit::Failed),
        ("--crt ./worker-1.crt --duration 20y", "would outlive its authority", Exit::Failed),
        ("--crt ./worker-1.crt --at 2040-01-01", "this authority is valid from", Exit::Failed),
        ("--crt ./worker-1.crt --at 2026-01-01", "its certificate is valid from", Exit::NotSo),
    ] {
        let failure = desk.fails(&format!("renew {options} --out-crt ./new.crt"), NOW);
        assert!(failure.to_string().contains(why), "{options}: {failure}");
        assert_eq!(failure.exit, exit, "{options}: {failure}");
        assert!(!desk.path("./new.crt").exists(), "{options}");
    }
}

fn verified(desk: &Desk, file: &str, now: UnixTime) -> Verified {
    desk.trust().verify(&Chain::from_pem(&desk.read(file)).unwrap(), now).unwrap()
}
