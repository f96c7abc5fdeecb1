//! Our own place in the mesh: joining, the certificate's lease, heartbeats, the coordinator's last word.
//!
//! ```text
//!              no certificate yet            every interval                 half of its life
//! state dir ──► join (token, pinned CA) ──► heartbeat ◄──► coordinator ◄── renew
//!     │  └────── there is one ─────────────►   │ revocations, introductions, other coordinators
//!     └──────◄──── written as it changes ──────┘
//! ```
//!
//! **Invariant:** once joined, nothing here needs the coordinator until the certificate ends: everything that starting
//! takes is in the state directory.
//!
//! - [`lease`]: when to renew
//! - [`heartbeat`]: when to report, and to which coordinator
//! - [`joining`]: what is asked for, and whether the answer may be believed
//! - [`rekey`]: when to change our keys
//! - [`skew`]: how far our clock is off
//! - [`state`]: what the files say
//! - [`io`]: the files, TLS, HTTP, the loop

pub(crate) mod fuzz;
pub mod heartbeat;
pub mod io;
pub mod joining;
pub mod lease;
pub mod rekey;
pub mod skew;
pub mod state;
