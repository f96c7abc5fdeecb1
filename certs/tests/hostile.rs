//! Certificates and chains as an attacker would make them, each with the reason for which it is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/forge.rs"]
mod forge;

use forge::*;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SanType,
};
use wiremesh_certs::*;

type Change = fn(&mut CertificateParams);

#[test]
fn what_the_forge_makes_unchanged_is_believed() {
    let root = Ca::root("lab");

    let verified = verify(&root, vec![root.node(|_| {})]).unwrap();

    assert_eq!(verified.name().as_str(), "worker-1");
}

#[test]
fn a_node_certificate_outside_the_profile_is_refused_though_rightly_signed() {
    let root = Ca::root("lab");
    let cases: &[(&str, Change, &str, &str)] = &[
        (
            "a second SAN extension",
            |p| p.custom_extensions.push(extension(SUBJECT_ALT_NAME, list(&[]))),
            "bad_certificate",
            "the same extension twice",
        ),
        (
            "a second WireGuard key",
            |p| p.custom_extensions.push(extension(WIREGUARD_KEY, vec![1; 32])),
            "bad_certificate",
            "the same extension twice",
        ),
        (
            "a second key usage",
            |p| p.custom_extensions.push(critical(KEY_USAGE, vec![3, 2, 7, 0x80])),
            "bad_certificate",
            "the same extension twice",
        ),
        (
            "two DNS names",
            |p| p.subject_alt_names.push(dns("worker-2.lab.internal")),
            "bad_certificate",
            "two alternative names of one kind",
        ),
        (
            "two addresses",
            |p| p.subject_alt_names.push(SanType::IpAddress("10.42.0.8".parse().unwrap())),
            "bad_certificate",
            "two alternative names of one kind",
        ),
        (
            "two URIs",
            |p| p.subject_alt_names.push(uri("wiremesh://lab/worker-2")),
            "bad_certificate",
            "two alternative names of one kind",
        ),
        (
            "a mail address",
            |p| p.subject_alt_names.push(SanType::Rfc822Name("a@b.example".try_into().unwrap())),
            "bad_certificate",
            "no address, DNS name or URI",
        ),
        ("no address", |p| drop(p.subject_alt_names.remove(0)), "bad_certificate", "an alternative name is missing"),
        ("no DNS name", |p| drop(p.subject_alt_names.remove(1)), "bad_certificate", "an alternative name is missing"),
        ("no URI", |p| drop(p.subject_alt_names.remove(2)), "bad_certificate", "an alternative name is missing"),
        ("no SAN", |p| p.subject_alt_names.clear(), "bad_certificate", "no subject alternative name"),
        (
            "another DNS name than URI",
            |p| p.subject_alt_names[1] = dns("worker-2.lab.internal"),
            "bad_certificate",
            "its DNS name and its URI differ",
        ),
        (
            "a wildcard",
            |p| p.subject_alt_names[1] = dns("*.lab.internal"),
            "bad_certificate",
            "its DNS name and its URI differ",
        ),
        (
            "another common name",
            |p| p.distinguished_name = subject("worker-2"),
            "bad_certificate",
            "its subject and its alternative name differ",
        ),
        (
            "no common name",
            |p| p.distinguished_name = rcgen::DistinguishedName::new(),
            "bad_certificate",
            "not exactly one common name",
        ),
        (
            "a URI of another scheme",
            |p| p.subject_alt_names[2] = uri("https://lab/worker-1"),
            "bad_certificate",
            "not wiremesh://MESH/NAME",
        ),
        ("a name in capitals", |p| rename(p, "Worker-1"), "bad_certificate", "no good node name"),
        ("a name with a dot", |p| rename(p, "a.b"), "bad_certificate", "no good node name"),
        ("the coordinator's name", |p| rename(p, "coordinator"), "bad_certificate", "may not be called coordinator"),
        (
            "an IPv4 address as IPv6",
            |p| readdress(p, "::ffff:10.42.0.7"),
            "bad_certificate",
            "one address would have two forms",
        ),
        (
            "an address outside the network",
            |p| readdress(p, "10.43.0.7"),
            "outside_network",
            "10.43.0.7 is not that of a node in the network 10.42.0.0/16",
        ),
        ("an IPv6 address in an IPv4 mesh", |p| readdress(p, "fd00::7"), "outside_network", "fd00::7"),
        ("the broadcast address", |p| readdress(p, "10.42.255.255"), "outside_network", "10.42.255.255"),
        ("the network's address", |p| readdress(p, "10.42.0.0"), "outside_network", "10.42.0.0 is"),
        (
            "another mesh",
            |p| p.subject_alt_names = names("other", "worker-1", "10.42.0.7"),
            "another_mesh",
            "the mesh other",
        ),
        (
            "an unknown critical extension",
            |p| p.custom_extensions.push(critical(UNKNOWN, vec![5, 0])),
            "bad_certificate",
            "an unknown critical extension",
        ),
        ("no WireGuard key", |p| p.custom_extensions.clear(), "bad_certificate", "no WireGuard key"),
        (
            "a short WireGuard key",
            |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![7; 31])],
            "bad_certificate",
            "WireGuard key is not 32 bytes",
        ),
        (
            "a WireGuard key of zeros",
            |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![0; 32])],
            "bad_certificate",
            "WireGuard key is weak",
        ),
        (
            "a WireGuard key in a second form",
            |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, second_form())],
            "bad_certificate",
            "WireGuard key is weak",
        ),
        (
            "groups that are none",
            |p| p.custom_extensions.push(extension(GROUPS, vec![4, 1, 0])),
            "bad_certificate",
            "no list of names",
        ),
        (
            "a group with bytes after it",
            |p| p.custom_extensions.push(extension(GROUPS, [list(&["gpu"]), vec![0]].concat())),
            "bad_certificate",
            "no list of names",
        ),
        (
            "a group that is no label",
            |p| p.custom_extensions.push(extension(GROUPS, list(&["GPU"]))),
            "bad_certificate",
            "no list of names",
        ),
        (
            "nine groups",
            |p| p.custom_extensions.push(extension(GROUPS, list(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]))),
            "bad_certificate",
            "too many groups",
        ),
        (
            "seventeen services",
            |p| p.custom_extensions.push(extension(SERVICES, list(&["a"; 17]))),
            "bad_certificate",
            "too many groups or services",
        ),
        (
            "for clients only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            "bad_certificate",
            "extended key usage",
        ),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "bad_certificate",
            "extended key usage",
        ),
        (
            "for code signing too",
            |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
            "bad_certificate",
            "extended key usage",
        ),
        (
            "for anything",
            |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any),
            "bad_certificate",
            "extended key usage",
        ),
        ("for no known purpose", |p| p.extended_key_usages.clear(), "bad_certificate", "extended key usage"),
        (
            "with certificate signing",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            "bad_certificate",
            "key usage does not fit a node",
        ),
        (
            "with key agreement",
            |p| p.key_usages.push(KeyUsagePurpose::KeyAgreement),
            "bad_certificate",
            "key usage does not fit a node",
        ),
        ("without key usage", |p| p.key_usages.clear(), "bad_certificate", "key usage does not fit a node"),
        (
            "an authority",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            "bad_certificate",
            "an extension that a node certificate does not have",
        ),
        (
            "explicitly none",
            |p| p.is_ca = IsCa::ExplicitNoCa,
            "bad_certificate",
            "an extension that a node certificate does not have",
        ),
        (
            "with name constraints",
            |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                p.name_constraints = Some(constraints("lab", "10.42.0.0", 16));
            },
            "bad_certificate",
            "an extension that a node certificate does not have",
        ),
        ("not begun", |p| p.not_before = moment(NOW.plus(DAY)), "not_yet_valid", "valid from"),
        ("ended this second", |p| p.not_after = moment(NOW), "expired", "ended at"),
        (
            "ended before it began",
            |p| {
                p.not_before = moment(NOW.plus(DAY));
                p.not_after = moment(NOW.minus(DAY));
            },
            "not_yet_valid",
            "valid from",
        ),
        (
            "longer than any of ours",
            |p| p.custom_extensions.push(extension(UNKNOWN, vec![0; 2000])),
            "bad_certificate",
            "longer than 2048 bytes",
        ),
        (
            "a serial of 20 bytes",
            |p| p.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x11; 20])),
            "bad_certificate",
            "more than 128 bits",
        ),
    ];

    for (case, change, reason, why) in cases {
        refused(case, verify(&root, vec![root.node(change)]), reason, why);
    }
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let root = Ca::root("lab");

    refused("RSA", verify(&root, vec![root.node_for(&rsa_key(), |_| {})]), "bad_certificate", "not Ed25519");
    refused("ECDSA", verify(&root, vec![root.node_for(&ecdsa_key(), |_| {})]), "bad_certificate", "not Ed25519");
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let foreign = node_params("lab", "worker-1", "10.42.0.7").self_signed(&by_ecdsa).unwrap().der().to_vec();
    refused("signed by ECDSA", verify(&root, vec![foreign]), "bad_certificate", "its signature is not Ed25519");
}

