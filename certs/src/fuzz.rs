//! Every decoder of this crate as a function of bytes: it decodes, and panics if something does not hold that must hold
//! of whatever it took. For `netns-tests/fuzz`, which calls it with what a fuzzer makes up, and for the tests that replay
//! what was found so; no program has it.
//!
//! Signed things come twice: as they travel, which tries all that stands before a signature; and under a name in
//! `-signed` without their signature, which is made here, so that what stands behind it is tried too.
//!
//! What always must hold: an input is taken or refused alike each time, a refusal is short and moves no cursor, what is
//! taken is within its bounds, and what has one form is written again byte for byte.

mod envelopes;
pub mod replay;
#[cfg(test)]
mod specimens;
pub mod world;

use std::fmt;

use crate::{
    AllowedServices, CaCertificate, CertificateRequest, Chain, GroupName, IdentityKey, JoinToken, MAX_BUNDLE,
    MAX_GROUPS, MAX_SERVICES, MAX_URLS, MeshName, ModelTag, NodeId, NodeName, OverlayIp, ServiceName, Trust, TunnelUrl,
    UnixTime, Verified, WgPrivateKey, WgPublicKey,
    certificate::{self, COORDINATOR_NAME, NodeClaims, Outline},
    cli::{
        Span,
        describe::{self, PublicKeys},
        found::found_in,
    },
    hash_of_secret, is_encrypted_key, passphrase_in,
};
use world::{NOW, World};

/// What became of an input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is such a thing.
    Taken,
    /// It is none.
    Refused,
}

/// Tries one input.
pub type Target = fn(&[u8]) -> Verdict;

/// All targets, by the names of their folders in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("certificate", certificate),
    ("certificate-signed", certificate_signed),
    ("chain", chain),
    ("describe", describe_anything),
    ("encrypted-key", encrypted_key),
    ("keys", keys),
    ("names", names),
    ("proof", envelopes::proof),
    ("proof-header", envelopes::proof_header),
    ("proof-signed", envelopes::proof_signed),
    ("public-keys", public_keys),
    ("record", envelopes::record),
    ("record-signed", envelopes::record_signed),
    ("request", request),
    ("request-signed", request_signed),
    ("revocations", envelopes::revocations),
    ("revocations-signed", envelopes::revocations_signed),
    ("token", token),
];

/// No refusal is longer, whatever is refused.
pub const MAX_REFUSAL_BYTES: usize = 512;

impl Verdict {
    /// Taken, if this is so.
    pub fn taken_if(taken: bool) -> Verdict {
        if taken { Verdict::Taken } else { Verdict::Refused }
    }

    /// Taken, if there is something.
    pub fn of<T>(taken: &Option<T>) -> Verdict {
        Verdict::taken_if(taken.is_some())
    }
}

/// What was taken. If nothing was, the words for it must be few, and such as a terminal and a log may be given.
pub fn told<T>(outcome: Result<T, impl fmt::Display>) -> Option<T> {
    outcome.map_err(|refusal| fit_to_be_shown(&refusal.to_string())).ok()
}

/// A refusal fits one line.
pub fn fit_to_be_shown(text: &str) {
    assert!(text.len() <= MAX_REFUSAL_BYTES, "{} bytes: {}", text.len(), text.chars().take(200).collect::<String>());
    assert!(!text.chars().any(char::is_control), "control characters: {text:?}");
}

/// A certificate of any kind, in DER.
fn certificate(der: &[u8]) -> Verdict {
    let World { trust, .. } = World::get();
    let authority = told(CaCertificate::from_der(der.to_vec()));
    if let Some(ca) = &authority {
        assert_eq!(ca.der(), der);
        assert_eq!(told(CaCertificate::from_pem(&ca.pem())).as_ref(), Some(ca));
        assert_eq!(ca.network(), ca.network().trunc(), "a network with bits of a host");
        let _ = ca.is_root();
    }
    let outline = told(Outline::parse(der));
    let node = outline.as_ref().and_then(|outline| told(NodeClaims::of(outline)));
    if let Some(claims) = &node {
        check_claims(claims);
    }
    let mesh = outline.as_ref().and_then(certificate::coordinator_mesh);
    let server = told(trust.verify_coordinator(&[der], NOW));
    assert!(server.is_none() || mesh.as_ref() == Some(trust.mesh()), "a coordinator of another mesh");
    let kinds = [authority.is_some(), node.is_some(), mesh.is_some()];
    assert!(kinds.into_iter().filter(|is_it| *is_it).count() <= 1, "of two kinds: {kinds:?}");
    assert_eq!(told(found_in(der)).is_some(), kinds.contains(&true), "listed as something else");
    if let Some(chain) = told(Chain::from_ders(vec![der.to_vec()])) {
        assert!(check_chain(&chain).is_none() || node.is_some(), "a member by no certificate of a node");
    }
    Verdict::taken_if(kinds.contains(&true))
}

