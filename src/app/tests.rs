//! Coordinator and members in one process, over real TLS on loopback: joining, and every way it must be refused.
#![expect(clippy::disallowed_methods, reason = "the whole file is a test, its helpers too")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    api::{self, admin::CreatedToken},
    clock,
    coordinator::{self, Config},
    membership::io::{ClientError, Event, JoinRefused, Member, Session, Settings, Sources, load_or_join},
    settings::Layers,
    task::{CancellationToken, Tasks},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_rustls::client::TlsStream;
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, CertificateRequest, Claims, Fingerprint, IdentityKey, JoinToken, Load,
    MeshName, NodeName, NodeRecord, ServiceName, Signed, Trust, WgPrivateKey, proof_header,
};

#[tokio::test]
async fn a_machine_joins_with_a_token_reports_and_is_found() {
    let mesh = Mesh::start().await;
    let (member, session) = mesh.join("alpha", &mesh.token(json!({"groups": ["gpu"]})).await).await.unwrap();
    let (other, other_session) = mesh.join("beta", &mesh.token(json!({})).await).await.unwrap();

    let alpha = Agent::run(member.clone(), session, &["ocr"]);
    let beta = Agent::run(other.clone(), other_session, &[]);
    alpha.reached().await;
    beta.reached().await;

    assert_eq!(member.verified.address().to_string(), "10.42.0.2");
    assert_eq!(member.verified.groups()[0].as_str(), "gpu");
    let workers = other.client.discover(&service("ocr")).await.unwrap();
    assert_eq!(workers[0].worker_id.as_str(), "alpha");
    assert_eq!(workers[0].capabilities["cpu_cores"], 4);
    assert_eq!(workers[0].load, 0.25);
    let opened = other.trust.current().open(&workers[0].record, clock::unix()).unwrap();
    assert_eq!(opened.by.id(), member.identity.id());
    assert!(other.client.discover(&service("nothing")).await.unwrap().is_empty());
    let seeds = other.client.bootstrap().await.unwrap();
    assert_eq!((seeds.len(), seeds[0].dht_port), (1, 8468));
    assert!(other.client.node(&name("alpha")).await.unwrap().is_some());
    assert!(other.client.node_at(member.verified.address()).await.unwrap().is_some());
    assert!(other.client.node(&name("nobody")).await.unwrap().is_none());

    alpha.stop().await;
    assert!(other.client.discover(&service("ocr")).await.unwrap().is_empty(), "who leaves is gone at once");
    beta.stop().await;
}

#[tokio::test]
async fn every_join_that_must_not_happen_is_refused_with_its_reason() {
    let mesh = Mesh::start().await;
    let once = mesh.token(json!({})).await;
    mesh.join("taken", &once).await.unwrap();
    let expired = mesh.token(json!({"ttl_secs": 0})).await;
    let bound = mesh.token(json!({"name": "only-me"})).await;
    let revoked = mesh.token(json!({})).await;
    let id = mesh.admin(Method::GET, "/tokens", json!(null)).await.1["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .find(|token| token["name"].is_null() && token["state"] == "usable")
        .unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(mesh.admin(Method::POST, &format!("/tokens/{id}/revoke"), json!({})).await.0, StatusCode::OK);
    let fresh = mesh.token(json!({"uses": 9})).await;
    let mut rng = StdRng::from_os_rng();
    let of_another_mesh = |mesh_name: &str, ca: Fingerprint, rng: &mut StdRng| {
        JoinToken::generate(vec![mesh.url()], MeshName::new(mesh_name).unwrap(), ca, rng).unwrap()
    };
    let unknown = of_another_mesh("lab", fresh.ca, &mut rng);
    let wrong_ca = of_another_mesh("lab", Fingerprint([9; 32]), &mut rng);
    let wrong_mesh = of_another_mesh("other", fresh.ca, &mut rng);

    for (case, called, token, expected) in [
        ("a token used twice", "x1", &once, "token_used"),
        ("an expired token", "x2", &expired, "token_expired"),
        ("a revoked token", "x3", &revoked, "token_revoked"),
        ("a token bound to another name", "x4", &bound, "token_for_another_name"),
        ("a token that was never made", "x5", &unknown, "token_unknown"),
        ("a name that is taken", "taken", &fresh, "name_taken"),
        ("the coordinator's own name", "coordinator", &fresh, "name_reserved"),
        ("a coordinator with another authority", "x6", &wrong_ca, "does not have the authority"),
        ("a coordinator of another mesh", "x7", &wrong_mesh, "runs the mesh lab"),
    ] {
        let error = mesh.join_in(&mesh.state_dir(case), called, token).await.map(|_| ()).unwrap_err();

        let refused = error.downcast_ref::<JoinRefused>().unwrap_or_else(|| panic!("{case}: {error:#}"));
        let text = refused.to_string();
        let kind = match refused {
            JoinRefused::Client(ClientError::Refused { kind, .. }) => kind.as_str(),
            _ => text.as_str(),
        };
        assert!(kind.contains(expected), "{case}: {kind}: {text}");
        assert!(refused.hint().is_some(), "{case}");
    }
}

#[tokio::test]
async fn fifty_machines_that_join_at_once_get_fifty_addresses() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 50})).await;

    let joins = (0..50).map(|n| {
        let (dir, token) = (mesh.state_dir(&format!("n{n}")), token.clone());
        async move { join_at(&dir, &format!("n{n}"), &token).await.unwrap().0.verified.address() }
    });
    let addresses: BTreeSet<_> = futures::future::join_all(joins).await.into_iter().collect();

    assert_eq!(addresses.len(), 50);
    let refused = mesh.join("n50", &token).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("has been used"), "{refused:#}");
}

