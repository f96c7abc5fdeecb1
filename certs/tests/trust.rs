//! What the one door lets in; what it refuses is in `hostile`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::{net::IpAddr, time::Duration};

use proptest::prelude::*;
use wiremesh_certs::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_node_signed_by_the_authority_is_believed_in_all_it_claims() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");

    let verified = mesh.trust.verify(&node.chain, NOW).unwrap();

    assert_eq!(verified.id(), node.key.id());
    assert_eq!(verified.name().as_str(), "worker-1");
    assert_eq!(verified.address(), ip("10.42.0.7"));
    assert_eq!(verified.wg(), node.wg.public());
    assert_eq!(verified.groups(), [GroupName::new("gpu").unwrap()]);
    assert!(verified.services().allows(&ServiceName::new("ocr").unwrap()));
    assert_eq!(verified.not_after(), NOW.plus(7 * DAY));
}

#[test]
fn a_root_sent_along_in_the_chain_does_no_harm() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");

    let chain = vec![node.chain.leaf().to_vec(), mesh.authority.certificate().der().to_vec()];

    assert!(mesh.trust.verify(&Chain::from_ders(chain).unwrap(), NOW).is_ok());
}

#[test]
fn an_authority_signs_only_within_its_limits() {
    let mesh = Mesh::new("lab");
    let issue = |change: fn(&mut Claims)| {
        let (key, wg) = generate_keys(&mut rand::rng());
        let mut claims = claims(&key, &wg, "worker-1", "10.42.0.7");
        change(&mut claims);
        mesh.authority.issue(&claims, NOW, &mut rand::rng())
    };

    assert!(matches!(issue(|c| c.address = ip("10.43.0.7")), Err(IssueError::OutsideNetwork { .. })));
    assert!(matches!(issue(|c| c.name = NodeName::new("coordinator").unwrap()), Err(IssueError::ReservedName)));
    assert!(matches!(issue(|c| c.lifetime = Duration::ZERO), Err(IssueError::TooShort)));
    assert!(matches!(
        issue(|c| c.groups = vec![GroupName::new("g").unwrap(); MAX_GROUPS + 1]),
        Err(IssueError::TooLarge(_))
    ));
}

#[test]
fn a_node_certificate_never_outlives_its_authority() {
    let mesh = Mesh::new("lab");
    let (key, wg) = generate_keys(&mut rand::rng());
    let mut claims = claims(&key, &wg, "worker-1", "10.42.0.7");
    claims.lifetime = 10_000 * DAY;

    let chain = mesh.authority.issue(&claims, NOW, &mut rand::rng()).unwrap();

    assert_eq!(mesh.trust.verify(&chain, NOW).unwrap().not_after(), mesh.authority.certificate().not_after());
}

#[test]
fn only_the_coordinator_passes_for_the_coordinator() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");
    let (chain, key) = mesh.authority.issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();
    let (foreign, _) = Mesh::new("lab").authority.issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();

    assert_eq!(mesh.trust.verify_coordinator(&chain, NOW), Ok(()));
    assert_eq!(mesh.trust.verify_coordinator(&chain[..1], NOW), Ok(()));
    assert!(!key.to_pkcs8_der().is_empty());
    assert_eq!(mesh.trust.verify_coordinator(node.chain.ders(), NOW).unwrap_err().reason(), "bad_certificate");
    assert_eq!(mesh.trust.verify_coordinator(&foreign, NOW).unwrap_err().reason(), "another_authority");
    assert_eq!(mesh.trust.verify_coordinator(&chain, NOW.plus(DAY)).unwrap_err().reason(), "expired");
}

#[test]
fn a_record_with_one_byte_changed_is_refused_wherever_it_is() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");
    let signed = node.record(1);

    assert_eq!(mesh.trust.open(&signed, NOW).unwrap().by.id(), node.key.id());
    for at in 0..signed.as_bytes().len() {
        let mut bytes = signed.as_bytes().to_vec();
        bytes[at] ^= 1;
        let changed = SignedRecord::from_bytes(&bytes).unwrap();
        assert!(mesh.trust.open(&changed, NOW).is_err(), "byte {at}");
    }
}

