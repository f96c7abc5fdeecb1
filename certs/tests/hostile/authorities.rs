//! Authorities in a chain that exceed their limits, and those that cannot be trusted at all.

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SanType,
};
use wiremesh_certs::*;

use crate::{
    case::{Case, hold},
    forge::*,
    world::*,
};

type Change = fn(&mut CertificateParams);

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn a_chain_through_an_intermediate_is_believed_within_all_limits() {
    let root = root();
    let narrow = root.intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let lower = narrow.intermediate("lab", |p| {
        p.name_constraints = Some(constraints("lab", "10.42.1.128", 25));
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        p.not_after = moment(NOW.plus(2 * DAY));
    });
    let near = |address: &'static str| {
        move |p: &mut CertificateParams| p.subject_alt_names[0] = SanType::IpAddress(address.parse().unwrap())
    };

    assert!(verify(vec![narrow.node(near("10.42.1.7")), narrow.der.clone()]).is_ok());
    let through_two = verify(vec![lower.node(near("10.42.1.129")), lower.der.clone(), narrow.der.clone()]).unwrap();
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
fn a_root_that_is_sent_along_counts_for_nothing() {
    let flat = Ca::root_with("lab", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));

    assert!(verify_under(&flat, vec![flat.node(|_| {}), flat.der.clone()]).is_ok());
}

pub fn cases() -> Vec<Case> {
    [in_a_chain(), in_long_chains(), revoked(), to_be_trusted()].into_iter().flatten().collect()
}

/// One intermediate between the root and an ordinary node.
fn in_a_chain() -> Vec<Case> {
    let below = |change: Change| {
        let intermediate = root().intermediate("lab", change);
        verify(vec![intermediate.node(|_| {}), intermediate.der])
    };
    let outside = OUTSIDE_THE_PROFILE
        .iter()
        .map(|(name, change, why)| Case::new(*name, below(*change), "bad_certificate", outside_the_profile(why)));
    let disbelieved =
        DISBELIEVED.iter().map(|(name, change, reason, says)| Case::new(*name, below(*change), reason, *says));
    outside.chain(disbelieved).collect()
}

const OUTSIDE_THE_PROFILE: &[(&str, Change, &str)] = &[
    (
        "an intermediate without CA bit",
        |p| {
            p.is_ca = IsCa::NoCa;
            p.name_constraints = None;
        },
        MAY_NOT_SIGN,
    ),
    (
        "an intermediate that is explicitly none",
        |p| {
            p.is_ca = IsCa::ExplicitNoCa;
            p.name_constraints = None;
        },
        MAY_NOT_SIGN,
    ),
    (
        "an intermediate without certificate signing",
        |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        MAY_NOT_SIGN,
    ),
    (
        "an intermediate without name constraints",
        |p| p.name_constraints = None,
        "no name constraints: it could speak for any network",
    ),
    (
        "an intermediate without a network",
        |p| drop(p.name_constraints.as_mut().unwrap().permitted_subtrees.pop()),
        "no name constraints: it could speak for any network",
    ),
    (
        "an intermediate with excluded subtrees",
        |p| p.name_constraints = Some(excluding()),
        "excluded subtrees in its name constraints",
    ),
    ("an intermediate of two networks", |p| p.name_constraints = Some(two_networks()), OTHER_CONSTRAINTS),
    (
        "an intermediate of another mesh's domain",
        |p| p.name_constraints = Some(constraints("other", "10.42.0.0", 16)),
        OTHER_CONSTRAINTS,
    ),
    (
        "an intermediate without the mesh's domain",
        |p| drop(p.name_constraints.as_mut().unwrap().permitted_subtrees.remove(0)),
        "name constraints without MESH.internal",
    ),
    (
        "an intermediate with extended key usage",
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        NOT_AN_AUTHORITYS,
    ),
    (
        "an intermediate with a name of its own",
        |p| p.subject_alt_names = vec![dns("ca.lab.internal")],
        NOT_AN_AUTHORITYS,
    ),
    (
        "an intermediate with an unknown critical extension",
        |p| p.custom_extensions.push(critical(UNKNOWN, vec![5, 0])),
        NOT_AN_AUTHORITYS,
    ),
];