#[tokio::test]
async fn of_two_machines_that_claim_one_name_at_once_one_gets_it() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 10})).await;

    let (first, second) = (mesh.state_dir("first"), mesh.state_dir("second"));
    let joins = [join_at(&first, "same", &token), join_at(&second, "same", &token)];
    let joined = futures::future::join_all(joins).await;

    assert_eq!(joined.iter().filter(|result| result.is_ok()).count(), 1);
    let refused = joined.into_iter().find_map(Result::err).unwrap();
    assert!(refused.to_string().contains("the name same belongs to another member"), "{refused:#}");
}

#[tokio::test]
async fn of_two_machines_that_use_one_token_at_once_one_joins() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({})).await;

    let (first, second) = (mesh.state_dir("first"), mesh.state_dir("second"));
    let joins = [join_at(&first, "first", &token), join_at(&second, "second", &token)];
    let joined = futures::future::join_all(joins).await;

    assert_eq!(joined.iter().filter(|result| result.is_ok()).count(), 1);
    let refused = joined.into_iter().find_map(Result::err).unwrap();
    assert!(refused.to_string().contains("has been used"), "{refused:#}");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_while_the_coordinator_stops() {
    let mesh = Mesh::start().await;
    let mut stream = mesh.connect().await;
    let head = "POST /api/enroll HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"{").await.unwrap();
    stream.flush().await.unwrap();
    // The middleware has counted nothing yet: the request is being read. Another one proves that ours has arrived.
    assert_eq!(mesh.get("/health", None).await.0, StatusCode::OK);

    mesh.tasks.stop();
    while TcpStream::connect(mesh.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.write_all(b"}").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();

    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    mesh.stop().await;
}

#[tokio::test]
async fn the_same_identity_gets_the_same_address_when_it_joins_again() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let first = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap().0.verified;
    mesh.join("beta", &mesh.token(json!({})).await).await.unwrap();

    for file in ["node.crt", "wireguard.key"] {
        std::fs::remove_file(dir.join(file)).unwrap();
    }
    let again = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap().0.verified;

    assert_eq!((first.id(), first.address()), (again.id(), again.address()));
    assert_ne!(first.wg(), again.wg());
}

#[tokio::test]
async fn a_member_starts_from_disk_with_the_coordinator_gone_and_its_token_spent() {
    let mut mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let token = mesh.token(json!({})).await;
    let (other, other_session) = mesh.join("beta", &mesh.token(json!({})).await).await.unwrap();
    let beta = Agent::run(other, other_session, &["ocr"]);
    beta.reached().await;
    let (before, session) = mesh.join_in(&dir, "alpha", &token).await.unwrap();
    let alpha = Agent::run(before.clone(), session, &[]);
    alpha.reached().await;
    alpha.kill().await;
    beta.kill().await;
    mesh.stop().await;

    let (member, session) = join_at_without_token(&dir, "alpha").await.unwrap();

    assert_eq!(member.verified, before.verified);
    assert_eq!(member.seeds.len(), 1, "the last known seeds are there");
    assert_eq!(member.client.coordinators(), [mesh.url()]);
    let handle = session.handle();
    let alpha = Agent::run(member, session, &[]);
    while handle.status().failures < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!handle.status().is_connected());
    mesh.restart().await;
    alpha.reached().await;
    assert!(handle.status().is_connected());
    alpha.kill().await;
}

