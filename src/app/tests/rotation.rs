//! The list, who enforces it, and one authority after the other, as members and operators see them over the wire.

use wiremesh_certs::{CaCertificate, Chain, Trust, UnixTime, WgPublicKey};

use super::*;
use crate::api::{EnrollResponse, HeartbeatResponse, RenewResponse, RevocationsResponse};

#[tokio::test]
async fn there_is_a_list_from_the_start_and_a_restart_makes_no_other() {
    let mut mesh = Mesh::start().await;
    let list = |answer: Value| serde_json::from_value::<RevocationsResponse>(answer).unwrap();

    let first = list(mesh.admin(Method::GET, "/revocations", json!(null)).await.1);
    mesh.restart().await;
    let again = list(mesh.admin(Method::GET, "/revocations", json!(null)).await.1);

    assert_eq!((first.number, again.number), (1, 1));
    assert_eq!(first.revocations, again.revocations);
    let mut trust = Trust::new(mesh.ca());
    assert_eq!(trust.apply_revocations(&first.revocations.unwrap(), clock::unix()), Ok(true));
    assert_eq!(trust.authorities(), [mesh.ca()]);
    let alpha = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;
    assert_eq!(alpha.trust.current().revocation_number(), 1, "whoever joins has it");
}

#[tokio::test]
async fn who_waits_for_the_next_list_is_answered_when_there_is_one() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 2})).await;
    let alpha = mesh.join("alpha", &token).await.unwrap().0;
    mesh.join("beta", &token).await.unwrap();
    let path = "/api/revocations?after=1&wait=50";

    let at_once = mesh.list_by(&alpha, "/api/revocations?after=0&wait=50").await;
    let (began_at, in_time) = (clock::now(), mesh.list_by(&alpha, "/api/revocations?after=1&wait=1").await);
    let waited = clock::now() - began_at;
    let (waiting, revoked) = tokio::join!(mesh.list_by(&alpha, path), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        mesh.admin(Method::POST, "/revocations", json!({"name": "beta"})).await
    });

    assert_eq!((at_once.number, at_once.revocations.is_some()), (1, true));
    assert_eq!((in_time.number, in_time.revocations.is_some()), (1, false), "the number alone");
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert_eq!(revoked.1["number"], 2);
    assert_eq!((waiting.number, waiting.revocations.is_some()), (2, true));
}

#[tokio::test]
async fn a_coordinator_that_stops_keeps_nobody_waiting() {
    let mesh = Mesh::start().await;
    let alpha = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;

    let (answer, ()) = tokio::join!(mesh.list_by(&alpha, "/api/revocations?after=1&wait=50"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        mesh.stop().await;
    });

    assert_eq!((answer.number, answer.revocations), (1, None));
}

#[tokio::test]
async fn the_operator_sees_who_enforces_a_revocation_and_the_revoked_does_not_count() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 4})).await;
    let mut agents = Vec::new();
    for called in ["alpha", "beta", "gamma"] {
        let (member, session) = mesh.join(called, &token).await.unwrap();
        let agent = Agent::run(member, session, &[]);
        agent.reached().await;
        agents.push(agent);
    }
    mesh.join("never-heard", &token).await.unwrap();

    let number = mesh.admin(Method::POST, "/revocations", json!({"name": "gamma"})).await.1["number"].clone();
    let mut adoption = mesh.admin(Method::GET, &format!("/adoption?number={number}"), json!(null)).await.1;
    for _ in 0..20 {
        if adoption["behind"] == json!([]) {
            break;
        }
        let path = format!("/adoption?number={number}&version={}&wait_secs=10", adoption["version"]);
        adoption = mesh.admin(Method::GET, &path, json!(null)).await.1;
    }

    assert_eq!((&adoption["living"], &adoption["enforced"]), (&json!(2), &json!(2)), "{adoption}");
    assert_eq!(adoption["silent"], json!([{"name": "never-heard", "heard_at": null}]));
    let ahead = mesh.admin(Method::GET, "/adoption?number=99", json!(null)).await.1;
    assert_eq!(ahead["behind"].as_array().unwrap().len(), 2);
    assert_eq!((&ahead["behind"][0]["name"], &ahead["behind"][0]["enforces"]), (&json!("alpha"), &number));
}