#[test]
fn a_record_with_all_it_may_hold_in_ordinary_use_fits_one_datagram() {
    let mesh = Mesh::new("a-mesh-with-quite-a-long-name");
    let node = mesh.node("worker-gpu-with-a-long-name-001", "10.42.0.7");

    let mut record = record(1);
    record.endpoints = vec!["[2001:db8:1:2:3:4:5:6]:51820".parse().unwrap(); 4];
    record.endpoints.extend(vec!["203.0.113.7:51820".parse::<std::net::SocketAddr>().unwrap(); 4]);
    record.tunnel_url = Some("https://random-words-of-a-tunnel-provider.trycloudflare.com".parse().unwrap());
    record.services =
        ["llm-inference", "ocr", "text-embedding", "speech-to-text"].map(|s| ServiceName::new(s).unwrap()).to_vec();

    assert!(Signed::sign(&record, &node.key, &node.chain).is_ok(), "certificate of {} bytes", node.chain.leaf().len());
}

#[test]
fn a_signature_for_one_type_is_none_for_another() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");

    let as_proof = Signed::<RequestProof>::from_bytes(node.record(1).as_bytes()).unwrap();

    assert!(mesh.trust.open(&as_proof, NOW).is_err());
}

#[test]
fn a_proof_is_good_for_one_request_once_for_a_minute() {
    let mesh = Mesh::new("lab");
    let node = mesh.node("worker-1", "10.42.0.7");
    let mut checker = ProofChecker::new("coordinator.lab".to_owned(), NOW);
    let header = |audience: &str, at| {
        proof_header(&node.key, &node.chain, audience, "POST", "/api/x?a=1", at, &mut rand::rng()).unwrap()
    };
    let good = header("coordinator.lab", NOW);
    let mut check = |header: &str, method: &str, path: &str, now| {
        checker.check(header, method, path, &mesh.trust, now).map(|v| v.id()).map_err(|r| r.reason())
    };

    assert_eq!(check(&good, "POST", "/api/x?a=1", NOW), Ok(node.key.id()));
    assert_eq!(check(&good, "POST", "/api/x?a=1", NOW.plus(Duration::from_secs(60))), Err("replayed_proof"));
    assert_eq!(check(&good, "POST", "/api/x?a=1", NOW.plus(Duration::from_secs(61))), Err("stale_proof"));
    assert_eq!(check(&header("coordinator.lab", NOW), "GET", "/api/x?a=1", NOW), Err("proof_for_another"));
    assert_eq!(check(&header("coordinator.lab", NOW), "POST", "/api/x", NOW), Err("proof_for_another"));
    assert_eq!(check(&header("another", NOW), "POST", "/api/x?a=1", NOW), Err("proof_for_another"));
    assert_eq!(
        check(&header("coordinator.lab", NOW.plus(Duration::from_secs(61))), "POST", "/api/x?a=1", NOW),
        Err("stale_proof")
    );
    assert_eq!(check("Bearer abc", "POST", "/api/x?a=1", NOW), Err("malformed"));
    assert_eq!(check("Wiremesh !!!", "POST", "/api/x?a=1", NOW), Err("malformed"));
}

#[test]
fn revocations_are_the_authoritys_alone_and_never_go_back() {
    let mesh = Mesh::new("lab");
    let (node, other) = (mesh.node("worker-1", "10.42.0.7"), mesh.node("worker-2", "10.42.0.8"));
    let store = TrustStore::new(mesh.trust.clone());
    let list = RevocationList { number: 9, ..RevocationList::default() };
    let by_a_node = Signed::sign(&list, &node.key, &node.chain).unwrap();

    assert_eq!(store.apply_revocations(&mesh.revoke(2, &node), NOW), Ok(true));
    assert_eq!(store.apply_revocations(&mesh.revoke(2, &node), NOW), Ok(false));
    assert_eq!(store.apply_revocations(&mesh.revoke(1, &other), NOW).unwrap_err().reason(), "older_revocations");
    assert!(store.apply_revocations(&by_a_node, NOW).is_err());
    assert!(store.apply_revocations(&Mesh::new("lab").authority.sign_revocations(&list).unwrap(), NOW).is_err());
    assert_eq!(store.current().verify(&node.chain, NOW).unwrap_err().reason(), "revoked");
    assert!(store.current().verify(&other.chain, NOW).is_ok());
}

#[test]
fn an_authority_survives_its_files_and_its_key_must_fit() {
    let mesh = Mesh::new("lab");
    let (pem, key) = (mesh.authority.certificate().pem(), mesh.authority.key_pem());

    let reopened = Authority::from_pem(&pem, &key).unwrap();

    assert_eq!(reopened.certificate(), mesh.authority.certificate());
    assert_eq!(reopened.certificate().network().to_string(), "10.42.0.0/16");
    let another = Mesh::new("lab").authority.key_pem();
    assert_eq!(Authority::from_pem(&pem, &another).unwrap_err(), BadAuthority::KeyMismatch);
}

