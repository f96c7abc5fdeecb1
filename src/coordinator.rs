//! The other program in the binary: admits machines to the mesh, keeps the registry, says what is revoked.
//!
//! ```text
//! enroll ──► enrolment (one transaction) ──► members ──┐
//! register, heartbeat ──► Trust ──► registry ──────────┼──► store, in batches
//! discover, bootstrap, nodes ◄── registry              │
//! token, join, revoke (Unix socket) ───────────────────┤
//! audit (Unix socket) ◄── what was done ───────────────┘
//! ```
//!
//! It manages and does not control: with it gone everything goes on but joining, renewing and revoking.
//!
//! - [`registry`]: members, records, health, discovery, seeds; a state machine
//! - [`enrolment`]: who may join; a function
//! - [`rekey`]: who may change its keys; a function
//! - [`copies`]: which identity is used twice at once; a state machine
//! - [`limiter`]: how often joining may fail
//! - [`audit`]: what was done about who is in the mesh
//! - [`care`]: what an operator should see to; functions
//! - [`list`]: what is revoked, who may do what, who is believed; functions
//! - [`rotation`]: one authority after the other; a state machine
//! - [`io`]: HTTPS, the Unix socket, SQLite, the files of the authority

pub mod audit;
pub mod care;
pub mod config;
pub mod copies;
pub mod enrolment;
pub(crate) mod fuzz;
pub mod io;
pub mod limiter;
pub mod list;
pub mod page;
pub mod registry;
pub mod rekey;
pub mod rotation;
pub mod tunnels;

pub use config::Config;
