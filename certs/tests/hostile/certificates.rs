//! Certificates of nodes, signed by the mesh's own authority: outside the profile, or within it and not to be believed.

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SerialNumber,
};
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

type Change = fn(&mut CertificateParams);

#[test]
fn what_the_forge_makes_unchanged_is_believed() {
    let verified = verify(vec![root().node(|_| {})]).unwrap();

    assert_eq!(verified.name().as_str(), "worker-1");
}

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

/// The checks that a person is shown are those that decide.
#[test]
fn examining_and_verifying_agree() {
    let intermediate = root().intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let mut chains: Vec<Vec<Vec<u8>>> = changed().map(|(_, change, ..)| vec![root().node(change)]).collect();
    chains.extend([
        vec![root().node(|_| {})],
        vec![Ca::root("lab").node(|_| {})],
        vec![intermediate.node(|_| {}), intermediate.der.clone()],
        vec![intermediate.node(|p| readdress(p, "10.42.1.7")), intermediate.der.clone()],
        vec![vec![0x30]],
    ]);

    for (at, ders) in chains.into_iter().enumerate() {
        let Ok(chain) = Chain::from_ders(ders) else { continue };
        let first = root().trust().examine(&chain, NOW).into_iter().find_map(|(_, outcome)| outcome.err());
        assert_eq!(root().trust().verify(&chain, NOW).err(), first, "chain {at}");
    }
}

pub fn cases() -> Vec<Case> {
    changed()
        .map(|(name, change, reason, says)| Case::new(name, verify(vec![root().node(change)]), reason, says))
        .collect()
}

/// What is changed of a good certificate before it is signed.
fn changed() -> impl Iterator<Item = (&'static str, Change, &'static str, String)> {
    let outside = OUTSIDE_THE_PROFILE
        .iter()
        .map(|(name, change, why)| (*name, *change, "bad_certificate", outside_the_profile(why)));
    let disbelieved =
        DISBELIEVED.iter().map(|(name, change, reason, says)| (*name, *change, *reason, says.to_string()));
    outside.chain(disbelieved)
}

