//! Signed messages in another than their one form, under another's certificate, or for another purpose.

use coset::{CborSerializable, CoseSign1, HeaderBuilder, TaggedCborSerializable, cbor::Value, iana};
use minicbor::{Decoder, Encoder, data::Type};
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn the_one_form_is_believed() {
    let member = member();
    let payload = minicbor::to_vec(record()).unwrap();

    assert!(open(&member.message(&payload)).is_ok());
    assert!(open(&member.envelope(header().value(X5CHAIN, leaf(&member)), &payload)).is_ok());
    assert!(open(&member.under(&header_of(&member.message(&payload)), &payload)).is_ok());
}

pub fn cases() -> Vec<Case> {
    let malformed = outlines().into_iter().chain(headers()).chain(payloads());
    let malformed = malformed.map(|(name, bytes, why)| Case::new(name, open(&bytes), "malformed", no_message(why)));
    malformed.chain(lengths()).chain(of_others()).collect()
}

type Malformed = (&'static str, Vec<u8>, &'static str);

const NO_COSE: &str = "not COSE_Sign1";
const NOT_OUR_HEADER: &str = "not exactly an algorithm and an x5chain in its header";
const SECOND_PAYLOAD: &str = "a payload in another than its one encoding";
const SECOND_ENVELOPE: &str = "an envelope in another than its one encoding";
const OTHER_PAYLOAD: &str = "a payload of another form";

/// What stands around header and payload.
fn outlines() -> Vec<Malformed> {
    let member = member();
    let payload = minicbor::to_vec(record()).unwrap();
    let good = member.message(&payload);
    let parsed = || CoseSign1::from_slice(&good).unwrap();
    let mut detached = parsed();
    detached.payload = None;
    let mut unprotected = parsed();
    unprotected.unprotected = HeaderBuilder::new().key_id(vec![1]).build();
    let mut short = parsed();
    short.signature.pop();
    let mut long = parsed();
    long.signature.push(0);
    let header = header_of(&good);
    let parts = |write: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| cbor(|encoder| write(encoder));
    vec![
        ("no byte of a message", vec![], NO_COSE),
        ("a message cut in half", good[..good.len() / 2].to_vec(), NO_COSE),
        ("a message without its last byte", good[..good.len() - 1].to_vec(), NO_COSE),
        ("a byte after the end of a message", [&good[..], &[0]].concat(), "bytes after its end"),
        ("a message with a tag", parsed().to_tagged_vec().unwrap(), NO_COSE),
        ("a message of indefinite length", [&[0x9f][..], &good[1..], &[0xff]].concat(), NO_COSE),
        ("a message of five parts", [&[0x85][..], &good[1..], &[0]].concat(), NO_COSE),
        ("a message of three parts", [&[0x83][..], &good[1..]].concat(), NO_COSE),
        ("a message with its length in two bytes", [&[0x98, 4][..], &good[1..]].concat(), SECOND_ENVELOPE),
        ("an unprotected header", unprotected.to_vec().unwrap(), "an unprotected header"),
        ("no payload", detached.to_vec().unwrap(), "no payload"),
        ("a short signature", short.to_vec().unwrap(), "a signature of not 64 bytes"),
        ("a long signature", long.to_vec().unwrap(), "a signature of not 64 bytes"),
        (
            "an unprotected header of indefinite length",
            parts(&|e| {
                e.array(4).unwrap().bytes(&header).unwrap().begin_map().unwrap().end().unwrap();
                e.bytes(&payload).unwrap().bytes(&[0; 64]).unwrap();
            }),
            "an unprotected header",
        ),
        (
            "a payload in pieces",
            parts(&|e| {
                e.array(4).unwrap().bytes(&header).unwrap().map(0).unwrap();
                e.begin_bytes().unwrap().bytes(&payload).unwrap().end().unwrap().bytes(&[0; 64]).unwrap();
            }),
            NO_COSE,
        ),
        (
            "a payload that is text",
            parts(&|e| {
                e.array(4).unwrap().bytes(&header).unwrap().map(0).unwrap();
                e.str("hello").unwrap().bytes(&[0; 64]).unwrap();
            }),
            NO_COSE,
        ),
        (
            "a payload longer than there are bytes",
            [&[0x84, 0x40, 0xa0, 0x5b][..], &u64::MAX.to_be_bytes(), &[0; 64]].concat(),
            NO_COSE,
        ),
        ("an array of 2^64 parts", [&[0x9b][..], &u64::MAX.to_be_bytes()].concat(), NO_COSE),
    ]
}