const MAY_NOT_SIGN: &str = "not an authority's: it may not sign certificates";
const OTHER_CONSTRAINTS: &str = "name constraints of another form than one network and MESH.internal";
const NOT_AN_AUTHORITYS: &str = "an extension that an authority's certificate does not have";
const WIDER: &str = "an authority in its chain may not sign this: its network is not within that of the one above it";
const TOO_LONG: &str = "an authority in its chain may not sign this: more authorities below it than its path length";

const DISBELIEVED: &[(&str, Change, &str, &str)] = &[
    (
        "an intermediate of a wider network",
        |p| p.name_constraints = Some(constraints("lab", "10.0.0.0", 8)),
        "authority_exceeded",
        WIDER,
    ),
    (
        "an intermediate of another network",
        |p| p.name_constraints = Some(constraints("lab", "10.43.0.0", 16)),
        "authority_exceeded",
        WIDER,
    ),
    (
        "an intermediate of an IPv6 network",
        |p| p.name_constraints = Some(constraints("lab", "fd00::", 64)),
        "authority_exceeded",
        WIDER,
    ),
    (
        "a node beyond its intermediate's network",
        |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)),
        "outside_network",
        "its address 10.42.0.7 is not that of a node in the network 10.42.1.0/24, to which its authority is limited",
    ),
    (
        "an intermediate not begun",
        |p| p.not_before = moment(NOW.plus(DAY)),
        "not_yet_valid",
        "its certificate is valid from 2027-01-16T08:00:00Z, and it is 2027-01-15T08:00:00Z",
    ),
    (
        "an intermediate that ended",
        |p| p.not_after = moment(NOW),
        "expired",
        "its certificate ended at 2027-01-15T08:00:00Z, and it is 2027-01-15T08:00:00Z",
    ),
];