#[tokio::test]
async fn a_coordinator_that_restarts_has_lost_nobody() {
    let mut mesh = Mesh::start().await;
    let (member, session) = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap();
    let alpha = Agent::run(member.clone(), session, &["ocr"]);
    alpha.reached().await;
    alpha.kill().await;
    mesh.admin(Method::POST, "/revocations", json!({"name": "nobody"})).await;

    mesh.restart().await;

    let workers = member.client.discover(&service("ocr")).await.unwrap();
    assert_eq!(workers[0].worker_id.as_str(), "alpha");
    assert_eq!(workers[0].capabilities["cpu_cores"], 4);
    let (health, _) = mesh.get("/health", None).await;
    assert_eq!(health, StatusCode::OK);
    let newcomer = mesh.join("beta", &mesh.token(json!({})).await).await.unwrap().0;
    assert_ne!(newcomer.verified.address(), member.verified.address());
}

#[tokio::test]
async fn every_request_that_must_not_be_believed_is_refused_with_its_reason() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let alpha = mesh.join("alpha", &token).await.unwrap().0;
    let beta = mesh.join("beta", &token).await.unwrap().0;
    let path = "/api/worker/heartbeat";
    let body = |record: &Signed<NodeRecord>| json!({"record": record.to_base64()});
    let good = record(&alpha, &["ocr"]);
    let mut altered = good.as_bytes().to_vec();
    let at = altered.len() - 70;
    altered[at] ^= 1;
    let altered = Signed::<NodeRecord>::from_bytes(&altered).unwrap();
    let replayed = proof(&alpha, "POST", path);
    assert_eq!(mesh.post(path, body(&good), Some(&replayed)).await.0, StatusCode::OK);
    let stranger = stranger();
    let stranger_proof = proof_header(
        &stranger.0,
        &stranger.1,
        "coordinator.lab",
        "POST",
        path,
        clock::unix(),
        &mut StdRng::from_os_rng(),
    )
    .unwrap();
    let stale = {
        let long_ago = clock::unix().minus(Duration::from_secs(100));
        let mut rng = StdRng::from_os_rng();
        let chain = alpha.verified.chain();
        proof_header(&alpha.identity, chain, "coordinator.lab", "POST", path, long_ago, &mut rng).unwrap()
    };

    for (case, sent, authorization, expected) in [
        ("no proof", body(&good), None, (401, "unauthorized")),
        ("a proof used before", body(&good), Some(replayed), (401, "replayed_proof")),
        (
            "a proof for another path",
            body(&good),
            Some(proof(&alpha, "POST", "/api/certs/renew")),
            (401, "proof_for_another"),
        ),
        ("an old proof", body(&good), Some(stale), (401, "stale_proof")),
        ("another authority's certificate", body(&good), Some(stranger_proof), (401, "another_authority")),
        ("a wrong admin key", body(&good), Some("Bearer nonsense".into()), (401, "unauthorized")),
        ("the admin key where a member is needed", body(&good), Some(mesh.admin_key()), (401, "unauthorized")),
        ("garbage for a proof", body(&good), Some("Wiremesh AAAA".into()), (401, "malformed")),
        ("a record of somebody else", body(&good), Some(proof(&beta, "POST", path)), (403, "record_of_another")),
        ("a record with one bit changed", body(&altered), Some(proof(&alpha, "POST", path)), (401, "")),
        ("no record at all", json!({}), Some(proof(&alpha, "POST", path)), (400, "bad_body")),
        (
            "a record too long",
            json!({"record": "A".repeat(5000)}),
            Some(proof(&alpha, "POST", path)),
            (400, "bad_body"),
        ),
        (
            "a body beyond the limit",
            json!({"x": "A".repeat(70_000)}),
            Some(proof(&alpha, "POST", path)),
            (413, "body_too_large"),
        ),
    ] {
        let (status, answer) = mesh.post(path, sent, authorization.as_deref()).await;

        let kind = answer["error"]["type"].as_str().unwrap_or_default();
        assert_eq!(status.as_u16(), expected.0, "{case}: {answer}");
        assert!(kind.contains(expected.1), "{case}: {answer}");
        assert_eq!(answer["detail"], answer["error"]["message"], "{case}");
    }

    let unregister = format!("/api/worker/unregister/{}", alpha.identity.id().to_hex());
    let (status, answer) =
        mesh.send(Method::DELETE, &unregister, None, Some(&proof(&beta, "DELETE", &unregister))).await;
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (403, &json!("not_yours")));
}

