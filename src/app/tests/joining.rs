//! Joining with a token, and every join that must not happen.

use super::*;

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
    let workers = other.client.discover(&service("ocr").into()).await.unwrap();
    assert_eq!(workers[0].worker_id.as_str(), "alpha");
    assert_eq!(workers[0].capabilities["cpu_cores"], 4);
    assert_eq!(workers[0].load, 0.25);
    let opened = other.trust.current().open(&workers[0].record, clock::unix()).unwrap();
    assert_eq!(opened.by.id(), member.identity.id());
    assert!(other.client.discover(&service("nothing").into()).await.unwrap().is_empty());
    let seeds = other.client.bootstrap().await.unwrap();
    assert_eq!((seeds.len(), seeds[0].dht_port), (1, 8468));
    assert!(other.client.node(&name("alpha")).await.unwrap().is_some());
    assert!(other.client.node_at(member.verified.address()).await.unwrap().is_some());
    assert!(other.client.node(&name("nobody")).await.unwrap().is_none());

    alpha.stop().await;
    assert!(other.client.discover(&service("ocr").into()).await.unwrap().is_empty(), "who leaves is gone at once");
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
async fn a_source_that_keeps_failing_to_join_is_slowed_down() {
    let mesh = Mesh::start().await;
    let body = json!({"token": "AAAA", "csr": "x", "wireguard_key": wiremesh_certs::WgPublicKey([1; 32])});

    let mut statuses = BTreeSet::new();
    for _ in 0..coordinator::limiter::BURST + 5 {
        statuses.insert(mesh.post("/api/enroll", body.clone(), None).await.0.as_u16());
    }

    assert_eq!(statuses, BTreeSet::from([400, 429]));
}
