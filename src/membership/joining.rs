//! What a machine asks for when it joins, and whether it may believe the answer.
//!
//! The token names the authority by its fingerprint. Everything in the answer hangs on that: the authority's
//! certificate, the list that leads from it to those that are believed at present, our chain below one of them, and in our
//! chain our own keys and name.

use std::fmt;

use wiremesh_certs::{
    BadRequest, CaCertificate, CertificateRequest, Chain, Fingerprint, IdentityKey, JoinToken, MeshName, NodeId,
    NodeName, OverlayIp, Refused, Renewable, Trust, UnixTime, Verified, WgPrivateKey, WgPublicKey,
};

use crate::api::{EnrollRequest, EnrollResponse, Secret};

/// Who we are and whom we expect to be let in by.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Our identity.
    pub identity: NodeId,
    /// Our WireGuard key.
    pub wg: WgPublicKey,
    /// Our name.
    pub name: NodeName,
    /// The mesh of the token.
    pub mesh: MeshName,
    /// Its authority.
    pub authority: Fingerprint,
}

/// What was believed of the answer.
#[derive(Debug)]
pub struct Accepted {
    /// The mesh's authority, less what it revoked.
    pub trust: Trust,
    /// Ourselves, as the mesh sees us.
    pub verified: Verified,
}

/// The answer is not to be believed. The coordinator proved who it is and yet said this: trying again changes nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadAnswer {
    /// Not an authority's certificate.
    #[error("the coordinator's answer has no authority in it: {0}")]
    Authority(String),
    /// Another authority than the token's.
    #[error("the coordinator's answer names other authorities ({given}, …) than the join token ({wanted})")]
    AnotherAuthority {
        /// The first in the answer.
        given: Fingerprint,
        /// In the token.
        wanted: Fingerprint,
    },
    /// Another mesh than the token's.
    #[error("the coordinator runs the mesh {given}, the join token is for {wanted}")]
    AnotherMesh {
        /// In the answer.
        given: MeshName,
        /// In the token.
        wanted: MeshName,
    },
    /// Not a chain.
    #[error("the coordinator's answer has no certificate in it: {0}")]
    Certificate(String),
    /// A chain that does not verify.
    #[error("the certificate that the coordinator gave us is not valid: {0}")]
    Refused(#[from] Refused),
    /// A certificate for somebody else.
    #[error("the certificate that the coordinator gave us has another {what} than ours: {given} instead of {wanted}")]
    NotOurs {
        /// Which fact.
        what: &'static str,
        /// In the certificate.
        given: String,
        /// Ours.
        wanted: String,
    },
}

/// The request to be let in.
pub fn request(
    token: &JoinToken,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    name: &NodeName,
) -> Result<EnrollRequest, BadRequest> {
    let wireguard_key = wg.public();
    Ok(EnrollRequest {
        token: Secret::new(token.secret_base64().to_string()),
        csr: CertificateRequest::create(identity, name, &wireguard_key)?,
        wireguard_key,
    })
}

/// Checks an answer from end to end.
pub fn accept(answer: &EnrollResponse, expected: &Expected, now: UnixTime) -> Result<Accepted, BadAnswer> {
    let authorities =
        CaCertificate::bundle_from_pem(&answer.authority).map_err(|error| BadAnswer::Authority(error.to_string()))?;
    // Of all roots that the mesh ever had, the one in the token is believed for the token's sake, and the others for its.
    let pinned = authorities.iter().find(|authority| authority.fingerprint() == expected.authority);
    let Some(authority) = pinned.cloned() else {
        return Err(match authorities.first() {
            Some(first) => BadAnswer::AnotherAuthority { given: first.fingerprint(), wanted: expected.authority },
            None => BadAnswer::Authority("none".to_owned()),
        });
    };
    if *authority.mesh() != expected.mesh {
        return Err(BadAnswer::AnotherMesh { given: authority.mesh().clone(), wanted: expected.mesh.clone() });
    }
    let mut trust = Trust::new(authority);
    if let Some(revocations) = &answer.revocations {
        trust.apply_revocations(revocations, now)?;
    }
    let verified = ours(&trust, &answer.certificate, expected.identity, expected.wg, &expected.name, now)?;
    same("overlay address", &verified.address(), &answer.overlay_address)?;
    same("network", &trust.network(), &answer.network)?;
    Ok(Accepted { trust, verified })
}