/// The protected header: rightly signed, and not ours.
fn headers() -> Vec<Malformed> {
    let member = member();
    let payload = minicbor::to_vec(record()).unwrap();
    let leaf = || leaf(&member);
    let with = |header: HeaderBuilder| member.envelope(header, &payload);
    let raw = |write: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| member.under(&cbor(|encoder| write(encoder)), &payload);
    let der = member.chain.leaf();
    vec![
        (
            "another algorithm",
            with(HeaderBuilder::new().algorithm(iana::Algorithm::ES256).value(X5CHAIN, leaf())),
            NOT_OUR_HEADER,
        ),
        ("no algorithm", with(HeaderBuilder::new().value(X5CHAIN, leaf())), NOT_OUR_HEADER),
        ("no certificate", with(header()), NOT_OUR_HEADER),
        ("an unknown header", with(header().value(X5CHAIN, leaf()).value(99, Value::Null)), NOT_OUR_HEADER),
        ("a key id", with(header().key_id(vec![1]).value(X5CHAIN, leaf())), NOT_OUR_HEADER),
        (
            "critical headers",
            with(header().add_critical(iana::HeaderParameter::Alg).value(X5CHAIN, leaf())),
            NOT_OUR_HEADER,
        ),
        (
            "a chain of one in an array",
            with(header().value(X5CHAIN, Value::Array(vec![leaf()]))),
            "an x5chain that is no chain",
        ),
        ("an empty chain", with(header().value(X5CHAIN, Value::Array(vec![]))), "an x5chain that is no chain"),
        ("a chain that is a number", with(header().value(X5CHAIN, Value::from(1))), "an x5chain that is no chain"),
        (
            "an x5chain of four",
            with(header().value(X5CHAIN, Value::Array(vec![Value::Bytes(vec![1]); 4]))),
            "an x5chain of more than it may hold",
        ),
        (
            "a chain of numbers",
            with(header().value(X5CHAIN, Value::Array(vec![Value::from(1); 2]))),
            "a certificate that is not bytes",
        ),
        (
            "a header twice",
            raw(&|e| {
                e.map(3).unwrap().u8(1).unwrap().i8(-8).unwrap().u8(33).unwrap().bytes(der).unwrap();
                e.u8(33).unwrap().bytes(der).unwrap();
            }),
            NO_COSE,
        ),
        (
            "an algorithm twice",
            raw(&|e| {
                e.map(3).unwrap().u8(1).unwrap().i8(-8).unwrap().u8(1).unwrap().i8(-8).unwrap();
                e.u8(33).unwrap().bytes(der).unwrap();
            }),
            NO_COSE,
        ),
        (
            "headers in another order",
            raw(&|e| {
                e.map(2).unwrap().u8(33).unwrap().bytes(der).unwrap().u8(1).unwrap().i8(-8).unwrap();
            }),
            SECOND_ENVELOPE,
        ),
        (
            "headers of indefinite length",
            raw(&|e| {
                e.begin_map().unwrap().u8(1).unwrap().i8(-8).unwrap().u8(33).unwrap().bytes(der).unwrap();
                e.end().unwrap();
            }),
            SECOND_ENVELOPE,
        ),
        (
            "a certificate in pieces",
            raw(&|e| {
                e.map(2).unwrap().u8(1).unwrap().i8(-8).unwrap().u8(33).unwrap();
                e.begin_bytes().unwrap().bytes(&der[..9]).unwrap().bytes(&der[9..]).unwrap().end().unwrap();
            }),
            SECOND_ENVELOPE,
        ),
        (
            "a header in a longer form",
            member.under(&long_form_of_the_algorithm(&header_of(&member.message(&payload))), &payload),
            SECOND_ENVELOPE,
        ),
        ("no header", member.under(&[], &payload), NOT_OUR_HEADER),
        ("a header that is an array", member.under(&[0x80], &payload), NO_COSE),
        (
            "a byte after the header",
            raw(&|e| {
                e.map(0).unwrap().u8(0).unwrap();
            }),
            NO_COSE,
        ),
    ]
}

