//! Membership in the world: the state directory, HTTPS to the coordinator, the loop of heartbeats and renewals.

mod client;
mod disk;
mod handle;
mod http;
mod join;
mod list;
mod pin;
mod rekey;
mod renewing;
mod session;

pub use client::Client;
pub use disk::LOCK;
pub use handle::{Event, Handle, MAX_EVENTS, NotRenewed, Sources, Status};
pub use http::{ClientError, EXCHANGE_TIMEOUT};
pub use join::{JoinRefused, Member, Settings, load_or_join};
pub use list::Offered;
pub use pin::WrongCoordinator;
pub use rekey::{NextKeys, RotateFailed};
pub use session::{FAREWELL, SEEDS_EVERY, Session};
