//! Machines that wait for an operator.

use super::*;
use crate::coordinator::{
    enrolment::{CHANGES_EVERY, MORE_THAN_USES, WAITING_FOR},
    io::store::joins::Waits,
};

impl Fixture {
    async fn token_with_approval(&self, uses: u32) {
        self.add_token(Token { approve: true, ..super::token(uses) }, &SECRET).await;
    }

    async fn waits(&mut self, request: &CertificateRequest, now: UnixTime) -> Waits {
        match self.ask(request, &SECRET, HERE, now).await.unwrap() {
            Enrolled::Waits(waits) => waits,
            Enrolled::Joined { .. } => panic!("it joined"),
            Enrolled::Refused { refusal, .. } => panic!("{refusal}"),
        }
    }

    async fn decide(&self, who: Who, verdict: Verdict) -> Result<crate::api::admin::Join, StoreError> {
        self.store.decide_join(&who, verdict, &Origin::operator(UID), NOW).await
    }
}

fn named(name: &str) -> Who {
    Who::Name(NodeName::new(name).unwrap())
}

#[tokio::test]
async fn a_machine_waits_until_it_is_approved_and_joins_with_what_it_asked() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(1).await;
    let request = request(1, "n1");

    let first = fixture.waits(&request, NOW).await;
    let again = fixture.waits(&request, NOW).await;
    let approved = fixture.decide(named("n1"), Verdict::Approve).await.unwrap();
    let joined = fixture.enrol(&request, NOW).await.unwrap();

    assert_eq!((first.before, again.before), (false, true));
    assert_eq!((approved.identity, approved.from), (request.identity, HERE));
    assert_eq!(joined.identity, request.identity);
    assert!(fixture.store.joins(NOW).await.unwrap().is_empty());
    assert_eq!(fixture.enrol(&request, NOW).await.unwrap(), joined, "an answer that was lost is given again");
    assert_eq!(fixture.kinds().await, ["token_made", "join_waiting", "join_approved", "joined", "joined"]);
}

#[tokio::test]
async fn an_approval_is_of_no_use_to_anybody_else() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(3).await;
    let request = request(1, "n1");
    fixture.waits(&request, NOW).await;
    fixture.decide(named("n1"), Verdict::Approve).await.unwrap();
    let later = NOW.plus(CHANGES_EVERY);

    let another = CertificateRequest { name: request.name.clone(), ..super::request(2, "x") };
    fixture.waits(&another, later).await;
    let with_another_key = CertificateRequest { wg: WgPublicKey([9; 32]), ..request.clone() };
    let waits = fixture.waits(&with_another_key, later).await;

    assert!(!waits.before);
    let joins = fixture.store.joins(NOW).await.unwrap();
    assert!(joins.iter().all(|join| join.standing == "waiting"), "{joins:?}");
}

#[tokio::test]
async fn who_is_refused_stays_refused_with_this_token_whatever_it_calls_itself() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(2).await;
    fixture.waits(&request(1, "n1"), NOW).await;

    fixture.decide(Who::Identity(request(1, "n1").identity), Verdict::Decline).await.unwrap();

    assert_eq!(refusal(fixture.enrol(&request(1, "n1"), NOW).await), "join_declined");
    assert_eq!(refusal(fixture.enrol(&request(1, "other"), NOW).await), "join_declined");
    fixture.add_token(Token { id: "t2".into(), approve: true, ..super::token(1) }, &[8; 32]).await;
    let later = NOW.plus(CHANGES_EVERY);
    let anew = fixture.ask(&request(1, "n1"), &[8; 32], HERE, later).await.unwrap();
    assert!(matches!(anew, Enrolled::Waits(Waits { before: false, .. })));
}

#[tokio::test]
async fn two_that_ask_under_one_name_are_told_apart_by_identity() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(2).await;
    let (owner, thief) = (request(1, "n1"), CertificateRequest { name: request(1, "n1").name, ..request(2, "x") });
    fixture.waits(&owner, NOW).await;
    fixture.waits(&thief, NOW).await;

    let ambiguous = fixture.decide(named("n1"), Verdict::Approve).await;
    fixture.decide(Who::Identity(thief.identity), Verdict::Decline).await.unwrap();
    let approved = fixture.decide(named("n1"), Verdict::Approve).await.unwrap();

    assert!(matches!(ambiguous, Err(StoreError::Ambiguous(_))));
    assert_eq!(approved.identity, owner.identity);
    let nobody = fixture.decide(named("n9"), Verdict::Approve).await;
    assert!(matches!(nobody, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn no_more_are_approved_than_a_token_was_made_for_and_none_with_a_revoked_one() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(1).await;
    let (owner, thief) = (request(1, "n1"), request(2, "n2"));
    fixture.waits(&owner, NOW).await;
    let crowded = fixture.waits(&thief, NOW).await;

    fixture.decide(named("n1"), Verdict::Approve).await.unwrap();
    let second = fixture.decide(named("n2"), Verdict::Approve).await;
    fixture.store.revoke_token("t1", &Origin::operator(UID), NOW).await.unwrap();
    let revoked = fixture.decide(named("n2"), Verdict::Approve).await;

    assert_eq!(crowded.crowded_by.map(|first| (first.identity, first.from)), Some((owner.identity, Some(HERE))));
    assert_eq!(refusal(second), "token_used");
    assert_eq!(refusal(revoked), "token_revoked");
    assert_eq!(refusal(fixture.enrol(&owner, NOW).await), "token_revoked", "not even who was approved");
}

#[tokio::test]
async fn a_stolen_token_cannot_fill_the_table_or_the_audit() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(1).await;

    let mut waiting = 0;
    for number in 0..100 {
        match fixture.ask(&request(number, &format!("n{number}")), &SECRET, HERE, NOW).await {
            Ok(Enrolled::Waits(_)) => waiting += 1,
            Err(StoreError::Full(_)) => {}
            Ok(_) | Err(_) => panic!("neither waiting nor refused for want of room"),
        }
    }
    let renamed = fixture.ask(&request(0, "other"), &SECRET, HERE, NOW).await;

    assert_eq!(waiting, 1 + MORE_THAN_USES);
    assert!(matches!(renamed, Err(StoreError::Full(_))), "nor by being another every time");
    assert_eq!(fixture.rows().await.len(), 1 + waiting as usize);
}

#[tokio::test]
async fn a_request_that_nobody_decides_about_lapses_and_that_is_told() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token_with_approval(1).await;
    let request = request(1, "n1");
    let waits = fixture.waits(&request, NOW).await;

    fixture.store.tidy(waits.ends_at).await.unwrap();

    assert_eq!(waits.ends_at, NOW.plus(WAITING_FOR));
    assert_eq!(fixture.kinds().await, ["token_made", "join_waiting", "join_lapsed"]);
    assert_eq!(refusal(fixture.enrol(&request, waits.ends_at).await), "token_expired");
}
