//! `verify`: each check by name, for people and programs.

use super::*;
use crate::{RevocationList, Signed};

#[test]
fn verify_names_each_check_and_what_to_do() {
    let desk = Desk::with_node();
    let text = desk.ok(&["verify", "--crt", "./worker-1.crt"]);
    assert_eq!(text.lines().filter(|line| line.starts_with("ok ")).count(), 6, "{text}");
    assert!(text.contains("-       revocation"), "{text}");
    assert!(!text.contains('\u{1b}'), "colours on what is no terminal");

    let (text, outcome) = desk.run(&["verify", "--crt", "./worker-1.crt", "--at", "2040-01-01"], NOW, "");
    let failure = outcome.unwrap_err();

    assert!(text.contains("FAILED  time"), "{text}");
    assert!(text.contains("ok      issuer"), "{text}");
    assert_eq!(failure.exit, Exit::NotSo);
    assert!(failure.to_string().contains("ended at") && failure.to_string().contains("hint: renew it"), "{failure}");
}

#[test]
fn verify_believes_a_list_of_revocations_only_from_the_authority() {
    let desk = Desk::with_node();
    let authority = desk.authority();
    let serial = desk.trust().verify(&desk.chain(), NOW).unwrap().serial();
    let list = RevocationList { number: 3, serials: [serial].into(), ..RevocationList::default() };
    let signed = authority.sign_revocations(&list).unwrap();
    fs::write(desk.path("./list.cbor"), signed.as_bytes()).unwrap();
    fs::write(desk.path("./list.txt"), signed.to_base64() + "\n").unwrap();
    let key = IdentityKey::from_pkcs8_pem(&desk.read("./identity.key")).unwrap();
    let forged = Signed::sign(&RevocationList::default(), &key, &desk.chain()).unwrap();
    fs::write(desk.path("./forged.txt"), forged.to_base64()).unwrap();

    for file in ["./list.cbor", "./list.txt"] {
        let (text, outcome) = desk.run(&["verify", "--crt", "./worker-1.crt", "--revocations", file], NOW, "");
        assert!(text.contains("FAILED  revocation ") && text.contains("ok      revocation_list"), "{text}");
        assert_eq!(outcome.unwrap_err().exit, Exit::NotSo);
    }
    let (text, outcome) = desk.run(&["verify", "--crt", "./worker-1.crt", "--revocations", "./forged.txt"], NOW, "");
    assert!(text.contains("FAILED  revocation_list"), "{text}");
    assert_eq!(outcome.unwrap_err().exit, Exit::NotSo);
}

#[test]
fn verify_tells_programs_the_same() {
    let desk = Desk::with_node();
    desk.ok(&["ca", "--name", "lab", "--out-crt", "./other.crt", "--out-key", "./other.key"]);

    let good: Value = serde_json::from_str(&desk.ok(&["verify", "--json", "--crt", "./worker-1.crt"])).unwrap();
    let (text, outcome) = desk.run(&["verify", "--json", "--ca", "./other.crt", "--crt", "./worker-1.crt"], NOW, "");
    let bad: Value = serde_json::from_str(&text).unwrap();

    assert_eq!(outcome.unwrap_err().exit, Exit::NotSo);
    assert_eq!((&good["verified"], &bad["verified"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(good["node"]["name"], "worker-1");
    assert_eq!(bad["checks"][1]["check"], "issuer");
    assert_eq!(bad["checks"][1]["outcome"], "failed");
    assert_eq!(bad["checks"][1]["reason"], "another_authority");
    assert_eq!(bad["checks"][1]["hint"], "join this mesh with a token of its coordinator");
}

#[test]
fn verify_refuses_what_is_no_certificate_and_fails_on_what_cannot_be_read() {
    let desk = Desk::with_node();
    fs::write(desk.path("./noise"), [0xff; 100]).unwrap();

    let exits = ["./noise", "./worker-1.req", "./ca.crt", "./identity.key", "./missing"].map(|file| {
        let (text, outcome) = desk.run(&["verify", "--crt", file], NOW, "");
        assert!(file == "./missing" || text.contains("FAILED  form"), "{file}: {text}");
        outcome.unwrap_err().exit
    });

    assert_eq!(exits, [Exit::NotSo, Exit::NotSo, Exit::NotSo, Exit::NotSo, Exit::Failed]);
    assert_eq!(
        desk.run(&["verify", "--ca", "./noise", "--crt", "./worker-1.crt"], NOW, "").1.unwrap_err().exit,
        Exit::Failed
    );
}
