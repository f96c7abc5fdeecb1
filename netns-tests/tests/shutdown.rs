//! SIGTERM: the answer under way is finished, the records are withdrawn, the interface is gone, the exit is clean.

use std::{thread, time::Duration};

use netns_tests::{eventually, story};

#[test]
fn an_agent_that_is_told_to_stop_finishes_withdraws_and_cleans_up() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let caller = lab.node("caller")?.join(&coordinator)?;
        let mut worker = lab.node("worker")?.serving("slow").join(&coordinator)?;
        worker.expect_published()?;
        caller.get("/service/slow")?.expect_ok()?;
        assert!(worker.node.has_interface("wiremesh0")?);

        let (from_afar, at_home, status) = thread::scope(|scope| {
            let from_afar = scope.spawn(|| caller.get("/service/slow/slow?ms=3000"));
            let worker_node = worker.node.clone();
            let at_home = scope.spawn(move || {
                let url = "http://127.0.0.1:8000/service/slow/slow?ms=3000";
                netns_tests::fetch(&worker_node, reqwest::Method::GET, url, &[], "", Duration::from_secs(20))
            });
            thread::sleep(Duration::from_millis(1000));
            let status = worker.terminate(Duration::from_secs(20));
            (from_afar.join(), at_home.join(), status)
        });

        for answer in [from_afar, at_home] {
            let answer = answer.map_err(|_| anyhow::anyhow!("the caller panicked"))??.expect_ok()?;
            assert_eq!(answer.json::<serde_json::Value>()?["who"], "worker");
        }
        assert_eq!(status?.code(), Some(0));
        assert!(!worker.node.has_interface("wiremesh0")?);

        // Withdrawn, not waited out: entries would live 90 seconds.
        let newcomer = lab.node("newcomer")?.join(&coordinator)?;
        eventually("nobody offers it any more", Duration::from_secs(10), || {
            let answer = newcomer.get("/service/slow")?;
            let error: serde_json::Value = answer.json()?;
            anyhow::ensure!(error["error"]["type"] == "service_not_found", "{} {error}", answer.status);
            Ok(())
        })
    });
}
