//! Several authorities of one mesh: an online intermediate under an offline root, and one root that replaces another.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use wiremesh_certs::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn below_an_intermediate_that_the_list_names_a_record_carries_the_leaf_alone() {
    let root = root();
    let online = intermediate(&root);
    let node = Node::of(&online, 7 * DAY);
    let mut trust = Trust::new(root.certificate().clone());
    assert_eq!(refused(trust.verify(&leaf_of(&node.chain), NOW)), "another_authority", "nobody has named it yet");
    assert!(trust.verify(&node.chain, NOW).is_ok(), "its file goes up to the root");

    trust.apply_revocations(&list(&online, 1, &[&online, &root], &[]), NOW).unwrap();

    let verified = trust.verify(&node.chain, NOW).unwrap();
    assert_eq!(verified.chain().ders().len(), 1);
    assert_eq!(verified.authority(), online.certificate().fingerprint());
    let record = record();
    let signed = Signed::sign(&record, &node.key, verified.chain()).unwrap();
    assert!(signed.as_bytes().len() <= MAX_RECORD_BYTES);
    assert_eq!(trust.open(&signed, NOW).unwrap().payload, record);
}

#[test]
fn an_intermediate_is_made_within_the_limits_of_its_root() {
    let root = root();
    let parameters = |network: &str, mesh: &str| CaParameters {
        mesh: mesh.parse().unwrap(),
        network: network.parse().unwrap(),
        lifetime: 10_000 * DAY,
    };

    let narrow = root.create_intermediate(&parameters("10.42.7.0/24", "lab"), NOW, &mut rand::rng()).unwrap();

    assert_eq!(narrow.certificate().not_after(), root.certificate().not_after(), "it never outlives its root");
    assert_eq!(narrow.root(), root.certificate());
    let too_wide = root.create_intermediate(&parameters("10.0.0.0/8", "lab"), NOW, &mut rand::rng());
    assert!(matches!(too_wide, Err(IssueError::NotWithin { .. })), "{too_wide:?}");
    let other_mesh = root.create_intermediate(&parameters("10.42.0.0/16", "other"), NOW, &mut rand::rng());
    assert!(matches!(other_mesh, Err(IssueError::NotWithin { .. })));
    let below = narrow.create_intermediate(&parameters("10.42.7.0/24", "lab"), NOW, &mut rand::rng());
    assert!(matches!(below, Err(IssueError::NotARoot)));
    assert!(matches!(narrow.cross_sign(self::root().certificate(), NOW, &mut rand::rng()), Err(IssueError::NotARoot)));
}

#[test]
fn an_intermediate_is_opened_with_the_certificates_above_it() {
    let root = root();
    let online = intermediate(&root);
    let bundle = CaCertificate::bundle_to_pem(&[online.certificate().clone(), root.certificate().clone()]);

    let opened = Authority::from_pem(&bundle, &online.key_pem()).unwrap();

    assert_eq!((opened.certificate(), opened.root()), (online.certificate(), root.certificate()));
    let backwards = CaCertificate::bundle_to_pem(&[root.certificate().clone(), online.certificate().clone()]);
    assert_eq!(Authority::from_pem(&backwards, &online.key_pem()).unwrap_err(), BadAuthority::KeyMismatch);
    let unrelated = CaCertificate::bundle_to_pem(&[online.certificate().clone(), self::root().certificate().clone()]);
    assert_eq!(Authority::from_pem(&unrelated, &online.key_pem()).unwrap_err(), BadAuthority::BrokenChain);
}

#[test]
fn one_root_replaces_another_step_by_step_and_the_old_one_is_believed_no_more() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.certificate(), NOW, &mut rand::rng()).unwrap();
    let (before, after) = (Node::of(&old, 7 * DAY), Node::of(&new, 7 * DAY));
    let mut trust = Trust::new(old.certificate().clone());
    let old_member = trust.verify(&before.chain, NOW).unwrap();
    assert_eq!(refused(trust.verify(&after.chain, NOW)), "another_authority");

    trust.apply_revocations(&list(&old, 1, &[&old, &new], &[&cross]), NOW).unwrap();
    assert!(trust.verify(&before.chain, NOW).is_ok() && trust.verify(&after.chain, NOW).is_ok());
    assert!(!trust.is_revoked(&old_member));

    trust.apply_revocations(&list(&new, 2, &[&new], &[&cross]), NOW).unwrap();
    assert_eq!(refused(trust.verify(&before.chain, NOW)), "another_authority");
    assert!(trust.is_revoked(&old_member), "who was believed by the old one is believed no more");
    assert_eq!(trust.verify(&after.chain, NOW).unwrap().authority(), new.certificate().fingerprint());
}

