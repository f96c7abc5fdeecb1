//! The commands as functions of their arguments, the time, chance and streams.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use clap::{CommandFactory, Parser};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    Authority, CaCertificate, CertificateRequest, Chain, Fingerprint, IdentityKey, JoinToken, Load, MeshName,
    NodeRecord, RECORD_LIFE, RevocationList, ServiceName, Signed, Trust, WgPrivateKey, proof_header,
};

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn the_definitions_are_sound_and_each_command_has_an_example() {
    let command = Cli::command();

    command.clone().debug_assert();

    for sub in command.get_subcommands() {
        let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("wiremesh-cert {}", sub.get_name())), "{}", sub.get_name());
        assert!(help.starts_with("Example"), "{}", sub.get_name());
    }
}

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
fn no_private_key_is_ever_replaced_or_shown() {
    let desk = Desk::with_node();
    let keys = ["./ca.key", "./identity.key", "./wireguard.key"].map(|file| desk.read(file));

    for attempt in [
        &["ca", "--name", "lab", "--force"][..],
        &["keygen", "--force"],
        &["keygen", "--force", "--out-key", "./other.key"],
        &["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./identity.key", "--force"],
        &["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./wireguard.key", "--force"],
        &["request", "--name", "worker-1", "--out-req", "./ca.key", "--force"],
    ] {
        let failure = desk.run(attempt, NOW, "").1.unwrap_err();
        assert_eq!(failure.exit, Exit::Failed, "{attempt:?}");
        assert!(failure.to_string().contains("hint: "), "{failure}");
    }

    assert_eq!(["./ca.key", "./identity.key", "./wireguard.key"].map(|file| desk.read(file)), keys);
    assert!(!desk.path("./other.key").exists(), "half a pair of keys was left behind");
    for file in ["./ca.key", "./identity.key", "./wireguard.key"] {
        let secret = desk.read(file).lines().find(|line| !line.starts_with('-')).unwrap().to_owned();
        assert!(!desk.ok(&["print", file]).contains(&secret), "{file}");
        assert!(!desk.ok(&["print", file, "--json"]).contains(&secret), "{file}");
    }
    assert!(Cli::try_parse_from(["wiremesh-cert", "keygen", "--out-key", "-"]).is_err());
    assert!(Cli::try_parse_from(["wiremesh-cert", "ca", "--name", "lab", "--out-key", "-"]).is_err());
}

#[test]
fn a_public_file_is_replaced_only_with_force() {
    let desk = Desk::with_node();
    let sign = ["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.8", "--out-crt", "./worker-1.crt"];
    let before = desk.read("./worker-1.crt");

    let refused = desk.run(&sign, NOW, "").1.unwrap_err();
    assert!(refused.to_string().contains("exists already"), "{refused}");
    assert_eq!(desk.read("./worker-1.crt"), before);

    desk.ok(&[&sign[..], &["--force"]].concat());
    assert_ne!(desk.read("./worker-1.crt"), before);
}

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

    assert_eq!(fs::read_dir(desk.0.path()).unwrap().count(), 0);
}

#[test]
fn an_authority_whose_certificate_cannot_be_written_leaves_no_key() {
    let desk = Desk::new();

    desk.run(&["ca", "--name", "lab", "--out-crt", "./no/such/directory/ca.crt"], NOW, "").1.unwrap_err();

    assert_eq!(fs::read_dir(desk.0.path()).unwrap().count(), 0);
}

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

