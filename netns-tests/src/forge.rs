//! What an attacker could have: identities by any authority and of any time, records, introductions.

use std::{fs, net::IpAddr, time::Duration};

use anyhow::Context;
use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, FixedOutput, KeyInit, Update, consts::U16},
};
use rand::rngs::OsRng;
use rand::{TryRngCore, rand_core::UnwrapErr};
use serde_json::Value;
use wiremesh::{clock, sandbox::Node};
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, Chain, Claims, IdentityKey, Load, NodeRecord, OverlayIp, Signed,
    SignedRecord, Trust, UnixTime, Verified, WgPrivateKey, WgPublicKey, proof_header,
};

use crate::{Coordinator, fetch};

const LIMIT: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys and a certificate for them, good or not.
pub struct Identity {
    /// The identity key.
    pub key: IdentityKey,
    /// The WireGuard key.
    pub wg: WgPrivateKey,
    /// The certificate.
    pub chain: Chain,
}

impl Identity {
    /// A certificate by `authority` for a day from now.
    pub fn by(authority: &Authority, name: &str, address: IpAddr) -> anyhow::Result<Identity> {
        Identity::at(authority, name, address, clock::unix(), DAY)
    }

    /// A certificate by `authority`, issued at another time.
    pub fn at(
        authority: &Authority,
        name: &str,
        address: IpAddr,
        issued_at: UnixTime,
        lifetime: Duration,
    ) -> anyhow::Result<Identity> {
        let mut rng = randomness();
        let (key, wg) = (IdentityKey::generate(&mut rng), WgPrivateKey::generate(&mut rng));
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: name.parse()?,
            address: OverlayIp(address),
            groups: Vec::new(),
            services: AllowedServices::Any,
            lifetime,
        };
        let chain = authority.issue(&claims, issued_at, &mut rng)?;
        Ok(Identity { key, wg, chain })
    }

    /// The value of an `authorization` header.
    pub fn proof(&self, audience: &str, method: &str, path: &str, at: UnixTime) -> anyhow::Result<String> {
        Ok(proof_header(&self.key, &self.chain, audience, method, path, at, &mut randomness())?)
    }

    /// A record that offers `service`.
    pub fn record(&self, service: &str) -> anyhow::Result<SignedRecord> {
        let record = NodeRecord {
            sequence: clock::unix_millis(),
            expires_at: clock::unix().plus(Duration::from_secs(80)),
            endpoints: Vec::new(),
            services: vec![service.parse()?],
            load: Load::from_share(0.0),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        };
        Ok(Signed::sign(&record, &self.key, &self.chain)?)
    }
}

/// The authority of a mesh, taken from the coordinator's disk.
pub fn authority_of(coordinator: &Coordinator) -> anyhow::Result<Authority> {
    let read = |name| fs::read_to_string(coordinator.data().join(name)).with_context(|| format!("reading {name}"));
    let (certificate, key) = (read("ca.crt")?, read("ca.key")?);
    Ok(Authority::from_pem(&certificate, &key)?)
}

/// An authority with the same mesh name and network as `real`, and a key of its own.
pub fn impostor_of(real: &Authority) -> anyhow::Result<Authority> {
    let parameters = CaParameters {
        mesh: real.certificate().mesh().clone(),
        network: real.certificate().network(),
        lifetime: 365 * DAY,
    };
    Ok(Authority::create(&parameters, clock::unix(), &mut randomness())?)
}

/// Who the node called `name` is, as its record at the coordinator says. Asked by a member, from any node.
pub fn who_is(
    node: &Node,
    coordinator: &Coordinator,
    authority: &Authority,
    asker: &Identity,
    name: &str,
) -> anyhow::Result<Verified> {
    let path = format!("/api/nodes/{name}");
    let audience = format!("coordinator.{}", authority.certificate().mesh());
    let proof = asker.proof(&audience, "GET", &path, clock::unix())?;
    let url = format!("{}{path}", coordinator.url());
    let answer = fetch(node, reqwest::Method::GET, &url, &[("authorization", &proof)], "", LIMIT)?.expect_ok()?;
    let answer: Value = answer.json()?;
    let record = answer["record"].as_str().with_context(|| format!("no record in {answer}"))?;
    let record: SignedRecord = Signed::from_base64(record)?;
    Ok(Trust::new(authority.certificate().clone()).open(&record, clock::unix())?.by)
}

/// An introduction with `record` in it, for whoever has the WireGuard key `to`: the format of `overlay/introduction.rs`,
/// written a second time so that the two hold each other to it.
pub fn introduction(record: &[u8], to: &WgPublicKey) -> anyhow::Result<Vec<u8>> {
    let header = [0x57, 1, 0, 0];
    let key = Blake2s256::new().chain_update(b"wiremesh introduction v1").chain_update(to.0).finalize();
    let mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mac = mac.chain(header).chain(record).finalize_fixed();
    Ok([&header[..], &mac[..], record].concat())
}

/// The bytes of `record` with one bit of one of them turned.
pub fn tampered(record: &SignedRecord, at: usize) -> Vec<u8> {
    let mut bytes = record.as_bytes().to_vec();
    let at = at % bytes.len();
    bytes[at] ^= 1;
    bytes
}

/// The system's randomness. Not to be had: the test ends.
pub fn randomness() -> UnwrapErr<OsRng> {
    OsRng.unwrap_err()
}
