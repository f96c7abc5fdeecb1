//! The JSON bodies that agent and coordinator exchange; what they mean is in the coordinator's HTTP table.
//!
//! Whatever is signed travels as base64url of its bytes, so that everybody checks the same bytes. Fields that a reader
//! does not know are passed over: agents and coordinators of different versions talk.

pub mod admin;
pub mod authority;

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, fmt, net::IpAddr};
use wiremesh_certs::{
    MeshName, NodeId, NodeName, NodeRecord, OverlayIp, ServiceName, Signed, SignedRevocations, TunnelUrl, UnixTime,
    WgPublicKey,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::words;

/// The longest request body the coordinator reads, and many times the longest of ours.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// The longest request to join: of somebody who may be nobody.
pub const MAX_JOIN_BYTES: usize = 16 * 1024;
/// The longest answer an agent reads: a revocation list at its bound, in base64, and the rest.
pub const MAX_RESPONSE_BYTES: usize = 2 * 1024 * 1024;
/// The longest description of a machine, as JSON.
pub const MAX_CAPABILITIES_BYTES: usize = 8 * 1024;
/// Seeds in one answer.
pub const MAX_SEEDS: usize = 16;
/// Introductions in one answer to a heartbeat.
pub const MAX_INTRODUCTIONS: usize = 16;
/// Workers in one answer to a discovery.
pub const MAX_DISCOVERED: usize = 64;
/// Coordinators an agent remembers.
pub const MAX_COORDINATORS: usize = 8;
/// Where a node's directory listens unless it says otherwise.
pub const DEFAULT_DHT_PORT: u16 = 8468;

/// Not JSON, or not of the shape that was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BadJson(String);

/// Reads JSON. What is wrong with it is said in few words: the library repeats what it found, however long.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadJson> {
    serde_json::from_slice(bytes).map_err(|error| BadJson(words::few(error)))
}

/// Whom a request's proof must be addressed to.
pub fn audience(mesh: &MeshName) -> String {
    format!("coordinator.{mesh}")
}

/// Text that opens something. Zeroed when dropped; `Debug` does not show it.
#[derive(Clone, Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes it over: `text` must have been made with the room it needs, for a string that grows leaves its beginnings
    /// behind.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `POST /api/enroll`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EnrollRequest {
    /// The secret of the join token, base64url.
    pub token: Secret,
    /// PKCS#10 in PEM: name, identity key, WireGuard key, and the proof that the asker has the identity key.
    pub csr: String,
    /// The WireGuard key again, as it is in the request.
    pub wireguard_key: WgPublicKey,
}

/// The answer: all a node needs to be one, also with the coordinator gone.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EnrollResponse {
    /// The node's chain in PEM, leaf first.
    pub certificate: String,
    /// The mesh's roots in PEM, present and former: the one that the token pins is among them, and the list leads from
    /// there to the present one.
    pub authority: String,
    /// The mesh's name.
    pub mesh: MeshName,
    /// The node's address.
    pub overlay_address: OverlayIp,
    /// The overlay network.
    pub network: IpNet,
    /// The list in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<SignedRevocations>,
    /// Some members to begin with.
    pub bootstrap: Vec<Seed>,
    /// Where coordinators are reached.
    pub coordinators: Vec<String>,
    /// How often to send a heartbeat.
    pub heartbeat_interval_secs: u64,
}

/// The answer to `POST /api/enroll` with status 202: whoever made the token wants to see first who comes with it. Asking
/// again with the same request is how to hear of the decision.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct JoinWaiting {
    /// `waiting_for_approval`.
    pub status: String,
    /// What the machine asked to be called.
    pub name: NodeName,
    /// Its identity, as the operator sees it.
    pub identity: NodeId,
    /// Its WireGuard key, as the operator sees it.
    pub wireguard_key: WgPublicKey,
    /// How to make sure that the operator approves of this machine and no other.
    pub compare: String,
    /// When to ask again, at the earliest.
    pub ask_again_secs: u64,
    /// When the coordinator forgets that it was asked.
    pub ends_at: UnixTime,
}

