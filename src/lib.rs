//! wiremesh joins GPU machines into one private network and routes requests to the best worker in it.
//!
//! Parts, and who may name whom (held by `layers.rs`):
//!
//! ```text
//!               app ── joins them all, the only file that knows two parts
//!   ┌───────────┬─┴─────────┬───────────┬──────────┐
//! membership  overlay   directory ◄── router ──► services        coordinator (the other program)
//!   └───────────┴────── wiremesh-certs · api · clock · task · backoff ──────┘
//! ```

pub mod api;
pub mod app;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordinator;
pub mod directory;
#[cfg(test)]
mod layers;
pub mod membership;
pub mod overlay;
pub mod router;
pub mod sandbox;
pub mod services;
pub mod settings;
pub mod task;
pub mod telemetry;
