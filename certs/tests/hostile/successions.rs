//! Lists that say who is an authority from here on: by whom they may not be said, and naming whom they may not name.

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
fn a_root_that_the_present_one_vouches_for_is_believed() {
    let next = authority("10.42.0.0/16");

    assert_eq!(apply(&naming(&next, &[&next], &[&cross(&next)])), Ok(true));
}

pub fn cases() -> Vec<Case> {
    [of_strangers(), of_other_limits(), by_an_intermediate(), of_the_past(), beyond_the_bounds()]
        .into_iter()
        .flatten()
        .collect()
}

/// Nobody who is believed vouches for them.
fn of_strangers() -> Vec<Case> {
    let (ours, stranger, third) = (root().authority(), authority("10.42.0.0/16"), authority("10.42.0.0/16"));
    let wrong_way = stranger.cross_sign(ours.certificate(), NOW, &mut rand::rng()).unwrap();
    let by_a_third = third.cross_sign(stranger.certificate(), NOW, &mut rand::rng()).unwrap();
    let for_another = cross(&third);
    let lists = [
        ("a list that names a stranger", naming(&ours, &[&ours, &stranger], &[])),
        ("a list by a stranger", naming(&stranger, &[&stranger], &[])),
        ("a list whose cross leads the wrong way", naming(&stranger, &[&stranger], &[&wrong_way])),
        ("a list whose cross nobody believed signed", naming(&stranger, &[&stranger], &[&by_a_third])),
        ("a list whose cross is for another key", naming(&stranger, &[&stranger], &[&for_another])),
        ("a list that names a stranger beside a good cross", naming(&ours, &[&ours, &stranger], &[&for_another])),
    ];
    lists.map(|(name, list)| Case::new(name, apply(&list), "another_authority", another_authority())).into()
}

/// Of another mesh or network than ours, or no authorities at all.
fn of_other_limits() -> Vec<Case> {
    let ours = root().authority();
    let other_mesh = Authority::create(&parameters("other", "10.42.0.0/16"), NOW, &mut rand::rng()).unwrap();
    let (narrow, beside) = (authority("10.42.1.0/24"), authority("10.42.2.0/24"));
    let crosses = [cross(&narrow), cross(&beside)];
    let named = |ders: Vec<Vec<u8>>| {
        let list = RevocationList { number: 1, authorities: ders, ..RevocationList::default() };
        apply(&ours.sign_revocations(&list).unwrap())
    };
    let exceeded = |why: &str| format!("an authority in its chain may not sign this: {why}");
    vec![
        Case::new(
            "a list that names an authority of another mesh",
            apply(&naming(&ours, &[&ours, &other_mesh], &[])),
            "another_mesh",
            "it names the mesh other, which is not ours",
        ),
        Case::new(
            "a list that changes the mesh's network",
            apply(&naming(&ours, &[&narrow], &[&crosses[0]])),
            "authority_exceeded",
            exceeded("its list changes the mesh's network"),
        ),
        Case::new(
            "a list of authorities with nothing in common",
            apply(&naming(&ours, &[&narrow, &beside], &[&crosses[0], &crosses[1]])),
            "authority_exceeded",
            exceeded("the authorities are limited to different networks"),
        ),
        Case::new(
            "a list that names a node as an authority",
            named(vec![root().node(|_| {})]),
            "bad_certificate",
            outside_the_profile("an extension that an authority's certificate does not have"),
        ),
        Case::new(
            "a list that names what is no certificate",
            named(vec![vec![1; 500]]),
            "bad_certificate",
            outside_the_profile("not X.509 in DER"),
        ),
    ]
}

/// Who steals the key of a machine that is online does not get the mesh.
fn by_an_intermediate() -> Vec<Case> {
    let ours = root().authority();
    let online = ours.create_intermediate(&parameters("lab", "10.42.0.0/16"), NOW, &mut rand::rng()).unwrap();
    let stolen = Ca { der: online.certificate().der().to_vec(), key: key_of(&online) };
    let own = stolen.intermediate("lab", |_| {});
    let trust = || {
        let mut trust = root().trust();
        trust.apply_revocations(&naming(&online, &[&online, &ours], &[]), NOW).unwrap();
        trust
    };
    let list = |list: RevocationList| {
        let list = RevocationList { number: 2, ..list };
        trust().apply_revocations(&online.sign_revocations(&list).unwrap(), NOW)
    };
    let der = |authority: &Authority| authority.certificate().der().to_vec();
    let without_root = list(RevocationList { authorities: vec![der(&online)], ..RevocationList::default() });
    let identities = [root().key.id()].into();
    let revoking = list(RevocationList { identities, ..RevocationList::default() });
    let authorities = vec![der(&online), der(&ours), own.der.clone()];
    let of_its_own = list(RevocationList { authorities, ..RevocationList::default() });
    let by_its_own = RevocationList { number: 2, ..RevocationList::default() };
    let by_its_own = Signed::sign(&by_its_own, &own.key, &Chain::from_ders(vec![own.der]).unwrap()).unwrap();
    let put_out = "an authority in its chain may not sign this: an intermediate may not put out a root";
    let too_long = "an authority in its chain may not sign this: more authorities below it than its path length";
    vec![
        Case::new("an intermediate that leaves out its root", without_root, "authority_exceeded", put_out),
        Case::new("an intermediate that revokes its root", revoking, "authority_exceeded", put_out),
        Case::new("an intermediate that names one of its own making", of_its_own, "authority_exceeded", too_long),
        Case::new(
            "a list by one of an intermediate's making",
            trust().apply_revocations(&by_its_own, NOW),
            "authority_exceeded",
            too_long,
        ),
    ]
}