#[test]
fn who_missed_two_changes_of_root_still_finds_to_the_present_one() {
    let roots = [root(), root(), root()];
    let cross = |n: usize| roots[n].cross_sign(roots[n + 1].certificate(), NOW, &mut rand::rng()).unwrap();
    let crosses = [cross(0), cross(1)];
    let mut late = Trust::new(roots[0].certificate().clone());

    late.apply_revocations(&list(&roots[2], 9, &[&roots[2]], &[&crosses[0], &crosses[1]]), NOW).unwrap();

    assert_eq!(late.authorities(), [roots[2].certificate().clone()]);
    assert!(late.verify(&Node::of(&roots[2], DAY).chain, NOW).is_ok());
}

#[test]
fn a_coordinator_is_known_by_any_authority_that_its_chain_leads_to() {
    let (old, new) = (root(), root());
    let cross = old.cross_sign(new.certificate(), NOW, &mut rand::rng()).unwrap();
    let (mut chain, _) = new.issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();
    chain.extend([cross.der().to_vec(), old.certificate().der().to_vec()]);

    for root in [&old, &new] {
        assert_eq!(Trust::new(root.certificate().clone()).verify_coordinator(&chain, NOW), Ok(()));
    }
    let stranger = Trust::new(self::root().certificate().clone());
    assert_eq!(stranger.verify_coordinator(&chain, NOW).unwrap_err().reason(), "another_authority");
    let online = intermediate(&old);
    let (chain, _) = online.issue_coordinator_tls(DAY, NOW, &mut rand::rng()).unwrap();
    assert_eq!(Trust::new(old.certificate().clone()).verify_coordinator(&chain, NOW), Ok(()));
}

#[test]
fn a_list_cannot_make_a_stranger_an_authority() {
    let (ours, stranger) = (root(), root());
    let mut trust = Trust::new(ours.certificate().clone());
    let by_stranger = stranger.cross_sign(ours.certificate(), NOW, &mut rand::rng()).unwrap();

    // Ours vouches for nobody here: neither the list's signature nor a cross in the wrong direction does.
    let named = trust.apply_revocations(&list(&ours, 1, &[&ours, &stranger], &[]), NOW);
    assert_eq!(refused(named), "another_authority");
    let signed = trust.apply_revocations(&list(&stranger, 1, &[&stranger], &[&by_stranger]), NOW);
    assert_eq!(refused(signed), "another_authority");
    assert_eq!((trust.authorities().len(), trust.revocation_number()), (1, 0), "nothing of it is kept");
}

#[test]
fn an_intermediate_cannot_put_out_the_root_above_it() {
    let root = root();
    let online = intermediate(&root);
    let mut trust = Trust::new(root.certificate().clone());
    trust.apply_revocations(&list(&online, 1, &[&online, &root], &[]), NOW).unwrap();

    let dropped = trust.apply_revocations(&list(&online, 2, &[&online], &[]), NOW);
    let revoking = RevocationList { number: 2, identities: [root.certificate().key()].into(), ..Default::default() };
    let revoked = trust.apply_revocations(&online.sign_revocations(&revoking).unwrap(), NOW);

    assert_eq!((refused(dropped), refused(revoked)), ("authority_exceeded", "authority_exceeded"));
    // The root itself may do as it likes with what it made.
    let without = RevocationList { number: 2, identities: [online.certificate().key()].into(), ..Default::default() };
    trust.apply_revocations(&root.sign_revocations(&without).unwrap(), NOW).unwrap();
    assert_eq!(refused(trust.verify(&Node::of(&online, DAY).chain, NOW)), "revoked");
    let again = trust.apply_revocations(&list(&online, 3, &[&online, &root], &[]), NOW);
    assert_eq!(refused(again), "revoked", "a revoked authority signs no lists");
}