#[test]
fn bytes_changed_without_or_with_the_authoritys_key_are_refused() {
    let root = Ca::root("lab");
    let serial = serial_bytes();
    let node = root.node(|p| p.serial_number = Some(rcgen::SerialNumber::from_slice(&serial)));
    let negative = [&[0x80][..], &serial[1..]].concat();
    let padded = [&[0x00, 0x01][..], &serial[2..]].concat();
    let by_another = wrapped(signed_part(&node), &Ca::root("lab").key.sign(signed_part(&node)));

    assert!(verify(&root, vec![root.resigned(&node, &serial, &serial)]).is_ok());
    let cases: &[(&str, Vec<Vec<u8>>, &str, &str)] = &[
        (
            "a longer outer header, still signed",
            vec![with_long_header(&node)],
            "bad_certificate",
            "signature is not Ed25519",
        ),
        ("a byte after its end", vec![[&node[..], &[0]].concat()], "bad_certificate", "bytes after its end"),
        ("a byte missing", vec![node[..node.len() - 1].to_vec()], "bad_certificate", "not X.509"),
        ("nothing", vec![vec![]], "bad_certificate", "not X.509"),
        ("a signature and the group order", vec![with_second_signature(&node)], "another_authority", ""),
        ("a signature by another key", vec![by_another], "another_authority", ""),
        ("a negative serial", vec![root.resigned(&node, &serial, &negative)], "bad_certificate", "serial number"),
        (
            "a serial with needless zeros",
            vec![root.resigned(&node, &serial, &padded)],
            "bad_certificate",
            "serial number",
        ),
        ("a serial of zero", vec![root.resigned(&node, &serial, &[0; 16])], "bad_certificate", "serial number"),
        ("another issuer's name", vec![root.resigned(&node, b"\x0c\x03lab", b"\x0c\x03lob")], "another_authority", ""),
        (
            "version 2",
            vec![root.resigned(&node, &[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1])],
            "bad_certificate",
            "version 3",
        ),
    ];
    for (case, chain, reason, why) in cases {
        refused(case, verify(&root, chain.clone()), reason, why);
    }
    assert!(Chain::from_ders(vec![node.clone(); MAX_CHAIN + 1]).is_err());
    assert!(Chain::from_ders(vec![vec![0; MAX_CERTIFICATE_BYTES + 1]]).is_err());
    assert!(Chain::from_ders(Vec::new()).is_err());
    assert!(Chain::from_pem(&"-----BEGIN CERTIFICATE-----\n".repeat(1 << 16)).is_err());
}

