//! What a coordinator does for its members, and what it refuses.

use super::*;

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
async fn a_coordinator_that_restarts_has_lost_nobody() {
    let mut mesh = Mesh::start().await;
    let (member, session) = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap();
    let alpha = Agent::run(member.clone(), session, &["ocr"]);
    alpha.reached().await;
    alpha.kill().await;
    mesh.admin(Method::POST, "/revocations", json!({"name": "nobody"})).await;

    mesh.restart().await;

    let workers = member.client.discover(&service("ocr").into()).await.unwrap();
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

    assert_eq!((status, &answer["number"]), (StatusCode::OK, &json!(2)));
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