const OUTSIDE_THE_PROFILE: &[(&str, Change, &str)] = &[
    (
        "a second SAN extension",
        |p| p.custom_extensions.push(extension(SUBJECT_ALT_NAME, list(&[]))),
        "the same extension twice",
    ),
    (
        "a second WireGuard key",
        |p| p.custom_extensions.push(extension(WIREGUARD_KEY, vec![1; 32])),
        "the same extension twice",
    ),
    (
        "a second key usage",
        |p| p.custom_extensions.push(critical(KEY_USAGE, vec![3, 2, 7, 0x80])),
        "the same extension twice",
    ),
    ("two DNS names", |p| p.subject_alt_names.push(dns("worker-2.lab.internal")), "two alternative names of one kind"),
    (
        "two addresses",
        |p| p.subject_alt_names.push(SanType::IpAddress("10.42.0.8".parse().unwrap())),
        "two alternative names of one kind",
    ),
    ("two URIs", |p| p.subject_alt_names.push(uri("wiremesh://lab/worker-2")), "two alternative names of one kind"),
    (
        "one DNS name twice",
        |p| p.subject_alt_names.push(dns("worker-1.lab.internal")),
        "two alternative names of one kind",
    ),
    (
        "a mail address",
        |p| p.subject_alt_names.push(SanType::Rfc822Name("a@b.example".try_into().unwrap())),
        "an alternative name that is no address, DNS name or URI",
    ),
    ("no address", |p| drop(p.subject_alt_names.remove(0)), MISSING_NAME),
    ("no DNS name", |p| drop(p.subject_alt_names.remove(1)), MISSING_NAME),
    ("no URI", |p| drop(p.subject_alt_names.remove(2)), MISSING_NAME),
    ("no SAN", |p| p.subject_alt_names.clear(), "no subject alternative name"),
    (
        "an address of five bytes",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(extension(SUBJECT_ALT_NAME, address_alone(&[10, 42, 0, 7, 1])));
        },
        "an address of neither 4 nor 16 bytes",
    ),
    (
        "a SAN that cannot be read",
        |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(extension(SUBJECT_ALT_NAME, vec![0x30, 0x05, 0x87]));
        },
        "an extension that cannot be read",
    ),
    (
        "another DNS name than URI",
        |p| p.subject_alt_names[1] = dns("worker-2.lab.internal"),
        "its DNS name and its URI differ",
    ),
    ("a wildcard", |p| p.subject_alt_names[1] = dns("*.lab.internal"), "its DNS name and its URI differ"),
    (
        "a DNS name in capitals",
        |p| p.subject_alt_names[1] = dns("Worker-1.lab.internal"),
        "its DNS name and its URI differ",
    ),
    (
        "a DNS name with a dot at its end",
        |p| p.subject_alt_names[1] = dns("worker-1.lab.internal."),
        "its DNS name and its URI differ",
    ),
    (
        "another common name",
        |p| p.distinguished_name = subject("worker-2"),
        "its subject and its alternative name differ",
    ),
    (
        "no common name",
        |p| p.distinguished_name = rcgen::DistinguishedName::new(),
        "its subject has not exactly one common name",
    ),
    (
        "a URI of another scheme",
        |p| p.subject_alt_names[2] = uri("https://lab/worker-1"),
        "its URI is not wiremesh://MESH/NAME",
    ),
    ("a URI without a name", |p| p.subject_alt_names[2] = uri("wiremesh://lab"), "its URI is not wiremesh://MESH/NAME"),
    (
        "a URI with more path",
        |p| p.subject_alt_names[2] = uri("wiremesh://lab/worker-1/x"),
        "its URI has no good node name",
    ),
    (
        "a mesh in capitals",
        |p| p.subject_alt_names[2] = uri("wiremesh://LAB/worker-1"),
        "its URI has no good mesh name",
    ),
    ("a name in capitals", |p| rename(p, "Worker-1"), "its URI has no good node name"),
    ("a name with a dot", |p| rename(p, "a.b"), "its URI has no good node name"),
    ("a name of 64 letters", |p| rename(p, &"x".repeat(64)), "its URI has no good node name"),
    ("the coordinator's name", |p| rename(p, "coordinator"), "a node may not be called coordinator"),
    (
        "an IPv4 address as IPv6",
        |p| readdress(p, "::ffff:10.42.0.7"),
        "an IPv4 address written as IPv6: one address would have two forms",
    ),
    (
        "an unknown critical extension",
        |p| p.custom_extensions.push(critical(UNKNOWN, vec![5, 0])),
        "an unknown critical extension",
    ),
    ("no WireGuard key", |p| p.custom_extensions.clear(), "no WireGuard key"),
    (
        "a short WireGuard key",
        |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![7; 31])],
        "its WireGuard key is not 32 bytes",
    ),
    ("a WireGuard key of zeros", |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![0; 32])], WEAK),
    ("a WireGuard key in a second form", |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, second_form())], WEAK),
    ("groups that are none", |p| p.custom_extensions.push(extension(GROUPS, vec![4, 1, 0])), NO_NAMES),
    (
        "a group with bytes after it",
        |p| p.custom_extensions.push(extension(GROUPS, [list(&["gpu"]), vec![0]].concat())),
        NO_NAMES,
    ),
    ("a group that is no label", |p| p.custom_extensions.push(extension(GROUPS, list(&["GPU"]))), NO_NAMES),
    ("a service that is a path", |p| p.custom_extensions.push(extension(SERVICES, list(&["a/b"]))), NO_NAMES),
    (
        "nine groups",
        |p| p.custom_extensions.push(extension(GROUPS, list(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]))),
        "too many groups or services",
    ),
    (
        "seventeen services",
        |p| p.custom_extensions.push(extension(SERVICES, list(&["a"; 17]))),
        "too many groups or services",
    ),
    ("for clients only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], NOT_FOR_A_NODE),
    ("for servers only", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], NOT_FOR_A_NODE),
    ("for code signing too", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning), NOT_FOR_A_NODE),
    ("for anything", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any), NOT_FOR_A_NODE),
    ("for no known purpose", |p| p.extended_key_usages.clear(), NOT_FOR_A_NODE),
    (
        "a node with certificate signing",
        |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
        "its key usage does not fit a node",
    ),
    (
        "a node with key agreement",
        |p| p.key_usages.push(KeyUsagePurpose::KeyAgreement),
        "its key usage does not fit a node",
    ),
    ("a node without key usage", |p| p.key_usages.clear(), "its key usage does not fit a node"),
    ("a node that is an authority", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), NOT_A_NODES),
    ("a node that is explicitly none", |p| p.is_ca = IsCa::ExplicitNoCa, NOT_A_NODES),
    (
        "a node with name constraints",
        |p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            p.name_constraints = Some(constraints("lab", "10.42.0.0", 16));
        },
        NOT_A_NODES,
    ),
    ("begun before 1970", |p| p.not_before = time::OffsetDateTime::UNIX_EPOCH - DAY, "a time before 1970"),
    (
        "longer than any of ours",
        |p| p.custom_extensions.push(extension(UNKNOWN, vec![0; 2000])),
        "longer than 2048 bytes",
    ),
    (
        "a serial of 20 bytes",
        |p| p.serial_number = Some(SerialNumber::from_slice(&[0x11; 20])),
        "a serial number of more than 128 bits",
    ),
];

