//! What a program shows of what it holds: everything that has a `Debug`, and a secret in it.

use super::*;
use crate::{
    api::{EnrollRequest, Secret},
    config::JoinTokenSource,
};

#[tokio::test]
async fn debug_shows_no_secret_of_anything_that_holds_one() {
    let mesh = Mesh::start().await;
    let token = mesh.token(json!({})).await;
    let state = mesh.state_dir("a");
    let (member, session) = mesh.join_in(&state, "alpha", &token).await.unwrap();
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(3600),
    };
    let authority = Authority::create(&parameters, clock::unix(), &mut StdRng::from_os_rng()).unwrap();
    let text = token.to_text();
    let configuration = format!("name = 'a'\njoin_token = '{}'", text.as_str());
    let config = crate::config::Config::read(Layers::new().file("test", &configuration).unwrap(), "host").unwrap();
    let request = crate::membership::joining::request(&token, &member.identity, &member.wg, &name("alpha")).unwrap();
    let created =
        CreatedToken { id: "1".into(), token: Secret::new(text.to_string()), expires_at: clock::unix(), uses: 1 };

    let shown = [
        format!("{:?} {:?}", member.identity, member.wg),
        format!("{token:?} {:?}", "wm1.nonsense".parse::<JoinToken>()),
        format!("{authority:?}"),
        format!("{config:#?}"),
        format!("{:?}", config.join_token),
        format!("{:?}", settings(&state, "alpha", Some(token.clone()))),
        format!("{request:?} {:?}", request.clone().token),
        format!("{created:#?}"),
        format!("{:?}", session.handle().status()),
        format!("{:?}", IdentityKey::from_pkcs8_pem(&member.identity.to_pkcs8_pem()[..40]).map(drop)),
    ]
    .join("\n");

    let seed = member.identity.seed();
    let listed = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let pem = member.identity.to_pkcs8_pem();
    for (what, form) in [
        ("the token", text.as_str().to_owned()),
        ("the token's secret", token.secret_base64().as_str().to_owned()),
        ("the identity key", hex::encode(seed)),
        ("the identity key", listed(seed)),
        ("the identity key", pem.lines().nth(1).unwrap().to_owned()),
        ("the WireGuard key", member.wg.to_base64().as_str().to_owned()),
        ("the WireGuard key", listed(member.wg.bytes())),
        ("the authority's key", authority.key_pem().lines().nth(1).unwrap().to_owned()),
    ] {
        assert!(!shown.contains(&form), "{what} is in {shown}");
    }
    assert!(matches!(config.join_token, Some(JoinTokenSource::Text(_))));
    let _: EnrollRequest = request;
}
