//! The two properties of every decoder: it never panics, and what it takes it writes again byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/forge.rs"]
mod forge;

use std::sync::OnceLock;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use forge::*;
use proptest::{collection::vec, prelude::*};
use wiremesh_certs::*;

proptest! {
    #[test]
    fn no_decoder_panics_on_anything(bytes in vec(any::<u8>(), 0..600)) {
        decode_as_everything(&bytes);
    }

    #[test]
    fn no_decoder_panics_on_what_is_nearly_right(which: prop::sample::Index, at: prop::sample::Index, with in vec(any::<u8>(), 0..6), cut: prop::sample::Index) {
        let mut bytes = which.get(samples()).clone();
        let at = at.index(bytes.len());
        let end = (at + with.len()).min(bytes.len());
        bytes.splice(at..end, with);
        decode_as_everything(&bytes);
        bytes.truncate(cut.index(bytes.len() + 1));
        decode_as_everything(&bytes);
    }

    #[test]
    fn what_is_changed_is_refused_or_the_same(which: prop::sample::Index, at: prop::sample::Index, bit in 0..8u8) {
        let original = which.get(samples());
        let mut bytes = original.clone();
        bytes[at.index(original.len())] ^= 1 << bit;
        let trust = root().trust();
        if let Ok(chain) = Chain::from_ders(vec![bytes.clone()]) {
            prop_assert!(trust.verify(&chain, NOW).is_err());
        }
        prop_assert!(open(&bytes).is_err());
        if let Ok(list) = SignedRevocations::from_bytes(&bytes) {
            prop_assert!(root().trust().apply_revocations(&list, NOW).is_err());
        }
    }

    #[test]
    fn a_chain_that_is_believed_writes_the_same_bytes(name in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?", host in 1u32..65_535, groups in vec("[a-z]{1,12}", 0..8), days in 1u32..300) {
        prop_assume!(name != "coordinator");
        let chain = issue(&name, host, &groups, days);

        let verified = root().trust().verify(&chain, NOW).unwrap();
        let read = Chain::from_pem(&chain.to_pem()).unwrap();

        prop_assert_eq!(verified.chain().ders(), chain.ders());
        prop_assert_eq!(read.ders(), chain.ders());
        prop_assert_eq!(verified.groups().len(), groups.len());
        prop_assert_eq!(verified.name().as_str(), name);
    }

    #[test]
    fn a_request_that_is_read_makes_the_same_bytes(name in "[a-z]([a-z0-9-]{0,60}[a-z0-9])?") {
        let (key, wg) = generate_keys(&mut rand::rng());
        let text = CertificateRequest::create(&key, &NodeName::new(&name).unwrap(), &wg.public()).unwrap();

        let read = CertificateRequest::parse(&text).unwrap();

        prop_assert_eq!(CertificateRequest::create(&key, &read.name, &read.wg).unwrap(), text);
        prop_assert_eq!(read.identity, key.id());
    }

    #[test]
    fn a_token_that_is_read_makes_the_same_text(mesh in "[a-z]([a-z0-9-]{0,60}[a-z0-9])?", ca: [u8; 32], hosts in vec("[a-z]{1,40}", 1..8)) {
        let urls = hosts.iter().map(|host| format!("https://{host}.example:8080")).collect();
        let token = JoinToken::generate(urls, MeshName::new(&mesh).unwrap(), Fingerprint(ca), &mut rand::rng()).unwrap();

        let read: JoinToken = token.to_text().parse().unwrap();

        prop_assert_eq!(read.to_text(), token.to_text());
    }

    #[test]
    fn revocations_that_are_believed_sign_to_the_same_bytes(number in 1u64.., serials in vec(any::<[u8; 16]>(), 0..40), identities in vec(any::<[u8; 32]>(), 0..40)) {
        let list = RevocationList {
            number,
            serials: serials.into_iter().map(Serial).collect(),
            identities: identities.into_iter().map(NodeId).collect(),
            ..RevocationList::default()
        };
        let signed = root().authority().sign_revocations(&list).unwrap();
        let mut trust = root().trust();

        trust.apply_revocations(&SignedRevocations::from_base64(&signed.to_base64()).unwrap(), NOW).unwrap();

        prop_assert_eq!(trust.revocations(), &list);
        prop_assert_eq!(root().authority().sign_revocations(trust.revocations()).unwrap(), signed);
    }
}

