//! Signed messages, requests and tokens as an attacker would make them, each with the reason for which it is refused;
//! and the two properties of every decoder: it never panics, and what it takes it writes again byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/forge.rs"]
mod forge;

use std::sync::OnceLock;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use coset::{CborSerializable, CoseSign1, CoseSign1Builder, HeaderBuilder, TaggedCborSerializable, cbor::Value, iana};
use forge::*;
use minicbor::{Encoder, data::Type};
use proptest::{collection::vec, prelude::*};
use rcgen::CertificateParams;
use wiremesh_certs::*;

const X5CHAIN: i64 = 33;

#[test]
fn a_message_in_another_than_its_one_form_is_refused_though_rightly_signed() {
    let member = member();
    let leaf = || Value::Bytes(member.chain.leaf().to_vec());
    let payload = minicbor::to_vec(record()).unwrap();
    let header = || HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA);
    let good = member.envelope(header().value(X5CHAIN, leaf()), &payload);
    let mut detached = CoseSign1::from_slice(&good).unwrap();
    detached.payload = None;
    let mut unprotected = CoseSign1::from_slice(&good).unwrap();
    unprotected.unprotected = HeaderBuilder::new().key_id(vec![1]).build();
    let mut short = CoseSign1::from_slice(&good).unwrap();
    short.signature.pop();
    let indefinite = [&[0x9f][..], &good[1..], &[0xff]].concat();

    assert!(open(&good).is_ok());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "not COSE_Sign1"),
        ("a byte after its end", [&good[..], &[0]].concat(), "bytes after its end"),
        ("a tag", CoseSign1::from_slice(&good).unwrap().to_tagged_vec().unwrap(), "not COSE_Sign1"),
        ("an indefinite length", indefinite, "not COSE_Sign1"),
        ("five parts", [&[0x85][..], &good[1..], &[0]].concat(), "not COSE_Sign1"),
        ("an unprotected header", unprotected.to_vec().unwrap(), "an unprotected header"),
        ("no payload", detached.to_vec().unwrap(), "no payload"),
        ("a short signature", short.to_vec().unwrap(), "a signature of not 64 bytes"),
        (
            "another algorithm",
            member.envelope(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).value(X5CHAIN, leaf()), &payload),
            "not exactly an algorithm and an x5chain",
        ),
        (
            "no algorithm",
            member.envelope(HeaderBuilder::new().value(X5CHAIN, leaf()), &payload),
            "not exactly an algorithm and an x5chain",
        ),
        ("no chain", member.envelope(header(), &payload), "not exactly an algorithm and an x5chain"),
        (
            "another header",
            member.envelope(header().value(X5CHAIN, leaf()).value(99, Value::Null), &payload),
            "not exactly an algorithm and an x5chain",
        ),
        (
            "a key id",
            member.envelope(header().key_id(vec![1]).value(X5CHAIN, leaf()), &payload),
            "not exactly an algorithm and an x5chain",
        ),
        (
            "critical headers",
            member.envelope(header().add_critical(iana::HeaderParameter::Alg).value(X5CHAIN, leaf()), &payload),
            "not exactly an algorithm and an x5chain",
        ),
        (
            "a chain of one in an array",
            member.envelope(header().value(X5CHAIN, Value::Array(vec![leaf()])), &payload),
            "an x5chain that is no chain",
        ),
        (
            "an empty chain",
            member.envelope(header().value(X5CHAIN, Value::Array(vec![])), &payload),
            "an x5chain that is no chain",
        ),
        (
            "a chain of four",
            member.envelope(header().value(X5CHAIN, Value::Array(vec![Value::Bytes(vec![1]); 4])), &payload),
            "an x5chain of more",
        ),
        (
            "a chain of numbers",
            member.envelope(header().value(X5CHAIN, Value::Array(vec![Value::from(1); 2])), &payload),
            "a certificate that is not bytes",
        ),
        (
            "a header in a longer form",
            member.resigned(&long_form_of_the_algorithm(&good), &payload),
            "another than its one encoding",
        ),
        (
            "a payload in a longer form",
            member.message(&long_form_of_the_sequence(&payload)),
            "another than its one encoding",
        ),
        ("a payload and more", member.message(&[&payload[..], &[0]].concat()), "another than its one encoding"),
        (
            "a payload that says that it has no models",
            member.message(&[&[0x88][..], &payload[1..], &[0x80]].concat()),
            "a payload of another form",
        ),
        (
            "a payload of nine parts",
            member.message(&[&[0x89][..], &payload[1..], &[0x80, 0xf6]].concat()),
            "a payload of another form",
        ),
        (
            "a payload of six parts",
            member.message(&[&[0x86][..], &payload[1..payload.len() - 1]].concat()),
            "a payload of another form",
        ),
        ("a payload that is a map", member.message(&[0xa0]), "a payload of another form"),
    ];
    for (case, bytes, why) in cases {
        let refused = open(&bytes).expect_err(case);
        assert_eq!(refused.reason(), "malformed", "{case}: {refused}");
        assert!(refused.to_string().contains(why), "{case}: {refused}");
    }
    assert!(SignedRecord::from_bytes(&[0; MAX_RECORD_BYTES + 1]).is_err());
    assert!(SignedRecord::from_base64(&"A".repeat(1 << 20)).is_err());
}

