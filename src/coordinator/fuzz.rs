//! What the coordinator makes of bodies and paths: see [`wiremesh_certs::fuzz`].

use serde::{Serialize, de::DeserializeOwned};
use wiremesh_certs::{CertificateRequest, JoinToken, hash_of_secret};

use super::{config::public_url, registry::NodeKey};
use crate::{
    api::{
        self, EnrollRequest, HeartbeatRequest, RegisterRequest, RekeyRequest,
        admin::{AuditQuery, CreateToken, DecideJoin, Revoke},
    },
    fuzz::{NOW, Verdict, World, told},
};

/// Any of the bodies that it reads, or the part of a path that names a node.
pub fn bodies(bytes: &[u8]) -> Verdict {
    let World { trust, .. } = World::get();
    let enrol = read::<EnrollRequest>(bytes);
    if let Some(body) = &enrol {
        let _ = told(CertificateRequest::parse(&body.csr));
        let _ = hash_of_secret(body.token.expose());
        let _ = told(body.token.expose().parse::<JoinToken>());
    }
    let rekey = read::<RekeyRequest>(bytes);
    rekey.iter().for_each(|body| _ = told(CertificateRequest::parse(&body.csr)));
    let register = read::<RegisterRequest>(bytes);
    let heartbeat = read::<HeartbeatRequest>(bytes);
    let records = register.iter().map(|body| &body.record).chain(heartbeat.iter().map(|body| &body.record));
    records.for_each(|record| _ = told(trust.open(record, NOW)));
    let token = read::<CreateToken>(bytes);
    for url in token.iter().flat_map(|body| &body.urls) {
        if let Some(url) = told(public_url(url)) {
            assert_eq!(public_url(&url), Ok(url), "a URL of two forms");
        }
    }
    let revoke = read::<Revoke>(bytes);
    let _ = (read::<DecideJoin>(bytes), read::<AuditQuery>(bytes));
    let node = std::str::from_utf8(bytes).ok().and_then(NodeKey::parse);
    let of_members = enrol.is_some() || rekey.is_some() || register.is_some() || heartbeat.is_some();
    Verdict::taken_if(of_members || token.is_some() || revoke.is_some() || node.is_some())
}

fn read<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    let body: T = told(api::read(bytes))?;
    let written = serde_json::to_vec(&body).expect("what was JSON is JSON again");
    assert!(api::read::<T>(&written).is_ok(), "what is written is not read again");
    Some(body)
}