#[tokio::test]
async fn an_authority_replaces_another_and_nobody_is_lost() {
    let mut mesh = Mesh::start().await;
    let old_token = mesh.token(json!({"uses": 3})).await;
    let alpha = mesh.join("alpha", &old_token).await.unwrap().0;
    let away = mesh.join("away", &old_token).await.unwrap().0;
    mesh.beat(&alpha).await;
    let old = mesh.ca();

    let (status, begun) = mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await;
    assert_eq!(status, StatusCode::OK, "{begun}");
    let again = mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await;
    assert_eq!((again.0, &again.1["error"]["type"]), (StatusCode::CONFLICT, &json!("cannot_rotate")));
    mesh.restart().await;
    let replacing = mesh.rotation_until_with("replacing", &alpha).await;
    assert_eq!(replacing["waits_for"][0]["name"], "alpha");
    let back = mesh.admin(Method::POST, "/rotation", json!({"do": "cancel"})).await.1;
    assert!(back["error"]["message"].as_str().unwrap().contains("issues already"), "{back}");
    mesh.restart().await;
    for _ in 0..10 {
        mesh.beat(&alpha).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(mesh.rotation().await["stage"], "replacing", "it is not retired while alpha depends on it");
    }

    let renewed = renew(&alpha).await;
    assert_ne!(renewed, old.fingerprint());
    let idle = mesh.rotation_until_with("idle", &alpha).await;
    assert_eq!(
        (&idle["authorities"][0]["standing"], &idle["authorities"][1]["standing"]),
        (&json!("retired"), &json!("issuing"))
    );
    let rows = mesh.admin(Method::GET, "/audit", json!(null)).await.1;
    let kinds: Vec<_> = rows["rows"].as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    for kind in ["rotation_started", "rotation_issuing", "rotation_retired"] {
        assert_eq!(kinds.iter().filter(|one| **one == kind).count(), 1, "{kind}: {kinds:?}");
    }

    // Who was away has a certificate of the old authority. It is a member no more, and finds back by itself.
    let heartbeat = proof(&away, "POST", "/api/worker/heartbeat");
    let refused = mesh.post("/api/worker/heartbeat", json!({"record": record(&away, &[])}), Some(&heartbeat)).await;
    assert_eq!(refused.1["error"]["type"], "another_authority");
    let list = mesh.list_by(&away, "/api/revocations?after=1").await.revocations.unwrap();
    let answer = mesh.post("/api/certs/renew", json!(null), Some(&proof(&away, "POST", "/api/certs/renew"))).await.1;
    let answer: RenewResponse = serde_json::from_value(answer).unwrap();
    assert_eq!(answer.revocations.as_ref(), Some(&list));
    let mut late = Trust::new(old.clone());
    late.apply_revocations(&list, clock::unix()).unwrap();
    let found = late.verify(&Chain::from_pem(&answer.certificate).unwrap(), clock::unix()).unwrap();
    assert_eq!((found.id(), found.address()), (away.identity.id(), away.verified.address()));

    // A token from before knows the coordinator, and the answer leads from what it pins to what is now.
    let welcome = mesh.enroll("beta", &old_token).await;
    let roots = CaCertificate::bundle_from_pem(&welcome.authority).unwrap();
    let pinned = roots.into_iter().find(|root| root.fingerprint() == old_token.ca).unwrap();
    let mut trust = Trust::new(pinned);
    trust.apply_revocations(&welcome.revocations.unwrap(), clock::unix()).unwrap();
    let beta = trust.verify(&Chain::from_pem(&welcome.certificate).unwrap(), clock::unix()).unwrap();
    assert_ne!(beta.authority(), old.fingerprint());
    let new_token = mesh.token(json!({})).await;
    assert_eq!(new_token.ca, beta.authority(), "and new tokens pin the new root");
}

