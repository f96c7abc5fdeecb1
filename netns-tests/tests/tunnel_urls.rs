//! A tunnel URL is looked at from the coordinator's side, and its node is told where it leads.

use std::time::Duration;

use anyhow::Context;
use netns_tests::{Agent, eventually, story};

/// Two heartbeats and the look in between.
const LIMIT: Duration = Duration::from_secs(40);

#[test]
fn a_tunnel_url_that_does_not_lead_back_is_told_to_its_node_with_the_reason() {
    story(|lab| {
        let coordinator = lab.coordinator_with("coordinator", "heartbeat_interval = \"1s\"")?;
        let good = lab.node("good")?.with_tunnel().serving("ocr").join(&coordinator)?;
        let node = lab.node("astray")?;
        let leads_to_good = format!("http://{}:8001", good.node.address());
        let astray = node.with_environment("WIREMESH_API__TUNNEL_URL", &leads_to_good);
        let astray = astray.with_environment("WIREMESH_API__INGRESS", "0.0.0.0:8001").join(&coordinator)?;
        let node = lab.node("deaf")?;
        // As a container would that takes its own name for one that others know.
        let deaf = node.with_environment("WIREMESH_API__TUNNEL_URL", "http://3f2a91c07b2e:8001");
        let deaf = deaf.with_environment("WIREMESH_API__INGRESS", "0.0.0.0:8001").join(&coordinator)?;

        found(&good, true)?;
        let why = found(&astray, false)?;
        assert_eq!(why, "it leads to good");
        let why = found(&deaf, false)?;
        assert!(why.starts_with("the coordinator cannot reach it: "), "{why}");

        let troubles = deaf.command_json(&["status"])?["troubles"].to_string();
        assert!(troubles.contains("http://3f2a91c07b2e:8001 does not lead back to this node"), "{troubles}");
        assert_eq!(deaf.health()?["status"], "degraded");
        assert_eq!(good.health()?["status"], "healthy");
        Ok(())
    });
}

/// Waits for a verdict, and gives the reason.
fn found(agent: &Agent, leads_back: bool) -> anyhow::Result<String> {
    eventually(&format!("{} is told of its tunnel URL", agent.name()), LIMIT, || {
        let status = agent.command_json(&["status"])?;
        let tunnel = &status["tunnel"];
        let said = tunnel["leads_back"].as_bool().with_context(|| format!("not yet: {tunnel}"))?;
        anyhow::ensure!(said == leads_back, "{tunnel}");
        Ok(tunnel["why"].as_str().unwrap_or_default().to_owned())
    })
}
