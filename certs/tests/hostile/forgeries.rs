//! Certificates of nodes whose bytes were changed, that somebody else signed, or that are none.

use rcgen::SerialNumber;
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    certificates::NOT_A_NODES,
    forge::*,
    world::*,
};

#[test]
fn what_the_forge_changes_to_the_same_is_believed() {
    let serial = serial_bytes();
    let node = root().node(|p| p.serial_number = Some(SerialNumber::from_slice(&serial)));

    assert!(verify(vec![root().resigned(&node, &serial, &serial)]).is_ok());
}

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

pub fn cases() -> Vec<Case> {
    [of_other_keys(), changed_bytes(), no_chains(), revoked()].into_iter().flatten().collect()
}

fn of_other_keys() -> Vec<Case> {
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let foreign = node_params("lab", "worker-1", "10.42.0.7").self_signed(&by_ecdsa).unwrap().der().to_vec();
    [
        ("an RSA key", root().node_for(&rsa_key(), |_| {}), "its key is not Ed25519"),
        ("an ECDSA key", root().node_for(&ecdsa_key(), |_| {}), "its key is not Ed25519"),
        ("signed by ECDSA", foreign, "its signature is not Ed25519"),
    ]
    .map(|(name, der, why)| Case::new(name, verify(vec![der]), "bad_certificate", outside_the_profile(why)))
    .into()
}

/// Bytes changed without the authority's key, or with it.
fn changed_bytes() -> Vec<Case> {
    let serial = serial_bytes();
    let node = root().node(|p| p.serial_number = Some(SerialNumber::from_slice(&serial)));
    let with_serial = |to: &[u8]| root().resigned(&node, &serial, to);
    let negative = [&[0x80][..], &serial[1..]].concat();
    let padded = [&[0x00, 0x01][..], &serial[2..]].concat();
    let by_another = wrapped(signed_part(&node), &Ca::root("lab").key.sign(signed_part(&node)));
    let mut one_bit = node.clone();
    *one_bit.last_mut().unwrap() ^= 1;
    let ed448 = root().resigned(&node, &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70], &[0x30, 5, 6, 3, 0x2b, 0x65, 0x71]);

    let malformed = [
        ("a longer outer header, still signed", with_long_header(&node), "its signature is not Ed25519"),
        ("a byte after its end", [&node[..], &[0]].concat(), "bytes after its end"),
        ("a byte missing", node[..node.len() - 1].to_vec(), "not X.509 in DER"),
        ("half a certificate", node[..node.len() / 2].to_vec(), "not X.509 in DER"),
        ("no byte of a certificate", vec![], "not X.509 in DER"),
        ("a negative serial", with_serial(&negative), BAD_SERIAL),
        ("a serial with needless zeros", with_serial(&padded), BAD_SERIAL),
        ("a serial of zero", with_serial(&[0; 16]), BAD_SERIAL),
        ("two signature algorithms", ed448, "two different signature algorithms"),
        ("version 2", root().resigned(&node, &[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1]), "not X.509 version 3"),
        ("the authority as a node", root().der.clone(), NOT_A_NODES),
    ];
    let foreign = [
        ("one bit changed", vec![one_bit]),
        ("a signature and the group order", vec![with_second_signature(&node)]),
        ("a signature by another key", vec![by_another]),
        ("another issuer's name", vec![root().resigned(&node, b"\x0c\x03lab", b"\x0c\x03lob")]),
        ("another authority of the same name", vec![Ca::root("lab").node(|_| {})]),
        ("a node's certificate above it", vec![node.clone(), node.clone()]),
    ];
    let malformed = malformed
        .map(|(name, der, why)| Case::new(name, verify(vec![der]), "bad_certificate", outside_the_profile(why)));
    let foreign = foreign.map(|(name, ders)| Case::new(name, verify(ders), "another_authority", another_authority()));
    malformed.into_iter().chain(foreign).collect()
}

const BAD_SERIAL: &str = "a serial number that is not positive or not in its shortest form";

/// Refused before anybody looks into them.
fn no_chains() -> Vec<Case> {
    let node = root().node(|_| {});
    let pem = |text: &str| Chain::from_pem(text);
    let block = "-----BEGIN CERTIFICATE-----\n";
    [
        ("a chain of four certificates", Chain::from_ders(vec![node; 4]), "a chain has one to three certificates"),
        ("a chain of none", Chain::from_ders(Vec::new()), "a chain has one to three certificates"),
        ("a certificate of 2049 bytes", Chain::from_ders(vec![vec![0; 2049]]), "longer than 2048 bytes"),
        ("a megabyte of PEM", pem(&block.repeat(40_000)), "more text than a chain can have"),
        ("PEM that never ends", pem(block), "no CERTIFICATE block in it"),
        ("PEM of a key", pem(&root().key.to_pkcs8_pem()), "a PEM block that is no CERTIFICATE"),
        ("PEM of no base64", pem(&format!("{block}!!!\n-----END CERTIFICATE-----\n")), "not PEM"),
    ]
    .map(|(name, read, why)| Case::new(name, read, "bad_certificate", outside_the_profile(why)))
    .into()
}

fn revoked() -> Vec<Case> {
    let member = member();
    let verified = root().trust().verify(&member.chain, NOW).unwrap();
    let under = |list: RevocationList| {
        let mut trust = root().trust();
        trust.apply_revocations(&root().authority().sign_revocations(&list).unwrap(), NOW).unwrap();
        trust.verify(&member.chain, NOW)
    };
    let (serials, identities) = ([verified.serial()].into(), [verified.id()].into());
    let by_serial = under(RevocationList { number: 1, serials, ..RevocationList::default() });
    let by_key = under(RevocationList { number: 1, identities, ..RevocationList::default() });
    let says = format!("its certificate {} is revoked", verified.serial());
    vec![
        Case::new("a node revoked by its serial", by_serial, "revoked", says.clone()),
        Case::new("a node revoked by its key", by_key, "revoked", says),
    ]
}

/// RFC 8032, section 5.1.7: S must be less than the group order L; S + L would be a second signature of the same thing.
fn with_second_signature(der: &[u8]) -> Vec<u8> {
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut changed = der.to_vec();
    let at = changed.len() - 32;
    let mut carry = 0u16;
    for (byte, add) in changed[at..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    changed
}