/// The part of a certificate that is signed, under the signature of the mesh's authority.
fn certificate_signed(signed_part: &[u8]) -> Verdict {
    certificate(&World::get().certify(signed_part))
}

/// A chain in PEM, or the certificates of authorities.
fn chain(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let _ = told(found_in(bytes));
    let authority = told(CaCertificate::from_pem(text));
    let bundle = told(CaCertificate::bundle_from_pem(text));
    if let Some(bundle) = &bundle {
        assert!((1..=MAX_BUNDLE).contains(&bundle.len()));
        let written = CaCertificate::bundle_to_pem(bundle);
        assert_eq!(told(CaCertificate::bundle_from_pem(&written)).as_ref(), Some(bundle));
        if let Some(trust) = told(Trust::of(bundle.clone())) {
            assert!(bundle.iter().all(|authority| trust.network().contains(&authority.network())));
        }
    }
    let Some(chain) = told(Chain::from_pem(text)) else {
        return Verdict::of(&bundle);
    };
    let written = chain.to_pem();
    assert_eq!(told(Chain::from_pem(&written)).as_ref(), Some(&chain));
    assert_eq!(Chain::from_pem(&written).map(|again| again.to_pem()).as_ref(), Ok(&written));
    let member = check_chain(&chain);
    Verdict::taken_if(member.is_some() || authority.is_some() || bundle.is_some())
}

/// What the mesh says to a chain, for whatever reason.
fn check_chain(chain: &Chain) -> Option<Verified> {
    let World { trust, .. } = World::get();
    let outcome = trust.verify(chain, NOW);
    let examined = trust.examine(chain, NOW).into_iter().find_map(|(_, outcome)| outcome.err());
    assert_eq!(outcome.as_ref().err(), examined.as_ref(), "people are shown another reason than the one that decides");
    let verified = told(outcome)?;
    assert_eq!(verified.chain().leaf(), chain.leaf());
    assert_eq!(trust.verify(verified.chain(), NOW).as_ref(), Ok(&verified), "what is passed on is believed as well");
    assert!(verified.is_valid_at(NOW) && !trust.is_revoked(&verified));
    assert!(trust.network().contains(&verified.address().0), "an address outside the network");
    Some(verified)
}

fn check_claims(claims: &NodeClaims) {
    assert!(claims.groups.len() <= MAX_GROUPS);
    assert!(matches!(&claims.services, AllowedServices::Any | AllowedServices::Only(_)));
    if let AllowedServices::Only(services) = &claims.services {
        assert!(services.len() <= MAX_SERVICES);
    }
    assert!(claims.wg.is_sound(), "a weak key");
    assert_ne!(claims.name.as_str(), COORDINATOR_NAME);
    assert_eq!(claims.address.0.to_canonical(), claims.address.0, "an address of two forms");
}

/// A request for a certificate, in PEM.
fn request(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let read = told(CertificateRequest::parse(text));
    if let Some(request) = &read {
        assert!(request.wg.is_sound() && request.identity.is_sound(), "a weak key");
        assert_eq!(CertificateRequest::parse(text).as_ref(), Ok(request));
    }
    Verdict::of(&read)
}

/// The part of a request that is signed, under the signature of a member's key.
fn request_signed(signed_part: &[u8]) -> Verdict {
    let World { member, .. } = World::get();
    let der = world::signed_der(signed_part, &member.key);
    request(pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der)).as_bytes())
}

/// A join token, and the secret in it.
fn token(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let _ = hash_of_secret(text);
    let read = told(text.parse::<JoinToken>());
    if let Some(token) = &read {
        assert_eq!(token.to_text().as_str(), text.trim(), "a token of two forms");
        assert!((1..=MAX_URLS).contains(&token.urls.len()));
        assert!(token.urls.iter().all(|url| url.starts_with("https://")));
        assert_eq!(hash_of_secret(&token.secret_base64()), Some(token.secret_hash()));
        assert!(!format!("{token:?}").contains(token.secret_base64().as_str()), "a secret that is shown");
    }
    Verdict::of(&read)
}

