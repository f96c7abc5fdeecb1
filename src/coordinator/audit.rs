//! What was done about who is in the mesh: who did it, to whom, when and from where.
//!
//! ```text
//! Event ─► store, in the transaction that does what it tells ─► row ─► wiremesh audit
//! ```
//!
//! **Invariant:** what is done in the database is told in the same transaction or not done, and a row is never changed.
//!
//! Of joins that were refused, as many are told as [`limiter`](super::limiter) has room for. No secret is in a row: a
//! token is named by its id.

use std::net::IpAddr;

use serde::Serialize;
use wiremesh_certs::{NodeId, NodeName, UnixTime, Verified};

pub use crate::api::admin::Actor;

/// Rows that are kept. With each one more the oldest goes; the table itself refuses to lose any other.
pub const MAX_ROWS: u64 = 200_000;

/// What was done. The words are stable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A join token was made.
    TokenMade,
    /// A join token was taken back.
    TokenRevoked,
    /// A machine joined.
    Joined,
    /// A machine asked to join and waits for an operator.
    JoinWaiting,
    /// An operator let a machine in.
    JoinApproved,
    /// An operator did not let a machine in.
    JoinDeclined,
    /// No operator decided in time, or the machine did not come for what it was granted.
    JoinLapsed,
    /// A machine that may not join tried to.
    JoinRefused,
    /// A member got a fresh certificate.
    Renewed,
    /// A member with a certificate signed elsewhere was taken in.
    Adopted,
    /// A member, or one certificate, was revoked.
    Revoked,
    /// Another authority was announced.
    RotationStarted,
    /// The announced authority issues.
    RotationIssuing,
    /// The authority before it is believed no more.
    RotationRetired,
    /// The announced authority was taken back.
    RotationCancelled,
    /// A member had a newer list than this coordinator, whose database was restored from a backup.
    ListTakenOver,
    /// A member got a certificate for its next keys.
    NextKeysCertified,
    /// A member was heard with its next keys; the ones before are revoked.
    KeysChanged,
    /// Two machines use the keys of one member.
    CopiedIdentity,
}

impl Kind {
    /// All of them.
    pub const ALL: &[Kind] = &[
        Kind::TokenMade,
        Kind::TokenRevoked,
        Kind::Joined,
        Kind::JoinWaiting,
        Kind::JoinApproved,
        Kind::JoinDeclined,
        Kind::JoinLapsed,
        Kind::JoinRefused,
        Kind::Renewed,
        Kind::Adopted,
        Kind::Revoked,
        Kind::RotationStarted,
        Kind::RotationIssuing,
        Kind::RotationRetired,
        Kind::RotationCancelled,
        Kind::ListTakenOver,
        Kind::NextKeysCertified,
        Kind::KeysChanged,
        Kind::CopiedIdentity,
    ];

    /// One stable word.
    pub fn word(self) -> &'static str {
        match self {
            Kind::TokenMade => "token_made",
            Kind::TokenRevoked => "token_revoked",
            Kind::Joined => "joined",
            Kind::JoinWaiting => "join_waiting",
            Kind::JoinApproved => "join_approved",
            Kind::JoinDeclined => "join_declined",
            Kind::JoinLapsed => "join_lapsed",
            Kind::JoinRefused => "join_refused",
            Kind::Renewed => "renewed",
            Kind::Adopted => "adopted",
            Kind::Revoked => "revoked",
            Kind::RotationStarted => "rotation_started",
            Kind::RotationIssuing => "rotation_issuing",
            Kind::RotationRetired => "rotation_retired",
            Kind::RotationCancelled => "rotation_cancelled",
            Kind::ListTakenOver => "list_taken_over",
            Kind::NextKeysCertified => "next_keys_certified",
            Kind::KeysChanged => "keys_changed",
            Kind::CopiedIdentity => "copied_identity",
        }
    }

    /// The kind of this word.
    pub fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.word() == word)
    }
}

/// Who does something, and from where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Who.
    pub by: Actor,
    /// The address that the request came from; `None`: it came from this machine's socket, or from nobody.
    pub from: Option<IpAddr>,
}

impl Origin {
    /// The user of this machine that opened the coordinator's socket.
    pub fn operator(uid: u32) -> Origin {
        Origin { by: Actor::Operator { uid }, from: None }
    }

    /// A member, known by its proof.
    pub fn member(by: &Verified, from: IpAddr) -> Origin {
        Origin::named(by.name(), by.id(), from)
    }

    /// The same, known by what the database says.
    pub fn named(name: &NodeName, identity: NodeId, from: IpAddr) -> Origin {
        Origin { by: Actor::Member { name: name.clone(), identity }, from: Some(from) }
    }

    /// Somebody who has proven nothing but an identity of its own making.
    pub fn stranger(from: IpAddr) -> Origin {
        Origin { by: Actor::Stranger, from: Some(from) }
    }

    /// The coordinator, by itself.
    pub fn coordinator() -> Origin {
        Origin { by: Actor::Coordinator, from: None }
    }
}

/// One row to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What was done.
    pub kind: Kind,
    /// Who did it, and from where.
    pub origin: Origin,
    /// The name of the member or would-be member concerned.
    pub name: Option<NodeName>,
    /// Its identity.
    pub identity: Option<NodeId>,
    /// The id of the token concerned.
    pub token: Option<String>,
    /// What else there is to say; bounded by the types of what is said.
    pub detail: serde_json::Map<String, serde_json::Value>,
}

impl Event {
    /// Of a kind, by somebody.
    pub fn new(kind: Kind, origin: &Origin) -> Event {
        Event { kind, origin: origin.clone(), name: None, identity: None, token: None, detail: serde_json::Map::new() }
    }

    /// It concerns this node.
    pub fn about(self, name: &NodeName, identity: NodeId) -> Event {
        Event { name: Some(name.clone()), identity: Some(identity), ..self }
    }

    /// It concerns this token.
    pub fn with_token(self, id: &str) -> Event {
        Event { token: Some(id.to_owned()), ..self }
    }

    /// One more thing to say. Never a secret.
    pub fn with(mut self, key: &str, value: impl Serialize) -> Event {
        let value = serde_json::to_value(value).expect("names, numbers and times are JSON");
        self.detail.insert(key.to_owned(), value);
        self
    }

    /// One more thing to say, if there is.
    pub fn with_if(self, key: &str, value: Option<impl Serialize>) -> Event {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }
}

/// Somebody who joined, or asked to, with a token.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct TokenUse {
    /// What it called itself; `None`: not noted then.
    pub name: Option<NodeName>,
    /// Who.
    pub identity: NodeId,
    /// When.
    pub at: UnixTime,
    /// From where; `None`: not noted then.
    pub from: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_word_of_its_own_and_is_found_by_it() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.word()), Some(*kind));
        }
        assert_eq!(Kind::parse("nothing"), None);
    }
}