#[test]
fn a_message_under_anothers_certificate_or_for_another_purpose_is_refused() {
    let member = member();
    let other = IdentityKey::generate(&mut rand::rng());
    let payload = minicbor::to_vec(record()).unwrap();
    let as_proof = sign(&member.key, &member.chain, b"wiremesh/1/proof", &payload);
    let without_purpose = sign(&member.key, &member.chain, b"", &payload);
    let by_another = sign(&other, &member.chain, b"wiremesh/1/record", &payload);

    for bytes in [as_proof, without_purpose, by_another] {
        assert_eq!(open(&bytes).unwrap_err(), Refused::WrongSignature);
    }
}

#[test]
fn a_record_beyond_its_bounds_is_refused() {
    let member = member();
    let raw = |write: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| {
        let mut bytes = Vec::new();
        write(&mut Encoder::new(&mut bytes));
        open(&member.message(&bytes)).unwrap_err()
    };
    let fields = |load: u8, url: &'static str, service: &'static str, endpoint: &'static [u8], expires: u64| {
        move |e: &mut Encoder<&mut Vec<u8>>| {
            e.array(7).unwrap().u64(NOW.0 * 1000).unwrap().u64(expires).unwrap();
            e.array(1).unwrap().bytes(endpoint).unwrap();
            e.array(1).unwrap().str(service).unwrap();
            e.u8(load).unwrap().str(url).unwrap().bool(true).unwrap();
        }
    };
    let good = [192, 0, 2, 1, 1, 1];
    let good: &'static [u8] = Box::leak(Box::new(good));

    let mut bytes = Vec::new();
    fields(100, "https://x.example", "ocr", good, NOW.0 + 90)(&mut Encoder::new(&mut bytes));
    assert!(open(&member.message(&bytes)).is_ok());
    for (case, refused) in [
        ("a load of 101", raw(&fields(101, "https://x.example", "ocr", good, NOW.0 + 90))),
        ("a URL with a user", raw(&fields(1, "https://u@x.example", "ocr", good, NOW.0 + 90))),
        ("a URL not in normal form", raw(&fields(1, "HTTPS://x.example", "ocr", good, NOW.0 + 90))),
        ("a file URL", raw(&fields(1, "file:///etc/passwd", "ocr", good, NOW.0 + 90))),
        ("a service with a slash", raw(&fields(1, "https://x.example", "a/b", good, NOW.0 + 90))),
        ("an endpoint of seven bytes", raw(&fields(1, "https://x.example", "ocr", &[1; 7], NOW.0 + 90))),
        ("a life of an hour", raw(&fields(1, "https://x.example", "ocr", good, NOW.0 + 3600))),
        (
            "endpoints without end",
            raw(&|e| {
                e.array(7).unwrap().u64(1).unwrap().u64(1).unwrap().array(u64::MAX).unwrap();
            }),
        ),
        (
            "services without end",
            raw(&|e| {
                e.array(7).unwrap().u64(1).unwrap().u64(1).unwrap().array(0).unwrap().array(u64::MAX).unwrap();
            }),
        ),
    ] {
        assert_eq!(refused.reason(), "malformed", "{case}: {refused}");
    }
}