/// Files of private keys.
fn keys(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let identity = told(IdentityKey::from_pkcs8_pem(text));
    if let Some(key) = &identity {
        assert_eq!(told(IdentityKey::from_pkcs8_pem(&key.to_pkcs8_pem())).map(|again| again.id()), Some(key.id()));
        assert!(key.id().is_sound());
    }
    let wireguard = told(WgPrivateKey::from_base64(text));
    if let Some(key) = &wireguard {
        assert_eq!(key.to_base64().as_str(), text.trim(), "a key of two forms");
        assert!(key.public().is_sound());
    }
    Verdict::taken_if(identity.is_some() || wireguard.is_some())
}

/// A private key under a passphrase: the first line is that, the rest the file.
fn encrypted_key(bytes: &[u8]) -> Verdict {
    let Ok((passphrase, pem)) = std::str::from_utf8(bytes).map(|text| text.split_once('\n').unwrap_or((text, "")))
    else {
        return Verdict::Refused;
    };
    let Some(passphrase) = told(passphrase_in(passphrase)) else { return Verdict::Refused };
    if is_dear(pem) {
        return Verdict::Refused;
    }
    let key = told(IdentityKey::from_encrypted_pkcs8_pem(pem, &passphrase));
    assert!(key.is_none() || is_encrypted_key(pem));
    assert!(!is_encrypted_key(pem) || told(IdentityKey::from_pkcs8_pem(pem)).is_none());
    Verdict::of(&key)
}

/// Whether it would take longer to open than a fuzzer has for one input. What is too dear for anybody is refused anyway.
fn is_dear(pem: &str) -> bool {
    use pkcs8::{
        EncryptedPrivateKeyInfoRef, SecretDocument,
        pkcs5::{EncryptionScheme, pbes2::Kdf},
    };
    let Ok((_, document)) = SecretDocument::from_pem(pem.trim()) else { return false };
    let Ok(info) = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()) else { return false };
    let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else { return false };
    match &parameters.kdf {
        Kdf::Pbkdf2(params) => (1_000..=10_000_000).contains(&params.iteration_count),
        Kdf::Scrypt(params) => {
            let work =
                u128::from(params.cost_parameter) * u128::from(params.block_size) * u128::from(params.parallelization);
            (1 << 10..=1 << 26).contains(&work)
        }
        _ => false,
    }
}

/// The file of a node's public keys.
fn public_keys(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let read = told(PublicKeys::parse(text));
    if let Some(keys) = &read {
        assert_eq!(PublicKeys::parse(&keys.to_text()).as_ref(), Ok(keys));
    }
    Verdict::of(&read)
}

/// Whatever has a name or is told by a short text.
fn names(bytes: &[u8]) -> Verdict {
    fn same<T: std::str::FromStr + fmt::Display>(text: &str) -> bool
    where
        T::Err: fmt::Display,
    {
        let read = told(text.parse::<T>());
        assert!(read.as_ref().is_none_or(|read| read.to_string() == text), "{text:?} has another form");
        read.is_some()
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let one_form = [
        same::<NodeName>(text),
        same::<MeshName>(text),
        same::<GroupName>(text),
        same::<ServiceName>(text),
        same::<WgPublicKey>(text),
    ];
    let url = told(text.parse::<TunnelUrl>());
    if let Some(url) = &url {
        assert!(url.as_str().is_ascii() && url.as_str().starts_with("http"), "{url}");
        assert_eq!(url.as_str().parse::<TunnelUrl>().as_ref(), Ok(url));
    }
    let others = [
        told(text.parse::<OverlayIp>()).is_some(),
        told(text.parse::<NodeId>()).is_some(),
        told(text.parse::<ModelTag>()).is_some(),
        told(text.parse::<Span>()).is_some(),
        url.is_some(),
    ];
    Verdict::taken_if(one_form.contains(&true) || others.contains(&true))
}

/// Whatever a person may be given to look at.
fn describe_anything(bytes: &[u8]) -> Verdict {
    let described = told(describe::describe(bytes, NOW));
    if let Some(sheet) = &described {
        let text = sheet.text(false);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "it moves the cursor: {text:?}");
        assert!(serde_json::from_str::<serde_json::Value>(&sheet.text(true)).is_ok());
        // At whatever time it is looked at.
        for now in [UnixTime(0), UnixTime(u64::MAX)] {
            assert!(describe::describe(bytes, now).is_ok());
        }
    }
    Verdict::of(&described)
}