#[test]
fn a_chain_through_an_intermediate_is_believed_within_all_limits() {
    let root = Ca::root("lab");
    let narrow = root.intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let lower = narrow.intermediate("lab", |p| {
        p.name_constraints = Some(constraints("lab", "10.42.1.128", 25));
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        p.not_after = moment(NOW.plus(2 * DAY));
    });
    let near = |address: &'static str| move |p: &mut CertificateParams| readdress(p, address);

    assert!(verify(&root, vec![narrow.node(near("10.42.1.7")), narrow.der.clone()]).is_ok());
    let through_two =
        verify(&root, vec![lower.node(near("10.42.1.129")), lower.der.clone(), narrow.der.clone()]).unwrap();
    assert_eq!(through_two.not_after(), NOW.plus(2 * DAY), "the earliest end in the chain counts");
    assert_eq!(through_two.chain().ders().len(), 3);
    let claims = Claims {
        identity: IdentityKey::generate(&mut rand::rng()).id(),
        wg: WgPublicKey(wireguard_key()),
        name: NodeName::new("w").unwrap(),
        address: "10.42.1.9".parse().unwrap(),
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime: DAY,
    };
    let issued = narrow.authority().issue(&claims, NOW, &mut rand::rng()).unwrap();
    assert_eq!(issued.ders().len(), 2, "an intermediate sends its own certificate along");
    assert!(root.trust().verify(&issued, NOW).is_ok());
    assert!(narrow.trust().verify(&issued, NOW).is_ok(), "who trusts the intermediate alone believes it too");
}

