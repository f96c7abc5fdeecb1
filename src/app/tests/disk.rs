//! What a member keeps on disk, and what is said when that is broken.

use super::*;

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
async fn a_renewed_certificate_that_cannot_be_written_is_used_and_written_when_it_can_be() {
    let mesh = Mesh::start().await;
    let dir = mesh.state_dir("a");
    let (member, session) = mesh.join_in(&dir, "alpha", &mesh.token(json!({})).await).await.unwrap();
    let handle = session.handle();
    let alpha = Agent::run(member.clone(), session, &[]);
    alpha.reached().await;
    let aside = dir.with_extension("aside");
    std::fs::rename(&dir, &aside).unwrap();

    handle.renew().await.unwrap();

    let renewed = member.client.verified();
    assert_ne!(renewed.serial(), member.verified.serial());
    std::fs::rename(&aside, &dir).unwrap();
    while std::fs::read_to_string(dir.join("node.crt")).unwrap() != renewed.chain().to_pem() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    alpha.kill().await;
}