#[tokio::test]
async fn a_rotation_is_taken_back_while_nothing_hangs_on_it_and_forced_only_by_word() {
    let mesh = Mesh::start().await;
    let alpha = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;
    mesh.beat(&alpha).await;
    for (wrong, why) in [("cancel", "no rotation is under way"), ("force", "no rotation is under way")] {
        let (status, answer) = mesh.admin(Method::POST, "/rotation", json!({"do": wrong})).await;
        assert_eq!((status, &answer["error"]["message"]), (StatusCode::CONFLICT, &json!(why)));
    }

    mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await;
    let (status, cancelled) = mesh.admin(Method::POST, "/rotation", json!({"do": "cancel"})).await;
    assert_eq!((status, &cancelled["stage"]), (StatusCode::OK, &json!("idle")), "{cancelled}");

    mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await;
    mesh.rotation_until_with("replacing", &alpha).await;
    let (status, forced) = mesh.admin(Method::POST, "/rotation", json!({"do": "force"})).await;
    assert_eq!((status, &forced["stage"]), (StatusCode::OK, &json!("idle")));
    assert_eq!(forced["cut_off"], json!(["alpha"]));
    assert_ne!(renew(&alpha).await, mesh.ca().fingerprint(), "it finds back");
}

#[tokio::test]
async fn an_intermediate_under_an_offline_root_is_replaced_by_one_that_is_brought() {
    let mut rng = StdRng::from_os_rng();
    let directory = tempfile::tempdir().unwrap();
    let (root, now) = (authority(None, &mut rng), clock::unix());
    let (first, second) = (authority(Some(&root), &mut rng), authority(Some(&root), &mut rng));
    let other_root = authority(None, &mut rng);
    let under_other = authority(Some(&other_root), &mut rng);
    let mesh = Mesh::of(&first).await;
    let bring = |of: &Authority, cross: Option<&CaCertificate>| {
        let name = of.certificate().fingerprint().to_string();
        let [crt, key, lead] = ["crt", "key", "cross"].map(|kind| directory.path().join(format!("{name}.{kind}")));
        std::fs::write(&crt, bundle(of)).unwrap();
        std::fs::write(&key, of.key_pem().as_bytes()).unwrap();
        let lead = cross.map(|cross| {
            std::fs::write(&lead, cross.pem()).unwrap();
            lead
        });
        json!({"do": "begin", "brought": {"certificate": crt, "key": key, "cross": lead}})
    };
    let token = mesh.token(json!({"uses": 2})).await;
    assert_eq!(token.ca, root.certificate().fingerprint(), "tokens pin the root");
    let (alpha, session) = mesh.join("alpha", &token).await.unwrap();
    assert_eq!(alpha.verified.authority(), first.certificate().fingerprint());
    assert_eq!(alpha.verified.chain().ders().len(), 1, "records carry the leaf alone");
    let agent = Agent::run(alpha.clone(), session, &[]);
    agent.reached().await;

    let by_itself = mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await.1;
    assert!(by_itself["error"]["message"].as_str().unwrap().contains("the key of its root"), "{by_itself}");
    assert!(by_itself["error"]["hint"].as_str().unwrap().contains("wiremesh-cert rotate"), "{by_itself}");
    let uncrossed = mesh.admin(Method::POST, "/rotation", bring(&under_other, None)).await.1;
    assert!(uncrossed["error"]["message"].as_str().unwrap().contains("nothing signed by it leads to"), "{uncrossed}");
    let backwards = other_root.cross_sign(root.certificate(), now, &mut rng).unwrap();
    let wrong = mesh.admin(Method::POST, "/rotation", bring(&under_other, Some(&backwards))).await.1;
    assert!(wrong["error"]["message"].as_str().unwrap().contains("no certificate of the new root's key"), "{wrong}");
    assert!(!mesh.data_dir().join("authorities").exists(), "nothing of what is refused is kept");

    let (status, begun) = mesh.admin(Method::POST, "/rotation", bring(&second, None)).await;
    assert_eq!(status, StatusCode::OK, "{begun}");
    mesh.rotation_until("replacing").await;
    assert_eq!(renew(&alpha).await, second.certificate().fingerprint());
    mesh.rotation_until("idle").await;

    let cross = root.cross_sign(other_root.certificate(), now, &mut rng).unwrap();
    let (status, begun) = mesh.admin(Method::POST, "/rotation", bring(&under_other, Some(&cross))).await;
    assert_eq!(status, StatusCode::OK, "{begun}");
    mesh.rotation_until("replacing").await;
    assert_eq!(renew(&alpha).await, under_other.certificate().fingerprint());
    mesh.rotation_until("idle").await;
    agent.stop().await;
}

