//! A mesh in containers: on a Docker Engine of the tests' own, or on its twin. Each story says which.
//!
//! One program, so that these stories are told after the others: an engine takes its share of the processors.

mod bridges;
mod compose;
mod forwarding;
mod lacking;
mod lives;
