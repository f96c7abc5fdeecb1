//! TLS certificates that would pass for the coordinator's.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

type Change = fn(&mut CertificateParams);

#[test]
fn the_coordinators_own_is_believed() {
    assert_eq!(server(|_| {}), Ok(()));
}

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

pub fn cases() -> Vec<Case> {
    let outside = OUTSIDE_THE_PROFILE
        .iter()
        .map(|(name, change, why)| Case::new(*name, server(*change), "bad_certificate", outside_the_profile(why)));
    outside.chain(others()).collect()
}

const OUTSIDE_THE_PROFILE: &[(&str, Change, &str)] = &[
    (
        "another mesh's coordinator",
        |p| p.subject_alt_names = vec![dns("coordinator.other.internal")],
        "not a coordinator's",
    ),
    (
        "a node's name on a coordinator",
        |p| p.subject_alt_names = vec![dns("worker-1.lab.internal")],
        "not a coordinator's",
    ),
    ("a coordinator of two names", |p| p.subject_alt_names.push(dns("worker-1.lab.internal")), "not a coordinator's"),
    ("a coordinator of no name", |p| p.subject_alt_names.clear(), "not a coordinator's"),
    (
        "a coordinator for clients too",
        |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
        "not a coordinator's",
    ),
    ("a coordinator for anything", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any), "not a coordinator's"),
    ("a coordinator for nothing", |p| p.extended_key_usages.clear(), "not a coordinator's"),
    (
        "a coordinator with a WireGuard key",
        |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![9; 32])],
        NOT_A_COORDINATORS,
    ),
    (
        "a coordinator with an unknown extension",
        |p| p.custom_extensions = vec![extension(UNKNOWN, vec![5, 0])],
        NOT_A_COORDINATORS,
    ),
    (
        "a coordinator that may sign certificates",
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        "its key usage does not fit a server",
    ),
    ("a coordinator that is an authority", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), NOT_A_COORDINATORS),
];

const NOT_A_COORDINATORS: &str = "an extension that a coordinator's certificate does not have";

fn others() -> Vec<Case> {
    let trust = root().trust();
    let member = member();
    let (own, _) = root().authority().issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();
    let (foreign, _) = Ca::root("lab").authority().issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();
    let ended = "its certificate ended at 2027-01-16T08:00:00Z, and it is 2027-01-16T08:00:00Z";
    let node = trust.verify_coordinator(member.chain.ders(), NOW);
    let as_a_node = verify(vec![own[0].clone()]);
    vec![
        Case::new("a member as the coordinator", node, "bad_certificate", outside_the_profile(NOT_A_COORDINATORS)),
        Case::new("the coordinator as a member", as_a_node, "bad_certificate", outside_the_profile(NOT_A_NODE)),
        Case::new(
            "a coordinator of another authority",
            trust.verify_coordinator(&foreign, NOW),
            "another_authority",
            another_authority(),
        ),
        Case::new("a coordinator that ended", trust.verify_coordinator(&own, NOW.plus(DAY)), "expired", ended),
        Case::new(
            "a coordinator without a certificate",
            trust.verify_coordinator(&[] as &[Vec<u8>], NOW),
            "bad_certificate",
            outside_the_profile("no certificates, or more than a coordinator shows"),
        ),
        Case::new(
            "a coordinator with more certificates than it can need",
            trust.verify_coordinator(&vec![root().der.clone(); MAX_TLS_CHAIN + 1], NOW),
            "bad_certificate",
            outside_the_profile("no certificates, or more than a coordinator shows"),
        ),
        Case::new(
            "the authority as the coordinator",
            trust.verify_coordinator(std::slice::from_ref(&root().der), NOW),
            "bad_certificate",
            outside_the_profile("its key usage does not fit a server"),
        ),
    ]
}

const NOT_A_NODE: &str = "an alternative name is missing: address, DNS name and URI are all needed";

fn server(change: Change) -> Result<(), Refused> {
    let der = root().node(|p| {
        p.subject_alt_names = vec![dns("coordinator.lab.internal")];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        p.custom_extensions.clear();
        p.distinguished_name = subject("coordinator");
        change(p);
    });
    root().trust().verify_coordinator(&[der], NOW)
}
