//! Passphrases: where they come from, and that an encrypted key opens with its own alone.

use super::*;
use crate::is_encrypted_key;

const PASSPHRASE: &str = "correct horse battery staple";

#[test]
fn an_encrypted_key_signs_with_its_passphrase_from_a_file_the_environment_or_the_terminal() {
    let desk = with_encrypted_key();
    let sign = "sign --in-req ./worker-1.req --networks 10.42.0.7 --force";

    desk.line(&format!("{sign} --passphrase-file ./passphrase"), NOW).1.unwrap();
    assert!(desk.person.borrow().asked.is_empty());

    desk.person.borrow_mut().environment = Some(PASSPHRASE);
    desk.line(sign, NOW).1.unwrap();
    assert!(desk.person.borrow().asked.is_empty());

    desk.person.replace(Person { answers: [PASSPHRASE].into(), ..Person::default() });
    desk.line(sign, NOW).1.unwrap();
    let asked = desk.person.borrow().asked.clone();
    assert!(asked[0].starts_with("passphrase of ") && asked[0].ends_with("ca.key: "), "{asked:?}");
}

#[test]
fn a_wrong_passphrase_is_told_and_nothing_is_signed() {
    let desk = with_encrypted_key();
    fs::write(desk.path("./wrong"), "correct horse battery stable\n").unwrap();
    let sign = "sign --in-req ./worker-1.req --networks 10.42.0.7";

    for failure in [
        desk.fails(&format!("{sign} --passphrase-file ./wrong"), NOW),
        desk.fails("revoke --serial 4f0c6a7e1d9b42358a6f0b1c2d3e4f50 --passphrase-file ./wrong", NOW),
    ] {
        assert!(failure.to_string().contains("the passphrase is wrong"), "{failure}");
        assert!(failure.to_string().contains("hint: --passphrase-file"), "{failure}");
        assert!(!failure.to_string().contains("stable"), "{failure}");
        assert_eq!(failure.exit, Exit::Failed);
    }
    let nobody = desk.fails(sign, NOW);
    assert!(nobody.to_string().contains("no terminal to ask at"), "{nobody}");
    assert!(nobody.to_string().contains("hint: name a file that holds it: --passphrase-file"), "{nobody}");
    assert!(!desk.path("./w.crt").exists() && !desk.path("./revocations.bin").exists());
}

#[test]
fn a_new_passphrase_is_asked_for_twice_and_must_be_the_same_and_long_enough() {
    let desk = Desk::new();
    let make = "ca --name lab --encrypt";
    let answering = |answers: &[&'static str]| {
        desk.person.replace(Person { answers: answers.iter().copied().collect(), ..Person::default() });
    };

    answering(&[PASSPHRASE, "correct horse"]);
    assert!(desk.fails(make, NOW).to_string().contains("the two passphrases differ"));
    answering(&["7 bytes", "7 bytes"]);
    assert!(desk.fails(make, NOW).to_string().contains("fewer than 8 characters"));
    answering(&[""]);
    assert!(desk.fails(make, NOW).to_string().contains("a passphrase has 1 to 1000 bytes"));
    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), 0, "nothing is left behind");

    answering(&[PASSPHRASE, PASSPHRASE]);
    desk.line(make, NOW).1.unwrap();
    assert!(desk.person.borrow().asked[0].starts_with("new passphrase for "));
    assert!(IdentityKey::from_encrypted_pkcs8_pem(&desk.read("./ca.key"), PASSPHRASE).is_ok());
    assert_eq!(desk.mode("./ca.key"), 0o600);
}

#[test]
fn standard_input_is_no_passphrase_unless_an_option_says_so() {
    let desk = with_encrypted_key();
    let sign = ["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7"];

    let silent = desk.run(&sign, NOW, PASSPHRASE).1;
    assert!(silent.unwrap_err().to_string().contains("no terminal"));

    let named = desk.run(&[&sign[..], &["--passphrase-file", "-"]].concat(), NOW, PASSPHRASE).1;
    named.unwrap();
    let twice = desk.run(&[&sign[..], &["--passphrase-file", "-", "--ca-crt", "-"]].concat(), NOW, PASSPHRASE).1;
    assert_eq!(twice.unwrap_err().exit, Exit::Usage);
}

#[test]
fn an_encrypted_key_is_known_but_not_shown_and_never_replaced() {
    let desk = with_encrypted_key();
    let key = desk.read("./ca.key");

    let said = desk.json("print ./ca.key", NOW);
    assert_eq!(said["kind"], "encrypted_key");
    assert!(!said.to_string().contains(key.lines().nth(1).unwrap()));

    let refused = desk.fails("request --name worker-1 --out-req ./ca.key --force", NOW);
    assert!(refused.to_string().contains("even --force does not replace"), "{refused}");
    assert_eq!(desk.read("./ca.key"), key);
}

#[test]
fn a_passphrase_file_whose_first_line_is_none_is_refused() {
    let desk = with_encrypted_key();
    fs::write(desk.path("./empty"), "\nsecond line\n").unwrap();

    let failure = desk.fails("sign --in-req ./worker-1.req --networks 10.42.0.7 --passphrase-file ./empty", NOW);

    assert!(failure.to_string().contains("hint: the first line of the file"), "{failure}");
}

#[test]
fn the_passphrase_of_a_root_is_never_that_of_its_intermediate_by_itself() {
    let desk = with_encrypted_key();
    fs::write(desk.path("./other"), "another passphrase\n").unwrap();
    let make = "ca --intermediate --ca-crt ./ca.crt --ca-key ./ca.key --encrypt --out-crt ./i.crt --out-key ./i.key";
    desk.person.borrow_mut().environment = Some(PASSPHRASE);

    let nobody = desk.fails(make, NOW);
    desk.line(&format!("{make} --out-passphrase-file ./other"), NOW).1.unwrap();

    assert!(nobody.to_string().contains("hint: name a file that holds it: --out-passphrase-file"), "{nobody}");
    assert!(IdentityKey::from_encrypted_pkcs8_pem(&desk.read("./i.key"), "another passphrase").is_ok());
    assert!(!is_encrypted_key(&desk.json("print ./i.key", NOW).to_string()));
}

#[test]
fn the_successor_of_an_encrypted_key_is_encrypted_too() {
    let desk = with_encrypted_key();

    let said = desk.json("rotate --passphrase-file ./passphrase", NOW);

    assert_eq!(said["key_encrypted"], true);
    assert!(IdentityKey::from_encrypted_pkcs8_pem(&desk.read("./next.key"), PASSPHRASE).is_ok());
}

/// With an authority whose key is encrypted, and a node's request.
fn with_encrypted_key() -> Desk {
    let desk = Desk::new();
    fs::write(desk.path("./passphrase"), format!("{PASSPHRASE}\n")).unwrap();
    for line in [
        "ca --name lab --encrypt --passphrase-file ./passphrase",
        "keygen --out-pub ./worker-1.pub",
        "request --name worker-1 --out-req ./worker-1.req",
    ] {
        desk.line(line, NOW).1.unwrap_or_else(|failure| panic!("{line}: {failure}"));
    }
    assert!(is_encrypted_key(&desk.read("./ca.key")));
    desk
}