/// What a renewed certificate must say as the one before did.
#[derive(Clone, Debug)]
pub struct Unchanged {
    identity: NodeId,
    wg: WgPublicKey,
    name: NodeName,
    address: OverlayIp,
}

impl From<&Verified> for Unchanged {
    fn from(before: &Verified) -> Unchanged {
        let (identity, wg, name, address) = (before.id(), before.wg(), before.name().clone(), before.address());
        Unchanged { identity, wg, name, address }
    }
}

impl From<&Renewable> for Unchanged {
    fn from(before: &Renewable) -> Unchanged {
        let (identity, wg, name, address) = (before.id(), before.wg(), before.name().clone(), before.address());
        Unchanged { identity, wg, name, address }
    }
}

/// Checks a renewed certificate: the same identity, keys, name and address.
pub fn accept_renewed(trust: &Trust, pem: &str, before: &Unchanged, now: UnixTime) -> Result<Verified, BadAnswer> {
    let verified = ours(trust, pem, before.identity, before.wg, &before.name, now)?;
    same::<OverlayIp>("overlay address", &verified.address(), &before.address)?;
    Ok(verified)
}

/// Checks a certificate, from wherever, to be ours.
pub fn ours(
    trust: &Trust,
    pem: &str,
    identity: NodeId,
    wg: WgPublicKey,
    name: &NodeName,
    now: UnixTime,
) -> Result<Verified, BadAnswer> {
    let chain = Chain::from_pem(pem).map_err(|error| BadAnswer::Certificate(error.to_string()))?;
    let verified = trust.verify(&chain, now)?;
    if verified.id() != identity {
        return Err(not_ours("identity", verified.id().to_hex(), identity.to_hex()));
    }
    same("WireGuard key", &verified.wg(), &wg)?;
    same("name", verified.name(), name)?;
    Ok(verified)
}

/// An answer may not change this.
pub(super) fn same<T: fmt::Display + PartialEq>(what: &'static str, given: &T, wanted: &T) -> Result<(), BadAnswer> {
    if given == wanted { Ok(()) } else { Err(not_ours(what, given, wanted)) }
}

