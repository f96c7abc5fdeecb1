//! The list at rest: what it is made of changes with it, and a rotation is found again as it was left.

use super::*;
use crate::coordinator::{
    list::say_the_same,
    rotation::{Fleet, Standing, Step},
};

/// Signs what differs from `before`, as whoever issues.
fn signed_by<'a>(
    keys: &'a [&'a Authority],
    before: &'a RevocationList,
) -> impl FnOnce(&Facts) -> Result<Option<SignedRevocations>, StoreError> + Send + 'a {
    move |facts| {
        let list = compose(facts, &Policy::default(), NOW);
        if say_the_same(&list, before) {
            return Ok(None);
        }
        let issuing = facts.authorities.issuing().fingerprint();
        let key = keys.iter().find(|key| key.certificate().fingerprint() == issuing).unwrap();
        Ok(Some(key.sign_revocations(&list)?))
    }
}

fn begin(of: &Authority, cross: Option<wiremesh_certs::CaCertificate>) -> Change {
    Change::Begin { certificate: of.certificate().clone(), above: Vec::new(), cross }
}

#[tokio::test]
async fn a_list_is_published_when_it_says_something_new_and_not_otherwise() {
    let fixture = fixture("10.42.0.0/16").await;
    let keys = [&fixture.authority];
    let mut trust = Trust::new(fixture.authority.certificate().clone());

    let first = fixture
        .store
        .publish(&Change::Nothing, &Origin::operator(UID), NOW, signed_by(&keys, trust.revocations()))
        .await
        .unwrap();
    assert_eq!(trust.apply_revocations(&first.signed.unwrap(), NOW), Ok(true));
    let again = fixture
        .store
        .publish(&Change::Nothing, &Origin::operator(UID), NOW, signed_by(&keys, trust.revocations()))
        .await
        .unwrap();

    assert_eq!((first.number, again.number), (1, 1));
    assert!(again.signed.is_none());
    assert_eq!(trust.revocations().authorities, [fixture.authority.certificate().der().to_vec()]);
}

#[tokio::test]
async fn a_rotation_is_found_as_it_was_left_after_every_step() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let (old, new) = (authority("10.42.0.0/16", 1), authority("10.42.0.0/16", 2));
    let cross = old.cross_sign(new.certificate(), NOW, &mut StdRng::seed_from_u64(3)).unwrap();
    let keys = [&old, &new];
    let nothing = RevocationList::default();
    let everybody = Fleet { living: Vec::new(), is_complete: true };
    let mut member = Trust::new(old.certificate().clone());
    let changes = [
        (begin(&new, Some(cross.clone())), Some(Step::Issue)),
        (Change::Step(Step::Issue), Some(Step::Retire)),
        (Change::Step(Step::Retire), None),
    ];

    for (number, (change, next)) in (1..).zip(changes) {
        let store = Store::open(&path, &old, NOW).await.unwrap();
        let published = store.publish(&change, &Origin::operator(UID), NOW, signed_by(&keys, &nothing)).await.unwrap();
        store.close().await;

        let store = Store::open(&path, &old, NOW).await.unwrap();
        let found = store.authorities().await.unwrap();
        assert_eq!((found.next_step(&everybody), &found), (next, &published.authorities));
        assert_eq!(store.crosses().await.unwrap(), std::slice::from_ref(&cross));
        let list = store.revocations().await.unwrap().unwrap();
        assert_eq!(member.apply_revocations(&list, NOW), Ok(true), "state and list are of one piece");
        assert_eq!(member.revocation_number(), number);
        store.close().await;
    }
    assert_eq!(member.authorities(), [new.certificate().clone()]);
    assert!(Store::open(&path, &new, NOW).await.is_ok(), "the operator may put a later authority into ca.crt");
    assert!(Store::open(&path, &authority("10.42.0.0/16", 9), NOW).await.is_err());
}

#[tokio::test]
async fn a_step_whose_list_cannot_be_made_is_not_taken() {
    let fixture = fixture("10.42.0.0/16").await;
    let new = authority("10.42.0.0/16", 2);

    let failed = fixture
        .store
        .publish(&begin(&new, None), &Origin::operator(UID), NOW, |_| Err(StoreError::NoKey(Fingerprint([1; 32]))))
        .await;
    let early = fixture.store.publish(&Change::Step(Step::Issue), &Origin::operator(UID), NOW, |_| Ok(None)).await;

    assert!(matches!(failed, Err(StoreError::NoKey(_))));
    assert!(matches!(early, Err(StoreError::CannotRotate(CannotRotate::NotUnderWay))));
    assert_eq!(fixture.store.authorities().await.unwrap().all().len(), 1);
    assert!(fixture.store.revocations().await.unwrap().is_none());
}