#[tokio::test]
async fn keys_are_kept_under_a_passphrase_if_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passphrase");
    std::fs::write(&file, "correct horse\n").unwrap();
    let mut mesh = Mesh::start_with(&format!("ca_passphrase_file = '{}'", file.display())).await;

    mesh.admin(Method::POST, "/rotation", json!({"do": "begin"})).await;
    mesh.rotation_until("idle").await;
    mesh.restart().await;

    let later = std::fs::read_dir(mesh.data_dir().join("authorities")).unwrap().flatten().map(|entry| entry.path());
    let keys: Vec<_> = later.filter(|path| path.extension().is_some_and(|kind| kind == "key")).collect();
    assert_eq!(keys.len(), 1);
    for key in keys.iter().chain([&mesh.data_dir().join("ca.key")]) {
        let text = std::fs::read_to_string(key).unwrap();
        assert!(wiremesh_certs::is_encrypted_key(&text), "{}", key.display());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
    }
    mesh.stop().await;
    mesh.extra = String::new();
    let refused = mesh.try_up().await.unwrap_err();
    assert!(format!("{refused:#}").contains("is encrypted: name the file of its passphrase"), "{refused:#}");
}

#[tokio::test]
async fn a_certificate_that_ended_is_renewed_within_the_window_and_not_beyond() {
    let mesh = Mesh::start_with("certificate_lifetime = '10s'\nrenewal_window = '4s'").await;
    let alpha = mesh.join("alpha", &mesh.token(json!({})).await).await.unwrap().0;
    let path = "/api/certs/renew";
    let ended = alpha.verified.not_after();
    let sleep_until = |at: UnixTime| tokio::time::sleep(at.saturating_since(clock::unix()) + Duration::from_millis(50));

    sleep_until(ended).await;
    let heartbeat = "/api/worker/heartbeat";
    let body = json!({"record": record(&alpha, &[])});
    let (_, refused) = mesh.post(heartbeat, body, Some(&proof(&alpha, "POST", heartbeat))).await;
    let (within, _) = mesh.post(path, json!(null), Some(&proof(&alpha, "POST", path))).await;
    sleep_until(ended.plus(Duration::from_secs(4))).await;
    let (beyond, answer) = mesh.post(path, json!(null), Some(&proof(&alpha, "POST", path))).await;

    assert_eq!(refused["error"]["type"], "expired");
    assert_eq!(within, StatusCode::OK);
    assert_eq!((beyond, &answer["error"]["type"]), (StatusCode::FORBIDDEN, &json!("renewal_window_over")));
    assert!(answer["error"]["hint"].as_str().unwrap().contains("wiremesh token create"), "{answer}");
}

