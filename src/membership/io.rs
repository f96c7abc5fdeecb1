//! Membership in the world: the state directory, HTTPS to the coordinator, the loop of heartbeats and renewals.

mod client;
mod disk;
mod http;
mod join;
mod pin;
mod rekey;
mod session;

pub use client::Client;
pub use http::{ClientError, EXCHANGE_TIMEOUT};
pub use join::{JoinRefused, Member, Settings, load_or_join};
pub use pin::WrongCoordinator;
pub use rekey::{NextKeys, RotateFailed};
pub use session::{Event, FAREWELL, Handle, MAX_EVENTS, SEEDS_EVERY, Session, Sources, Status};
