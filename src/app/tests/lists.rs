//! The list that rules the mesh, at a member: taken over from wherever it comes, kept, never exchanged for an older one.

use wiremesh_certs::{CaCertificate, RevocationList, SignedRevocations};

use super::*;
use crate::membership::io::Offered;

impl Mesh {
    /// The mesh's authority, as whoever has the coordinator's disk.
    fn authority(&self) -> Authority {
        let read = |name| std::fs::read_to_string(self.data_dir().join(name)).unwrap();
        Authority::from_pem(&read("ca.crt"), &read("ca.key")).unwrap()
    }

    fn list(&self, member: &Member, change: impl FnOnce(&mut RevocationList)) -> SignedRevocations {
        let mut list = member.trust.current().revocations().clone();
        list.number += 1;
        change(&mut list);
        self.authority().sign_revocations(&list).unwrap()
    }
}

#[tokio::test]
async fn a_list_is_taken_over_from_anybody_kept_and_acknowledged() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let beta = mesh.join("beta", &token).await.unwrap().0;
    let dir = mesh.state_dir("a");
    let (alpha, session) = mesh.join_in(&dir, "alpha", &token).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(alpha.clone(), session, &[]);
    running.reached().await;
    let before = alpha.trust.current().revocation_number();
    let newer = mesh.list(&alpha, |list| _ = list.identities.insert(beta.identity.id()));
    let mut altered = newer.as_bytes().to_vec();
    *altered.last_mut().unwrap() ^= 1;
    let altered = SignedRevocations::from_bytes(&altered).unwrap();

    let refused = handle.offer_revocations(altered).await;
    assert!(matches!(refused, Offered::Refused(_)), "{refused:?}");
    assert_eq!(handle.offer_revocations(newer.clone()).await, Offered::TakenOver);
    assert_eq!(handle.offer_revocations(newer.clone()).await, Offered::Known);

    assert!(alpha.trust.current().is_revoked(&beta.verified));
    running.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;
    assert_eq!(*handle.enforced().borrow(), before + 1);
    assert_eq!(std::fs::read(dir.join("revocations.bin")).unwrap(), newer.as_bytes());
    running.kill().await;
    let again = join_at_without_token(&dir, "alpha").await.unwrap().0;
    assert!(again.trust.current().is_revoked(&beta.verified), "still after a restart");
}

#[tokio::test]
async fn an_older_list_on_disk_is_refused_and_a_missing_one_is_waited_for() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    mesh.join("beta", &token).await.unwrap();
    mesh.join("gamma", &token).await.unwrap();
    let dir = mesh.state_dir("a");
    let path = dir.join("revocations.bin");
    let (alpha, session) = mesh.join_in(&dir, "alpha", &token).await.unwrap();
    let running = Agent::run(alpha.clone(), session, &[]);
    running.reached().await;
    assert_eq!(mesh.admin(Method::POST, "/revocations", json!({"name": "beta"})).await.0, StatusCode::OK);
    running.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;
    let older = std::fs::read(&path).unwrap();
    assert_eq!(mesh.admin(Method::POST, "/revocations", json!({"name": "gamma"})).await.0, StatusCode::OK);
    running.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;
    running.kill().await;
    let number = alpha.trust.current().revocation_number();

    std::fs::write(&path, older).unwrap();
    let refused = join_at_without_token(&dir, "alpha").await.map(|_| ()).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    let started = join_at_without_token(&dir, "alpha").await.unwrap().0;

    let expected = format!("is list {}, and list {number} was enforced here before", number - 1);
    assert!(refused.contains(&expected) && refused.contains("remove it"), "{refused}");
    assert_eq!(started.trust.current().revocation_number(), number, "the coordinator gave it again");
    assert!(path.exists());
}

#[tokio::test]
async fn a_member_follows_its_mesh_to_another_authority_and_remembers_the_first() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({"uses": 3})).await;
    let dir = mesh.state_dir("a");
    let (alpha, session) = mesh.join_in(&dir, "alpha", &token).await.unwrap();
    let handle = session.handle();
    let running = Agent::run(alpha.clone(), session, &[]);
    running.reached().await;
    let (old, mut rng) = (mesh.authority(), StdRng::from_os_rng());
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(86_400),
    };
    let next = Authority::create(&parameters, clock::unix(), &mut rng).unwrap();
    let cross = old.cross_sign(next.certificate(), clock::unix(), &mut rng).unwrap();
    let ders = |authorities: &[&Authority]| authorities.iter().map(|ca| ca.certificate().der().to_vec()).collect();
    let on_disk = || CaCertificate::bundle_from_pem(&std::fs::read_to_string(dir.join("ca.crt")).unwrap()).unwrap();

    let both = mesh.list(&alpha, |list| {
        list.authorities = ders(&[&old, &next]);
        list.crosses = vec![cross.der().to_vec()];
    });
    assert_eq!(handle.offer_revocations(both).await, Offered::TakenOver);
    assert_eq!(on_disk(), [old.certificate().clone(), next.certificate().clone()]);
    assert_ne!(handle.status().renew_why, "another authority issues now");

    let mut list = alpha.trust.current().revocations().clone();
    (list.number, list.authorities) = (list.number + 1, ders(&[&next]));
    let alone = next.sign_revocations(&list).unwrap();
    assert_eq!(handle.offer_revocations(alone).await, Offered::TakenOver);
    running.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;
    running.wait_for(|event| matches!(event, Event::RevocationsChanged)).await;

    assert_eq!(alpha.trust.current().authorities(), std::slice::from_ref(next.certificate()));
    assert!(
        on_disk().contains(old.certificate()),
        "until there is another certificate, it tells that this one is ours"
    );
    while handle.status().renew_why != "our authority is believed no more" && handle.status().renewal_error.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.kill().await;
    // A token of the first authority is still one of this mesh, another mesh's is not.
    let starting = join_at(&dir, "alpha", &token);
    let waits = tokio::time::timeout(Duration::from_secs(2), starting).await;
    let said = waits.map(|started| started.map(|_| ()).unwrap_err().to_string()).unwrap_or_default();
    assert!(!said.contains("the join token to another one"), "{said}");
    let foreign = JoinToken::generate(vec![mesh.url()], MeshName::new("lab").unwrap(), Fingerprint([3; 32]), &mut rng);
    let refused = join_at(&dir, "alpha", &foreign.unwrap()).await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("the join token to another one"), "{refused}");
}
