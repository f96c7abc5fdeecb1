//! What was done is told, once and for good.

use super::*;
use crate::{
    api::admin::Actor,
    coordinator::audit::{Event, Kind, MAX_ROWS},
};

fn event(kind: Kind) -> Event {
    Event::new(kind, &Origin::operator(UID))
}

#[tokio::test]
async fn everything_done_about_members_is_told_with_who_what_whom_and_from_where() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;
    let by = fixture.verified(&request(1, "n1")).await;
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    fixture.store.renew(&by, HERE, NOW, |grant| issue(authority, grant, NOW, rng)).await.unwrap();
    fixture.store.revoke_token("t1", &Origin::operator(UID), NOW).await.unwrap();
    fixture.store.revoke_token("t1", &Origin::operator(UID), NOW).await.unwrap();
    fixture.revoke(Target::Serial(by.serial())).await.unwrap();

    let rows = fixture.rows().await;

    assert_eq!(fixture.kinds().await, ["token_made", "joined", "renewed", "token_revoked", "revoked"]);
    let (operator, member) =
        (Actor::Operator { uid: UID }, Actor::Member { name: by.name().clone(), identity: by.id() });
    assert_eq!([&rows[0].by, &rows[3].by, &rows[4].by], [&operator; 3]);
    assert_eq!([&rows[1].by, &rows[2].by], [&member; 2]);
    for row in &rows[1..3] {
        assert_eq!((row.from, row.identity, row.at), (Some(HERE), Some(by.id()), NOW));
    }
    assert_eq!(rows[1].token.as_deref(), Some("t1"));
    assert_eq!(rows[1].detail["groups"], serde_json::json!(["gpu"]));
    assert_eq!(rows[4].detail["serial"], by.serial().to_string());
    assert_eq!((&rows[4].name, rows[4].from), (&Some(by.name().clone()), None));
}

#[tokio::test]
async fn a_token_used_by_two_machines_says_who_was_first_and_from_where() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;
    let first = fixture.join(1).await.unwrap();
    let elsewhere = "203.0.113.9".parse().unwrap();

    let refused = fixture.ask(&request(2, "n2"), &SECRET, elsewhere, NOW).await.unwrap();

    let Enrolled::Refused { refusal, token, first_use: Some(first_use) } = refused else { panic!() };
    assert_eq!((refusal.kind(), token.as_deref()), ("token_used", Some("t1")));
    assert_eq!((first_use.identity, first_use.name), (first.identity, Some(first.name)));
    assert_eq!((first_use.from, first_use.at), (Some(HERE), NOW));
    let own = fixture.ask(&request(1, "other"), &SECRET, HERE, NOW).await.unwrap();
    assert!(matches!(own, Enrolled::Refused { first_use: None, .. }), "its own first use is not another's");
}

#[tokio::test]
async fn what_is_undone_is_not_told() {
    let fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;

    let failed = fixture.store.enrol(&request(1, "n1"), &SECRET, HERE, NOW, |_| Err(IssueError::TooShort)).await;

    assert!(failed.is_err());
    assert_eq!(fixture.kinds().await, ["token_made"]);
}

#[tokio::test]
async fn rows_are_neither_changed_nor_removed_nor_replaced() {
    let fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;

    for statement in [
        "UPDATE audit SET at = 0",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit (id, at, kind, actor, detail) VALUES (1, 0, 'x', '{}', '{}')",
        "REPLACE INTO audit (id, at, kind, actor, detail) VALUES (1, 0, 'x', '{}', '{}')",
    ] {
        let refused = sqlx::query(statement).execute(&fixture.store.pool).await.unwrap_err().to_string();
        assert!(refused.contains("audit"), "{statement}: {refused}");
    }

    assert_eq!(fixture.kinds().await, ["token_made"]);
}

#[tokio::test]
async fn the_oldest_row_goes_when_there_are_as_many_as_may_be() {
    let fixture = fixture("10.42.0.0/16").await;
    fixture.store.audit(&event(Kind::Joined), NOW).await.unwrap();
    let last =
        "INSERT INTO audit (id, at, kind, actor, detail) VALUES (?, 1, 'renewed', '{\"as\":\"stranger\"}', '{}')";
    sqlx::query(last).bind(integer(MAX_ROWS)).execute(&fixture.store.pool).await.unwrap();
    assert_eq!(fixture.kinds().await, ["joined", "renewed"]);
    let too_early = sqlx::query("DELETE FROM audit WHERE id = 1").execute(&fixture.store.pool).await;

    fixture.store.audit(&event(Kind::Revoked), NOW).await.unwrap();

    assert!(too_early.is_err());
    assert_eq!(fixture.kinds().await, ["renewed", "revoked"]);
}

#[tokio::test]
async fn rows_are_found_by_kind_time_number_and_from_the_end() {
    let fixture = fixture("10.42.0.0/16").await;
    let later = NOW.plus(Duration::from_secs(60));
    for (kind, at) in [(Kind::Joined, NOW), (Kind::Renewed, NOW), (Kind::Renewed, later), (Kind::Revoked, later)] {
        fixture.store.audit(&event(kind), at).await.unwrap();
    }

    for (expected, wanted) in [
        (vec![1, 2, 3, 4], Wanted::default()),
        (vec![2, 3], Wanted { kind: Some(Kind::Renewed), ..Wanted::default() }),
        (vec![3], Wanted { kind: Some(Kind::Renewed), newest: Some(1), ..Wanted::default() }),
        (vec![3, 4], Wanted { since: later, ..Wanted::default() }),
        (vec![3, 4], Wanted { newest: Some(2), ..Wanted::default() }),
        (vec![1, 2, 3, 4], Wanted { newest: Some(9), ..Wanted::default() }),
        (vec![4], Wanted { after: 3, ..Wanted::default() }),
        (vec![], Wanted { after: 4, ..Wanted::default() }),
    ] {
        let found: Vec<_> = fixture.store.audited(&wanted, 9).await.unwrap().iter().map(|row| row.id).collect();
        assert_eq!(found, expected, "{wanted:?}");
    }
    assert_eq!(fixture.store.audited(&Wanted::default(), 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn whoever_waits_for_a_row_is_woken_by_it() {
    let fixture = fixture("10.42.0.0/16").await;
    let mut grew = fixture.store.audit_grew();

    fixture.token(1).await;

    tokio::time::timeout(Duration::from_secs(5), grew.changed()).await.unwrap().unwrap();
    assert_eq!(fixture.kinds().await, ["token_made"]);
}
