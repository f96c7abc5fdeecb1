//! Things that are as they should be, made anew at every run of the tests, and the tests that replay the corpus.

use std::path::Path;

use pkcs8::{
    EncryptedPrivateKeyInfoRef, LineEnding, SecretDocument, der::asn1::OctetStringRef, pkcs5::pbes2::Parameters,
};

use super::{
    TARGETS,
    replay::{Specimen, replay},
    world::{AUDIENCE, Counted, Member, NOW, World, signed_part},
};
use crate::{
    Authority, BridgeTag, CaParameters, CertificateRequest, Fingerprint, JoinToken, Load, MeshName, ModelOffer,
    ModelTag, Nearby, NodeId, NodeRecord, Policy, RECORD_LIFE, RequestProof, RevocationList, Rule, Serial, ServiceName,
    Signed, UnixTime, proof_header,
};

#[test]
fn the_corpus_and_what_lies_near_it_break_nothing() {
    let corpus = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../netns-tests/fuzz/corpus"));

    replay(corpus, TARGETS, &specimens());
}

fn specimens() -> Vec<Specimen> {
    [certificates(), messages(), texts()]
        .into_iter()
        .flatten()
        .map(|(target, name, bytes)| Specimen { target, name, bytes })
        .collect()
}

type Made = Vec<(&'static str, &'static str, Vec<u8>)>;

fn certificates() -> Made {
    let World { authority, member, .. } = World::get();
    let root = authority.certificate();
    let (tls, _) = authority.issue_coordinator_tls(RECORD_LIFE, NOW, &mut Counted(3)).unwrap();
    let leaf = member.chain.leaf().to_vec();
    let ipv6 = Authority::create(&parameters("fd00:42::/64"), NOW, &mut Counted(4)).unwrap();
    let name = "node-1".parse().unwrap();
    let request = CertificateRequest::create(&member.key, &name, &member.wg.public()).unwrap();
    let in_request = pem::parse(&request).unwrap().into_contents();
    vec![
        ("certificate", "node", leaf.clone()),
        ("certificate", "root", root.der().to_vec()),
        ("certificate", "root-of-ipv6", ipv6.certificate().der().to_vec()),
        ("certificate", "coordinator", tls[0].clone()),
        ("certificate-signed", "node", signed_part(&leaf).to_vec()),
        ("certificate-signed", "root", signed_part(root.der()).to_vec()),
        ("certificate-signed", "coordinator", signed_part(&tls[0]).to_vec()),
        ("chain", "node", member.chain.to_pem().into_bytes()),
        ("chain", "node-and-root", format!("{}{}", member.chain.to_pem(), root.pem()).into_bytes()),
        ("chain", "root", root.pem().into_bytes()),
        ("chain", "two-roots", format!("{}{}", ipv6.certificate().pem(), root.pem()).into_bytes()),
        ("request", "node", request.clone().into_bytes()),
        ("request-signed", "node", signed_part(&in_request).to_vec()),
        ("describe", "node.der", leaf),
        ("describe", "chain.pem", format!("{}{}", member.chain.to_pem(), root.pem()).into_bytes()),
        ("describe", "request.pem", request.into_bytes()),
    ]
}

fn messages() -> Made {
    let World { authority, member, .. } = World::get();
    let record = Signed::sign(&record(), &member.key, &member.chain).unwrap();
    let bare = NodeRecord {
        endpoints: Vec::new(),
        services: Vec::new(),
        tunnel_url: None,
        models: Vec::new(),
        ..self::record()
    };
    let bridge = |network: &str| BridgeTag::of(b"boot", network.parse().unwrap());
    let on_bridges = NodeRecord {
        endpoints: Vec::new(),
        nearby: vec![
            Nearby { bridge: bridge("172.18.0.0/16"), endpoint: "172.18.0.3:51820".parse().unwrap() },
            Nearby { bridge: bridge("fd00::/80"), endpoint: "[fd00::3]:51820".parse().unwrap() },
        ],
        ..self::record()
    };
    let list = authority.sign_revocations(&revocations()).unwrap();
    let empty = RevocationList { number: 1, ..RevocationList::default() };
    let rule = Rule { offer: Some(["gpu".parse().unwrap()].into()), call: None };
    let policy = Policy { services: [("llm".parse().unwrap(), rule)].into(), ..Policy::default() };
    let with_policy = RevocationList { policy, ..revocations() };
    let next = Authority::create(&parameters("10.42.0.0/16"), NOW, &mut Counted(7)).unwrap();
    let cross = authority.cross_sign(next.certificate(), NOW, &mut Counted(8)).unwrap();
    let succession = RevocationList {
        authorities: vec![next.certificate().der().to_vec(), authority.certificate().der().to_vec()],
        crosses: vec![cross.der().to_vec()],
        ..with_policy.clone()
    };
    let proof = Signed::sign(&proof(), &member.key, &member.chain).unwrap();
    vec![
        ("record", "full", record.as_bytes().to_vec()),
        ("record-signed", "full", minicbor::to_vec(self::record()).unwrap()),
        ("record-signed", "bare", minicbor::to_vec(bare).unwrap()),
        ("record-signed", "on-bridges", minicbor::to_vec(on_bridges).unwrap()),
        ("proof", "post", proof.as_bytes().to_vec()),
        ("proof-signed", "post", minicbor::to_vec(self::proof()).unwrap()),
        ("proof-header", "post", header(member).into_bytes()),
        ("revocations", "full", list.as_bytes().to_vec()),
        ("revocations-signed", "full", minicbor::to_vec(revocations()).unwrap()),
        ("revocations-signed", "empty", minicbor::to_vec(empty).unwrap()),
        ("revocations-signed", "policy", minicbor::to_vec(with_policy).unwrap()),
        ("revocations-signed", "succession", minicbor::to_vec(succession).unwrap()),
        ("describe", "record.cbor", record.as_bytes().to_vec()),
        ("describe", "revocations.base64", list.to_base64().into_bytes()),
        ("describe", "proof-header", header(member).into_bytes()),
    ]
}