#[test]
fn who_hung_on_a_revoked_authority_is_believed_no_more() {
    let root = root();
    let online = intermediate(&root);
    let node = Node::of(&online, 7 * DAY);
    let mut trust = Trust::new(root.certificate().clone());
    let by_chain = trust.verify(&node.chain, NOW).unwrap();
    trust.apply_revocations(&list(&online, 1, &[&online, &root], &[]), NOW).unwrap();
    let by_list = trust.verify(&node.chain, NOW).unwrap();

    let revoking = RevocationList { number: 2, serials: [online.certificate().serial()].into(), ..Default::default() };
    trust.apply_revocations(&root.sign_revocations(&revoking).unwrap(), NOW).unwrap();

    assert!(trust.is_revoked(&by_chain) && trust.is_revoked(&by_list));
}

#[test]
fn a_certificate_that_ended_is_good_for_its_renewal_within_the_window_and_for_nothing_else() {
    let root = root();
    let node = Node::of(&root, DAY);
    let trust = Trust::new(root.certificate().clone());
    let (ended, window) = (NOW.plus(2 * DAY), 3 * DAY);

    assert_eq!(refused(trust.verify(&node.chain, ended)), "expired");
    let renewable = trust.renewable(&node.chain, &[], window, ended).unwrap();
    assert_eq!((renewable.id(), renewable.not_after()), (node.key.id(), NOW.plus(DAY)));
    assert_eq!(refused(trust.renewable(&node.chain, &[], window, NOW.plus(4 * DAY))), "expired");
    assert_eq!(refused(trust.renewable(&node.chain, &[], window, NOW.minus(DAY))), "not_yet_valid");

    let mut revoking = trust.clone();
    let list = RevocationList { number: 1, identities: [node.key.id()].into(), ..Default::default() };
    revoking.apply_revocations(&root.sign_revocations(&list).unwrap(), NOW).unwrap();
    assert_eq!(refused(revoking.renewable(&node.chain, &[], window, ended)), "revoked");
}

#[test]
fn a_certificate_of_a_former_authority_is_good_for_its_renewal() {
    let (former, present) = (root(), root());
    let node = Node::of(&former, DAY);
    let trust = Trust::new(present.certificate().clone());

    let renewable = trust.renewable(&node.chain, &[former.certificate().clone()], Duration::ZERO, NOW);

    assert_eq!(renewable.unwrap().id(), node.key.id());
    assert_eq!(refused(trust.renewable(&node.chain, &[], Duration::ZERO, NOW)), "another_authority");
}

#[test]
fn a_certificate_of_an_intermediate_that_was_revoked_is_good_for_its_renewal_and_for_nothing_else() {
    let root = root();
    let (former, present) = (intermediate(&root), intermediate(&root));
    let node = Node::of(&former, DAY);
    let mut trust = Trust::new(root.certificate().clone());
    let list = RevocationList { number: 1, identities: [former.certificate().key()].into(), ..Default::default() };
    trust.apply_revocations(&present.sign_revocations(&list).unwrap(), NOW).unwrap();
    let former = [former.certificate().clone()];

    assert_eq!(refused(trust.verify(&node.chain, NOW)), "revoked", "its root vouches for it no more");
    assert_eq!(trust.renewable(&node.chain, &former, Duration::ZERO, NOW).unwrap().id(), node.key.id());
    let list = RevocationList { number: 2, identities: [node.key.id()].into(), ..list };
    trust.apply_revocations(&present.sign_revocations(&list).unwrap(), NOW).unwrap();
    assert_eq!(refused(trust.renewable(&node.chain, &former, Duration::ZERO, NOW)), "revoked");
}

#[test]
fn a_proof_to_renew_may_be_made_with_a_certificate_that_ended_and_only_once() {
    let root = root();
    let node = Node::of(&root, DAY);
    let trust = Trust::new(root.certificate().clone());
    let ended = NOW.plus(2 * DAY);
    let mut checker = ProofChecker::new("coordinator.lab".to_owned(), NOW);
    let (audience, path) = ("coordinator.lab", "/api/certs/renew");
    let header = proof_header(&node.key, &node.chain, audience, "POST", path, ended, &mut rand::rng()).unwrap();

    assert_eq!(refused(checker.check(&header, "POST", path, &trust, ended)), "expired");
    let mut renew = |path: &str| checker.check_renewable(&header, "POST", path, &trust, &[], 3 * DAY, ended);
    assert_eq!(refused(renew("/api/worker/heartbeat")), "proof_for_another");
    assert_eq!(renew(path).unwrap().id(), node.key.id());
    assert_eq!(refused(renew(path)), "replayed_proof");
}