const MISSING_NAME: &str = "an alternative name is missing: address, DNS name and URI are all needed";
const WEAK: &str = "its WireGuard key is weak: anybody could speak for it";
const NO_NAMES: &str = "a private extension that is no list of names";
const NOT_FOR_A_NODE: &str = "its extended key usage does not fit a node";
pub const NOT_A_NODES: &str = "an extension that a node certificate does not have";

const DISBELIEVED: &[(&str, Change, &str, &str)] = &[
    (
        "an address outside the network",
        |p| readdress(p, "10.43.0.7"),
        "outside_network",
        "its address 10.43.0.7 is not that of a node in the network 10.42.0.0/16, to which its authority is limited",
    ),
    (
        "an IPv6 address in an IPv4 mesh",
        |p| readdress(p, "fd00::7"),
        "outside_network",
        "its address fd00::7 is not that of a node in the network 10.42.0.0/16, to which its authority is limited",
    ),
    (
        "the broadcast address",
        |p| readdress(p, "10.42.255.255"),
        "outside_network",
        "its address 10.42.255.255 is not that of a node in the network 10.42.0.0/16, to which its authority is limited",
    ),
    (
        "the network's address",
        |p| readdress(p, "10.42.0.0"),
        "outside_network",
        "its address 10.42.0.0 is not that of a node in the network 10.42.0.0/16, to which its authority is limited",
    ),
    (
        "a node of another mesh",
        |p| p.subject_alt_names = names("other", "worker-1", "10.42.0.7"),
        "another_mesh",
        "it names the mesh other, which is not ours",
    ),
    (
        "a node not begun",
        |p| p.not_before = moment(NOW.plus(DAY)),
        "not_yet_valid",
        "its certificate is valid from 2027-01-16T08:00:00Z, and it is 2027-01-15T08:00:00Z",
    ),
    (
        "a node that ended this second",
        |p| p.not_after = moment(NOW),
        "expired",
        "its certificate ended at 2027-01-15T08:00:00Z, and it is 2027-01-15T08:00:00Z",
    ),
    (
        "a node that ended before it began",
        |p| {
            p.not_before = moment(NOW.plus(DAY));
            p.not_after = moment(NOW.minus(DAY));
        },
        "not_yet_valid",
        "its certificate is valid from 2027-01-16T08:00:00Z, and it is 2027-01-15T08:00:00Z",
    ),
];

fn rename(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = subject(name);
    params.subject_alt_names = names("lab", name, "10.42.0.7");
}

fn readdress(params: &mut CertificateParams, address: &str) {
    params.subject_alt_names[0] = SanType::IpAddress(address.parse().unwrap());
}

/// A SAN of nothing but an address of these bytes.
fn address_alone(address: &[u8]) -> Vec<u8> {
    [&[0x30, address.len() as u8 + 2, 0x87, address.len() as u8], address].concat()
}

/// A good key with the bit set that X25519 does not look at.
fn second_form() -> Vec<u8> {
    let mut key = wireguard_key().to_vec();
    key[31] |= 0x80;
    key
}
