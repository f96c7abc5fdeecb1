//! What the coordinator's Unix socket says about authorities, certificates and the list.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wiremesh_certs::{Fingerprint, NodeId, NodeName, OverlayIp, Serial, UnixTime};

/// The longest that a question waits for its answer to change; agents and commands ask again.
pub const MAX_WAIT_SECS: u64 = 55;

/// The query of `GET /api/revocations`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct RevocationsQuery {
    /// Only a list newer than this one.
    #[serde(default)]
    pub after: u64,
    /// If there is none, wait so long for one; at most [`MAX_WAIT_SECS`].
    #[serde(default)]
    pub wait: u64,
}

/// The query of `GET /adoption` and `GET /rotation`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct FleetQuery {
    /// How far is this list? Absent: the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// The version of the last answer: if nothing has changed since, wait for a change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// For so long; at most [`MAX_WAIT_SECS`].
    #[serde(default)]
    pub wait_secs: u64,
}

/// The answer to `GET /adoption`: how far a list is enforced by the members that are heard.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Adoption {
    /// Which list.
    pub number: u64,
    /// Members that are heard.
    pub living: usize,
    /// Of these, those that enforce it.
    pub enforced: usize,
    /// Those that do not yet.
    pub behind: Vec<Behind>,
    /// Members that are not heard, and hear of it when they are back.
    pub silent: Vec<Silent>,
    /// To wait for the next change by.
    pub version: u64,
}

/// A member that is not heard.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Silent {
    /// Which one.
    pub name: NodeName,
    /// When it was last heard; null: it has left, or never was.
    pub heard_at: Option<UnixTime>,
}

/// A member that is heard and has not yet done what is waited for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Behind {
    /// Which one.
    pub name: NodeName,
    /// When it was last heard.
    pub heard_at: UnixTime,
    /// The list that it enforces.
    pub enforces: u64,
    /// The authority that its certificate is from; null: it has not shown it since the coordinator was started.
    pub authority: Option<Fingerprint>,
}

/// `POST /rotation`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Rotate {
    /// Announce another authority.
    Begin {
        /// One that was made elsewhere; null: the coordinator makes one.
        #[serde(default)]
        brought: Option<Brought>,
    },
    /// Forget about it, while nothing hangs on it.
    Cancel,
    /// Retire the old one although members depend on it.
    Force,
}

/// An authority that was made elsewhere, by files that the coordinator can read.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Brought {
    /// Its certificate, with those above it, the root last.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The new root's key in a certificate by the present root.
    #[serde(default)]
    pub cross: Option<PathBuf>,
}

/// The answer to both `POST` and `GET /rotation`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rotation {
    /// `idle`, `announced` or `replacing`.
    pub stage: String,
    /// The present ones and those that were, the oldest first.
    pub authorities: Vec<Authority>,
    /// Members that are heard.
    pub living: usize,
    /// Those that must do something before the next step.
    pub waits_for: Vec<Behind>,
    /// False while the coordinator has not been up for long enough to have heard everybody.
    pub heard_everybody: bool,
    /// Members that the last step cut off; only in the answer to `force`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut_off: Vec<NodeName>,
    /// The list in force.
    pub number: u64,
    /// To wait for the next change by.
    pub version: u64,
}

/// One authority.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Authority {
    /// How it is told from the others.
    pub fingerprint: Fingerprint,
    /// `next`, `issuing`, `leaving` or `retired`.
    pub standing: String,
    /// Since when.
    pub since: UnixTime,
    /// The root that join tokens pin; its own fingerprint if it is one.
    pub root: Fingerprint,
    /// Its beginning.
    pub begins_at: UnixTime,
    /// Its end.
    pub ends_at: UnixTime,
    /// The first list that named it.
    pub published: u64,
}

/// The answer to `GET /members`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Members {
    /// The list in force.
    pub number: u64,
    /// The authority that issues.
    pub authority: Authority,
    /// What needs care, in words.
    pub care: Vec<Care>,
    /// The one whose certificate ends first is first.
    pub members: Vec<Member>,
}

/// Something that needs care.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Care {
    /// What.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// One member.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its overlay address.
    pub address: OverlayIp,
    /// Its identity.
    pub identity: NodeId,
    /// Of its certificate: the one it showed, or the last that was issued to it.
    pub serial: Option<Serial>,
    /// When that ends.
    pub ends_at: Option<UnixTime>,
    /// Which authority that is from; null: it has not shown it since the coordinator was started.
    pub authority: Option<Fingerprint>,
    /// The list that it enforces; null: it has not said so since the coordinator was started.
    pub enforces: Option<u64>,
    /// When it was last heard; null: it has left, or was never heard.
    pub heard_at: Option<UnixTime>,
    /// Whether that was lately.
    pub living: bool,
}