fn decode_as_everything(bytes: &[u8]) {
    let trust = root().trust();
    let text = String::from_utf8_lossy(bytes);
    let base64 = BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let _ = Chain::from_ders(vec![bytes.to_vec()]).map(|chain| {
        let _ = trust.verify(&chain, NOW);
        let _ = trust.examine(&chain, NOW);
        let _ = Chain::from_pem(&chain.to_pem());
    });
    let _ = trust.verify_coordinator(&[bytes], NOW);
    let _ = CaCertificate::from_der(bytes.to_vec());
    let _ = CaCertificate::from_pem(&text);
    let _ = CertificateRequest::parse(&text);
    let _ = CertificateRequest::parse(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes)));
    let _ = SignedRecord::from_bytes(bytes).map(|signed| trust.open(&signed, NOW).is_ok());
    let _ = Signed::<RequestProof>::from_bytes(bytes).map(|signed| trust.open(&signed, NOW).is_ok());
    let _ = SignedRevocations::from_bytes(bytes).map(|signed| trust.clone().apply_revocations(&signed, NOW));
    let _ = ProofChecker::new(String::new(), NOW).check(&text, "GET", "/", &trust, NOW);
    let _ = ProofChecker::new(String::new(), NOW).check(&format!("Wiremesh {base64}"), "GET", "/", &trust, NOW);
    let _ = format!("wm1.{base64}").parse::<JoinToken>();
    let _ = text.parse::<JoinToken>();
    let _ = IdentityKey::from_pkcs8_pem(&text);
    let _ = WgPrivateKey::from_base64(&text);
    let _ = hash_of_secret(&text);
}

/// One of each thing that is signed, in bytes.
fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let member = member();
        let list = RevocationList { number: 1, serials: [Serial([7; 16])].into(), ..RevocationList::default() };
        vec![
            member.chain.leaf().to_vec(),
            Signed::sign(&record(), &member.key, &member.chain).unwrap().as_bytes().to_vec(),
            root().authority().sign_revocations(&list).unwrap().as_bytes().to_vec(),
        ]
    })
}

struct Member {
    key: IdentityKey,
    chain: Chain,
}

fn record() -> NodeRecord {
    NodeRecord {
        sequence: 7,
        expires_at: UnixTime(90),
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

fn open(bytes: &[u8]) -> Result<Opened<NodeRecord>, Refused> {
    root().trust().open(&SignedRecord::from_bytes(bytes)?, NOW)
}

fn root() -> &'static Ca {
    static ROOT: OnceLock<Ca> = OnceLock::new();
    ROOT.get_or_init(|| Ca::root("lab"))
}

fn member() -> Member {
    let (key, wg) = generate_keys(&mut rand::rng());
    let claims = claims(&key, &wg, "worker-1", "10.42.0.7".parse().unwrap());
    Member { chain: root().authority().issue(&claims, NOW, &mut rand::rng()).unwrap(), key }
}

fn issue(name: &str, host: u32, groups: &[String], days: u32) -> Chain {
    let (key, wg) = generate_keys(&mut rand::rng());
    let address = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 42, 0, 0)) + host);
    let mut claims = claims(&key, &wg, name, OverlayIp(address.into()));
    claims.groups = groups.iter().map(|group| GroupName::new(group).unwrap()).collect();
    claims.lifetime = DAY * days;
    root().authority().issue(&claims, NOW, &mut rand::rng()).unwrap()
}

fn claims(key: &IdentityKey, wg: &WgPrivateKey, name: &str, address: OverlayIp) -> Claims {
    Claims {
        identity: key.id(),
        wg: wg.public(),
        name: NodeName::new(name).unwrap(),
        address,
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime: DAY,
    }
}