/// What was right once.
fn of_the_past() -> Vec<Case> {
    let (ours, next) = (root().authority(), authority("10.42.0.0/16"));
    let over = cross(&next);
    let mut trust = root().trust();
    trust.apply_revocations(&naming(&next, &[&next], &[&over]), NOW).unwrap();
    let number = |number| RevocationList { number, ..RevocationList::default() };
    let retired = trust.apply_revocations(&ours.sign_revocations(&number(2)).unwrap(), NOW);
    let member_of_the_old = trust.verify(&member().chain, NOW);
    let rollback = trust.apply_revocations(&next.sign_revocations(&number(0)).unwrap(), NOW);
    let of_next = next.certificate().fingerprint().to_string();
    let says = format!("its certificate was issued by another authority than this mesh's ({})", &of_next[..16]);

    let long_ago = NOW.plus(400 * DAY);
    let ended = root().trust().apply_revocations(&naming(&next, &[&next], &[&over]), long_ago);
    let mut revoking = root().trust();
    let without = RevocationList { number: 1, serials: [over.serial()].into(), ..RevocationList::default() };
    revoking.apply_revocations(&ours.sign_revocations(&without).unwrap(), NOW).unwrap();
    let again = RevocationList {
        number: 2,
        authorities: vec![next.certificate().der().to_vec()],
        crosses: vec![over.der().to_vec()],
        ..RevocationList::default()
    };
    let by_revoked = revoking.apply_revocations(&next.sign_revocations(&again).unwrap(), NOW);
    vec![
        Case::new("a list by a root that was retired", retired, "another_authority", says.clone()),
        Case::new("a member of a root that was retired", member_of_the_old, "another_authority", says),
        Case::new(
            "a list that takes back who is an authority",
            rollback,
            "older_revocations",
            "revocation list 0 is older than 1, which we have",
        ),
        Case::new(
            "a list whose cross ended",
            ended,
            "expired",
            format!("its certificate ended at {}, and it is {long_ago}", over.not_after()),
        ),
        Case::new(
            "a list whose cross was revoked",
            by_revoked,
            "revoked",
            format!("its certificate {} is revoked", over.serial()),
        ),
    ]
}

fn beyond_the_bounds() -> Vec<Case> {
    let der = || root().der.clone();
    let encoded = |list: RevocationList| {
        let payload = minicbor::to_vec(&RevocationList { number: 1, ..list }).unwrap();
        let bytes = sign(&root().key, &root().der, REVOCATIONS, &payload);
        root().trust().apply_revocations(&SignedRevocations::from_bytes(&bytes).unwrap(), NOW)
    };
    let list = |authorities: Vec<Vec<u8>>, crosses: Vec<Vec<u8>>| {
        encoded(RevocationList { authorities, crosses, ..RevocationList::default() })
    };
    let two_meshes = Ca::root("other").certificate();
    let nine = CaCertificate::bundle_from_pem(&root().certificate().pem().repeat(MAX_BUNDLE + 1));
    vec![
        Case::new("five authorities", list(vec![der(); 5], vec![]), "malformed", no_message("more than 4 authorities")),
        Case::new("nine crosses", list(vec![], vec![der(); 9]), "malformed", no_message("a payload of another form")),
        Case::new(
            "an authority of 2049 bytes",
            list(vec![vec![0; 2049]], vec![]),
            "malformed",
            no_message("a certificate of more than 2,048 bytes"),
        ),
        Case::new(
            "a trust in nobody",
            Trust::of(vec![]),
            "bad_certificate",
            outside_the_profile("no authority at all"),
        ),
        Case::new(
            "a trust in five",
            Trust::of(vec![root().certificate(); 5]),
            "bad_certificate",
            outside_the_profile("more authorities than a mesh has"),
        ),
        Case::new(
            "a trust in two meshes",
            Trust::of(vec![root().certificate(), two_meshes]),
            "another_mesh",
            "it names the mesh other, which is not ours",
        ),
        Case::new(
            "nine authorities in one file",
            nine,
            "bad_certificate",
            outside_the_profile("more than 8 certificates in the file"),
        ),
    ]
}

fn apply(list: &SignedRevocations) -> Result<bool, Refused> {
    root().trust().apply_revocations(list, NOW)
}

fn naming(signer: &Authority, authorities: &[&Authority], crosses: &[&CaCertificate]) -> SignedRevocations {
    let list = RevocationList {
        number: 1,
        authorities: authorities.iter().map(|authority| authority.certificate().der().to_vec()).collect(),
        crosses: crosses.iter().map(|cross| cross.der().to_vec()).collect(),
        ..RevocationList::default()
    };
    signer.sign_revocations(&list).unwrap()
}

fn parameters(mesh: &str, network: &str) -> CaParameters {
    CaParameters { mesh: mesh.parse().unwrap(), network: network.parse().unwrap(), lifetime: 300 * DAY }
}

/// Another root of our mesh.
fn authority(network: &str) -> Authority {
    Authority::create(&parameters("lab", network), NOW, &mut rand::rng()).unwrap()
}

/// By which our root vouches for it.
fn cross(next: &Authority) -> CaCertificate {
    root().authority().cross_sign(next.certificate(), NOW, &mut rand::rng()).unwrap()
}

fn key_of(authority: &Authority) -> IdentityKey {
    IdentityKey::from_pkcs8_pem(&authority.key_pem()).unwrap()
}
