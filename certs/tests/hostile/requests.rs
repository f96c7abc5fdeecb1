//! Requests for a certificate that ask for more than a name and a key, or prove nothing.

use rcgen::CertificateParams;
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::root,
};

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn a_request_for_a_name_and_a_key_is_taken() {
    assert_eq!(CertificateRequest::parse(&request(|_| {})).unwrap().name.as_str(), "worker-1");
}

type Change = fn(&mut CertificateParams);

pub fn cases() -> Vec<Case> {
    let changed = CHANGED.iter().map(|(name, change, why)| (*name, request(*change), *why));
    changed
        .chain(others())
        .map(|(name, text, why)| {
            let says = format!("not a certificate request of this kind: {why}");
            Case::new(name, CertificateRequest::parse(&text), "bad_csr", says)
        })
        .collect()
}

/// Rightly signed by the key that asks.
const CHANGED: &[(&str, Change, &str)] = &[
    ("a request without a WireGuard key", |p| p.custom_extensions.clear(), "no WireGuard key in it"),
    (
        "a request for two WireGuard keys",
        |p| p.custom_extensions.push(extension(WIREGUARD_KEY, vec![9; 32])),
        "two WireGuard keys",
    ),
    (
        "a request for a weak WireGuard key",
        |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![0; 32])],
        "its WireGuard key is weak: anybody could speak for it",
    ),
    (
        "a request for a WireGuard key of 16 bytes",
        |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![7; 16])],
        "its WireGuard key is not 32 bytes",
    ),
    ("a request for groups", |p| p.custom_extensions.push(extension(GROUPS, list(&["gpu"]))), NOT_A_CHOICE),
    ("a request for services", |p| p.custom_extensions.push(extension(SERVICES, list(&["ocr"]))), NOT_A_CHOICE),
    (
        "a request for the coordinator's DNS name",
        |p| p.subject_alt_names = vec![dns("coordinator.lab.internal")],
        NOT_A_CHOICE,
    ),
    (
        "a request to be an authority",
        // BasicConstraints with CA set.
        |p| p.custom_extensions.push(critical(&[2, 5, 29, 19], vec![0x30, 0x03, 0x01, 0x01, 0xff])),
        NOT_A_CHOICE,
    ),
    ("a request to sign certificates", |p| p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign], NOT_A_CHOICE),
    (
        "a request for a name that is none",
        |p| p.distinguished_name = subject("Worker 1"),
        "its common name is not a DNS label",
    ),
    (
        "a request for no name",
        |p| p.distinguished_name = rcgen::DistinguishedName::new(),
        "not exactly one common name",
    ),
];

const NOT_A_CHOICE: &str = "it asks for an extension that a node does not choose";

fn others() -> Vec<(&'static str, String, &'static str)> {
    let good = request(|_| {});
    let der = pem::parse(&good).unwrap().into_contents();
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ecdsa = CertificateParams::default().serialize_request(&by_ecdsa).unwrap().pem().unwrap();
    let mut by_another = der.clone();
    let at = der.len() - 64;
    by_another[at..].copy_from_slice(&IdentityKey::generate(&mut rand::rng()).sign(signed_request(&der)));
    let mut one_bit = der.clone();
    one_bit[at] ^= 1;
    // One byte more of length than is needed.
    let longer = match der[1] {
        0x82 => [&[0x30, 0x83, 0x00][..], &der[2..]].concat(),
        0x81 => [&[0x30, 0x82, 0x00][..], &der[2..]].concat(),
        _ => [&[0x30, 0x81][..], &der[1..]].concat(),
    };
    vec![
        ("no request", String::new(), "not PEM"),
        ("a certificate as a request", root().certificate().pem(), "not a CERTIFICATE REQUEST block"),
        ("a request of 5000 bytes", "A".repeat(5000), "longer than 4096 bytes"),
        ("a request of another kind of key", ecdsa, "its key is not Ed25519"),
        ("a request by another key", in_pem(by_another), "its signature is not that of its key"),
        ("a request with one bit of its signature changed", in_pem(one_bit), "its signature is not that of its key"),
        ("a request with a longer header", in_pem(longer), "its signature is not Ed25519"),
        ("a byte after the end of a request", in_pem([&der[..], &[0]].concat()), "bytes after its end"),
        ("half a request", in_pem(der[..der.len() / 2].to_vec()), "not PKCS#10 in DER"),
        ("an empty request", in_pem(Vec::new()), "not PKCS#10 in DER"),
    ]
}

fn request(change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("worker-1");
    params.custom_extensions = vec![extension(WIREGUARD_KEY, wireguard_key().to_vec())];
    change(&mut params);
    let key = IdentityKey::generate(&mut rand::rng());
    params.serialize_request(&key).unwrap().pem().unwrap()
}

/// What a request's signature covers: all between its header and the 74 bytes of algorithm and signature.
fn signed_request(der: &[u8]) -> &[u8] {
    let header = match der[1] {
        0x82 => 4,
        0x81 => 3,
        _ => 2,
    };
    &der[header..der.len() - 74]
}

fn in_pem(der: Vec<u8>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
}