#[tokio::test]
async fn a_database_from_a_backup_learns_from_its_members_what_it_forgot() {
    let mut mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let alpha = mesh.join("alpha", &token).await.unwrap().0;
    let beta = mesh.join("beta", &token).await.unwrap().0;
    mesh.stop().await;
    let (database, backup) = (mesh.data_dir().join("coordinator.db"), mesh.state_dir("backup"));
    std::fs::copy(&database, &backup).unwrap();
    mesh.up().await;
    mesh.admin(Method::POST, "/revocations", json!({"name": "beta"})).await;
    let newer = mesh.list_by(&alpha, "/api/revocations?after=1").await.revocations.unwrap();
    mesh.stop().await;
    for stale in ["coordinator.db-wal", "coordinator.db-shm"] {
        let _ = std::fs::remove_file(mesh.data_dir().join(stale));
    }
    std::fs::copy(&backup, &database).unwrap();
    mesh.up().await;

    let path = "/api/worker/heartbeat";
    let body = json!({"record": record(&alpha, &[]), "revocation_number": 2});
    let answer = mesh.post(path, body, Some(&proof(&alpha, "POST", path))).await.1;
    let answer: HeartbeatResponse = serde_json::from_value(answer).unwrap();
    assert_eq!((answer.revocation_number, answer.send_revocations), (1, true));
    assert_eq!(mesh.list_by(&beta, "/api/revocations").await.number, 1, "it believes beta again");
    let path = "/api/revocations";
    let (_, forged) = mesh.post(path, json!({"revocations": forged()}), Some(&proof(&alpha, "POST", path))).await;
    assert_eq!(forged["error"]["type"], "another_authority");
    let sent = mesh.post(path, json!({"revocations": newer}), Some(&proof(&alpha, "POST", path))).await;

    assert_eq!((sent.0, &sent.1["number"]), (StatusCode::OK, &json!(3)));
    let (status, refused) = mesh.get(path, Some(&proof(&beta, "GET", path))).await;
    assert_eq!((status, &refused["error"]["type"]), (StatusCode::FORBIDDEN, &json!("revoked")));
}