fn texts() -> Made {
    let World { member, .. } = World::get();
    let token = |urls: &[&str]| {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let mesh = MeshName::new("fuzz").unwrap();
        JoinToken::generate(urls, mesh, Fingerprint([3; 32]), &mut Counted(5)).unwrap().to_text().as_bytes().to_vec()
    };
    let public = crate::cli::describe::PublicKeys { identity: member.key.id(), wg: member.wg.public() };
    let openssl = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    let cheap = Parameters::generate_pbkdf2_sha256_aes256cbc(1, b"salt salt", [0; 16]).unwrap();
    let encrypted = cheap.encrypt("passphrase", &member.key.to_pkcs8_der()).unwrap();
    let encrypted = SecretDocument::try_from(EncryptedPrivateKeyInfoRef {
        encryption_algorithm: cheap.into(),
        encrypted_data: OctetStringRef::new(&encrypted).unwrap(),
    });
    let encrypted = encrypted.unwrap().to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).unwrap();
    let mut made = vec![
        ("encrypted-key", "pbkdf2", format!("passphrase\n{}", *encrypted).into_bytes()),
        ("describe", "encrypted-key", encrypted.as_bytes().to_vec()),
        ("token", "one-url", token(&["https://10.0.0.1:8080"])),
        ("token", "two-urls", token(&["https://coordinator.example", "https://[2001:db8::1]:8080"])),
        ("keys", "identity", member.key.to_pkcs8_pem().as_bytes().to_vec()),
        ("keys", "identity-of-rfc-8410", openssl.into()),
        ("keys", "wireguard", member.wg.to_base64().as_bytes().to_vec()),
        ("public-keys", "both", public.to_text().into_bytes()),
        ("public-keys", "with-comment", format!("# a node\n\n{}", public.to_text()).into_bytes()),
        ("describe", "public-keys", public.to_text().into_bytes()),
        ("describe", "token", token(&["https://10.0.0.1:8080"])),
        ("describe", "wireguard-key", member.wg.to_base64().as_bytes().to_vec()),
    ];
    let names = [
        ("node", "worker-gpu-001"),
        ("service", "llm_v1.2"),
        ("identity", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"),
        ("address", "10.42.0.7"),
        ("address-of-ipv6", "fd00:42::7"),
        ("tunnel", "https://x.example/agents/1"),
        ("tag", "ba7816bf8f01cfea"),
        ("span", "1d12h"),
    ];
    made.extend(names.map(|(name, text)| ("names", name, text.as_bytes().to_vec())));
    made
}

fn parameters(network: &str) -> CaParameters {
    CaParameters { mesh: "fuzz".parse().unwrap(), network: network.parse().unwrap(), lifetime: RECORD_LIFE }
}

/// With all that a record may hold.
fn record() -> NodeRecord {
    NodeRecord {
        sequence: NOW.0 * 1000,
        expires_at: NOW.plus(RECORD_LIFE),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap(), "[2001:db8::1]:51820".parse().unwrap()],
        services: ["llm-inference", "ocr"].map(|name| ServiceName::new(name).unwrap()).to_vec(),
        load: Load::from_share(0.5),
        tunnel_url: Some("https://x.example/a".parse().unwrap()),
        overlay: true,
        models: vec![ModelOffer { service: 0, tag: ModelTag::of("llama") }],
        revocations: 7,
        nearby: Vec::new(),
    }
}

fn proof() -> RequestProof {
    RequestProof {
        audience: AUDIENCE.to_owned(),
        method: "POST".to_owned(),
        path: "/api/x?a=1".to_owned(),
        issued_at: NOW,
        nonce: [7; 16],
    }
}

fn header(member: &Member) -> String {
    proof_header(&member.key, &member.chain, AUDIENCE, "POST", "/api/x?a=1", NOW, &mut Counted(6)).unwrap()
}

fn revocations() -> RevocationList {
    RevocationList {
        number: 7,
        serials: [Serial([1; 16]), Serial([2; 16])].into(),
        identities: [NodeId([3; 32])].into(),
        ..RevocationList::default()
    }
}

#[test]
fn numbers_of_the_world_stay_what_they_are() {
    let mut numbers = Counted(1_234_567);

    // The reference implementation's, https://prng.di.unimi.it/splitmix64.c.
    assert_eq!(rand::RngCore::next_u64(&mut numbers), 6_457_827_717_110_365_317);
    assert_eq!(UnixTime(NOW.0), NOW);
}
