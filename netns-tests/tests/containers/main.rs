//! A mesh in containers: on a Docker Engine of the tests' own, or on its twin. Each story says which.
//!
//! One program, because these stories mostly wait, and more of them at once than of others take no longer.

mod bridges;
mod compose;
mod forwarding;
mod lacking;
mod lives;
