//! Who offers what, and where a member is: found in a Kademlia table inside the overlay, remembered, and asked of the
//! coordinator when the table has no answer.
//!
//! ```text
//!   find(service) ─► fingers ──fresh──────────────────────────────► answer (cache)
//!                       │ └───stale─► answer (cache), look up behind
//!                       └─ unknown ─► lookup: table ─► answer (dht)
//!                                               └ none ─► coordinator ─► answer (http)
//!   resolve(address) ─► records ─► table ─► coordinator
//!   publish(record)  ─► publisher ─► the storers closest to each of its keys
//!   others' writes   ─► store: checked, merged per signer, swept
//! ```
//!
//! **Invariant:** nothing is stored, answered or dialled on another's word: every record is an [`Entry`], made only by
//! checking a signature and the certificate within it; every connection ends at a certificate of this mesh.
//!
//! Everything here is a machine without a world; `io` holds the sockets, the swarm, the clock and the [`Handle`].

mod absent;
mod contacts;
mod entry;
mod fingers;
pub(crate) mod fuzz;
mod key;
mod publisher;
mod records;
mod spread;
mod stats;
mod store;
mod value;

pub mod io;

pub use entry::{Entry, Rejected};
pub use fingers::{Answer, Counters as FingerCounters, FRESH_FOR, Source};
pub use io::{Discover, Handle, Settings, StartError, Status, start};