/// The answer to `POST /api/certs/renew`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RenewResponse {
    /// The node's chain in PEM, leaf first.
    pub certificate: String,
    /// The list in force: who was away while the authority changed needs it to believe the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<SignedRevocations>,
}

/// `POST /api/certs/rekey`, proved by the present keys.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RekeyRequest {
    /// PKCS#10 in PEM: the same name, the next identity key and the proof of having it, the next WireGuard key.
    pub csr: String,
    /// The next WireGuard key again, as it is in the request.
    pub wireguard_key: WgPublicKey,
}

/// The answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RekeyResponse {
    /// The chain of the next keys in PEM, leaf first. The present one is revoked when the next one is first used.
    pub certificate: String,
}

/// `POST /api/worker/register`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RegisterRequest {
    /// What the node says about itself.
    pub record: Signed<NodeRecord>,
    /// What the machine is, for people and for selection; at most [`MAX_CAPABILITIES_BYTES`].
    #[serde(default)]
    pub capabilities: serde_json::Map<String, serde_json::Value>,
    /// The services of the record again; must not differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<ServiceName>>,
    /// Where its directory listens, on its overlay address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dht_port: Option<u16>,
    /// The number of the revocation list it has.
    #[serde(default)]
    pub revocation_number: u64,
    /// Which process says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
}

/// `POST /api/worker/heartbeat`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HeartbeatRequest {
    /// What the node says about itself.
    pub record: Signed<NodeRecord>,
    /// The number of the revocation list it has.
    #[serde(default)]
    pub revocation_number: u64,
    /// Which process says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Instance>,
}

/// One run of an agent: 128 random bits, drawn anew at each start. Not a secret. Two of them that speak for one identity
/// in turn are two machines.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Instance(pub [u8; 16]);

impl Serialize for Instance {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Instance, D::Error> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(String::deserialize(deserializer)?, &mut bytes).map_err(serde::de::Error::custom)?;
        Ok(Instance(bytes))
    }
}

/// Somebody else uses a member's keys.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Copied {
    /// Where the other was last heard from.
    pub seen_from: IpAddr,
    /// When it was.
    pub last_seen: UnixTime,
    /// When the two were first found out.
    pub since: UnixTime,
}

/// The answer to both.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HeartbeatResponse {
    /// The number of the list in force.
    pub revocation_number: u64,
    /// That list, if the node's is older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<SignedRevocations>,
    /// Records of nodes that asked for this one's: they are about to try, so this one should too.
    #[serde(default)]
    pub introductions: Vec<Signed<NodeRecord>>,
    /// Where coordinators are reached.
    #[serde(default)]
    pub coordinators: Vec<String>,
    /// When to come back.
    pub interval_secs: u64,
    /// The node has not said what it is capable of since the coordinator last heard of it: register again.
    #[serde(default)]
    pub register: bool,
    /// Another process uses this node's keys at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
    /// Where the node's tunnel URL leads, if the coordinator has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelFound>,
    /// The node has a newer list than the coordinator, which was restored from a backup: send it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub send_revocations: bool,
}

/// The header by which an agent says who it is, with every answer.
pub const WORKER: &str = "x-wiremesh-worker";

/// Where a tunnel URL leads, as seen from the coordinator.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TunnelFound {
    /// Which one.
    pub url: TunnelUrl,
    /// Whether it leads to the node that names it.
    pub leads_back: bool,
    /// Why not.
    pub why: Option<String>,
    /// When the coordinator looked.
    pub looked_at: UnixTime,
}

/// `POST /api/revocations`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SendRevocations {
    /// The list that the node has.
    pub revocations: SignedRevocations,
}

/// One member to begin with.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Seed {
    /// Its name.
    pub worker_id: NodeName,
    /// Its overlay address.
    pub vpn_ip: OverlayIp,
    /// Its public URL.
    pub tunnel_url: Option<TunnelUrl>,
    /// Where its directory listens.
    pub dht_port: u16,
    /// What it says about itself.
    pub record: Signed<NodeRecord>,
}