proptest! {
    #[test]
    fn opening_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let mesh = Mesh::shared();
        if let Ok(signed) = SignedRecord::from_bytes(&bytes) {
            prop_assert!(mesh.trust.open(&signed, NOW).is_err());
        }
    }

    #[test]
    fn opening_a_damaged_record_never_panics(at in 0usize..1100, with: [u8; 3], cut in 0usize..1100) {
        let mesh = Mesh::shared();
        let mut bytes = mesh.node("worker-1", "10.42.0.7").record(1).as_bytes().to_vec();
        let at = at % bytes.len();
        let end = (at + 3).min(bytes.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        bytes.truncate(cut.max(1));
        let _ = SignedRecord::from_bytes(&bytes).map(|signed| mesh.trust.open(&signed, NOW));
    }

    #[test]
    fn reading_a_damaged_certificate_never_panics(at in 0usize..700, with: [u8; 4]) {
        let mesh = Mesh::shared();
        let mut der = mesh.node("worker-1", "10.42.0.7").chain.leaf().to_vec();
        let at = at % (der.len() - 4);
        der[at..at + 4].copy_from_slice(&with);
        let _ = mesh.trust.verify(&Chain::from_ders(vec![der.clone()]).unwrap(), NOW);
        let _ = CaCertificate::from_der(der);
    }

    #[test]
    fn what_is_believed_signs_to_the_same_bytes_again(sequence in 0..u64::MAX / 2, load in 0.0..1.0f64) {
        let mesh = Mesh::shared();
        let node = mesh.node("worker-1", "10.42.0.7");
        let mut record = record(sequence);
        record.load = Load::from_share(load);
        let signed = Signed::sign(&record, &node.key, &node.chain).unwrap();

        let opened = mesh.trust.open(&SignedRecord::from_bytes(signed.as_bytes()).unwrap(), NOW).unwrap();

        prop_assert_eq!(Signed::sign(&opened.payload, &node.key, opened.by.chain()).unwrap(), signed);
    }
}

struct Mesh {
    authority: Authority,
    trust: Trust,
}

struct Node {
    key: IdentityKey,
    wg: WgPrivateKey,
    chain: Chain,
}

impl Mesh {
    fn new(name: &str) -> Mesh {
        let parameters = CaParameters {
            mesh: MeshName::new(name).unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: 365 * DAY,
        };
        let authority = Authority::create(&parameters, NOW, &mut rand::rng()).unwrap();
        let trust = Trust::new(authority.certificate().clone());
        Mesh { authority, trust }
    }

    fn shared() -> &'static Mesh {
        static SHARED: std::sync::OnceLock<Mesh> = std::sync::OnceLock::new();
        SHARED.get_or_init(|| Mesh::new("lab"))
    }

    fn node(&self, name: &str, address: &str) -> Node {
        let (key, wg) = generate_keys(&mut rand::rng());
        let chain = self.authority.issue(&claims(&key, &wg, name, address), NOW, &mut rand::rng()).unwrap();
        Node { key, wg, chain }
    }

    fn revoke(&self, number: u64, node: &Node) -> SignedRevocations {
        let serial = self.trust.verify(&node.chain, NOW).unwrap().serial();
        let list = RevocationList { number, serials: [serial].into(), ..RevocationList::default() };
        self.authority.sign_revocations(&list).unwrap()
    }
}

impl Node {
    fn record(&self, sequence: u64) -> SignedRecord {
        Signed::sign(&record(sequence), &self.key, &self.chain).unwrap()
    }
}

fn record(sequence: u64) -> NodeRecord {
    NodeRecord {
        sequence,
        expires_at: UnixTime(sequence / 1000).plus(RECORD_LIFE),
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

fn claims(key: &IdentityKey, wg: &WgPrivateKey, name: &str, address: &str) -> Claims {
    Claims {
        identity: key.id(),
        wg: wg.public(),
        name: NodeName::new(name).unwrap(),
        address: ip(address),
        groups: vec![GroupName::new("gpu").unwrap()],
        services: AllowedServices::Any,
        lifetime: 7 * DAY,
    }
}

fn ip(text: &str) -> OverlayIp {
    OverlayIp(text.parse::<IpAddr>().unwrap())
}