#[test]
fn a_list_of_revocations_has_one_form() {
    let root = root();
    let chain = Chain::from_ders(vec![root.der.clone()]).unwrap();
    let list = |serials: &[[u8; 16]]| {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.array(3).unwrap().u8(1).unwrap().array(serials.len() as u64).unwrap();
        for serial in serials {
            encoder.bytes(serial).unwrap();
        }
        encoder.array(0).unwrap();
        let signed = sign(&root.key, &chain, b"wiremesh/1/revocations", &bytes);
        root.trust().apply_revocations(&SignedRevocations::from_bytes(&signed).unwrap(), NOW)
    };

    assert_eq!(list(&[[1; 16], [2; 16]]), Ok(true));
    assert_eq!(list(&[[2; 16], [1; 16]]).unwrap_err().reason(), "malformed");
    assert_eq!(list(&[[1; 16], [1; 16]]).unwrap_err().reason(), "malformed");
    let many = RevocationList {
        number: 1,
        serials: (0..=MAX_REVOCATIONS as u128).map(|n| Serial(n.to_be_bytes())).collect(),
        ..RevocationList::default()
    };
    assert!(root.authority().sign_revocations(&many).is_err());
}

#[test]
fn a_message_of_a_thousand_nested_arrays_takes_no_stack() {
    let nested = [vec![0x81; 4000], vec![0xf6]].concat();
    let mut header = Vec::new();
    Encoder::new(&mut header).bytes(&nested).unwrap();
    let bytes = [&[0x84][..], &header, &[0xa0, 0x40, 0x58, 0x40], &[0; 64]].concat();

    let signed = SignedRevocations::from_bytes(&bytes).unwrap();

    assert_eq!(root().trust().apply_revocations(&signed, NOW).unwrap_err().reason(), "malformed");
}

#[test]
fn a_proof_is_not_believed_again_when_the_clock_is_set_back() {
    let member = member();
    let mut checker = ProofChecker::new("a".to_owned(), NOW);
    let header = |at| proof_header(&member.key, &member.chain, "a", "GET", "/", at, &mut rand::rng()).unwrap();
    let mut check = |header: &str, now| {
        checker.check(header, "GET", "/", &root().trust(), now).map(drop).map_err(|refused| refused.reason())
    };
    let old = header(NOW);

    assert_eq!(check(&old, NOW), Ok(()));
    assert_eq!(check(&header(NOW.plus(2 * PROOF_LIFE)), NOW.plus(2 * PROOF_LIFE)), Ok(()), "the old one is forgotten");
    assert_eq!(check(&old, NOW), Err("stale_proof"));
}

#[test]
fn a_request_asks_for_nothing_but_a_name_and_a_key() {
    let request = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("worker-1");
        params.custom_extensions = vec![extension(WIREGUARD_KEY, wireguard_key().to_vec())];
        change(&mut params);
        let key = IdentityKey::generate(&mut rand::rng());
        params.serialize_request(&key).unwrap().pem().unwrap()
    };
    let why = |text: &str| CertificateRequest::parse(text).unwrap_err().to_string();
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ecdsa = CertificateParams::default().serialize_request(&by_ecdsa).unwrap().pem().unwrap();
    let good = request(&|_| {});
    let der = pem::parse(&good).unwrap().into_contents();
    let longer = [&[0x30, 0x83, 0x00][..], &der[2..]].concat();
    let longer = if der[1] == 0x82 { longer } else { [&[0x30, 0x82, 0x00][..], &der[2..]].concat() };
    let in_pem = |der: Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));

    assert!(CertificateRequest::parse(&good).is_ok());
    for (case, text, expected) in [
        ("nothing", String::new(), "not PEM"),
        ("a certificate", root().certificate().pem(), "not a CERTIFICATE REQUEST"),
        ("too long", "A".repeat(5000), "longer than 4096"),
        ("no WireGuard key", request(&|p| p.custom_extensions.clear()), "no WireGuard key"),
        ("two", request(&|p| p.custom_extensions.push(extension(WIREGUARD_KEY, vec![9; 32]))), ""),
        ("a weak one", request(&|p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![0; 32])]), "weak"),
        (
            "a short one",
            request(&|p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![7; 16])]),
            "not 32 bytes",
        ),
        ("groups", request(&|p| p.custom_extensions.push(extension(GROUPS, list(&["gpu"])))), "does not choose"),
        ("a SAN", request(&|p| p.subject_alt_names = vec![dns("coordinator.lab.internal")]), "does not choose"),
        ("a bad name", request(&|p| p.distinguished_name = subject("Worker 1")), "not a DNS label"),
        (
            "no name",
            request(&|p| p.distinguished_name = rcgen::DistinguishedName::new()),
            "not exactly one common name",
        ),
        ("ECDSA", ecdsa, "not Ed25519"),
        ("a longer header", in_pem(longer), ""),
        ("a byte after its end", in_pem([&der[..], &[0]].concat()), ""),
    ] {
        assert!(why(&text).contains(expected), "{case}: {}", why(&text));
    }
}

