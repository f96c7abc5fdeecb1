//! What the coordinator's Unix socket understands: tokens, who waits, what was done, revocations.

use std::net::IpAddr;

use super::*;
use wiremesh_certs::{GroupName, Serial};

/// A token's id is so much of the hash of its secret: whoever has the token can tell which one it is.
pub const TOKEN_ID_BYTES: usize = 6;

/// `POST /tokens`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreateToken {
    /// How long it may be used.
    pub ttl_secs: u64,
    /// By how many machines.
    pub uses: u32,
    /// Bound to this name.
    #[serde(default)]
    pub name: Option<NodeName>,
    /// Groups of whoever joins with it.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    /// What whoever joins with it may offer; empty: anything.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// Whether whoever joins with it waits for an operator.
    #[serde(default)]
    pub approve: bool,
    /// Where the coordinator is reached, if not as its configuration says.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// The answer: the only time the token is seen.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CreatedToken {
    /// To revoke it by.
    pub id: String,
    /// The token.
    pub token: Secret,
    /// When it ends.
    pub expires_at: UnixTime,
    /// By how many machines it may be used.
    pub uses: u32,
}

/// One token, without its secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Token {
    /// To revoke it by.
    pub id: String,
    /// `usable`, `used`, `expired` or `revoked`.
    pub state: String,
    /// Bound to this name.
    pub name: Option<NodeName>,
    /// Groups it gives.
    pub groups: Vec<GroupName>,
    /// Services it allows; empty: any.
    pub services: Vec<ServiceName>,
    /// Machines it was made for.
    pub uses: u32,
    /// Machines that joined with it.
    pub used: u32,
    /// Whether whoever joins with it waits for an operator.
    #[serde(default)]
    pub approve: bool,
    /// When it was made.
    pub created_at: UnixTime,
    /// When it ends.
    pub expires_at: UnixTime,
}

/// The answer to `GET /tokens`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Tokens {
    /// Newest first.
    pub tokens: Vec<Token>,
}

/// `POST /revocations`: exactly one of them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Revoke {
    /// A member, with all its certificates.
    #[serde(default)]
    pub name: Option<NodeName>,
    /// An identity, with all its certificates.
    #[serde(default)]
    pub identity: Option<NodeId>,
    /// One certificate.
    #[serde(default)]
    pub serial: Option<Serial>,
}

/// The answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Revoked {
    /// The number of the list that says so.
    pub number: u64,
    /// Whose it was, if known.
    pub name: Option<NodeName>,
}

/// A machine that asked to join and needs an operator's word.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Join {
    /// What it wants to be called.
    pub name: NodeName,
    /// Who it is: what to compare with what the machine itself says.
    pub identity: NodeId,
    /// Its WireGuard key.
    pub wireguard_key: WgPublicKey,
    /// The id of the token that it showed.
    pub token: String,
    /// Where it asked from.
    pub from: IpAddr,
    /// `waiting`, `approved` (and not come back yet) or `declined`.
    pub standing: String,
    /// When it asked first.
    pub asked_at: UnixTime,
    /// When it was last heard to ask, to within a minute.
    pub heard_at: UnixTime,
    /// When this is forgotten.
    pub ends_at: UnixTime,
}

/// The answer to `GET /joins`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Joins {
    /// Those that wait first, of them those that wait for longest.
    pub joins: Vec<Join>,
}

/// `POST /joins/approve` and `POST /joins/refuse`: exactly one of them. The answer is the [`Join`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct DecideJoin {
    /// The only machine that asks under this name.
    #[serde(default)]
    pub name: Option<NodeName>,
    /// The machine with this identity.
    #[serde(default)]
    pub identity: Option<NodeId>,
}

/// Who did something.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "as", rename_all = "snake_case")]
pub enum Actor {
    /// Whoever opened the coordinator's socket.
    Operator {
        /// The user that the kernel says it was.
        uid: u32,
    },
    /// A member of the mesh.
    Member {
        /// What it is called.
        name: NodeName,
        /// Who it is.
        identity: NodeId,
    },
    /// Somebody who is no member.
    Stranger,
    /// The coordinator, by itself.
    Coordinator,
}

/// One row of the audit.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuditRow {
    /// Its number: later rows have higher ones.
    pub id: u64,
    /// When.
    pub at: UnixTime,
    /// What, in one stable word.
    pub kind: String,
    /// Who did it.
    pub by: Actor,
    /// The address that the request came from; null: the coordinator's socket, or nobody.
    pub from: Option<IpAddr>,
    /// The name of whom it concerns.
    pub name: Option<NodeName>,
    /// The identity of whom it concerns.
    pub identity: Option<NodeId>,
    /// The id of the token it concerns.
    pub token: Option<String>,
    /// What else there is to say about this kind.
    pub detail: serde_json::Map<String, serde_json::Value>,
}

/// The query of `GET /audit`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct AuditQuery {
    /// Only rows after this one.
    #[serde(default)]
    pub after: u64,
    /// Of those, only this many of the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<u32>,
    /// Only rows from then on.
    #[serde(default)]
    pub since: UnixTime,
    /// Only rows of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// If there is none, wait so long for one.
    #[serde(default)]
    pub wait_secs: u64,
}

/// The answer: oldest first, and only as many as fit. The next question is for those after the last of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Audit {
    /// The rows.
    pub rows: Vec<AuditRow>,
    /// Whether there are more already.
    pub more: bool,
}