#[test]
fn an_authority_in_the_chain_that_exceeds_its_limits_is_refused() {
    let root = Ca::root("lab");
    let flat = Ca::root_with("lab", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let node = |ca: &Ca| ca.node(|_| {});
    let chain = |ca: &Ca| vec![node(ca), ca.der.clone()];
    let below = |change: Change| chain(&root.intermediate("lab", change));

    let cases: &[(&str, Vec<Vec<u8>>, &str, &str)] = &[
        (
            "signed by a node",
            {
                let (der, key) = node_with_key(&root);
                chain(&Ca { der, key })
            },
            "bad_certificate",
            "authority",
        ),
        (
            "no CA bit",
            below(|p| {
                p.is_ca = IsCa::NoCa;
                p.name_constraints = None;
            }),
            "bad_certificate",
            "may not sign certificates",
        ),
        (
            "no certificate signing",
            below(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            "bad_certificate",
            "may not sign certificates",
        ),
        ("no name constraints", below(|p| p.name_constraints = None), "bad_certificate", "no name constraints"),
        (
            "excluded subtrees",
            below(|p| p.name_constraints = Some(excluding())),
            "bad_certificate",
            "excluded subtrees",
        ),
        (
            "two networks",
            below(|p| p.name_constraints = Some(two_networks())),
            "bad_certificate",
            "name constraints of another form",
        ),
        (
            "no domain",
            below(|p| p.name_constraints.as_mut().unwrap().permitted_subtrees.truncate(0)),
            "bad_certificate",
            "",
        ),
        (
            "with extended key usage",
            below(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "bad_certificate",
            "authority's certificate does not have",
        ),
        (
            "a wider network",
            below(|p| p.name_constraints = Some(constraints("lab", "10.0.0.0", 8))),
            "authority_exceeded",
            "network is not within",
        ),
        (
            "another network",
            below(|p| p.name_constraints = Some(constraints("lab", "10.43.0.0", 16))),
            "authority_exceeded",
            "network is not within",
        ),
        (
            "an address beyond its own network",
            below(|p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24))),
            "outside_network",
            "10.42.1.0/24",
        ),
        ("another mesh", chain(&root.intermediate("other", |_| {})), "another_mesh", "other"),
        ("not begun", below(|p| p.not_before = moment(NOW.plus(DAY))), "not_yet_valid", ""),
        ("ended", below(|p| p.not_after = moment(NOW)), "expired", ""),
        ("missing", vec![node(&root.intermediate("lab", |_| {}))], "another_authority", ""),
        ("of another root", chain(&Ca::root("lab").intermediate("lab", |_| {})), "another_authority", ""),
    ];
    for (case, chain, reason, why) in cases {
        refused(case, verify(&root, chain.clone()), reason, why);
    }

    let upper = root.intermediate("lab", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let lower = upper.intermediate("lab", |_| {});
    let two = vec![node(&lower), lower.der.clone(), upper.der.clone()];
    refused("one too many below a path length of 0", verify(&root, two), "authority_exceeded", "path length");
    let under_flat = flat.intermediate("lab", |_| {});
    refused("below a flat root", verify(&flat, chain(&under_flat)), "authority_exceeded", "path length");
    assert!(
        verify(&flat, vec![node(&flat), flat.der.clone()]).is_ok(),
        "the root itself, sent along, counts for nothing"
    );
    let narrow = root.intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let wide_again = narrow.intermediate("lab", |_| {});
    let widened = vec![node(&wide_again), wide_again.der.clone(), narrow.der.clone()];
    refused("wider again below a narrow one", verify(&root, widened), "authority_exceeded", "network is not within");
    let shuffled = vec![node(&lower), upper.der.clone(), lower.der.clone()];
    refused("in the wrong order", verify(&root, shuffled), "another_authority", "");
}

#[test]
fn who_is_below_a_revoked_authority_is_revoked() {
    let root = Ca::root("lab");
    let intermediate = root.intermediate("lab", |_| {});
    let chain = Chain::from_ders(vec![intermediate.node(|_| {}), intermediate.der.clone()]).unwrap();
    let revoking = |list: RevocationList| {
        let mut trust = root.trust();
        trust.apply_revocations(&root.authority().sign_revocations(&list).unwrap(), NOW).unwrap();
        trust
    };
    let by_serial = revoking(RevocationList {
        number: 1,
        serials: [intermediate.certificate().serial()].into(),
        ..RevocationList::default()
    });
    let by_key =
        revoking(RevocationList { number: 1, identities: [intermediate.key.id()].into(), ..RevocationList::default() });

    for mut trust in [by_serial, by_key] {
        refused("a node", trust.verify(&chain, NOW), "revoked", "");
        let next = RevocationList { number: 2, ..RevocationList::default() };
        let signed = intermediate.authority().sign_revocations(&next).unwrap();
        assert_eq!(trust.apply_revocations(&signed, NOW).unwrap_err().reason(), "revoked", "it could lift its own end");
        let tls = intermediate.authority().issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap().0;
        assert_eq!(trust.verify_coordinator(&tls, NOW).unwrap_err().reason(), "revoked");
    }
    let mut trust = root.trust();
    let list = RevocationList { number: 1, ..RevocationList::default() };
    assert_eq!(trust.apply_revocations(&intermediate.authority().sign_revocations(&list).unwrap(), NOW), Ok(true));
}

#[test]
fn only_a_coordinators_own_certificate_passes_for_it() {
    let root = Ca::root("lab");
    let server = |change: Change| {
        let der = root.node(|p| {
            p.subject_alt_names = vec![dns("coordinator.lab.internal")];
            p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            p.custom_extensions.clear();
            p.distinguished_name = subject("coordinator");
            change(p);
        });
        root.trust().verify_coordinator(&[der], NOW)
    };

    assert_eq!(server(|_| {}), Ok(()));
    let cases: &[(&str, Change)] = &[
        ("another mesh's", |p| p.subject_alt_names = vec![dns("coordinator.other.internal")]),
        ("a node's name", |p| p.subject_alt_names = vec![dns("worker-1.lab.internal")]),
        ("two names", |p| p.subject_alt_names.push(dns("worker-1.lab.internal"))),
        ("for clients too", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth)),
        ("for anything", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
        ("a WireGuard key", |p| p.custom_extensions = vec![extension(WIREGUARD_KEY, vec![9; 32])]),
        ("may sign certificates", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("an authority", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ];
    for (case, change) in cases {
        assert_eq!(server(*change).map_err(|refused| refused.reason()), Err("bad_certificate"), "{case}");
    }
    assert!(root.trust().verify_coordinator(&[] as &[Vec<u8>], NOW).is_err());
    assert!(root.trust().verify_coordinator(&vec![root.der.clone(); 9], NOW).is_err());
    assert!(root.trust().verify_coordinator(std::slice::from_ref(&root.der), NOW).is_err());
}

#[test]
fn an_authority_of_another_kind_cannot_be_trusted_at_all() {
    let forged = |change: Change| Ca::root_with("lab", change).der;
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ecdsa = ca_params("lab", "10.42.0.0", 16).self_signed(&by_ecdsa).unwrap().der().to_vec();

    let cases: &[(&str, Vec<u8>)] = &[
        ("ECDSA", ecdsa),
        (
            "no CA",
            forged(|p| {
                p.is_ca = IsCa::NoCa;
                p.name_constraints = None;
            }),
        ),
        ("no constraints", forged(|p| p.name_constraints = None)),
        ("a name that is none", forged(|p| p.distinguished_name = subject("L A B"))),
        ("constraints of another mesh", forged(|p| p.name_constraints = Some(constraints("other", "10.42.0.0", 16)))),
        (
            "a mask with holes",
            forged(|p| {
                p.name_constraints.as_mut().unwrap().permitted_subtrees[1] =
                    GeneralSubtree::IpAddress(CidrSubnet::V4([10, 42, 0, 0], [255, 0, 255, 0]))
            }),
        ),
        ("an unknown extension", forged(|p| p.custom_extensions.push(extension(UNKNOWN, vec![5, 0])))),
        ("a longer header", with_long_header(&Ca::root("lab").der)),
    ];
    for (case, der) in cases {
        assert!(CaCertificate::from_der(der.clone()).is_err(), "{case}");
    }
}

/// The checks that a person is shown are those that decide.
#[test]
fn examining_and_verifying_agree() {
    let root = Ca::root("lab");
    let intermediate = root.intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let chains = [
        vec![root.node(|_| {})],
        vec![root.node(|p| p.not_after = moment(NOW))],
        vec![root.node(|p| readdress(p, "10.43.0.1"))],
        vec![root.node(|p| p.key_usages.clear())],
        vec![Ca::root("lab").node(|_| {})],
        vec![intermediate.node(|_| {}), intermediate.der.clone()],
        vec![intermediate.node(|p| readdress(p, "10.42.1.7")), intermediate.der.clone()],
        vec![vec![0x30]],
    ];

    for (at, ders) in chains.into_iter().enumerate() {
        let chain = Chain::from_ders(ders).unwrap();
        let first = root.trust().examine(&chain, NOW).into_iter().find_map(|(_, outcome)| outcome.err());
        assert_eq!(root.trust().verify(&chain, NOW).err(), first, "chain {at}");
    }
}

fn verify(root: &Ca, ders: Vec<Vec<u8>>) -> Result<Verified, Refused> {
    Chain::from_ders(ders).map_err(Refused::from).and_then(|chain| root.trust().verify(&chain, NOW))
}

fn refused(case: &str, outcome: Result<Verified, Refused>, reason: &str, why: &str) {
    match outcome {
        Ok(_) => panic!("{case} was believed"),
        Err(refused) => {
            assert_eq!(refused.reason(), reason, "{case}: {refused}");
            assert!(refused.to_string().contains(why), "{case}: {refused}");
        }
    }
}

fn rename(params: &mut CertificateParams, name: &str) {
    params.distinguished_name = subject(name);
    params.subject_alt_names = names("lab", name, "10.42.0.7");
}

fn readdress(params: &mut CertificateParams, address: &str) {
    params.subject_alt_names[0] = SanType::IpAddress(address.parse().unwrap());
}

/// A good key with the bit set that X25519 does not look at.
fn second_form() -> Vec<u8> {
    let mut key = wireguard_key().to_vec();
    key[31] |= 0x80;
    key
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

/// A node whose key its owner uses to sign another.
fn node_with_key(root: &Ca) -> (Vec<u8>, IdentityKey) {
    let key = IdentityKey::generate(&mut rand::rng());
    (root.node_for(&public_key(&key.id().0), |_| {}), key)
}

fn excluding() -> NameConstraints {
    let mut constraints = constraints("lab", "10.42.0.0", 16);
    constraints.excluded_subtrees.push(GeneralSubtree::DnsName("a.lab.internal".to_owned()));
    constraints
}

fn two_networks() -> NameConstraints {
    let mut constraints = constraints("lab", "10.42.0.0", 16);
    constraints.permitted_subtrees.push(GeneralSubtree::IpAddress(CidrSubnet::V4([10, 43, 0, 0], [255, 255, 0, 0])));
    constraints
}