#[tokio::test]
async fn a_revoked_member_is_refused_and_the_others_hear_of_it() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let (alpha, _alpha_session) = mesh.join("alpha", &token).await.unwrap();
    let (beta, session) = mesh.join("beta", &token).await.unwrap();
    let beta_agent = Agent::run(beta.clone(), session, &[]);
    beta_agent.reached().await;

    let (status, answer) = mesh.admin(Method::POST, "/revocations", json!({"name": "alpha"})).await;

    assert_eq!((status, &answer["number"]), (StatusCode::OK, &json!(1)));
    let refused = alpha.client.bootstrap().await.unwrap_err();
    assert_eq!(refused.kind(), Some("revoked"));
    beta_agent.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;
    assert!(beta.trust.current().is_revoked(&alpha.verified));
    let newcomer = mesh.join("gamma", &token).await.unwrap().0;
    assert!(newcomer.trust.current().is_revoked(&alpha.verified), "who joins later knows from the start");
    let successor = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;
    assert_ne!(successor.verified.address(), alpha.verified.address());
    beta_agent.stop().await;
}

#[tokio::test]
async fn certificates_are_renewed_before_they_end() {
    let mesh = Mesh::start_with("certificate_lifetime = '10s'").await;
    let dir = mesh.state_dir("a");
    let (member, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let handle = session.handle();
    let alpha = Agent::run(member.clone(), session, &[]);

    let Event::Renewed(renewed) = alpha.wait_for(|event| matches!(event, Event::Renewed(_))).await else { panic!() };

    assert_ne!(renewed.serial(), member.verified.serial());
    assert_eq!((renewed.address(), renewed.id()), (member.verified.address(), member.identity.id()));
    assert!(renewed.not_after() > member.verified.not_after());
    assert_eq!(*member.client.verified(), renewed);
    assert_eq!(std::fs::read_to_string(dir.join("node.crt")).unwrap(), renewed.chain().to_pem());
    assert!(handle.status().lease_ends_at >= renewed.not_after());
    alpha.stop().await;
}

#[tokio::test]
async fn who_is_asked_for_learns_who_asked() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let (alpha, alpha_session) = mesh.join("alpha", &token).await.unwrap();
    let (beta, beta_session) = mesh.join("beta", &token).await.unwrap();
    let (alpha_agent, beta_agent) =
        (Agent::run(alpha.clone(), alpha_session, &[]), Agent::run(beta.clone(), beta_session, &[]));
    alpha_agent.reached().await;
    beta_agent.reached().await;

    beta.client.node(&name("alpha")).await.unwrap().unwrap();

    let event = alpha_agent.wait_for(|event| matches!(event, Event::Introductions(_))).await;
    let Event::Introductions(records) = event else { panic!() };
    let opened = alpha.trust.current().open(&records[0], clock::unix()).unwrap();
    assert_eq!(opened.by.id(), beta.identity.id());
    alpha_agent.stop().await;
    beta_agent.stop().await;
}

