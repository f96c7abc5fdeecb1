//! The commands that look at a running agent, and the demo.

use std::time::Duration;

use netns_tests::{story, story_within};
use serde_json::Value;

#[test]
fn the_demo_succeeds_and_says_what_happened() {
    story_within(Duration::from_secs(180), |lab| {
        let node = lab.bare_node("anywhere")?;

        let output = lab.wiremesh(&node)?.args(["demo", "--json"]).output()?;

        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_str(&said)?;
        assert_eq!(result["ok"], true);
        let paths: Vec<&str> =
            result["requests"].as_array().into_iter().flatten().filter_map(|r| r["path"].as_str()).collect();
        assert!(paths.contains(&"overlay") && paths.contains(&"tunnel"), "{paths:?}");
        Ok(())
    });
}

#[test]
fn an_agent_is_looked_at_and_used_through_its_socket() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let caller = lab.node("caller")?.join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        worker.expect_published()?;

        let call = caller.command(&["call", "ocr/page", "--data", "hello"])?;
        let answer: Value = serde_json::from_slice(&call.stdout)?;
        assert_eq!((&answer["who"], &answer["bytes"]), (&"worker".into(), &5.into()));
        assert_eq!(call.status.code(), Some(0));

        assert_eq!(caller.command(&["ping", "worker"])?.status.code(), Some(0));
        assert_eq!(caller.command(&["ping", "nobody"])?.status.code(), Some(2));
        assert_eq!(caller.command(&["call", "chat"])?.status.code(), Some(2));
        assert!(caller.command_json(&["peers"])?.to_string().contains("worker"));
        assert!(caller.command_json(&["services"])?.to_string().contains("ocr"));
        assert!(caller.command_json(&["status"])?.to_string().contains("caller"));
        Ok(())
    });
}

#[test]
fn a_second_agent_on_a_machine_is_refused_and_the_first_keeps_its_route() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let first = lab.node("first")?.join(&coordinator)?;
        let other = lab.node("other")?.join(&coordinator)?;
        assert_eq!(other.command(&["ping", "first"])?.status.code(), Some(0));
        let token = lab.folder("second")?.join("token");
        std::fs::write(&token, coordinator.token()?)?;

        let second = lab
            .wiremesh(&first.node)?
            .args(["agent", "--name", "second", "--listen", "127.0.0.1:8009", "--state-dir"])
            .arg(lab.folder("second")?.join("state"))
            .arg("--join-token-file")
            .arg(&token)
            .env("WIREMESH_OVERLAY__INTERFACE", "wiremesh1")
            .env("WIREMESH_OVERLAY__LISTEN_PORT", "51821")
            .output()?;

        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{said}");
        assert!(said.contains("hint: another interface has the overlay's network"), "{said}");
        assert_eq!(other.command(&["ping", "first"])?.status.code(), Some(0));
        assert_eq!(first.command(&["ping", "other"])?.status.code(), Some(0));
        Ok(())
    });
}