#[tokio::test]
async fn an_authority_that_is_withdrawn_is_revoked_since_what_led_to_it_is_out() {
    let fixture = fixture("10.42.0.0/16").await;
    let (old, new) = (&fixture.authority, authority("10.42.0.0/16", 2));
    let cross = old.cross_sign(new.certificate(), NOW, &mut StdRng::seed_from_u64(3)).unwrap();
    let (keys, nothing) = ([old], RevocationList::default());

    let announced = begin(&new, Some(cross));
    fixture.store.publish(&announced, &Origin::operator(UID), NOW, signed_by(&keys, &nothing)).await.unwrap();
    let withdrawn = fixture
        .store
        .publish(&Change::Step(Step::Withdraw), &Origin::operator(UID), NOW, signed_by(&keys, &nothing))
        .await;

    let mut trust = Trust::new(old.certificate().clone());
    let withdrawn = withdrawn.unwrap();
    trust.apply_revocations(&withdrawn.signed.unwrap(), NOW).unwrap();
    assert_eq!(trust.authorities(), [old.certificate().clone()]);
    assert!(trust.revocations().identities.contains(&new.certificate().key()));
    assert!(withdrawn.crosses.is_empty());
    assert_eq!(withdrawn.authorities.all()[1].standing, Standing::Retired);
    let again = fixture.store.publish(&announced, &Origin::operator(UID), NOW, signed_by(&keys, &nothing)).await;
    assert!(matches!(again, Err(StoreError::CannotRotate(CannotRotate::KnownAlready(_)))));
}

#[tokio::test]
async fn a_newer_list_from_a_member_is_outnumbered_and_its_revocations_are_kept() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let member = fixture.join(1).await.unwrap();
    let lost = RevocationList {
        number: 41,
        identities: [member.identity].into(),
        serials: [Serial([9; 16])].into(),
        ..RevocationList::default()
    };
    let until = NOW.plus(Duration::from_secs(86_400));
    let (keys, nothing) = ([&fixture.authority], RevocationList::default());

    let change = Change::TakeOver { list: lost.clone(), until };
    let published =
        fixture.store.publish(&change, &Origin::operator(UID), NOW, signed_by(&keys, &nothing)).await.unwrap();

    let mut trust = Trust::new(fixture.authority.certificate().clone());
    trust.apply_revocations(&published.signed.unwrap(), NOW).unwrap();
    assert_eq!(published.number, 42);
    assert_eq!((&trust.revocations().identities, &trust.revocations().serials), (&lost.identities, &lost.serials));
    assert_eq!(refusal(fixture.join(1).await), "identity_revoked");
    assert!(fixture.store.members().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_revoked_certificate_is_not_renewed_as_long_as_any_could_be() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let window = Duration::from_secs(30 * 86_400);
    let request = request(1, "n1");
    let by = fixture.verified(&request).await;
    fixture.revoke(Target::Serial(by.serial())).await.unwrap();
    let by = Renewable::from(by);

    for days in [2, 29, 30] {
        let later = NOW.plus(Duration::from_secs(days * 86_400));
        fixture.store.tidy(window, later).await.unwrap();
        let renewed = fixture.store.renew(&by, Newcomers::Refused, HERE, later, |_| Err(IssueError::TooShort)).await;
        assert_eq!(refusal(renewed), "certificate_revoked", "{days} days later");
    }
}

#[tokio::test]
async fn who_is_not_known_here_is_not_taken_in_by_a_certificate_that_is_good_for_renewals_only() {
    let fixture = fixture("10.42.0.0/16").await;
    let mut elsewhere = self::fixture("10.42.0.0/16").await;
    elsewhere.token(5).await;
    let by = Renewable::from(elsewhere.verified(&request(1, "n1")).await);

    let renewed = fixture.store.renew(&by, Newcomers::Refused, HERE, NOW, |_| Err(IssueError::TooShort)).await;

    assert_eq!(refusal(renewed), "not_a_member");
    assert!(fixture.store.members().await.unwrap().is_empty());
}
