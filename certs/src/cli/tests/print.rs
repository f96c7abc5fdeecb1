//! `print`: everything is known by its contents, and nothing secret is shown.

use super::*;
use crate::{
    Fingerprint, GroupName, JoinToken, Load, MeshName, NodeRecord, Policy, RECORD_LIFE, RevocationList, Rule,
    ServiceName, Signed, proof_header,
};

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
fn print_tells_authorities_apart_and_shows_all_that_a_list_rules() {
    let desk = Desk::with_intermediate();
    desk.line("rotate --ca-crt ./root.crt --ca-key ./root.key", NOW).1.unwrap();
    let kinds = |file: &str| {
        let said = desk.json(&format!("print {file}"), NOW);
        let parts = said["certificates"].as_array().cloned().unwrap_or_default();
        let parts: Vec<String> = parts.iter().map(|part| part["kind"].as_str().unwrap().to_owned()).collect();
        (said["kind"].as_str().unwrap().to_owned(), parts.join(" "))
    };
    let owned = |kind: &str, parts: &str| (kind.to_owned(), parts.to_owned());

    assert_eq!(kinds("./root.crt"), owned("ca", ""));
    assert_eq!(kinds("./cross.crt"), owned("cross", ""));
    assert_eq!(kinds("./ca.crt"), owned("bundle", "intermediate ca"));
    assert_eq!(kinds("./worker-1.crt"), owned("chain", "node intermediate"));

    let group = |name: &str| GroupName::new(name).unwrap();
    let rule = Rule { offer: Some([group("gpu")].into()), call: None };
    let otherwise = Rule { offer: None, call: Some([].into()) };
    let policy = Policy { otherwise, services: [(ServiceName::new("llm").unwrap(), rule)].into() };
    let authorities = vec![desk.authority().certificate().der().to_vec()];
    let list = RevocationList { number: 3, policy, authorities, ..RevocationList::default() };
    fs::write(desk.path("./list"), desk.authority().sign_revocations(&list).unwrap().as_bytes()).unwrap();
    let said = desk.json("print ./list", NOW);
    assert_eq!(said["policy"]["services"]["llm"], serde_json::json!({"offer": ["gpu"], "call": null}));
    assert_eq!(said["policy"]["otherwise"], serde_json::json!({"offer": null, "call": []}));
    assert_eq!(said["authorities"][0]["kind"], "intermediate");
    let text = desk.line("print ./list", NOW).0;
    assert!(
        text.contains("llm: offered by gpu, called by everybody; all else: offered by everybody, called by nobody"),
        "{text}"
    );
    let open = desk.authority().sign_revocations(&RevocationList { number: 4, ..RevocationList::default() }).unwrap();
    fs::write(desk.path("./list"), open.as_bytes()).unwrap();
    let said = desk.json("print ./list", NOW);
    assert_eq!(
        (&said["policy"], &said["authorities"], &said["crosses"]),
        (&Value::Null, &Value::Array(vec![]), &Value::Array(vec![]))
    );
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
        nearby: Vec::new(),
    }
}