#[tokio::test]
async fn a_join_waits_for_its_coordinator() {
    let mut mesh = Mesh::start().await;
    let token = mesh.token(json!({})).await;
    mesh.stop().await;
    let dir = mesh.state_dir("a");

    let joining = tokio::spawn(async move { join_at(&dir, "alpha", &token).await.map(|(member, _)| member) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!joining.is_finished());
    mesh.restart().await;

    assert_eq!(joining.await.unwrap().unwrap().verified.name().as_str(), "alpha");
}

#[tokio::test]
async fn what_is_broken_on_disk_is_said_and_keys_are_never_made_anew() {
    let mesh = Mesh::start().await;
    let spoil = |file: &'static str, contents: Option<&'static str>| (file, contents);
    for (case, (file, contents), expected) in [
        ("identity lost", spoil("identity.key", None), "identity.key is gone"),
        ("identity garbled", spoil("identity.key", Some("x")), "identity.key cannot be used"),
        ("wireguard lost", spoil("wireguard.key", None), "wireguard.key is gone"),
        ("authority lost", spoil("ca.crt", None), "restore it from a backup"),
        ("authority garbled", spoil("ca.crt", Some("x")), "ca.crt cannot be used"),
        ("certificate garbled", spoil("node.crt", Some("x")), "node.crt in"),
        ("member garbled", spoil("member.json", Some("{")), "member.json cannot be read"),
        ("revocations garbled", spoil("revocations.bin", Some("x")), "revocations.bin in"),
        ("seeds garbled", spoil("seeds.json", Some("x")), "fine"),
        ("member lost", spoil("member.json", None), "fine"),
    ] {
        let dir = mesh.state_dir(case);
        mesh.join_in(&dir, &case.replace(' ', "-"), &mesh.token(json!({})).await).await.unwrap();
        let path = dir.join(file);
        let before = std::fs::read_dir(&dir).unwrap().count();
        match contents {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }

        let started = join_at_without_token(&dir, &case.replace(' ', "-")).await;

        match started {
            Ok(_) => assert_eq!(expected, "fine", "{case}"),
            Err(error) => assert!(format!("{error:#}").contains(expected), "{case}: {error:#}"),
        }
        if contents.is_none() && expected != "fine" {
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), before - 1, "{case}: nothing was made anew");
        }
    }
}

#[tokio::test]
async fn a_state_directory_belongs_to_one_mesh_one_name_and_one_agent() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (_, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let busy = join_at_without_token(&dir, "alpha").await.map(|_| ()).unwrap_err();
    drop(session);
    let renamed = join_at_without_token(&dir, "omega").await.map(|_| ()).unwrap_err();
    let urls = vec![mesh.url()];
    let lab = MeshName::new("lab").unwrap();
    let foreign = JoinToken::generate(urls, lab, Fingerprint([3; 32]), &mut StdRng::from_os_rng()).unwrap();
    let other_mesh = join_at(&dir, "alpha", &foreign).await.map(|_| ()).unwrap_err();
    let nothing = join_at_without_token(&mesh.state_dir("b"), "beta").await.map(|_| ()).unwrap_err();

    assert!(busy.to_string().contains("another agent runs on"), "{busy:#}");
    assert!(renamed.to_string().contains("is called alpha in the mesh"), "{renamed:#}");
    assert!(other_mesh.to_string().contains("the join token to another one"), "{other_mesh:#}");
    assert!(nothing.to_string().contains("there is no join token"), "{nothing:#}");
}