#[test]
fn print_knows_every_kind_by_its_contents() {
    let desk = Desk::with_node();
    let authority = desk.authority();
    let chain = desk.chain();
    let key = IdentityKey::from_pkcs8_pem(&desk.read("./identity.key")).unwrap();
    let token = JoinToken::generate(
        vec!["https://10.0.0.1:8080".to_owned()],
        MeshName::new("lab").unwrap(),
        Fingerprint([3; 32]),
        &mut StdRng::seed_from_u64(1),
    )
    .unwrap();
    let record = Signed::sign(&record(), &key, &chain).unwrap();
    let header = proof_header(&key, &chain, "a", "GET", "/x", NOW, &mut StdRng::seed_from_u64(1)).unwrap();
    let list = authority.sign_revocations(&RevocationList { number: 3, ..RevocationList::default() }).unwrap();
    let (tls, _) = authority.issue_coordinator_tls(DAY, NOW, &mut StdRng::seed_from_u64(2)).unwrap();

    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("ca", desk.read("./ca.crt").into()),
        ("ca", authority.certificate().der().to_vec()),
        ("node", desk.read("./worker-1.crt").into()),
        ("node", chain.leaf().to_vec()),
        ("chain", (desk.read("./worker-1.crt") + &desk.read("./ca.crt")).into()),
        ("coordinator", tls[0].clone()),
        ("request", desk.read("./worker-1.req").into()),
        ("request", pem::parse(desk.read("./worker-1.req")).unwrap().into_contents()),
        ("identity_key", desk.read("./identity.key").into()),
        ("wireguard_key", desk.read("./wireguard.key").into()),
        ("public_keys", desk.read("./worker-1.pub").into()),
        ("join_token", token.to_text().as_bytes().to_vec()),
        ("record", record.as_bytes().to_vec()),
        ("record", record.to_base64().into()),
        ("proof", header.into()),
        ("revocations", list.as_bytes().to_vec()),
        ("revocations", (list.to_base64() + "\n").into()),
    ];

    for (kind, bytes) in cases {
        fs::write(desk.path("./thing"), &bytes).unwrap();
        let said: Value = serde_json::from_str(&desk.ok(&["print", "--json", "--path", "./thing"])).unwrap();
        assert_eq!(said["kind"], kind);
        assert!(!desk.ok(&["print", "./thing"]).contains(token.secret_base64().as_str()));
        assert!(!said.to_string().contains(token.secret_base64().as_str()));
    }
    fs::write(desk.path("./thing"), record.as_bytes()).unwrap();
    let text = desk.ok(&["print", "./thing"]);
    assert!(text.contains("that of the certificate below") && text.contains("worker-1"), "{text}");
}

#[test]
fn print_tells_a_record_whose_signature_is_wrong() {
    let desk = Desk::with_node();
    let key = IdentityKey::generate(&mut StdRng::seed_from_u64(9));
    let by_another = Signed::sign(&record(), &key, &desk.chain()).unwrap();
    fs::write(desk.path("./thing"), by_another.as_bytes()).unwrap();

    assert!(desk.ok(&["print", "./thing"]).contains("WRONG"));
    let said: Value = serde_json::from_str(&desk.ok(&["print", "--json", "./thing"])).unwrap();
    assert_eq!(said["signature_fits"], false);
}

#[test]
fn print_says_how_long_a_certificate_has_left() {
    let desk = Desk::with_node();
    let at = |now| desk.run(&["print", "./worker-1.crt"], now, "").0;

    assert!(at(NOW.plus(Duration::from_secs(92 * 3600))).contains("(expires in 3 d 4 h, 54 % used)"));
    assert!(at(NOW.plus(8 * DAY)).contains("(expired 1 d ago)"));
}

#[test]
fn the_names_of_json_fields_stay() {
    let desk = Desk::with_node();
    let fields = |file: &str| {
        let said: Value = serde_json::from_str(&desk.ok(&["print", "--json", file])).unwrap();
        said.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ")
    };

    assert_eq!(
        fields("./worker-1.crt"),
        "address expires_in_secs fingerprint groups identity issuer kind mesh name not_after not_before serial services \
         status used_percent wireguard"
    );
    assert_eq!(
        fields("./ca.crt"),
        "expires_in_secs fingerprint identity kind mesh network not_after not_before path_length serial status used_percent"
    );
    assert_eq!(fields("./worker-1.req"), "identity kind name wireguard");
    assert_eq!(fields("./worker-1.pub"), "identity kind wireguard");
}

#[test]
fn json_holds_the_thing_itself_when_both_go_to_standard_output() {
    let desk = Desk::with_node();

    let said = desk.ok(&["sign", "--json", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "-"]);

    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(Chain::from_pem(said["text"].as_str().unwrap()).is_ok());
}

#[test]
fn bad_usage_is_told_before_anything_is_done() {
    for line in [
        "",
        "ca",
        "ca --name Lab",
        "ca --name lab --networks ten",
        "ca --name lab --duration 7",
        "ca --name lab --duration 7 d",
        "request",
        "sign --networks 10.42.0.7",
        "sign --networks 10.42.0.7 --in-pub x",
        "sign --networks 10.42.0.7 --in-pub x --in-req y --name z",
        "sign --networks 10.42.0.300 --in-req y",
        "sign --networks 10.42.0.7 --in-req y --groups A",
        "sign --networks 10.42.0.7 --in-req y --services a/b",
        "print",
        "print a b",
        "verify",
        "verify --crt x --at noon",
        "frobnicate",
    ] {
        let arguments = ["wiremesh-cert"].into_iter().chain(line.split_whitespace());
        assert!(Cli::try_parse_from(arguments).is_err_and(|error| error.use_stderr()), "{line}");
    }
    let desk = Desk::with_node();
    let twice = desk.run(&["sign", "--in-req", "-", "--ca-key", "-", "--networks", "10.42.0.7"], NOW, "").1;
    assert_eq!(twice.unwrap_err().exit, Exit::Usage);
}

