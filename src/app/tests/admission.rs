//! Who is let in by an operator, who is not, and what is told of both.

use super::*;

/// A machine asks again after a few seconds.
const SOON: Duration = Duration::from_secs(30);

impl Mesh {
    /// The rows of the audit, as the operator's socket gives them.
    async fn audit(&self, query: &str) -> Vec<Value> {
        let (status, answer) = self.admin(Method::GET, &format!("/audit?{query}"), Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["rows"].as_array().unwrap().clone()
    }

    async fn kinds(&self) -> Vec<String> {
        self.audit("").await.iter().map(|row| row["kind"].as_str().unwrap().to_owned()).collect()
    }

    /// The one machine that waits, as soon as there is one.
    async fn waiting(&self) -> Value {
        for _ in 0..500 {
            let joins = self.admin(Method::GET, "/joins", Value::Null).await.1["joins"].as_array().unwrap().clone();
            if let [join] = joins.as_slice() {
                return join.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody waits");
    }

    /// Asks to join in one request, as a program of its own would.
    async fn ask(&self, called: &str, token: &JoinToken, key: &IdentityKey) -> (StatusCode, Value) {
        let wg = WgPrivateKey::generate(&mut StdRng::from_os_rng()).public();
        let csr = CertificateRequest::create(key, &name(called), &wg).unwrap();
        let body = json!({"token": token.secret_base64().as_str(), "csr": csr, "wireguard_key": wg});
        self.post("/api/enroll", body, None).await
    }
}

fn key() -> IdentityKey {
    IdentityKey::generate(&mut StdRng::from_os_rng())
}

fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

#[tokio::test]
async fn a_machine_waits_until_an_operator_lets_it_in_and_needs_nothing_else() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"approve": true, "groups": ["gpu"]})).await;
    let dir = mesh.state_dir("a");
    let joining = tokio::spawn(async move { join_at(&dir, "alpha", &token).await.map(|(member, _)| member) });

    let waiting = mesh.waiting().await;
    let (status, approved) = mesh.admin(Method::POST, "/joins/approve", json!({"name": "alpha"})).await;
    let member = tokio::time::timeout(SOON, joining).await.unwrap().unwrap().unwrap();

    assert_eq!((&waiting["standing"], &waiting["from"]), (&json!("waiting"), &json!("127.0.0.1")));
    assert_eq!((status, &approved["standing"]), (StatusCode::OK, &json!("approved")));
    assert_eq!(member.identity.id().to_hex(), waiting["identity"], "whoever was compared is who joined");
    assert_eq!(member.verified.groups()[0].as_str(), "gpu");
    assert_eq!(mesh.kinds().await, ["token_made", "join_waiting", "join_approved", "joined"]);
    let rows = mesh.audit("kind=join_approved").await;
    assert_eq!(rows[0]["by"], json!({"as": "operator", "uid": uid()}));
    assert_eq!((&rows[0]["name"], &rows[0]["identity"]), (&json!("alpha"), &waiting["identity"]));
}

#[tokio::test]
async fn a_machine_that_an_operator_refuses_is_told_so_and_what_to_do() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"approve": true})).await;
    let dir = mesh.state_dir("a");
    let joining = tokio::spawn(async move { join_at(&dir, "alpha", &token).await.map(|_| ()) });

    let identity = mesh.waiting().await["identity"].clone();
    mesh.admin(Method::POST, "/joins/refuse", json!({"identity": identity})).await;
    let error = tokio::time::timeout(SOON, joining).await.unwrap().unwrap().unwrap_err();

    let refused = error.downcast_ref::<JoinRefused>().unwrap();
    assert!(refused.to_string().contains("an operator refused"), "{refused}");
    assert!(refused.hint().unwrap().contains("new token"), "{:?}", refused.hint());
    assert_eq!(mesh.kinds().await, ["token_made", "join_waiting", "join_declined", "join_refused"]);
}