#[tokio::test]
async fn secrets_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;

    for file in ["ca.key", "admin.key", "coordinator.sock"] {
        assert_eq!(mode(mesh.data_dir().join(file)), 0o600, "{file}");
    }
    for file in ["identity.key", "wireguard.key"] {
        assert_eq!(mode(dir.join(file)), 0o600, "{file}");
    }
    assert_eq!((mode(mesh.data_dir()), mode(dir)), (0o700, 0o700));
    let database = std::fs::read(mesh.data_dir().join("coordinator.db")).unwrap();
    let wal = std::fs::read(mesh.data_dir().join("coordinator.db-wal")).unwrap_or_default();
    let token = mesh.token(json!({})).await;
    let secret = token.secret_base64();
    for bytes in [&database, &wal] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn the_registry_is_read_by_members_and_the_operator_only() {
    let mesh = Mesh::start().await;
    let member = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;
    let open = Mesh::start_with("public_discovery = true").await;

    for path in ["/", "/api/dht/bootstrap", "/api/services/list", "/api/nodes/alpha", "/api/revocations"] {
        assert_eq!(mesh.get(path, None).await.0, StatusCode::UNAUTHORIZED, "{path}");
        assert_ne!(mesh.get(path, Some(&mesh.admin_key())).await.0, StatusCode::UNAUTHORIZED, "{path}");
        assert_ne!(mesh.get(path, Some(&proof(&member, "GET", path))).await.0, StatusCode::UNAUTHORIZED, "{path}");
        assert_ne!(open.get(path, None).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/health", "/metrics"] {
        assert_eq!(mesh.get(path, None).await.0, StatusCode::OK, "{path}");
    }
    let (status, answer) = mesh.get("/api/services/discover/ocr", Some(&mesh.admin_key())).await;
    assert_eq!((status.as_u16(), &answer["detail"]), (503, &json!("no healthy worker offers ocr")));
    assert_eq!(mesh.get("/api/nothing", None).await.1["error"]["type"], "not_found");
    assert_eq!(mesh.get("/api/enroll", None).await.1["error"]["type"], "method_not_allowed");
}

#[tokio::test]
async fn a_source_that_keeps_failing_to_join_is_slowed_down() {
    let mesh = Mesh::start().await;
    let body = json!({"token": "AAAA", "csr": "x", "wireguard_key": wiremesh_certs::WgPublicKey([1; 32])});

    let mut statuses = BTreeSet::new();
    for _ in 0..coordinator::limiter::BURST + 5 {
        statuses.insert(mesh.post("/api/enroll", body.clone(), None).await.0.as_u16());
    }

    assert_eq!(statuses, BTreeSet::from([400, 429]));
}

/// A coordinator of the mesh "lab" on a port of the system's choice, and a place for everybody's files.
struct Mesh {
    directory: tempfile::TempDir,
    extra: String,
    tasks: Tasks,
    address: SocketAddr,
}

impl Mesh {
    async fn start() -> Mesh {
        Mesh::start_with("").await
    }

    async fn start_with(extra: &str) -> Mesh {
        let mut mesh = Mesh {
            directory: tempfile::tempdir().unwrap(),
            extra: extra.to_owned(),
            tasks: Tasks::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        mesh.up().await;
        mesh
    }

    async fn up(&mut self) {
        let text = format!(
            "data_dir = '{}'\nlisten = '{}'\nmesh = 'lab'\nheartbeat_interval = '1s'\n{}",
            self.data_dir().display(),
            self.address,
            self.extra
        );
        let config = Config::from_layers(Layers::new().file("test", &text).unwrap()).unwrap();
        self.tasks = Tasks::new();
        let running = coordinator::io::start(config, &self.tasks, StdRng::from_os_rng()).await.unwrap();
        self.address = running.address;
    }

    async fn stop(&self) {
        assert!(self.tasks.drain(Duration::from_secs(30)).await);
        assert!(!self.tasks.failed());
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.up().await;
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("coordinator")
    }

    fn state_dir(&self, of: &str) -> PathBuf {
        self.directory.path().join(of)
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn admin_key(&self) -> String {
        format!("Bearer {}", std::fs::read_to_string(self.data_dir().join("admin.key")).unwrap())
    }

    async fn token(&self, options: Value) -> JoinToken {
        let mut body = json!({"ttl_secs": 600, "uses": 1});
        body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let (status, answer) = self.admin(Method::POST, "/tokens", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value::<CreatedToken>(answer).unwrap().token.parse().unwrap()
    }

    async fn join(&self, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
        self.join_in(&self.state_dir(&format!("{called}-{}", token.secret_base64().as_str())), called, token).await
    }

    async fn join_in(&self, dir: &Path, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
        join_at(dir, called, token).await
    }

    async fn admin(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.data_dir().join("coordinator.sock")).await.unwrap();
        exchange(stream, method, path, Some(body), None).await
    }

    async fn get(&self, path: &str, authorization: Option<&str>) -> (StatusCode, Value) {
        self.send(Method::GET, path, None, authorization).await
    }

    async fn post(&self, path: &str, body: Value, authorization: Option<&str>) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body), authorization).await
    }

    /// As a program of its own would: TLS without any of our client's care.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        authorization: Option<&str>,
    ) -> (StatusCode, Value) {
        exchange(self.connect().await, method, path, body, authorization).await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = std::fs::read_to_string(self.data_dir().join("ca.crt")).unwrap();
        let ca = wiremesh_certs::CaCertificate::from_pem(&ca).unwrap();
        roots.add(ca.der().to_vec().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("coordinator.lab.internal".try_into().unwrap(), stream).await.unwrap()
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Option<Value>,
    authorization: Option<&str>,
) -> (StatusCode, Value) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn join_at(dir: &Path, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
    load_or_join(&settings(dir, called, Some(token.clone())), StdRng::from_os_rng()).await
}

async fn join_at_without_token(dir: &Path, called: &str) -> anyhow::Result<(Member, Session)> {
    load_or_join(&settings(dir, called, None), StdRng::from_os_rng()).await
}

fn settings(dir: &Path, called: &str, token: Option<JoinToken>) -> Settings {
    Settings { state_dir: dir.to_owned(), name: name(called), token, token_file: None, coordinators: Vec::new() }
}

/// A member whose session runs.
struct Agent {
    events: tokio::sync::Mutex<mpsc::Receiver<Event>>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn run(member: Member, session: Session, offers: &'static [&'static str]) -> Agent {
        let (sender, events) = mpsc::channel(crate::membership::io::MAX_EVENTS);
        let stop = CancellationToken::new();
        let sources = Sources {
            record: Box::new(move || Some(record(&member, offers))),
            capabilities: Box::new(|| json!({"cpu_cores": 4}).as_object().unwrap().clone()),
            dht_port: Some(8468),
        };
        let running = tokio::spawn(session.run(sources, sender, stop.clone()));
        Agent { events: tokio::sync::Mutex::new(events), stop, running }
    }

    async fn reached(&self) {
        self.wait_for(|event| matches!(event, Event::CoordinatorReached)).await;
    }

    async fn wait_for(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut events = self.events.lock().await;
        let waiting = async {
            loop {
                match events.recv().await {
                    Some(event) if wanted(&event) => return event,
                    Some(_) => {}
                    None => panic!("the session ended"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the event comes")
    }

    /// Leaves as an agent does.
    async fn stop(self) {
        self.stop.cancel();
        drop(self.events);
        self.running.await.unwrap().unwrap();
    }

    /// Is gone without a word.
    async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

fn record(member: &Member, offers: &[&str]) -> Signed<NodeRecord> {
    let now = clock::unix();
    let record = NodeRecord {
        sequence: clock::unix_millis(),
        expires_at: now.plus(wiremesh_certs::RECORD_LIFE),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        services: offers.iter().map(|name| service(name)).collect(),
        load: Load::from_share(0.25),
        tunnel_url: None,
        overlay: true,
    };
    Signed::sign(&record, &member.identity, member.client.verified().chain()).unwrap()
}

fn proof(member: &Member, method: &str, path: &str) -> String {
    let audience = api::audience(&MeshName::new("lab").unwrap());
    let (key, chain) = (&member.identity, member.verified.chain());
    proof_header(key, chain, &audience, method, path, clock::unix(), &mut StdRng::from_os_rng()).unwrap()
}

/// Somebody with a good certificate of an authority that has the same name.
fn stranger() -> (IdentityKey, wiremesh_certs::Chain) {
    let mut rng = StdRng::from_os_rng();
    let now = clock::unix();
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(3600),
    };
    let authority = Authority::create(&parameters, now, &mut rng).unwrap();
    let key = IdentityKey::generate(&mut rng);
    let claims = Claims {
        identity: key.id(),
        wg: WgPrivateKey::generate(&mut rng).public(),
        name: name("alpha"),
        address: "10.42.0.2".parse().unwrap(),
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime: Duration::from_secs(600),
    };
    let chain = authority.issue(&claims, now, &mut rng).unwrap();
    Trust::new(authority.certificate().clone()).verify(&chain, now).unwrap();
    let _ = CertificateRequest::create(&key, &claims.name, &claims.wg).unwrap();
    (key, chain)
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn service(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}