/// Payloads, rightly signed.
fn payloads() -> Vec<Malformed> {
    let member = member();
    let payload = minicbor::to_vec(record()).unwrap();
    vec![
        ("a payload in a longer form", member.message(&long_form_of_the_sequence(&payload)), SECOND_PAYLOAD),
        ("a payload and more", member.message(&[&payload[..], &[0]].concat()), SECOND_PAYLOAD),
        (
            "a payload of indefinite length",
            member.message(&[&[0x9f][..], &payload[1..], &[0xff]].concat()),
            SECOND_PAYLOAD,
        ),
        ("a payload that is a map", member.message(&[0xa0]), OTHER_PAYLOAD),
        ("a payload of no byte", member.message(&[]), OTHER_PAYLOAD),
        ("a payload cut short", member.message(&payload[..payload.len() - 1]), OTHER_PAYLOAD),
        ("a payload of a thousand nested arrays", member.message(&[0x81; 400]), OTHER_PAYLOAD),
    ]
}

/// Refused before anybody looks into them.
fn lengths() -> Vec<Case> {
    let record = SignedRecord::from_bytes(&[0; MAX_RECORD_BYTES + 1]);
    let text = SignedRecord::from_base64(&"A".repeat(1 << 20));
    let long_header = {
        let bytes = cbor(|e| {
            e.array(4).unwrap().bytes(&[0; 7000]).unwrap().map(0).unwrap().bytes(&[]).unwrap().bytes(&[0; 64]).unwrap();
        });
        root().trust().apply_revocations(&SignedRevocations::from_bytes(&bytes).unwrap(), NOW)
    };
    let nested = {
        let header = [vec![0x81; 4000], vec![0xf6]].concat();
        let bytes = cbor(|e| {
            e.array(4).unwrap().bytes(&header).unwrap().map(0).unwrap().bytes(&[]).unwrap().bytes(&[0; 64]).unwrap();
        });
        root().trust().apply_revocations(&SignedRevocations::from_bytes(&bytes).unwrap(), NOW)
    };
    let long_certificate = {
        let bytes = sign(&root().key, &[1; 2049], REVOCATIONS, &[]);
        root().trust().apply_revocations(&SignedRevocations::from_bytes(&bytes).unwrap(), NOW)
    };
    vec![
        Case::new(
            "a certificate of 2049 bytes in a message",
            long_certificate,
            "malformed",
            no_message("an x5chain of more than it may hold"),
        ),
        Case::new("a record of 1101 bytes", record, "malformed", no_message("too long")),
        Case::new("a megabyte of base64", text, "malformed", no_message("too long")),
        Case::new(
            "a message that is not base64url",
            SignedRecord::from_base64("a+/="),
            "malformed",
            no_message("not base64url"),
        ),
        Case::new(
            "a header longer than a chain",
            long_header,
            "malformed",
            no_message("a header longer than a chain can be"),
        ),
        Case::new("a header of a thousand nested arrays", nested, "malformed", no_message(NO_COSE)),
    ]
}