#[tokio::test]
async fn the_answer_to_who_must_wait_says_what_to_compare_and_when_to_come_back() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"approve": true})).await;
    let key = key();

    let (status, answer) = mesh.ask("alpha", &token, &key).await;

    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    assert_eq!(answer["status"], "waiting_for_approval");
    assert_eq!(answer["identity"], key.id().to_hex());
    assert!(answer["compare"].as_str().unwrap().contains(&key.id().to_hex()));
    assert!(answer["ask_again_secs"].as_u64().unwrap() > 0);
    let (status, answer) = mesh.admin(Method::POST, "/joins/approve", json!({"name": "beta"})).await;
    assert_eq!((status, &answer["error"]["type"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    let (status, _) = mesh.admin(Method::POST, "/joins/approve", json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn who_waits_survives_a_restart_of_the_coordinator() {
    let mut mesh = Mesh::start().await;
    let token = mesh.token(json!({"approve": true})).await;
    let (key, wg) = (key(), WgPrivateKey::generate(&mut StdRng::from_os_rng()).public());
    let csr = CertificateRequest::create(&key, &name("alpha"), &wg).unwrap();
    let body = json!({"token": token.secret_base64().as_str(), "csr": csr, "wireguard_key": wg});
    assert_eq!(mesh.post("/api/enroll", body.clone(), None).await.0, StatusCode::ACCEPTED);

    mesh.restart().await;
    let approved = mesh.admin(Method::POST, "/joins/approve", json!({"name": "alpha"})).await.0;
    mesh.restart().await;

    assert_eq!(approved, StatusCode::OK);
    assert_eq!(mesh.post("/api/enroll", body, None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_stolen_token_shows_with_who_used_it_first_and_from_where() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({})).await;
    let (owner, thief) = (key(), key());
    assert_eq!(mesh.ask("alpha", &token, &owner).await.0, StatusCode::OK);

    let (status, answer) = mesh.ask("thief", &token, &thief).await;

    assert_eq!((status, &answer["error"]["type"]), (StatusCode::FORBIDDEN, &json!("token_used")));
    let rows = mesh.audit("kind=join_refused").await;
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(row["by"], json!({"as": "stranger"}));
    assert_eq!((&row["name"], &row["identity"]), (&json!("thief"), &json!(thief.id().to_hex())));
    assert_eq!((&row["from"], &row["detail"]["why"]), (&json!("127.0.0.1"), &json!("token_used")));
    assert_eq!(row["token"], mesh.audit("kind=token_made").await[0]["token"]);
    assert!(row["at"].as_u64().unwrap() > 1_700_000_000);
    let first = &row["detail"]["first_use"];
    assert_eq!((&first["name"], &first["identity"]), (&json!("alpha"), &json!(owner.id().to_hex())));
    assert_eq!(first["from"], "127.0.0.1");
    let everything = Value::from(mesh.audit("").await).to_string();
    assert!(!everything.contains(token.secret_base64().as_str()) && !everything.contains("wm1."), "{everything}");
}

#[tokio::test]
async fn a_flood_of_refused_joins_is_bounded_and_so_is_what_is_told_of_it_and_members_renew_meanwhile() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({})).await;
    let (member, _session) = mesh.join("alpha", &token).await.unwrap();
    let invented = JoinToken::generate(vec![mesh.url()], token.mesh.clone(), token.ca, &mut StdRng::from_os_rng());
    let invented = invented.unwrap();

    let mut refused = 0;
    let slowed = loop {
        match mesh.ask("x", &invented, &key()).await.0 {
            StatusCode::FORBIDDEN => refused += 1,
            status => break status,
        }
    };
    let renewed = member.client.renew().await;

    assert_eq!(slowed, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused >= coordinator::limiter::BURST, "{refused}");
    let told = mesh.audit("kind=join_refused").await.len();
    assert_eq!(told, coordinator::limiter::TOLD_BURST as usize);
    assert!(renewed.is_ok());
    assert_eq!(mesh.kinds().await.last().unwrap(), "renewed");
}

#[tokio::test]
async fn whoever_watches_the_audit_hears_of_a_row_at_once_and_of_the_end_when_the_coordinator_stops() {
    let mesh = Arc::new(Mesh::start().await);
    let watching = |after: u64| {
        let mesh = mesh.clone();
        tokio::spawn(async move { mesh.audit(&format!("after={after}&kind=token_made&wait_secs=15")).await })
    };
    let first = watching(0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!first.is_finished(), "it waits");

    let made_at = clock::now();
    mesh.token(json!({})).await;
    let rows = first.await.unwrap();
    let waited = clock::now().saturating_duration_since(made_at);

    assert_eq!(rows.len(), 1);
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    let last = watching(rows[0]["id"].as_u64().unwrap());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let stopped_at = clock::now();
    mesh.stop().await;
    assert!(last.await.unwrap().is_empty());
    assert!(clock::now().saturating_duration_since(stopped_at) < Duration::from_secs(5), "it was not waited for");
}

#[tokio::test]
async fn what_is_asked_of_the_audit_that_it_cannot_tell_is_refused_with_the_reason() {
    let mesh = Mesh::start().await;

    for (query, expected) in [("kind=jioned", "bad_kind"), ("after=x", "bad_query")] {
        let (status, answer) = mesh.admin(Method::GET, &format!("/audit?{query}"), Value::Null).await;
        assert_eq!((status, &answer["error"]["type"]), (StatusCode::BAD_REQUEST, &json!(expected)));
    }
    let public = mesh.get("/audit", Some(&mesh.admin_key())).await.0;
    assert_eq!(public, StatusCode::NOT_FOUND, "it is on the operator's socket alone");
}

#[tokio::test]
async fn a_service_that_the_token_did_not_allow_is_not_taken() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"services": ["asr"]})).await;
    let (member, _session) = mesh.join("alpha", &token).await.unwrap();
    let path = "/api/worker/register";
    let offering = |offers: &[&str]| json!({"record": record(&member, offers).to_base64()});

    let (refused, answer) = mesh.post(path, offering(&["asr", "ocr"]), Some(&proof(&member, "POST", path))).await;
    let (taken, _) = mesh.post(path, offering(&["asr"]), Some(&proof(&member, "POST", path))).await;

    assert_eq!((refused, &answer["error"]["type"]), (StatusCode::FORBIDDEN, &json!("service_not_allowed")));
    assert!(answer["error"]["hint"].is_string());
    assert_eq!(taken, StatusCode::OK);
}
