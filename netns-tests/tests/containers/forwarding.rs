//! The mesh that once never came about: two workers with different services on a container bridge, and a coordinator on the
//! machine, at the bridge's gateway address.

use netns_tests::containers::{Worker, in_containers};
use serde_json::Value;

const REQUESTS: u64 = 10;

#[test]
fn two_workers_on_a_bridge_find_each_other_in_the_table_and_forward_over_the_overlay() {
    in_containers(|ground| {
        let alpha = ground.bridge("alpha")?;
        let coordinator = ground.coordinator_on_the_machine(&alpha)?;
        let one = ground.worker("worker-1", &alpha).serving("translation").watched().join(&coordinator)?;
        let two = ground.worker("worker-2", &alpha).serving("ocr").watched().join(&coordinator)?;
        one.expect_published()?;
        two.expect_published()?;

        let asked = |from: &Worker, service: &str| -> anyhow::Result<Vec<String>> {
            let ask = |number| {
                let answer = from.post(&format!("/service/{service}/page"), &format!("page {number}"))?.expect_ok()?;
                Ok(answer.route())
            };
            (0..REQUESTS).map(ask).collect()
        };
        let (to_two, to_one, at_home) = (asked(&one, "ocr")?, asked(&two, "translation")?, asked(&one, "translation")?);

        for (routes, worker) in [(&to_two, "worker-2"), (&to_one, "worker-1")] {
            assert_eq!(routes[0], format!("{worker} overlay dht"));
            assert!(routes[1..].iter().all(|route| *route == format!("{worker} overlay cache")), "{routes:?}");
        }
        assert!(at_home.iter().all(|route| route == "worker-1 local local"), "{at_home:?}");
        for (worker, service, local) in [(&one, "translation", REQUESTS), (&two, "ocr", 0)] {
            assert_eq!(worker.executions()?.values().sum::<u64>(), REQUESTS + local);
            expect_statistics(worker, service, local)?;
            expect_health(worker, service)?;
        }
        assert_ne!(one.overlay_ip()?, two.overlay_ip()?);
        assert_eq!(coordinator.offering("ocr")?, ["worker-2"]);
        assert_eq!(coordinator.offering("translation")?, ["worker-1"]);
        one.expect_watched_and_well()?;
        two.expect_watched_and_well()
    });
}

fn expect_statistics(worker: &Worker, service: &str, local: u64) -> anyhow::Result<()> {
    let stats = worker.stats()?;
    let expected = [
        ("local_requests", local),
        ("forwarded_requests", REQUESTS),
        ("dht_lookups", 1),
        ("http_lookups", 0),
        ("cache_misses", 1),
        ("cache_hits", REQUESTS - 1),
        ("failed_requests", 0),
    ];
    for (counter, value) in expected {
        assert_eq!(stats["routing"][counter], value, "{counter} of {} in {stats}", worker.name());
    }
    assert_eq!(stats["worker_id"], worker.name());
    assert_eq!(stats["services"], serde_json::json!([service]));
    assert_eq!(stats["capabilities"]["hostname"], worker.name());
    Ok(())
}

fn expect_health(worker: &Worker, service: &str) -> anyhow::Result<()> {
    let health = worker.health()?;
    assert_eq!(health["status"], "healthy", "{health}");
    assert_eq!(health["worker_id"], worker.name());
    assert_eq!(health["services"], serde_json::json!([service]));
    assert_eq!(health["dht_enabled"], true);
    assert!(health["vpn_ip"].as_str().is_some_and(|ip| ip.starts_with("10.42.")), "{health}");
    assert!(matches!(&health["uptime"], Value::Number(seconds) if seconds.as_f64() >= Some(0.0)), "{health}");
    Ok(())
}
