use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, routing::get};
use rand::{SeedableRng, rngs::StdRng};
use wiremesh_certs::Fingerprint;

use super::*;
use crate::{api::Secret, cli::failure::FAILED};

#[test]
fn the_list_is_aligned_and_says_when_tokens_end() {
    let now = UnixTime(1_800_000_000);
    let token = Token {
        id: "3f9a51c07b2e".into(),
        state: "usable".into(),
        name: None,
        groups: vec!["gpu".parse().unwrap(), "eu".parse().unwrap()],
        services: Vec::new(),
        uses: 10,
        used: 3,
        approve: false,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(86_399)),
    };
    let ended = Token {
        id: "a".into(),
        state: "expired".into(),
        approve: true,
        expires_at: UnixTime(now.0 - 60),
        ..token.clone()
    };
    let mut out = Vec::new();

    write_table(&[token, ended], now, &mut out).unwrap();

    assert_eq!(
        String::from_utf8(out).unwrap(),
        "ID            STATE    USED  ENDS    NAME  GROUPS  SERVICES  APPROVAL\n\
         3f9a51c07b2e  usable   3/10  in 23h  any   gpu,eu  any       none\n\
         a             expired  3/10  1m ago  any   gpu,eu  any       asked for\n"
    );
}

#[tokio::test]
async fn a_token_in_a_file_is_made_once_and_again_when_it_is_good_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (coordinator, known) = coordinator(&folder);
    let file = folder.path().join("join/worker-1/token");
    let ensure = async |out: &mut Vec<u8>| create(&args(&coordinator, &file, true), out).await;
    let text = || std::fs::read_to_string(&file).unwrap();

    let mut out = Vec::new();
    ensure(&mut out).await.unwrap();

    let first = text();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(String::from_utf8(out).unwrap().starts_with("join token ") && first.starts_with("wm1."));
    for (state, is_kept) in [("usable", true), ("used", true), ("expired", false), ("revoked", false)] {
        let before = text();
        known.lock().unwrap().iter_mut().for_each(|token| token.state = state.into());

        ensure(&mut Vec::new()).await.unwrap();

        assert_eq!(text() == before, is_kept, "{state}");
    }
    // A coordinator that knows nothing of it has another database.
    let before = text();
    known.lock().unwrap().clear();
    ensure(&mut Vec::new()).await.unwrap();
    assert_ne!(text(), before);
}

#[tokio::test]
async fn no_file_that_is_there_is_overwritten_unless_it_holds_a_token_that_is_good_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (coordinator, known) = coordinator(&folder);
    let file = folder.path().join("token");
    std::fs::write(&file, "a letter").unwrap();

    for ensure in [false, true] {
        let failure = create(&args(&coordinator, &file, ensure), &mut Vec::new()).await.unwrap_err();

        assert_eq!((failure.exit, failure.hint.is_some()), (FAILED, true));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a letter");
    }
    assert!(known.lock().unwrap().is_empty(), "no token was made that nobody would have seen");
}

fn args(coordinator: &Path, out: &Path, ensure: bool) -> CreateArgs {
    CreateArgs {
        ttl: Span(Duration::from_secs(3600)),
        uses: 1,
        name: None,
        groups: Vec::new(),
        services: Vec::new(),
        approve: false,
        urls: Vec::new(),
        out: Some(out.to_owned()),
        ensure,
        json: false,
        at: Where::of(Some(coordinator.to_owned()), None),
    }
}

/// The configuration of a coordinator that makes tokens, and those it knows.
fn coordinator(folder: &tempfile::TempDir) -> (PathBuf, Arc<Mutex<Vec<Token>>>) {
    let known: Arc<Mutex<Vec<Token>>> = Arc::default();
    let rng = Arc::new(Mutex::new(StdRng::seed_from_u64(7)));
    let make = {
        let known = known.clone();
        async move |Json(asked): Json<CreateToken>| {
            let urls = vec!["https://192.0.2.1:8080".to_owned()];
            let ca = Fingerprint([7; 32]);
            let token = JoinToken::generate(urls, "lab".parse().unwrap(), ca, &mut *rng.lock().unwrap()).unwrap();
            let made = Token {
                id: created_id(&token),
                state: "usable".into(),
                name: asked.name,
                groups: asked.groups,
                services: asked.services,
                uses: asked.uses,
                used: 0,
                approve: asked.approve,
                created_at: UnixTime(1_800_000_000),
                expires_at: UnixTime(1_800_003_600),
            };
            known.lock().unwrap().push(made.clone());
            let token = Secret::new(token.to_text().to_string());
            Json(CreatedToken { id: made.id, token, expires_at: made.expires_at, uses: made.uses })
        }
    };
    let asked = known.clone();
    let list = get(async move || Json(Tokens { tokens: asked.lock().unwrap().clone() }));
    let listener = tokio::net::UnixListener::bind(folder.path().join(crate::coordinator::io::SOCKET)).unwrap();
    let pages = Router::new().route("/tokens", list.post(make));
    tokio::task::spawn(async move { axum::serve(listener, pages).await });
    let config = folder.path().join("coordinator.toml");
    std::fs::write(&config, format!("data_dir = {:?}\n", folder.path())).unwrap();
    (config, known)
}