#[tokio::test]
async fn the_operator_sees_whose_certificate_ends_when() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 2})).await;
    let (alpha, session) = mesh.join("alpha", &token).await.unwrap();
    let never = mesh.join("never-heard", &token).await.unwrap().0;
    let agent = Agent::run(alpha.clone(), session, &[]);
    agent.reached().await;

    let (_, fleet) = mesh.admin(Method::GET, "/members", json!(null)).await;
    let metrics = mesh.text("/metrics").await;
    let page = mesh.text("/").await;

    let of = |name: &str| fleet["members"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap().clone();
    let shown = of("alpha");
    assert_eq!((&shown["enforces"], &shown["living"], &fleet["number"]), (&json!(1), &json!(true), &json!(1)));
    assert_eq!(shown["serial"], json!(alpha.verified.serial()));
    assert_eq!(shown["authority"], json!(mesh.ca().fingerprint()));
    assert_eq!(
        (&of("never-heard")["serial"], &of("never-heard")["living"]),
        (&json!(never.verified.serial()), &json!(false))
    );
    let ends = alpha.verified.not_after().0;
    for line in [
        format!("wiremesh_coordinator_certificate_ends_first {ends}"),
        "wiremesh_coordinator_certificates 1".to_owned(),
        "wiremesh_coordinator_certificates_ending{left_at_most=\"30d\"} 1".to_owned(),
        "wiremesh_coordinator_certificates_ending{left_at_most=\"1d\"} 0".to_owned(),
        "wiremesh_coordinator_members_by_list{list=\"enforced\"} 1".to_owned(),
        "wiremesh_coordinator_authorities{standing=\"issuing\"} 1".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    // Made within the same second, or a moment later.
    assert!(["7d", "6d23h"].iter().any(|left| page.contains(&format!("<td>ends in {left}<td>"))), "{page}");
    agent.stop().await;
}

impl Mesh {
    /// With this authority as its first.
    async fn of(first: &Authority) -> Mesh {
        let mut mesh = Mesh {
            directory: tempfile::tempdir().unwrap(),
            extra: String::new(),
            tasks: Tasks::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        std::fs::create_dir(mesh.data_dir()).unwrap();
        std::fs::write(mesh.data_dir().join("ca.crt"), bundle(first)).unwrap();
        std::fs::write(mesh.data_dir().join("ca.key"), first.key_pem().as_bytes()).unwrap();
        mesh.up().await;
        mesh
    }

    fn ca(&self) -> CaCertificate {
        CaCertificate::from_pem(&std::fs::read_to_string(self.data_dir().join("ca.crt")).unwrap()).unwrap()
    }

    async fn list_by(&self, member: &Member, path: &str) -> RevocationsResponse {
        let (status, answer) = self.get(path, Some(&proof(member, "GET", path))).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    async fn rotation(&self) -> Value {
        self.admin(Method::GET, "/rotation", json!(null)).await.1
    }

    async fn rotation_until(&self, stage: &str) -> Value {
        let waiting = async {
            let mut rotation = self.rotation().await;
            while rotation["stage"] != stage {
                let path = format!("/rotation?version={}&wait_secs=10", rotation["version"]);
                rotation = self.admin(Method::GET, &path, json!(null)).await.1;
            }
            rotation
        };
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(rotation) => rotation,
            Err(_) => panic!("not {stage}: {}", self.rotation().await),
        }
    }

    /// The same, while a member that does nothing by itself is heard.
    async fn rotation_until_with(&self, stage: &str, member: &Member) -> Value {
        for _ in 0..100 {
            self.beat(member).await;
            let rotation = self.rotation().await;
            if rotation["stage"] == stage {
                return rotation;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        panic!("not {stage}: {}", self.rotation().await)
    }

    /// A member is heard and takes over the list in force.
    async fn beat(&self, member: &Member) {
        let (path, verified) = ("/api/worker/heartbeat", member.client.verified());
        let mut rng = StdRng::from_os_rng();
        let audience = api::audience(&MeshName::new("lab").unwrap());
        let (key, now) = (&member.identity, clock::unix());
        let proof = proof_header(key, verified.chain(), &audience, "POST", path, now, &mut rng).unwrap();
        let number = member.trust.current().revocation_number();
        let body = json!({"record": record(member, &["ocr"]), "revocation_number": number});
        let (status, answer) = self.post(path, body, Some(&proof)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let answer: HeartbeatResponse = serde_json::from_value(answer).unwrap();
        if let Some(list) = answer.revocations {
            member.trust.apply_revocations(&list, now).unwrap();
        }
    }

    /// As an agent asks, without any of its care.
    async fn enroll(&self, called: &str, token: &JoinToken) -> EnrollResponse {
        let mut rng = StdRng::from_os_rng();
        let (key, wg) = (IdentityKey::generate(&mut rng), WgPrivateKey::generate(&mut rng).public());
        let csr = CertificateRequest::create(&key, &name(called), &wg).unwrap();
        let body = json!({"token": token.secret_base64().as_str(), "csr": csr, "wireguard_key": wg as WgPublicKey});
        let (status, answer) = self.post("/api/enroll", body, None).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value(answer).unwrap()
    }

    async fn text(&self, path: &str) -> String {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder().uri(path).header("host", "x").header("authorization", self.admin_key());
        let response = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
        assert!(response.headers().contains_key("date"), "members see by it whose clock is off");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Takes a fresh certificate into use. Says which authority it is from.
async fn renew(member: &Member) -> Fingerprint {
    let answer = member.client.renew().await.unwrap();
    if let Some(list) = &answer.revocations {
        let _ = member.trust.apply_revocations(list, clock::unix());
    }
    let chain = Chain::from_pem(&answer.certificate).unwrap();
    let verified = member.trust.current().verify(&chain, clock::unix()).unwrap();
    member.client.set_verified(verified.clone());
    verified.authority()
}

/// A root, or an intermediate below one.
fn authority(below: Option<&Authority>, rng: &mut StdRng) -> Authority {
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(86_400 * 30),
    };
    match below {
        Some(root) => root.create_intermediate(&parameters, clock::unix(), rng).unwrap(),
        None => Authority::create(&parameters, clock::unix(), rng).unwrap(),
    }
}

fn bundle(of: &Authority) -> String {
    let certificates: Vec<_> = [of.certificate()].into_iter().chain(of.above()).cloned().collect();
    CaCertificate::bundle_to_pem(&certificates)
}

fn forged() -> wiremesh_certs::SignedRevocations {
    let stranger = authority(None, &mut StdRng::from_os_rng());
    let list = wiremesh_certs::RevocationList { number: 99, ..Default::default() };
    stranger.sign_revocations(&list).unwrap()
}