fn not_ours(what: &'static str, given: impl fmt::Display, wanted: impl fmt::Display) -> BadAnswer {
    BadAnswer::NotOurs { what, given: given.to_string(), wanted: wanted.to_string() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{AllowedServices, Authority, CaParameters, Claims, RevocationList};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    struct Case {
        authority: Authority,
        claims: Claims,
        expected: Expected,
        rng: StdRng,
    }

    fn case() -> Case {
        let mut rng = StdRng::seed_from_u64(1);
        let parameters = CaParameters {
            mesh: MeshName::new("lab").unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400),
        };
        let authority = Authority::create(&parameters, NOW, &mut rng).unwrap();
        let expected = Expected {
            identity: IdentityKey::generate(&mut rng).id(),
            wg: WgPrivateKey::generate(&mut rng).public(),
            name: NodeName::new("a").unwrap(),
            mesh: parameters.mesh,
            authority: authority.certificate().fingerprint(),
        };
        let claims = Claims {
            identity: expected.identity,
            wg: expected.wg,
            name: expected.name.clone(),
            address: "10.42.0.2".parse().unwrap(),
            groups: Vec::new(),
            services: AllowedServices::Any,
            lifetime: Duration::from_secs(3600),
        };
        Case { authority, claims, expected, rng }
    }

    impl Case {
        fn answer(&mut self, claims: &Claims) -> EnrollResponse {
            let ca = self.authority.certificate();
            EnrollResponse {
                certificate: self.authority.issue(claims, NOW, &mut self.rng).unwrap().to_pem(),
                authority: ca.pem(),
                mesh: ca.mesh().clone(),
                overlay_address: claims.address,
                network: ca.network(),
                revocations: None,
                bootstrap: Vec::new(),
                coordinators: Vec::new(),
                heartbeat_interval_secs: 10,
            }
        }
    }

    #[test]
    fn an_honest_answer_is_accepted() {
        let mut case = case();
        let answer = case.answer(&case.claims.clone());

        let accepted = accept(&answer, &case.expected, NOW).unwrap();

        assert_eq!(accepted.verified.id(), case.expected.identity);
    }

    #[test]
    fn a_token_of_the_meshs_first_authority_leads_to_its_present_one() {
        let mut case = case();
        let old = std::mem::replace(&mut case.authority, self::case().authority);
        let mut rng = StdRng::seed_from_u64(7);
        let parameters = CaParameters {
            mesh: MeshName::new("lab").unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400),
        };
        case.authority = Authority::create(&parameters, NOW, &mut rng).unwrap();
        let new = case.authority.certificate().clone();
        let cross = old.cross_sign(&new, NOW, &mut rng).unwrap();
        let list = RevocationList {
            number: 3,
            authorities: vec![new.der().to_vec()],
            crosses: vec![cross.der().to_vec()],
            ..RevocationList::default()
        };
        let list = case.authority.sign_revocations(&list).unwrap();
        let both = CaCertificate::bundle_to_pem(&[new.clone(), old.certificate().clone()]);
        let honest = case.answer(&case.claims.clone());
        let answer = EnrollResponse { authority: both, revocations: Some(list), ..honest.clone() };

        let accepted = accept(&answer, &case.expected, NOW).unwrap();

        assert_eq!(accepted.trust.authorities(), std::slice::from_ref(&new));
        assert_eq!(accepted.verified.authority(), new.fingerprint());
        // The present one alone is not the one that the token pins, and without the list nothing leads to it.
        assert!(matches!(accept(&honest, &case.expected, NOW), Err(BadAnswer::AnotherAuthority { .. })));
        let without = EnrollResponse { revocations: None, ..answer };
        assert!(matches!(accept(&without, &case.expected, NOW), Err(BadAnswer::Refused(_))));
    }

    #[test]
    fn an_answer_is_refused_if_anything_in_it_is_not_ours() {
        let mut case = case();
        let mut stranger = self::case();
        stranger.rng = StdRng::seed_from_u64(2);
        let honest = case.answer(&case.claims.clone());
        let claims = case.claims.clone();
        let other_key = case.answer(&Claims { identity: NodeId([9; 32]), ..claims.clone() });
        let other_wg = case.answer(&Claims { wg: WgPublicKey([9; 32]), ..claims.clone() });
        let other_name = case.answer(&Claims { name: NodeName::new("b").unwrap(), ..claims.clone() });
        let revocations =
            RevocationList { number: 1, identities: [case.expected.identity].into(), ..RevocationList::default() };
        let revocations = case.authority.sign_revocations(&revocations).unwrap();

        for (expected, answer) in [
            ("no authority in it", EnrollResponse { authority: "x".into(), ..honest.clone() }),
            ("no certificate in it", EnrollResponse { certificate: "x".into(), ..honest.clone() }),
            ("another identity", other_key),
            ("another WireGuard key", other_wg),
            ("another name", other_name),
            (
                "another overlay address",
                EnrollResponse { overlay_address: "10.42.0.3".parse().unwrap(), ..honest.clone() },
            ),
            ("another network", EnrollResponse { network: "10.0.0.0/8".parse().unwrap(), ..honest.clone() }),
            ("is revoked", EnrollResponse { revocations: Some(revocations), ..honest.clone() }),
        ] {
            let refused = accept(&answer, &case.expected, NOW).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let other_ca = Expected { authority: Fingerprint([1; 32]), ..case.expected.clone() };
        assert!(matches!(accept(&honest, &other_ca, NOW), Err(BadAnswer::AnotherAuthority { .. })));
        let other_mesh = Expected { mesh: MeshName::new("x").unwrap(), ..case.expected.clone() };
        assert!(matches!(accept(&honest, &other_mesh, NOW), Err(BadAnswer::AnotherMesh { .. })));
        let too_late = NOW.plus(Duration::from_secs(7200));
        assert!(matches!(accept(&honest, &case.expected, too_late), Err(BadAnswer::Refused(Refused::Expired { .. }))));
    }
}
