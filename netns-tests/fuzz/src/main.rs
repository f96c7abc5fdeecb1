//! Hands what libFuzzer makes up to one target, named by the variable `TARGET`. `netns-tests/fuzz/run` sets it.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use wiremesh_certs::fuzz::{Target, Verdict};

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("TARGET").unwrap_or_default();
        let targets = || wiremesh_certs::fuzz::TARGETS.iter().chain(wiremesh::fuzz::TARGETS);
        let Some((_, target)) = targets().find(|(target, _)| *target == name) else {
            let names: Vec<_> = targets().map(|(target, _)| *target).collect();
            eprintln!("TARGET names none of {}", names.join(", "));
            std::process::exit(64);
        };
        TARGET.get_or_init(|| *target);
    },
    |bytes: &[u8]| -> Corpus {
        match TARGET.get().map(|target| target(bytes)) {
            Some(Verdict::Taken | Verdict::Refused) => Corpus::Keep,
            None => Corpus::Reject,
        }
    }
);