#[test]
fn a_token_has_one_form_and_names_its_coordinators_plainly() {
    let token = |urls: &[&str]| {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        JoinToken::generate(urls, MeshName::new("lab").unwrap(), Fingerprint([3; 32]), &mut rand::rng())
    };
    let good = token(&["https://10.0.0.1:8080"]).unwrap().to_text();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(good.strip_prefix("wm1.").unwrap()).unwrap();
    let text = |bytes: &[u8]| format!("wm1.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    assert_eq!(bytes[0], 0x84);

    assert!(format!(" {}\n", *good).parse::<JoinToken>().is_ok(), "as it is pasted");
    for (case, changed) in [
        ("bytes after it", text(&[&bytes[..], &[0]].concat())),
        ("a fifth part", text(&[&[0x85][..], &bytes[1..], &[0xf6]].concat())),
        ("a longer form", text(&[&[0x98, 4][..], &bytes[1..]].concat())),
        ("an indefinite form", text(&[&[0x9f][..], &bytes[1..], &[0xff]].concat())),
        ("padding", format!("{}=", *good)),
        ("another version", good.replace("wm1.", "wm2.")),
        ("a megabyte", format!("wm1.{}", "A".repeat(1 << 20))),
    ] {
        let bad = changed.parse::<JoinToken>().expect_err(case);
        assert!(!bad.to_string().contains(&good[20..40]), "{case}: the message repeats the token");
    }
    for urls in
        [&[][..], &["http://x.example"], &["https://"], &["https://x.example\u{1b}[2J"], &["https://x\n.example"]]
    {
        assert!(token(urls).is_err(), "{urls:?}");
    }
    assert!(token(&["https://x.example"; MAX_URLS + 1]).is_err());
    assert!(token(&[&format!("https://x.example/{}", "a".repeat(256))]).is_err());
}

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
            member.message(&minicbor::to_vec(record()).unwrap()),
            root().authority().sign_revocations(&list).unwrap().as_bytes().to_vec(),
        ]
    })
}

struct Member {
    key: IdentityKey,
    chain: Chain,
}

impl Member {
    /// A record, whatever it holds, rightly signed.
    fn message(&self, payload: &[u8]) -> Vec<u8> {
        sign(&self.key, &self.chain, b"wiremesh/1/record", payload)
    }

    fn envelope(&self, header: HeaderBuilder, payload: &[u8]) -> Vec<u8> {
        CoseSign1Builder::new()
            .protected(header.build())
            .payload(payload.to_vec())
            .create_signature(b"wiremesh/1/record", |message| self.key.sign(message).to_vec())
            .build()
            .to_vec()
            .unwrap()
    }

    /// An envelope of these header bytes as they are.
    fn resigned(&self, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        let mut encoder = Encoder::new(&mut message);
        encoder.array(4).unwrap().str("Signature1").unwrap().bytes(header).unwrap();
        encoder.bytes(b"wiremesh/1/record").unwrap().bytes(payload).unwrap();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes);
        encoder.array(4).unwrap().bytes(header).unwrap().map(0).unwrap().bytes(payload).unwrap();
        encoder.bytes(&self.key.sign(&message)).unwrap();
        bytes
    }
}

fn sign(key: &IdentityKey, chain: &Chain, domain: &[u8], payload: &[u8]) -> Vec<u8> {
    let x5chain = Value::Bytes(chain.leaf().to_vec());
    CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA).value(X5CHAIN, x5chain).build())
        .payload(payload.to_vec())
        .create_signature(domain, |message| key.sign(message).to_vec())
        .build()
        .to_vec()
        .unwrap()
}

/// The protected header of `envelope` with its algorithm, -8, in two bytes instead of one.
fn long_form_of_the_algorithm(envelope: &[u8]) -> Vec<u8> {
    let mut decoder = minicbor::Decoder::new(envelope);
    decoder.array().unwrap();
    let header = decoder.bytes().unwrap();
    assert_eq!(header[..3], [0xa2, 0x01, 0x27]);
    [&[0xa2, 0x01, 0x38, 0x07][..], &header[3..]].concat()
}

/// A record with its first number in nine bytes, though small enough for fewer.
fn long_form_of_the_sequence(payload: &[u8]) -> Vec<u8> {
    let mut decoder = minicbor::Decoder::new(payload);
    decoder.array().unwrap();
    assert_eq!(decoder.datatype().unwrap(), Type::U8);
    let number = decoder.u8().unwrap();
    [&[0x87, 0x1b][..], &u64::from(number).to_be_bytes(), &payload[decoder.position()..]].concat()
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