#[test]
fn policy_and_certificate_together_say_who_may_offer_and_call() {
    let root = root();
    let node = Node::of(&root, DAY);
    let mut trust = Trust::new(root.certificate().clone());
    let verified = trust.verify(&node.chain, NOW).unwrap();
    let service = |name: &str| ServiceName::new(name).unwrap();
    let only = |group: &str| Some([group.parse().unwrap()].into());
    assert!(trust.may_offer(&verified, &service("llm")) && trust.may_call(&verified, &service("llm")));

    let services = [(service("llm"), Rule { offer: only("gpu"), call: only("apps") })].into();
    let policy = Policy { services, otherwise: Rule { offer: only("cpu"), call: None } };
    let list = RevocationList { number: 1, policy, ..RevocationList::default() };
    trust.apply_revocations(&root.sign_revocations(&list).unwrap(), NOW).unwrap();

    assert!(trust.may_offer(&verified, &service("llm")), "it is in the group gpu");
    assert!(!trust.may_call(&verified, &service("llm")), "it is not in the group apps");
    assert!(!trust.may_offer(&verified, &service("ocr")) && trust.may_call(&verified, &service("ocr")));
}

#[test]
fn authorities_of_different_meshes_are_no_trust() {
    let other = Authority::create(&parameters("other"), NOW, &mut rand::rng()).unwrap();
    let root = root();

    let mixed = Trust::of(vec![root.certificate().clone(), other.certificate().clone()]);

    assert_eq!(refused(mixed), "another_mesh");
    assert_eq!(refused(Trust::of(Vec::new())), "bad_certificate");
    let many = vec![root.certificate().clone(); MAX_AUTHORITIES + 1];
    assert_eq!(refused(Trust::of(many)), "bad_certificate");
}

struct Node {
    key: IdentityKey,
    chain: Chain,
}

impl Node {
    fn of(authority: &Authority, lifetime: Duration) -> Node {
        let (key, wg) = generate_keys(&mut rand::rng());
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: "worker-1".parse().unwrap(),
            address: "10.42.0.7".parse().unwrap(),
            groups: vec!["gpu".parse().unwrap()],
            services: AllowedServices::Any,
            lifetime,
        };
        let chain = authority.issue(&claims, NOW, &mut rand::rng()).unwrap();
        Node { key, chain }
    }
}

fn parameters(mesh: &str) -> CaParameters {
    let network = "10.42.0.0/16".parse().unwrap();
    CaParameters { mesh: mesh.parse().unwrap(), network, lifetime: 365 * DAY }
}

fn root() -> Authority {
    Authority::create(&parameters("lab"), NOW, &mut rand::rng()).unwrap()
}

fn intermediate(root: &Authority) -> Authority {
    root.create_intermediate(&parameters("lab"), NOW, &mut rand::rng()).unwrap()
}

fn list(signer: &Authority, number: u64, authorities: &[&Authority], crosses: &[&CaCertificate]) -> SignedRevocations {
    let list = RevocationList {
        number,
        authorities: authorities.iter().map(|authority| authority.certificate().der().to_vec()).collect(),
        crosses: crosses.iter().map(|cross| cross.der().to_vec()).collect(),
        ..RevocationList::default()
    };
    signer.sign_revocations(&list).unwrap()
}

fn leaf_of(chain: &Chain) -> Chain {
    Chain::from_ders(vec![chain.leaf().to_vec()]).unwrap()
}

fn record() -> NodeRecord {
    NodeRecord {
        sequence: NOW.0 * 1000,
        expires_at: NOW.plus(RECORD_LIFE),
        endpoints: vec!["203.0.113.7:51820".parse().unwrap()],
        services: vec!["llm".parse().unwrap()],
        load: Load::default(),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 3,
        nearby: Vec::new(),
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Refused>) -> &'static str {
    outcome.unwrap_err().reason()
}
