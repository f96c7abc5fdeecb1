//! What a node may not say about itself, though it signs it rightly.

use minicbor::Encoder;
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::NOW,
    world::*,
};

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn at_its_bounds_a_record_is_believed() {
    let fields = Fields { load: 100, expires_at: NOW.0 + 600, endpoints: vec![&GOOD; 8], ..Fields::default() };

    assert!(open(&member().message(&fields.payload())).is_ok());
}

pub fn cases() -> Vec<Case> {
    let member = member();
    let good = Fields::default().payload();
    let no_number: Vec<u8> = [&[0x87, 0x20][..], &good[10..]].concat();
    let unreadable = [
        ("a load of 101", Fields { load: 101, ..Fields::default() }.payload()),
        ("a URL with a user", Fields { url: "https://u@x.example", ..Fields::default() }.payload()),
        ("a URL not in its normal form", Fields { url: "HTTPS://x.example", ..Fields::default() }.payload()),
        ("a URL with a slash at its end", Fields { url: "https://x.example/", ..Fields::default() }.payload()),
        ("a URL with a line end", Fields { url: "https://x.example/\n", ..Fields::default() }.payload()),
        ("a URL of a file", Fields { url: "file:///etc/passwd", ..Fields::default() }.payload()),
        ("a URL with a query", Fields { url: "https://x.example/?a=b", ..Fields::default() }.payload()),
        ("a service with a slash", Fields { services: vec!["a/b"], ..Fields::default() }.payload()),
        ("a service in capitals", Fields { services: vec!["OCR"], ..Fields::default() }.payload()),
        ("an endpoint of seven bytes", Fields { endpoints: vec![&[1; 7]], ..Fields::default() }.payload()),
        ("an endpoint of one byte", Fields { endpoints: vec![&[1]], ..Fields::default() }.payload()),
        ("nine endpoints", Fields { endpoints: vec![&GOOD; 9], ..Fields::default() }.payload()),
        ("models that are half", Fields { models: Some(&[0; 10]), ..Fields::default() }.payload()),
        ("an empty list of models", Fields { models: Some(&[]), ..Fields::default() }.payload()),
        ("seventeen models", Fields { models: Some(&[0; 9 * 17]), ..Fields::default() }.payload()),
        ("a record with an array for its models", [&[0x88][..], &good[1..], &[0x80]].concat()),
        ("a record that says it enforces no list", [&[0x89][..], &good[1..], &[0xf6, 0x00]].concat()),
        ("a record that enforces a list below zero", [&[0x89][..], &good[1..], &[0xf6, 0x20]].concat()),
        ("a record of many parts more", [&[0x8b][..], &good[1..], &[0x80, 0xf6, 0xf6, 0xf6]].concat()),
        ("a record of six parts", [&[0x86][..], &good[1..good.len() - 1]].concat()),
        ("a sequence below zero", no_number),
        ("endpoints without end", cbor(|e| _ = e.array(7).unwrap().u64(1).unwrap().u64(1).unwrap().array(u64::MAX))),
        (
            "services without end",
            cbor(|e| {
                e.array(7).unwrap().u64(1).unwrap().u64(1).unwrap().array(0).unwrap().array(u64::MAX).unwrap();
            }),
        ),
    ]
    .map(|(name, payload)| {
        let outcome = open(&member.message(&payload));
        Case::new(name, outcome, "malformed", no_message("a payload of another form"))
    });
    let second_forms = [
        ("a record that says it has no models", [&[0x88][..], &good[1..], &[0xf6]].concat()),
        ("a record with more parts than there are", [&[0x8a][..], &good[1..], &[0xf6, 0x07, 0xf6]].concat()),
    ]
    .map(|(name, payload)| {
        let outcome = open(&member.message(&payload));
        Case::new(name, outcome, "malformed", no_message("a payload in another than its one encoding"))
    });
    let out_of_bounds = [
        (
            "a life of an hour",
            Fields { expires_at: NOW.0 + 3600, ..Fields::default() },
            "a life of more than ten minutes",
        ),
        (
            "seventeen services offered",
            Fields { services: vec!["a"; 17], ..Fields::default() },
            "more than 16 services",
        ),
        ("a model of no service", Fields { models: Some(&[1; 9]), ..Fields::default() }, "a model of no service"),
    ]
    .map(|(name, fields, why)| Case::new(name, open(&member.message(&fields.payload())), "malformed", no_message(why)));
    unreadable.into_iter().chain(second_forms).chain(out_of_bounds).chain(not_signed(&member)).collect()
}

/// Nor will anybody of ours sign it.
fn not_signed(member: &Member) -> Vec<Case> {
    let record = |change: fn(&mut NodeRecord)| {
        let mut record = record();
        change(&mut record);
        Signed::sign(&record, &member.key, &member.chain)
    };
    vec![
        Case::new(
            "nine endpoints to be signed",
            record(|r| r.endpoints = vec![r.endpoints[0]; 9]),
            "not_signed",
            "cannot be signed: more than 8 endpoints",
        ),
        Case::new(
            "seventeen models to be signed",
            record(|r| r.models = vec![ModelOffer { service: 0, tag: ModelTag([0; 8]) }; 17]),
            "not_signed",
            "cannot be signed: more than 16 models",
        ),
        Case::new(
            "more than fits a datagram",
            record(|r| r.services = vec![ServiceName::new(&"x".repeat(63)).unwrap(); 16]),
            "not_signed",
            "too large to be signed",
        ),
    ]
}

const GOOD: [u8; 6] = [192, 0, 2, 1, 1, 1];

/// A record, field by field, each as it would be written.
struct Fields {
    expires_at: u64,
    endpoints: Vec<&'static [u8]>,
    services: Vec<&'static str>,
    load: u8,
    url: &'static str,
    models: Option<&'static [u8]>,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields {
            expires_at: NOW.0 + 90,
            endpoints: vec![&GOOD],
            services: vec!["ocr"],
            load: 1,
            url: "https://x.example",
            models: None,
        }
    }
}

impl Fields {
    fn payload(&self) -> Vec<u8> {
        cbor(|e: &mut Encoder<&mut Vec<u8>>| {
            e.array(if self.models.is_some() { 8 } else { 7 }).unwrap();
            e.u64(NOW.0 * 1000).unwrap().u64(self.expires_at).unwrap();
            e.array(self.endpoints.len() as u64).unwrap();
            self.endpoints.iter().for_each(|endpoint| _ = e.bytes(endpoint).unwrap());
            e.array(self.services.len() as u64).unwrap();
            self.services.iter().for_each(|service| _ = e.str(service).unwrap());
            e.u8(self.load).unwrap().str(self.url).unwrap().bool(true).unwrap();
            self.models.iter().for_each(|models| _ = e.bytes(models).unwrap());
        })
    }
}
