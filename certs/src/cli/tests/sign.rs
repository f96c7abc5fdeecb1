//! `keygen`, `request` and `sign`: from keys to a certificate.

use super::*;
use crate::{CertificateRequest, ServiceName, WgPrivateKey};

#[test]
fn keygen_leaves_two_secrets_and_two_public_keys() {
    let desk = Desk::new();

    let public = desk.ok(&["keygen"]);

    let identity = IdentityKey::from_pkcs8_pem(&desk.read("./identity.key")).unwrap().id();
    let wg = WgPrivateKey::from_base64(&desk.read("./wireguard.key")).unwrap().public();
    assert_eq!(public, format!("identity = {}\nwireguard = {wg}\n", identity.to_hex()));
    assert_eq!((desk.mode("./identity.key"), desk.mode("./wireguard.key")), (0o600, 0o600));
}

#[test]
fn a_request_goes_through_pipes_from_the_node_to_the_authority() {
    let desk = Desk::new();
    desk.ok(&["ca", "--name", "lab"]);
    desk.ok(&["keygen", "--out-pub", "./node.pub"]);

    let request = desk.ok(&["request", "--name", "worker-1"]);
    let (certificate, outcome) =
        desk.run(&["sign", "--in-req", "-", "--networks", "10.42.0.7", "--out-crt", "-"], NOW, &request);

    outcome.unwrap();
    assert_eq!(CertificateRequest::parse(&request).unwrap().name.as_str(), "worker-1");
    let verified = desk.trust().verify(&Chain::from_pem(&certificate).unwrap(), NOW).unwrap();
    assert_eq!(verified.name().as_str(), "worker-1");
    assert_eq!(verified.not_after(), NOW.plus(7 * DAY));
}

#[test]
fn a_certificate_can_be_signed_for_public_keys_alone() {
    let desk = Desk::new();
    desk.ok(&["ca", "--name", "lab"]);
    desk.ok(&["keygen", "--out-pub", "./node.pub"]);

    desk.ok(&[
        "sign",
        "--in-pub",
        "./node.pub",
        "--name",
        "w",
        "--networks",
        "10.42.0.7/16",
        "--groups",
        "gpu,big",
        "--services",
        "ocr",
        "--duration",
        "1d12h",
    ]);

    let verified = desk.trust().verify(&Chain::from_pem(&desk.read("./w.crt")).unwrap(), NOW).unwrap();
    assert_eq!(verified.groups().len(), 2);
    assert!(verified.services().allows(&ServiceName::new("ocr").unwrap()));
    assert!(!verified.services().allows(&ServiceName::new("llm").unwrap()));
    assert_eq!(verified.not_after(), NOW.plus(Duration::from_secs(36 * 3600)));
}

#[test]
fn what_the_authority_forbids_is_refused_by_name() {
    let desk = Desk::with_node();
    desk.ok(&["ca", "--name", "other", "--out-crt", "./other.crt", "--out-key", "./other.key"]);
    fs::write(desk.path("./weak.pub"), weak_public_keys()).unwrap();
    let long = "a-group-with-a-name-that-is-as-long-as-a-name-can-be-63-letters";
    let groups = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|end| format!("{}{end}", &long[..60])).join(",");
    let late = NOW.plus(4000 * DAY);

    let cases: &[(&[&str], UnixTime, &str)] = &[
        (&["--networks", "10.43.0.7"], NOW, "10.43.0.7 is not in the network 10.42.0.0/16"),
        (&["--networks", "10.42.255.255"], NOW, "first or last of 10.42.0.0/16"),
        (&["--networks", "10.42.0.0"], NOW, "first or last of 10.42.0.0/16"),
        (&["--networks", "fd00::7"], NOW, "not in the network"),
        (&["--networks", "10.42.0.7/24"], NOW, "another prefix length"),
        (&["--networks", "10.42.0.7", "--duration", "20y"], NOW, "would outlive its authority"),
        (&["--networks", "10.42.0.7", "--duration", "1s"], NOW, "at least 10 s"),
        (&["--networks", "10.42.0.7"], late, "this authority is valid from"),
        (&["--networks", "10.42.0.7"], NOW.minus(DAY), "this authority is valid from"),
        (&["--networks", "10.42.0.7", "--groups", "a,b,c,d,e,f,g,h,i"], NOW, "more than 8 groups"),
        (&["--networks", "10.42.0.7", "--groups", &groups], NOW, "too large"),
        (&["--networks", "10.42.0.7", "--name", "worker-2"], NOW, "asks for the name worker-1"),
        (&["--networks", "10.42.0.7", "--ca-key", "./other.key"], NOW, "the key is not the one in the certificate"),
        (&["--networks", "10.42.0.7", "--ca-crt", "./worker-1.crt"], NOW, "not a certificate of this kind"),
        (&["--networks", "10.42.0.7", "--ca-key", "./missing.key"], NOW, "missing.key does not exist"),
        (&["--networks", "10.42.0.7", "--ca-key", "./wireguard.key"], NOW, "not an Ed25519 private key"),
    ];

    for (options, now, why) in cases {
        let arguments = [&["sign", "--in-req", "./worker-1.req", "--out-crt", "./refused.crt"], *options].concat();
        let failure = desk.run(&arguments, *now, "").1.unwrap_err();
        assert!(failure.to_string().contains(why), "{options:?}: {failure}");
        assert_eq!(failure.exit, Exit::Failed, "{options:?}");
        assert!(!desk.path("./refused.crt").exists(), "{options:?}");
    }
    let weak = desk.run(&["sign", "--in-pub", "./weak.pub", "--name", "w", "--networks", "10.42.0.7"], NOW, "").1;
    assert!(weak.unwrap_err().to_string().contains("WireGuard key is weak"));
    let coordinator = ["--name", "coordinator", "--networks", "10.42.0.7"];
    desk.ok(&["keygen", "--out-key", "./k", "--out-wg-key", "./w", "--out-pub", "./node.pub"]);
    let named = desk.run(&[&["sign", "--in-pub", "./node.pub"], &coordinator[..]].concat(), NOW, "").1;
    assert!(named.unwrap_err().to_string().contains("may not be called"));
}

fn weak_public_keys() -> String {
    let identity = IdentityKey::generate(&mut StdRng::seed_from_u64(7)).id();
    format!("# a comment\nidentity = {}\nwireguard = {}\n", identity.to_hex(), crate::WgPublicKey([0; 32]))
}