/// The answer to `GET /api/dht/bootstrap`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct BootstrapResponse {
    /// A random sample of healthy members.
    pub seeds: Vec<Seed>,
    /// How many those are.
    pub seed_count: usize,
    /// When this was said.
    pub timestamp: UnixTime,
}

/// The answer to `GET /api/services/list`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServicesResponse {
    /// By name.
    pub services: BTreeMap<ServiceName, ServiceSummary>,
    /// How many services have a healthy worker.
    pub total_available: usize,
    /// When this was said.
    pub timestamp: UnixTime,
}

/// One service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: ServiceName,
    /// How many healthy workers offer it.
    pub healthy_workers: usize,
    /// From the catalog.
    pub tier: Option<serde_json::Value>,
    /// From the catalog.
    pub requires: Vec<String>,
}

/// The answer to `GET /api/services/discover/{type}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DiscoverResponse {
    /// What was asked for.
    pub service: ServiceName,
    /// Healthy workers, the least busy first.
    pub workers: Vec<Worker>,
    /// How many those are.
    pub count: usize,
    /// The first of them.
    pub recommended: Option<NodeName>,
}

/// In the place of a tag in `GET /api/models/discover/{tag}`: whoever serves any model.
pub const ANY_MODEL: &str = "any";

/// The answer to `GET /api/models/discover/{tag}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DiscoverModelResponse {
    /// What was asked for.
    pub model: String,
    /// Healthy workers, the least busy first.
    pub workers: Vec<Worker>,
    /// How many those are.
    pub count: usize,
}

/// One worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Worker {
    /// Its name.
    pub worker_id: NodeName,
    /// Its public URL.
    pub tunnel_url: Option<TunnelUrl>,
    /// Its overlay address.
    pub vpn_ip: OverlayIp,
    /// What it said when it registered.
    pub capabilities: serde_json::Map<String, serde_json::Value>,
    /// From 0 to 1.
    pub load: f64,
    /// When the coordinator last heard from it.
    pub last_heartbeat: UnixTime,
    /// What it says about itself.
    pub record: Signed<NodeRecord>,
}

/// The answer to `GET /api/nodes/{name or address}`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NodeResponse {
    /// What the node says about itself.
    pub record: Signed<NodeRecord>,
}

/// The answer to `GET /api/revocations`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RevocationsResponse {
    /// The number of the list in force.
    pub number: u64,
    /// The list, signed by the authority; absent if it is not newer than the one asked about.
    pub revocations: Option<SignedRevocations>,
}

/// The answer to `GET /health`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HealthResponse {
    /// `healthy`.
    pub status: String,
    /// Of the program.
    pub version: String,
    /// Members that have enrolled, and those heard from lately.
    pub members: MemberCounts,
}

/// How many members there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemberCounts {
    /// Enrolled and not revoked.
    pub enrolled: usize,
    /// Of these, registered and not gone.
    pub registered: usize,
    /// Of these, heard from within three intervals.
    pub healthy: usize,
}

/// What every refusal looks like.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ErrorResponse {
    /// The same as `error.message`, where clients of the predecessor look for it.
    pub detail: String,
    /// What happened.
    pub error: ErrorBody,
}

/// What happened, for programs and for people.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ErrorBody {
    /// One stable word.
    #[serde(rename = "type")]
    pub kind: String,
    /// What failed and why.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// To find it in the coordinator's log.
    #[serde(default)]
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_body_is_said_in_few_words_however_long_it_is() {
        let long = format!("{{\"ttl_secs\": \"{}\"}}", "x".repeat(1 << 16));

        let bad = read::<admin::CreateToken>(long.as_bytes()).unwrap_err().to_string();

        assert!(bad.starts_with("invalid type: string \"xxx") && bad.len() < 400, "{bad}");
    }
}
