//! `ca`: what it makes and what it refuses to make.

use super::*;

#[test]
fn an_authority_is_two_files_and_only_its_key_is_secret() {
    let desk = Desk::new();

    let said = desk.ok(&["ca", "--name", "lab", "--networks", "10.42.0.0/16", "--duration", "10y"]);

    assert!(said.contains("10.42.0.0/16") && said.contains("(expires in 10 y, 0 % used)"), "{said}");
    assert_eq!((desk.mode("./ca.key"), desk.mode("./ca.crt") & 0o200), (0o600, 0o200));
    assert!(Authority::from_pem(&desk.read("./ca.crt"), &desk.read("./ca.key")).is_ok());
    assert!(!said.contains("PRIVATE"), "{said}");
}

#[test]
fn an_authority_that_could_not_work_is_not_made() {
    let desk = Desk::new();

    for (options, why, exit) in [
        (["--networks", "10.42.0.7/16"], "is a node's address", Exit::Usage),
        (["--networks", "0.0.0.0/0"], "no network for a mesh", Exit::Failed),
        (["--networks", "10.42.0.4/31"], "no network for a mesh", Exit::Failed),
        (["--duration", "9s"], "at least 10 s", Exit::Failed),
        (["--duration", "9000y"], "beyond the year 9999", Exit::Failed),
    ] {
        let failure = desk.run(&[&["ca", "--name", "lab"], &options[..]].concat(), NOW, "").1.unwrap_err();
        assert!(failure.to_string().contains(why), "{options:?}: {failure}");
        assert_eq!(failure.exit, exit, "{options:?}");
    }

    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), 0);
}

#[test]
fn an_authority_whose_certificate_cannot_be_written_leaves_no_key() {
    let desk = Desk::new();

    desk.run(&["ca", "--name", "lab", "--out-crt", "./no/such/directory/ca.crt"], NOW, "").1.unwrap_err();

    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), 0);
}

#[test]
fn an_intermediate_is_made_below_a_root_and_its_file_goes_up_to_it() {
    let desk = Desk::new();
    desk.line("ca --name lab --out-crt ./root.crt --out-key ./root.key", NOW).1.unwrap();

    let said = desk.json("ca --intermediate --ca-crt ./root.crt --ca-key ./root.key --networks 10.42.7.0/24", NOW);

    assert_eq!(
        (&said["kind"], &said["mesh"], &said["path_length"]),
        (&"intermediate".into(), &"lab".into(), &0.into())
    );
    assert_eq!(said["network"], "10.42.7.0/24");
    assert!(desk.read("./ca.crt").ends_with(&desk.read("./root.crt")), "intermediate, then root");
    let authority = desk.authority();
    assert_eq!(authority.root().pem(), desk.read("./root.crt"));
    assert_eq!(authority.certificate().not_after(), authority.root().not_after(), "it lives as long as its root");
}

#[test]
fn an_intermediate_beyond_its_roots_limits_is_not_made_and_the_limit_is_named() {
    let desk = Desk::with_intermediate();
    let below = "--ca-crt ./root.crt --ca-key ./root.key --out-crt ./no.crt --out-key ./no.key";
    let below_itself = "--ca-crt ./ca.crt --ca-key ./ca.key --out-crt ./no.crt --out-key ./no.key";

    for (options, why, exit) in [
        (format!("{below} --networks 10.0.0.0/8"), "is not within lab with 10.42.0.0/16", Exit::Failed),
        (format!("{below} --networks 10.43.0.0/16"), "is not within lab with 10.42.0.0/16", Exit::Failed),
        (format!("{below} --name other"), "is not within lab with 10.42.0.0/16", Exit::Failed),
        (format!("{below} --duration 11y"), "would outlive its authority", Exit::Failed),
        (format!("{below} --duration 5s"), "at least 10 s", Exit::Failed),
        (format!("{below} --networks 10.42.0.7/16"), "is a node's address", Exit::Usage),
        (below_itself.to_owned(), "only a root may sign for another authority", Exit::Failed),
        (below.replace("root.key", "ca.key"), "the key is not the one in the certificate", Exit::Failed),
    ] {
        let failure = desk.fails(&format!("ca --intermediate {options}"), NOW);
        assert!(failure.to_string().contains(why), "{options}: {failure}");
        assert_eq!(failure.exit, exit, "{options}: {failure}");
        assert!(!desk.path("./no.crt").exists() && !desk.path("./no.key").exists(), "{options}");
    }
    let late = desk.fails(&format!("ca --intermediate {below}"), NOW.plus(4000 * DAY));
    assert!(late.to_string().contains("this authority is valid from"), "{late}");
}

#[test]
fn an_intermediate_signs_within_its_own_limits_and_is_believed_through_its_root() {
    let desk = Desk::new();
    desk.line("ca --name lab --out-crt ./root.crt --out-key ./root.key", NOW).1.unwrap();
    desk.line("ca --intermediate --ca-crt ./root.crt --ca-key ./root.key --networks 10.42.7.0/24", NOW).1.unwrap();
    desk.line("keygen --out-pub ./node.pub", NOW).1.unwrap();
    let sign = "sign --in-pub ./node.pub --name w --out-crt ./w.crt";

    let outside = desk.fails(&format!("{sign} --networks 10.42.0.7"), NOW);
    desk.line(&format!("{sign} --networks 10.42.7.7"), NOW).1.unwrap();

    assert!(outside.to_string().contains("not in the network 10.42.7.0/24"), "{outside}");
    for ca in ["./root.crt", "./ca.crt"] {
        desk.line(&format!("verify --crt ./w.crt --ca-crt {ca}"), NOW).1.unwrap();
    }
    let renewed = desk.line("renew --crt ./w.crt --out-crt -", NOW).0;
    assert!(Trust::new(desk.authority().root().clone()).verify(&Chain::from_pem(&renewed).unwrap(), NOW).is_ok());
}

#[test]
fn a_passphrase_without_a_key_that_is_encrypted_is_bad_usage() {
    let desk = Desk::new();
    fs::write(desk.path("./passphrase"), "correct horse\n").unwrap();

    let failure = desk.fails("ca --name lab --passphrase-file ./passphrase", NOW);

    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.to_string().contains("hint: add --encrypt"), "{failure}");
    assert!(!desk.path("./ca.key").exists());
}