fn in_long_chains() -> Vec<Case> {
    let root = root();
    let node = |ca: &Ca| ca.node(|_| {});
    let chain = |ca: &Ca| vec![node(ca), ca.der.clone()];
    let flat = Ca::root_with("lab", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let upper = root.intermediate("lab", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let lower = upper.intermediate("lab", |_| {});
    let two = vec![node(&lower), lower.der.clone(), upper.der.clone()];
    let shuffled = vec![node(&lower), upper.der.clone(), lower.der.clone()];
    let narrow = root.intermediate("lab", |p| p.name_constraints = Some(constraints("lab", "10.42.1.0", 24)));
    let wide_again = narrow.intermediate("lab", |_| {});
    let widened = vec![node(&wide_again), wide_again.der.clone(), narrow.der.clone()];
    let by_a_node = {
        let key = IdentityKey::generate(&mut rand::rng());
        let der = root.node_for(&public_key(&key.id().0), |_| {});
        chain(&Ca { der, key })
    };
    let of_another = chain(&Ca::root("lab").intermediate("lab", |_| {}));
    let without = vec![node(&root.intermediate("lab", |_| {}))];
    let other_mesh = chain(&root.intermediate("other", |_| {}));
    let no_authority = outside_the_profile(NOT_AN_AUTHORITYS);
    vec![
        Case::new("signed by a node", verify(by_a_node), "bad_certificate", no_authority),
        Case::new("an intermediate of another mesh", verify(other_mesh), "another_mesh", OTHER),
        Case::new("an intermediate left out", verify(without), "another_authority", another_authority()),
        Case::new("an intermediate of another root", verify(of_another), "another_authority", another_authority()),
        Case::new("one too many below a path length of 0", verify(two), "authority_exceeded", TOO_LONG),
        Case::new(
            "one below a root of path length 0",
            verify_under(&flat, chain(&flat.intermediate("lab", |_| {}))),
            "authority_exceeded",
            TOO_LONG,
        ),
        Case::new("wider again below a narrow one", verify(widened), "authority_exceeded", WIDER),
        Case::new("authorities in the wrong order", verify(shuffled), "another_authority", another_authority()),
    ]
}

const OTHER: &str = "it names the mesh other, which is not ours";

/// Who is below a revoked authority is revoked.
fn revoked() -> Vec<Case> {
    let root = root();
    let intermediate = root.intermediate("lab", |_| {});
    let serial = intermediate.certificate().serial();
    let chain = Chain::from_ders(vec![intermediate.node(|_| {}), intermediate.der.clone()]).unwrap();
    let tls = intermediate.authority().issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap().0;
    let next = RevocationList { number: 2, ..RevocationList::default() };
    let next = intermediate.authority().sign_revocations(&next).unwrap();
    let says = format!("its certificate {serial} is revoked");

    let by_serial = RevocationList { number: 1, serials: [serial].into(), ..RevocationList::default() };
    let by_key = RevocationList { number: 1, identities: [intermediate.key.id()].into(), ..RevocationList::default() };
    let cases = [("by its serial", by_serial), ("by its key", by_key)].map(|(how, list)| {
        let mut trust = root.trust();
        trust.apply_revocations(&root.authority().sign_revocations(&list).unwrap(), NOW).unwrap();
        [
            Case::new(
                format!("a node below an intermediate revoked {how}"),
                trust.verify(&chain, NOW),
                "revoked",
                says.clone(),
            ),
            Case::new(
                format!("a coordinator below an intermediate revoked {how}"),
                trust.verify_coordinator(&tls, NOW),
                "revoked",
                says.clone(),
            ),
            Case::new(
                format!("an intermediate revoked {how} that lifts its own end"),
                trust.apply_revocations(&next, NOW),
                "revoked",
                says.clone(),
            ),
        ]
    });
    cases.into_iter().flatten().collect()
}

/// Roots that nobody should choose.
fn to_be_trusted() -> Vec<Case> {
    let forged = |change: Change| Ca::root_with("lab", change).der;
    let by_ecdsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let ecdsa = ca_params("lab", "10.42.0.0", 16).self_signed(&by_ecdsa).unwrap().der().to_vec();
    let no_ca = forged(|p| {
        p.is_ca = IsCa::NoCa;
        p.name_constraints = None;
    });
    let holes = forged(|p| {
        p.name_constraints.as_mut().unwrap().permitted_subtrees[1] =
            GeneralSubtree::IpAddress(CidrSubnet::V4([10, 42, 0, 0], [255, 0, 255, 0]))
    });
    let two = format!("{}{}", root().certificate().pem(), Ca::root("lab").certificate().pem());
    let read = [
        ("a root by ECDSA", CaCertificate::from_der(ecdsa), "its signature is not Ed25519"),
        ("a root without CA bit", CaCertificate::from_der(no_ca), MAY_NOT_SIGN),
        (
            "a root without name constraints",
            CaCertificate::from_der(forged(|p| p.name_constraints = None)),
            "no name constraints: it could speak for any network",
        ),
        (
            "a root of a name that is none",
            CaCertificate::from_der(forged(|p| p.distinguished_name = subject("L A B"))),
            "its common name is not a mesh name",
        ),
        (
            "a root of another mesh's domain",
            CaCertificate::from_der(forged(|p| p.name_constraints = Some(constraints("other", "10.42.0.0", 16)))),
            OTHER_CONSTRAINTS,
        ),
        (
            "a root with holes in its mask",
            CaCertificate::from_der(holes),
            "a network in its name constraints that is none",
        ),
        (
            "a root with an unknown extension",
            CaCertificate::from_der(forged(|p| p.custom_extensions.push(extension(UNKNOWN, vec![5, 0])))),
            NOT_AN_AUTHORITYS,
        ),
        (
            "a root with a longer header",
            CaCertificate::from_der(with_long_header(&Ca::root("lab").der)),
            "its signature is not Ed25519",
        ),
        ("a node's certificate as a root", CaCertificate::from_der(root().node(|_| {})), NOT_AN_AUTHORITYS),
        ("two roots in one file", CaCertificate::from_pem(&two), "more than one certificate in the file"),
    ];
    read.map(|(name, read, why)| Case::new(name, read, "bad_certificate", outside_the_profile(why))).into()
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