/// In the right form, by somebody else or as something else.
fn of_others() -> Vec<Case> {
    let member = member();
    let payload = minicbor::to_vec(record()).unwrap();
    let stranger = member_of(&Ca::root("lab").authority());
    let other = IdentityKey::generate(&mut rand::rng());
    let mut changed = member.message(&payload);
    let last = changed.len() - 1;
    changed[last] ^= 1;
    let wrong = "its signature is not that of its certificate's key, or it was changed";
    let cases = [
        ("a proof as a record", member.signed(PROOF, &payload)),
        ("a list of revocations as a record", member.signed(REVOCATIONS, &payload)),
        ("a record of another version", member.signed(b"wiremesh/2/record", &payload)),
        ("a record for no purpose", member.signed(b"", &payload)),
        ("a record under another's certificate", sign(&other, member.chain.leaf(), RECORD, &payload)),
        ("a record with one bit of its signature changed", changed),
        ("a record by a key that anybody has", by_a_weak_key()),
    ];
    let mut cases: Vec<Case> =
        cases.into_iter().map(|(name, bytes)| Case::new(name, open(&bytes), "wrong_signature", wrong)).collect();
    let as_proof = Signed::<RequestProof>::from_bytes(&member.message(&payload)).unwrap();
    let as_proof = root().trust().open(&as_proof, NOW);
    cases.push(Case::new("a record as a proof", as_proof, "malformed", no_message(OTHER_PAYLOAD)));
    cases.push(Case::new(
        "a record of another mesh's member",
        open(&stranger.message(&payload)),
        "another_authority",
        another_authority(),
    ));
    let authority = sign(&root().key, &root().der, RECORD, &payload);
    cases.push(Case::new(
        "a record by the authority itself",
        open(&authority),
        "bad_certificate",
        outside_the_profile("an extension that a node certificate does not have"),
    ));
    let ended = open(&sign(&member.key, &ended_of(&member), RECORD, &payload));
    let says = "its certificate ended at 2027-01-14T08:00:00Z, and it is 2027-01-15T08:00:00Z";
    cases.push(Case::new("a record under a certificate that ended", ended, "expired", says));
    cases
}

/// A record under a certificate for a point of small order, which no honest authority signs for: with such a key some
/// signatures hold for any message.
fn by_a_weak_key() -> Vec<u8> {
    let mut key = [0; 32];
    key[0] = 1;
    let leaf = root().node_for(&public_key(&key), |_| {});
    let payload = minicbor::to_vec(record()).unwrap();
    let mut bytes = sign(&IdentityKey::generate(&mut rand::rng()), &leaf, RECORD, &payload);
    // R the same point, S zero: S·B = R + k·A for every k.
    let at = bytes.len() - 64;
    bytes[at..at + 32].copy_from_slice(&key);
    bytes[at + 32..].fill(0);
    bytes
}

fn ended_of(member: &Member) -> Vec<u8> {
    root().node_for(&public_key(&member.key.id().0), |p| p.not_after = moment(NOW.minus(DAY)))
}

fn header() -> HeaderBuilder {
    HeaderBuilder::new().algorithm(iana::Algorithm::EdDSA)
}

fn leaf(member: &Member) -> Value {
    Value::Bytes(member.chain.leaf().to_vec())
}

/// The protected header of an envelope.
fn header_of(envelope: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(envelope);
    decoder.array().unwrap();
    decoder.bytes().unwrap().to_vec()
}

/// A header with its algorithm, -8, in two bytes instead of one.
fn long_form_of_the_algorithm(header: &[u8]) -> Vec<u8> {
    assert_eq!(header[..3], [0xa2, 0x01, 0x27]);
    [&[0xa2, 0x01, 0x38, 0x07][..], &header[3..]].concat()
}

/// A record with its first number in nine bytes, though small enough for fewer.
fn long_form_of_the_sequence(payload: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(payload);
    decoder.array().unwrap();
    assert_eq!(decoder.datatype().unwrap(), Type::U8);
    let number = decoder.u8().unwrap();
    [&[0x87, 0x1b][..], &u64::from(number).to_be_bytes(), &payload[decoder.position()..]].concat()
}