#[test]
fn input_without_end_is_refused() {
    let desk = Desk::new();
    let endless = "A".repeat(3 * 1024 * 1024);

    for arguments in [&["print", "-"][..], &["request", "--name", "a", "--in-key", "-"]] {
        let failure = desk.run(arguments, NOW, &endless).1.unwrap_err();
        assert!(failure.to_string().contains("more than"), "{failure}");
    }
}

#[test]
fn a_file_that_is_no_ordinary_one_is_not_replaced() {
    let desk = Desk::with_node();
    std::os::unix::fs::symlink(desk.path("./worker-1.pub"), desk.path("./link")).unwrap();

    let failure = desk.run(&["request", "--name", "a", "--out-req", "./link", "--force"], NOW, "").1.unwrap_err();

    assert!(failure.to_string().contains("not an ordinary file"), "{failure}");
}

fn record() -> NodeRecord {
    NodeRecord {
        sequence: NOW.0 * 1000,
        expires_at: NOW.plus(RECORD_LIFE),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        services: vec![ServiceName::new("ocr").unwrap()],
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 0,
    }
}

fn weak_public_keys() -> String {
    let identity = IdentityKey::generate(&mut StdRng::seed_from_u64(7)).id();
    format!("# a comment\nidentity = {}\nwireguard = {}\n", identity.to_hex(), crate::WgPublicKey([0; 32]))
}

/// A directory to work in, which `./` means in the arguments of commands.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    /// With an authority and one node, signed.
    fn with_node() -> Desk {
        let desk = Desk::new();
        desk.ok(&["ca", "--name", "lab", "--networks", "10.42.0.0/16"]);
        desk.ok(&["keygen", "--out-pub", "./worker-1.pub"]);
        desk.ok(&["request", "--name", "worker-1", "--out-req", "./worker-1.req"]);
        desk.ok(&["sign", "--in-req", "./worker-1.req", "--networks", "10.42.0.7", "--out-crt", "./worker-1.crt"]);
        desk
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (text, outcome) = self.run(arguments, NOW, "");
        outcome.unwrap_or_else(|failure| panic!("{arguments:?}: {failure}"));
        text
    }

    fn run(&self, arguments: &[&str], now: UnixTime, input: &str) -> (String, Result<(), Failure>) {
        let placed = |value: &&str| match value.strip_prefix("./") {
            Some(file) => self.path(file).display().to_string(),
            None => (*value).to_owned(),
        };
        let mut line = vec!["wiremesh-cert".to_owned()];
        line.extend(arguments.iter().map(placed));
        // The defaults are files of the working directory, which tests share.
        let defaults: &[(&str, &str)] = match arguments[0] {
            "ca" => &[("--out-crt", "./ca.crt"), ("--out-key", "./ca.key")],
            "keygen" => &[("--out-key", "./identity.key"), ("--out-wg-key", "./wireguard.key")],
            "request" => &[("--in-key", "./identity.key"), ("--in-wg-key", "./wireguard.key")],
            "sign" => &[("--ca-crt", "./ca.crt"), ("--ca-key", "./ca.key"), ("--out-crt", "./w.crt")],
            "verify" => &[("--ca-crt", "./ca.crt")],
            _ => &[],
        };
        for (option, file) in defaults {
            let named = arguments.contains(option) || *option == "--ca-crt" && arguments.contains(&"--ca");
            if !named {
                line.extend([(*option).to_owned(), placed(file)]);
            }
        }
        let command = Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).command;
        let mut output = Vec::new();
        let mut console = Console { input: &mut input.as_bytes(), output: &mut output, colours: false };
        let mut rng = StdRng::from_os_rng();
        let outcome = run(&command, now, &mut rng, &mut console);
        (String::from_utf8(output).unwrap(), outcome)
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.0.path().join(Path::new(file))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn mode(&self, file: &str) -> u32 {
        fs::metadata(self.path(file)).unwrap().permissions().mode() & 0o777
    }

    fn authority(&self) -> Authority {
        Authority::from_pem(&self.read("./ca.crt"), &self.read("./ca.key")).unwrap()
    }

    fn trust(&self) -> Trust {
        Trust::new(CaCertificate::from_pem(&self.read("./ca.crt")).unwrap())
    }

    fn chain(&self) -> Chain {
        Chain::from_pem(&self.read("./worker-1.crt")).unwrap()
    }
}
