//! Two workers behind one switch: they find each other in the table inside the overlay, and remember.

use std::time::Duration;

use anyhow::Context;
use netns_tests::{Agent, eventually, story};

#[test]
fn a_worker_is_found_in_the_table_once_and_remembered_for_nine_requests_more() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let asks = lab.node("worker-1")?.serving("translation").join(&coordinator)?;
        let works = lab.node("worker-2")?.serving("ocr").join(&coordinator)?;
        asks.expect_dht_contacts(1)?;
        works.expect_published()?;

        let routes: Vec<String> = (0..10)
            .map(|number| Ok(asks.post("/service/ocr/page", &format!("page {number}"))?.expect_ok()?.route()))
            .collect::<anyhow::Result<_>>()?;

        assert_eq!(routes[0], "worker-2 overlay dht");
        assert!(routes[1..].iter().all(|route| route == "worker-2 overlay cache"), "{routes:?}");
        assert_eq!(asks.routing("cache_hits")?, 9);
        assert_eq!(asks.routing("cache_misses")?, 1);
        assert_eq!(asks.routing("dht_lookups")?, 1);
        assert_eq!(asks.routing("http_lookups")?, 0);
        assert_eq!(asks.routing("forwarded_requests")?, 10);
        assert_eq!(asks.routing("failed_requests")?, 0);
        assert_eq!(works.services[0].executions()?.total, 10);
        Ok(())
    });
}

#[test]
fn what_is_offered_here_is_answered_here() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let worker = lab.node("worker-1")?.serving("ocr").join(&coordinator)?;

        let answer = worker.post("/service/ocr/a/b?c=d", "hello")?.expect_ok()?;

        assert_eq!(answer.route(), "worker-1 local local");
        let seen: serde_json::Value = answer.json()?;
        assert_eq!((&seen["path"], &seen["query"], &seen["bytes"]), (&"/a/b".into(), &"c=d".into(), &5.into()));
        assert_eq!(worker.routing("local_requests")?, 1);
        assert_eq!(worker.routing("dht_lookups")?, 0);
        Ok(())
    });
}

#[test]
fn a_service_that_nobody_offers_is_a_503_that_says_so() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let lone = lab.node("worker-1")?.join(&coordinator)?;

        let answer = lone.get("/service/ocr")?;

        assert_eq!(answer.status, 503);
        assert_eq!(answer.json::<serde_json::Value>()?["error"]["type"], "service_not_found");
        assert!(!answer.header("retry-after").is_empty() && answer.header("x-wiremesh-executed") == "no");
        Ok(())
    });
}

#[test]
fn a_worker_that_lost_its_power_is_forgotten_within_ninety_seconds() {
    netns_tests::story_within(Duration::from_secs(200), |lab| {
        let coordinator = lab.coordinator()?;
        let asks = lab.node("asks")?.join(&coordinator)?;
        let looks = lab.node("looks")?.join(&coordinator)?;
        let mut works = lab.node("works")?.serving("ocr").join(&coordinator)?;
        works.expect_published()?;
        asks.get("/service/ocr")?.expect_ok()?;

        let offered = |agent: &Agent| -> anyhow::Result<usize> {
            let plan: serde_json::Value = agent.get("/routes/ocr")?.json()?;
            plan["ways"].as_array().map(Vec::len).with_context(|| format!("no ways in {plan}"))
        };
        assert_eq!(offered(&looks)?, 1);

        works.node.unplug()?;
        works.power_off();

        // Whoever is only looking never meets the failure: for it the record has to end.
        eventually("the service is gone for who looks", Duration::from_secs(95), || {
            anyhow::ensure!(offered(&looks)? == 0, "still offered");
            Ok(())
        })?;
        eventually("the service is gone for who asks", Duration::from_secs(5), || {
            let answer = asks.get("/service/ocr")?;
            let error: serde_json::Value = answer.json()?;
            anyhow::ensure!(error["error"]["type"] == "service_not_found", "{} {error}", answer.status);
            Ok(())
        })
    });
}
