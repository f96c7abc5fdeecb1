//! Keys that change, keys that come back, and keys that are used twice.

use super::*;
use crate::{
    api::{Copied, RekeyRequest},
    membership::io::{Handle, RotateFailed},
};

#[tokio::test]
async fn keys_change_while_name_and_address_stay_and_the_ones_before_are_refused() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let token = mesh.token(json!({"groups": ["gpu"], "services": ["ocr"]})).await;
    let (before, session) = mesh.join_in(&dir, "alpha", &token).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(before.clone(), session, &["ocr"]);
    running.reached().await;
    let list_before = number(&mesh).await;

    let keys = handle.rotate_keys().await.unwrap();
    handle.keys_ready().await;
    assert_eq!(keys.present, before.identity.id());
    assert_eq!(heartbeat(&mesh, &before).await.0, StatusCode::OK, "until the next keys are used, the present are good");
    running.stop().await;
    let (after, session) = join_at_without_token(&dir, "alpha").await.unwrap();

    assert_eq!(after.identity.id(), keys.next);
    assert_ne!((after.verified.id(), after.verified.wg()), (before.verified.id(), before.verified.wg()));
    assert_eq!(after.verified.address(), before.verified.address());
    assert_eq!(
        (after.verified.groups(), after.verified.services()),
        (before.verified.groups(), before.verified.services())
    );
    let running = Agent::run(after.clone(), session, &["ocr"]);
    // The coordinator may have answered before it has heard a word signed by the next keys.
    let heard = async {
        loop {
            let found = after.client.discover(&service("ocr").into()).await.unwrap();
            let (status, answer) = heartbeat(&mesh, &before).await;
            if status != StatusCode::OK && !found.is_empty() {
                return (status, answer, found);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (status, answer, found) = tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
    assert_eq!((status, &answer["error"]["type"]), (StatusCode::FORBIDDEN, &json!("revoked")));
    assert_eq!(found.len(), 1, "the member is there once");
    // Two records of it, maybe: a heartbeat may have come in between.
    let node = after.client.node(&name("alpha")).await.unwrap().unwrap();
    for record in [&node, &found[0].record] {
        assert_eq!(after.trust.current().open(record, clock::unix()).unwrap().by.id(), keys.next);
    }
    assert_eq!(number(&mesh).await, list_before + 1);
    running.stop().await;
}

#[tokio::test]
async fn keys_that_were_changed_are_remembered_by_a_coordinator_that_starts_again() {
    let mut mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (before, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(before.clone(), session, &[]);
    running.reached().await;
    handle.rotate_keys().await.unwrap();
    running.stop().await;

    mesh.restart().await;
    let (after, session) = join_at_without_token(&dir, "alpha").await.unwrap();
    let running = Agent::run(after.clone(), session, &[]);
    running.reached().await;
    mesh.restart().await;

    assert_eq!(heartbeat(&mesh, &after).await.0, StatusCode::OK);
    assert_eq!(heartbeat(&mesh, &before).await.1["error"]["type"], "revoked");
    running.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_given_again_and_keys_that_were_never_used_are_revoked_with_their_member() {
    let mesh = Mesh::start().await;
    let (alpha, _session) = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap();
    let (first, first_body) = next_keys("alpha");
    let (second, second_body) = next_keys("alpha");

    let once = alpha.client.rekey(&first_body).await.unwrap();
    let again = alpha.client.rekey(&first_body).await.unwrap();
    assert_ne!(once.certificate, again.certificate, "a fresh certificate for the same keys");
    let abandoned = chain(&again.certificate);
    let kept = chain(&alpha.client.rekey(&second_body).await.unwrap().certificate);

    assert_eq!(kind(&mesh, &first.0, &abandoned).await, "revoked", "other keys leave the first behind");
    let other = RekeyRequest { csr: first_body.csr.clone(), wireguard_key: first_body.wireguard_key };
    let refused = alpha.client.rekey(&other).await.unwrap_err();
    assert_eq!(refused.kind(), Some("identity_taken"), "and they do not come back");
    let (status, _) = mesh.admin(Method::POST, "/revocations", json!({"name": "alpha"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(kind(&mesh, &second.0, &kept).await, "revoked", "what a revoked member had asked for goes with it");
}

#[tokio::test]
async fn keys_whose_first_word_is_a_renewal_are_the_members_as_well() {
    let mesh = Mesh::start().await;
    let (alpha, _session) = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap();
    let ((identity, _), body) = next_keys("alpha");
    let next = chain(&alpha.client.rekey(&body).await.unwrap().certificate);
    let (audience, path) = (api::audience(&MeshName::new("lab").unwrap()), "/api/certs/renew");
    let proof = proof_header(&identity, &next, &audience, "POST", path, clock::unix(), &mut rng()).unwrap();

    let (status, answer) = mesh.post(path, json!({}), Some(&proof)).await;

    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(kind(&mesh, &alpha.identity, alpha.verified.chain()).await, "revoked");
    assert_eq!(kind(&mesh, &identity, &next).await, "fine");
}

#[tokio::test]
async fn every_change_of_keys_that_must_not_happen_is_refused_with_its_reason() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 2})).await;
    let (alpha, _a) = mesh.join("alpha", &token).await.unwrap();
    let (beta, _b) = mesh.join("beta", &token).await.unwrap();
    let (_, good) = next_keys("alpha");
    let of = |identity: &IdentityKey, wg: WgPublicKey| RekeyRequest {
        csr: CertificateRequest::create(identity, &name("alpha"), &wg).unwrap(),
        wireguard_key: wg,
    };
    let (fresh, fresh_wg) = (IdentityKey::generate(&mut rng()), WgPrivateKey::generate(&mut rng()).public());

    for (case, body, expected) in [
        ("another name", next_keys("gamma").1, "other_name"),
        ("the present identity again", of(&alpha.identity, fresh_wg), "same_identity"),
        ("another member's identity", of(&beta.identity, fresh_wg), "identity_taken"),
        ("another member's WireGuard key", of(&fresh, beta.wg.public()), "wireguard_key_taken"),
        ("the present WireGuard key", of(&fresh, alpha.wg.public()), "wireguard_key_taken"),
        ("a WireGuard key that is not signed for", RekeyRequest { wireguard_key: fresh_wg, ..good.clone() }, "bad_csr"),
        ("no request", RekeyRequest { csr: "x".into(), wireguard_key: fresh_wg }, "bad_csr"),
    ] {
        let refused = alpha.client.rekey(&body).await.unwrap_err();
        assert_eq!(refused.kind(), Some(expected), "{case}: {refused}");
    }
    let path = "/api/certs/rekey";
    let body = serde_json::to_value(&good).unwrap();
    assert_eq!(mesh.post(path, body.clone(), None).await.0, StatusCode::UNAUTHORIZED);
    let (status, answer) = mesh.post(path, body.clone(), Some(&mesh.admin_key())).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "nobody changes a member's keys for it: {answer}");
    mesh.admin(Method::POST, "/revocations", json!({"name": "alpha"})).await;
    let (_, answer) = mesh.post(path, body, Some(&proof(&alpha, "POST", path))).await;
    assert_eq!(answer["error"]["type"], "revoked");
}

#[tokio::test]
async fn keys_that_cannot_be_certified_leave_the_present_ones_in_use() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (alpha, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(alpha.clone(), session, &[]);
    running.reached().await;
    mesh.stop().await;

    let failed = handle.rotate_keys().await.unwrap_err();

    assert!(matches!(failed, RotateFailed::Client(ClientError::Unreachable { .. })), "{failed}");
    assert!(failed.hint().unwrap().contains("tried again by itself"));
    assert!(dir.join("identity.key.next").exists(), "the same keys are asked for again");
    running.kill().await;
    let (member, _session) = join_at_without_token(&dir, "alpha").await.unwrap();
    assert_eq!(member.identity.id(), alpha.identity.id());
}

#[tokio::test]
async fn a_change_that_was_cut_off_goes_on_at_the_next_start() {
    let mut mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (alpha, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(alpha.clone(), session, &[]);
    running.reached().await;
    mesh.stop().await;
    handle.rotate_keys().await.unwrap_err();
    running.kill().await;
    mesh.restart().await;

    let (same, session) = join_at_without_token(&dir, "alpha").await.unwrap();
    assert_eq!(same.identity.id(), alpha.identity.id());
    let handle = session.handle();
    let running = Agent::run(same, session, &[]);
    tokio::time::timeout(Duration::from_secs(30), handle.keys_ready()).await.expect("it goes on by itself");
    running.stop().await;

    let (after, _session) = join_at_without_token(&dir, "alpha").await.unwrap();
    assert_ne!(after.identity.id(), alpha.identity.id());
}

#[tokio::test]
async fn a_state_directory_that_runs_twice_is_reported_to_both_and_ends_with_one_of_them() {
    let mesh = Mesh::start().await;
    let (dir, copy) = (mesh.state_dir("a"), mesh.state_dir("copy"));
    let (member, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let (handle, running) = (session.handle(), Agent::run(member, session, &[]));
    running.reached().await;
    copied_to(&dir, &copy);

    let (twin, session) = join_at_without_token(&copy, "alpha").await.unwrap();
    let (twin_handle, twin_running) = (session.handle(), Agent::run(twin, session, &[]));

    assert_eq!(copied_of(&handle, true).await.unwrap().seen_from, std::net::IpAddr::from([127, 0, 0, 1]));
    assert!(copied_of(&twin_handle, true).await.is_some());
    let metrics = metrics_of(&mesh).await;
    assert!(metrics.contains("wiremesh_coordinator_copied_identities 1"), "{metrics}");
    assert!(metrics.contains("wiremesh_coordinator_copies_detected_total 1"), "{metrics}");
    twin_running.kill().await;
    assert_eq!(copied_of(&handle, false).await, None);
    assert!(metrics_of(&mesh).await.contains("wiremesh_coordinator_copied_identities 0"));
    running.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_started_again_and_again_is_no_copy() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (mut member, mut session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();

    for _ in 0..4 {
        let (handle, running) = (session.handle(), Agent::run(member, session, &[]));
        running.reached().await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert_eq!(handle.status().copied, None);
        running.kill().await;
        (member, session) = join_at_without_token(&dir, "alpha").await.unwrap();
    }
}

/// Of the list in force.
async fn number(mesh: &Mesh) -> u64 {
    let (_, list) = mesh.admin(Method::GET, "/revocations", json!(null)).await;
    list["number"].as_u64().unwrap_or_default()
}

fn next_keys(called: &str) -> ((IdentityKey, WgPrivateKey), RekeyRequest) {
    let (identity, wg) = wiremesh_certs::generate_keys(&mut rng());
    let csr = CertificateRequest::create(&identity, &name(called), &wg.public()).unwrap();
    let body = RekeyRequest { csr, wireguard_key: wg.public() };
    ((identity, wg), body)
}

fn chain(pem: &str) -> wiremesh_certs::Chain {
    wiremesh_certs::Chain::from_pem(pem).unwrap()
}

/// What the coordinator says to somebody with these keys.
async fn kind(mesh: &Mesh, key: &IdentityKey, chain: &wiremesh_certs::Chain) -> String {
    let audience = api::audience(&MeshName::new("lab").unwrap());
    let path = "/api/dht/bootstrap";
    let proof = proof_header(key, chain, &audience, "GET", path, clock::unix(), &mut rng()).unwrap();
    let (_, answer) = mesh.get(path, Some(&proof)).await;
    answer["error"]["type"].as_str().unwrap_or("fine").to_owned()
}

async fn heartbeat(mesh: &Mesh, member: &Member) -> (StatusCode, Value) {
    let path = "/api/worker/heartbeat";
    let body = json!({ "record": record(member, &[]) });
    mesh.post(path, body, Some(&proof(member, "POST", path))).await
}

async fn copied_of(handle: &Handle, wanted: bool) -> Option<Copied> {
    let looking = async {
        loop {
            let copied = handle.status().copied;
            if copied.is_some() == wanted {
                return copied;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking).await.expect("it is told")
}

fn copied_to(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

async fn metrics_of(mesh: &Mesh) -> String {
    let stream = UnixStream::connect(mesh.data_dir().join("coordinator.sock")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::builder().uri("/metrics").header("host", "localhost");
    let response = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn rng() -> StdRng {
    StdRng::from_os_rng()
}
