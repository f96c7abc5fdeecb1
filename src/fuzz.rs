//! Every decoder outside `certs` as a function of bytes, for `netns-tests/fuzz` and the tests that replay its corpus: see
//! [`wiremesh_certs::fuzz`], which says how.
//!
//! What only a part can reach is tried in that part; here are the tables, and what belongs to none.

mod configs;
#[cfg(test)]
mod specimens;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

pub use wiremesh_certs::fuzz::{
    Target, Verdict, fit_to_be_shown, told,
    world::{Member, NOW, World},
};
use wiremesh_certs::{OverlayIp, TrustStore, Verified};

use crate::{clock, coordinator, directory, membership, overlay, router, services};

/// All targets of this crate, by the names of their folders in the corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent-config", configs::agent),
    ("agent-headers", router::fuzz::between_agents),
    ("coordinator-answers", membership::fuzz::answers),
    ("coordinator-bodies", coordinator::fuzz::bodies),
    ("coordinator-config", configs::coordinator),
    ("datagrams", overlay::fuzz::datagrams),
    ("dht-key", directory::fuzz::key),
    ("dht-put", directory::fuzz::put),
    ("dht-store", directory::fuzz::store),
    ("dht-value", directory::fuzz::value),
    ("event-stream", router::fuzz::event_stream),
    ("inner-packets", overlay::fuzz::inner_packets),
    ("introduction", overlay::fuzz::introduction),
    ("model-form", router::fuzz::model_of_form),
    ("model-json", router::fuzz::model_of_json),
    ("model-list", router::fuzz::model_list),
    ("request-headers", router::fuzz::request_headers),
    ("request-path", router::fuzz::request_path),
    ("state-files", membership::fuzz::state_files),
    ("upstream-answers", services::fuzz::answers),
];

/// When time begins for what asks for an instant.
pub(crate) fn t0() -> Instant {
    static T0: OnceLock<Instant> = OnceLock::new();
    *T0.get_or_init(clock::now)
}

/// Who believes the world's authority.
pub(crate) fn trust() -> Arc<TrustStore> {
    Arc::new(TrustStore::new(World::get().trust.clone()))
}

/// What the world knows of a member.
pub(crate) fn verified(member: &Member) -> Verified {
    World::get().trust.verify(&member.chain, NOW).expect("it is the world's own")
}

/// The address of a member.
pub(crate) fn address(member: &Member) -> OverlayIp {
    verified(member).address()
}

/// Bytes taken from the front of an input, to make choices by.
pub(crate) struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// So many bytes as the next two say, big-endian, or as there are.
    pub fn piece(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (piece, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        self.0 = rest;
        Some(piece)
    }
}
