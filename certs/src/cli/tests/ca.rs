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
