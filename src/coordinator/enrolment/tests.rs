use super::*;

const NOW: UnixTime = UnixTime(1_000_000);

fn network() -> IpNet {
    "10.42.0.0/16".parse().unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn request() -> CertificateRequest {
    CertificateRequest { identity: NodeId([1; 32]), name: name("a"), wg: WgPublicKey([1; 32]) }
}

fn token() -> Token {
    Token {
        id: "t1".into(),
        name: None,
        groups: Vec::new(),
        services: Vec::new(),
        uses: 1,
        used: 0,
        approve: false,
        created_at: NOW,
        expires_at: UnixTime(NOW.0 + 10),
        revoked_at: None,
    }
}

fn holder(byte: u8, called: &str) -> Holder {
    Holder { identity: NodeId([byte; 32]), name: name(called), host: 7, revoked: false }
}

fn facts() -> Facts {
    Facts { token: Some(token()), ..Facts::default() }
}

#[test]
fn each_hostile_case_is_refused_with_its_own_reason() {
    let cases: Vec<(&str, Facts)> = vec![
        ("token_unknown", Facts { token: None, ..facts() }),
        ("token_revoked", Facts { token: Some(Token { revoked_at: Some(NOW), ..token() }), ..facts() }),
        ("token_expired", Facts { token: Some(Token { expires_at: NOW, ..token() }), ..facts() }),
        ("token_used", Facts { token: Some(Token { used: 1, ..token() }), ..facts() }),
        ("token_for_another_name", Facts { token: Some(Token { name: Some(name("b")), ..token() }), ..facts() }),
        ("name_taken", Facts { same_name: Some(holder(2, "a")), ..facts() }),
        ("wireguard_key_taken", Facts { key_holder: Some(NodeId([2; 32])), ..facts() }),
        ("identity_has_another_name", Facts { same_identity: Some(holder(1, "b")), ..facts() }),
        ("identity_revoked", Facts { same_identity: Some(Holder { revoked: true, ..holder(1, "a") }), ..facts() }),
    ];

    for (expected, facts) in cases {
        let refusal = decide(&request(), &facts, network(), NOW).unwrap_err();
        assert_eq!(refusal.kind(), expected);
    }
    assert_eq!(
        decide(&request(), &Facts { identity_revoked: true, ..facts() }, network(), NOW),
        Err(Refusal::IdentityRevoked)
    );
    let reserved = CertificateRequest { name: name("coordinator"), ..request() };
    assert_eq!(decide(&reserved, &facts(), network(), NOW).unwrap_err(), Refusal::NameReserved);
}

#[test]
fn the_same_machine_may_repeat_a_join_whose_answer_it_never_got() {
    let facts = Facts {
        token: Some(Token { used: 1, ..token() }),
        used_before: true,
        asked: None,
        identity_revoked: false,
        same_identity: Some(holder(1, "a")),
        same_name: Some(holder(1, "a")),
        key_holder: Some(NodeId([1; 32])),
    };

    let decision = decide(&request(), &facts, network(), NOW).unwrap();

    let expected = Token { used: 1, ..token() };
    assert_eq!(decision, Decision::Join { token: expected, charged: false, host: Some(7) });
}

#[test]
fn an_approval_is_for_one_identity_name_and_key_by_one_token() {
    let with_approval = Token { approve: true, ..token() };
    let asked = |standing| Asked {
        name: name("a"),
        wg: WgPublicKey([1; 32]),
        token: "t1".into(),
        standing,
        asked_at: NOW,
        heard_at: NOW,
    };
    let outcome = |asked: Option<Asked>| {
        let facts = Facts { token: Some(with_approval.clone()), asked, ..facts() };
        decide(&request(), &facts, network(), NOW).map(|decision| matches!(decision, Decision::Join { .. }))
    };

    assert_eq!(outcome(None), Ok(false));
    assert_eq!(outcome(Some(asked(Standing::Waiting))), Ok(false));
    assert_eq!(outcome(Some(asked(Standing::Approved))), Ok(true));
    assert_eq!(outcome(Some(Asked { name: name("b"), ..asked(Standing::Approved) })), Ok(false));
    assert_eq!(outcome(Some(Asked { wg: WgPublicKey([2; 32]), ..asked(Standing::Approved) })), Ok(false));
    assert_eq!(outcome(Some(Asked { token: "t2".into(), ..asked(Standing::Approved) })), Ok(false));
    assert_eq!(outcome(Some(asked(Standing::Declined))), Err(Refusal::Declined));
    assert_eq!(
        outcome(Some(Asked { name: name("b"), ..asked(Standing::Declined) })),
        Err(Refusal::Declined),
        "another name does not undo a no"
    );
    assert_eq!(outcome(Some(Asked { token: "t2".into(), ..asked(Standing::Declined) })), Ok(false), "a token does");
}

#[test]
fn who_was_let_in_once_is_not_asked_about_again_unless_its_key_changed() {
    let joined = Facts {
        token: Some(Token { approve: true, used: 1, ..token() }),
        used_before: true,
        same_identity: Some(holder(1, "a")),
        same_name: Some(holder(1, "a")),
        key_holder: Some(NodeId([1; 32])),
        ..Facts::default()
    };

    let again = decide(&request(), &joined, network(), NOW).unwrap();
    let with_another_key = decide(&request(), &Facts { key_holder: None, ..joined }, network(), NOW).unwrap();

    assert!(matches!(again, Decision::Join { charged: false, .. }));
    assert!(matches!(with_another_key, Decision::Wait { .. }));
}

#[test]
fn a_machine_that_asked_in_time_outlasts_its_token_but_not_the_tokens_revocation() {
    let asked = Asked {
        name: name("a"),
        wg: WgPublicKey([1; 32]),
        token: "t1".into(),
        standing: Standing::Approved,
        asked_at: NOW,
        heard_at: NOW,
    };
    let ended = Token { approve: true, expires_at: NOW, ..token() };
    let of = |token: &Token| Facts { token: Some(token.clone()), asked: Some(asked.clone()), ..facts() };

    let late = decide(&request(), &of(&ended), network(), NOW).unwrap();
    let revoked = decide(&request(), &of(&Token { revoked_at: Some(NOW), ..ended }), network(), NOW).unwrap_err();

    assert!(matches!(late, Decision::Join { charged: true, .. }));
    assert_eq!(revoked.kind(), "token_revoked");
}

#[test]
fn addresses_and_places_are_each_others_inverse() {
    for text in ["10.42.0.0/16", "192.168.7.0/29", "fd00:1234::/64"] {
        let network: IpNet = text.parse().unwrap();
        for host in [FIRST_HOST, 5, last_host(network)] {
            let address = address_of(network, host).unwrap();
            assert_eq!(host_of(network, address), Some(host), "{text} {host}");
        }
    }
    assert_eq!(address_of(network(), 70_000), None);
    assert_eq!(address_of("10.0.0.0/30".parse().unwrap(), 2), Some("10.0.0.2".parse().unwrap()));
    assert_eq!(last_host("10.0.0.0/30".parse().unwrap()), 2);
}
