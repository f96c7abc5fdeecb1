//! wiremesh joins GPU machines into one private network and routes requests to the best worker in it.
//!
//! Parts, and who may name whom (held by `layers.rs`):
//!
//! ```text
//!               app ── joins them all, the only one that knows two parts
//!   ┌───────────┬─┴─────────┬───────────┬──────────┐
//! membership  overlay   directory ◄── router ──► services        coordinator (the other program)
//!   └───────────┴────── wiremesh-certs · api · clock · task · backoff ──────┘
//! ```
//!
//! A packet:
//!
//! ```text
//! out  TUN → destination → its peer → seal → the path that is proven → UDP
//! in   UDP → by receiver index → open → the path moves → is the inner source the peer's own? → TUN
//! ```
//!
//! A request:
//!
//! ```text
//! client → what does it need → offered here? → upstream, done
//!        → who offers it: remembered · the table inside the overlay · the coordinator · 503
//!        → in which order: healthy first, overlay before tunnel, least loaded first
//!        → attempt by attempt, until one answers; its answer streams back as it comes
//! ```
//!
//! What always holds:
//!
//! - nobody is a peer, a contact or a worker without a certificate that [`wiremesh_certs::Trust`] has verified
//! - a packet leaves the overlay only if its inner source address belongs to the session it came from
//! - a request crosses the mesh at most once, and after the first byte of an answer there is no second attempt
//! - with the coordinator gone everything goes on but joining, renewing and revoking
//! - one signed, numbered list says what is revoked, who may offer and call what, and which authorities are believed; an
//!   older one is never taken over
//! - every queue, cache, table and retry has a bound with a name
//!
//! In each part only `io` touches the world; the rest are machines that are given the time and the chance.

pub mod api;
pub mod app;
pub mod backoff;
pub mod beat;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordinator;
pub mod directory;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod layers;
pub mod membership;
pub mod open_files;
pub mod overlay;
pub mod places;
pub mod router;
pub mod sandbox;
pub mod services;
pub mod settings;
pub mod task;
pub mod telemetry;
pub mod tunnel;
pub mod watchdog;
pub mod words;
