//! The benchmarks measure something: what they say is for people to read, that they say it is for tests.

use std::{path::Path, process::Command};

use anyhow::Context;
use serde_json::Value;

#[test]
fn the_router_bench_measures_an_agent_beside_the_upstream_itself() -> anyhow::Result<()> {
    let options = ["--with", "direct,wiremesh", "--rounds", "1", "--seconds", "0.2", "--streams", "20"];

    let said = bench("router", &options)?;

    let measured = &said["rounds"][0]["measured"]["wiremesh"];
    for figure in ["added_p50_1", "rate_32", "cpu_256", "added_event", "resident_streams"] {
        assert!(measured[figure].is_number(), "{figure}: {measured:#}");
    }
    assert_eq!(measured["open_streams"], 20.0);
    Ok(())
}

#[test]
fn the_bench_of_faults_sees_what_workers_execute_and_when_they_are_told() -> anyhow::Result<()> {
    let said = bench("faults", &["--with", "wiremesh", "--only", "fails,leaves"])?;

    let [fails, leaves] = [&said["faults"][0]["outcome"], &said["faults"][1]["outcome"]];
    assert_eq!(fails["seen"]["500"], 10, "{fails:#}");
    assert!(fails["executions"].as_array().is_some_and(|all| all.iter().all(|times| *times == 1)), "{fails:#}");
    assert!(leaves["told_ms"].is_number(), "{leaves:#}");
    Ok(())
}

/// What a benchmark prints for programs.
fn bench(which: &str, options: &[&str]) -> anyhow::Result<Value> {
    let program = Path::new(env!("CARGO_BIN_EXE_bench"));
    // Started by cargo it would have cargo build everything first.
    let output = Command::new(program).arg(which).arg("--json").args(options).env_remove("CARGO").output()?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.success(), "{which}: {}\n{complained}", output.status);
    serde_json::from_str(&said).with_context(|| format!("{which} printed {said}\n{complained}"))
}
