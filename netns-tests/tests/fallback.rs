//! UDP cut between client and worker: requests take the worker's tunnel URL, and return to the overlay after.

use std::time::Duration;

use netns_tests::{Traffic, eventually, story};

#[test]
fn a_request_takes_the_tunnel_while_udp_is_cut_and_the_overlay_after() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").with_tunnel().join(&coordinator)?;
        worker.expect_published()?;
        assert_eq!(client.post("/service/ocr", "one")?.expect_ok()?.header("x-wiremesh-path"), "overlay");

        let udp = lab.network.cut(&client.node, &worker.node, Traffic::Udp)?;
        let first = client.post("/service/ocr", "two")?.expect_ok()?;
        let second = client.post("/service/ocr", "three")?.expect_ok()?;

        assert_eq!((first.header("x-wiremesh-worker"), first.header("x-wiremesh-path")), ("worker", "tunnel"));
        assert!(first.took < Duration::from_secs(3), "{:?}", first.took);
        assert_eq!(second.header("x-wiremesh-path"), "tunnel");
        assert!(second.took < Duration::from_secs(3), "{:?}", second.took);

        udp.restore()?;

        eventually("back on the overlay", Duration::from_secs(30), || {
            let answer = client.post("/service/ocr", "four")?.expect_ok()?;
            anyhow::ensure!(answer.header("x-wiremesh-path") == "overlay", "still by {}", answer.route());
            Ok(())
        })
    });
}

#[test]
fn a_worker_without_a_tunnel_is_unreachable_while_udp_is_cut_and_the_answer_says_so_in_time() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        worker.expect_published()?;
        client.post("/service/ocr", "one")?.expect_ok()?;

        let udp = lab.network.cut(&client.node, &worker.node, Traffic::Udp)?;
        let answer = client.post("/service/ocr", "two")?;
        udp.restore()?;

        assert!((500..600).contains(&answer.status), "{}", answer.status);
        assert!(answer.took < Duration::from_secs(10), "{:?}", answer.took);
        Ok(())
    });
}

#[test]
fn bodies_of_a_hundred_megabytes_stream_both_ways_over_overlay_and_tunnel() {
    story(|lab| {
        const BYTES: usize = 100_000_000;
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.join(&coordinator)?;
        let mut worker = lab.node("worker")?.serving("files").with_tunnel().join(&coordinator)?;
        worker.expect_published()?;
        let body = "w".repeat(BYTES);

        for path in ["overlay", "tunnel"] {
            let cut = match path {
                "tunnel" => Some(lab.network.cut(&client.node, &worker.node, Traffic::Udp)?),
                _ => None,
            };
            let down = client.get(&format!("/service/files/download?bytes={BYTES}"))?.expect_ok()?;
            let up = client.post("/service/files/upload", &body)?.expect_ok()?;

            assert_eq!(down.header("x-wiremesh-path"), path);
            assert_eq!(down.body.len(), BYTES);
            assert_eq!(up.json::<serde_json::Value>()?["bytes"], BYTES);
            drop(cut);
        }
        assert!(worker.running()?.memory_kib()? < 100_000, "{} KiB", worker.running()?.memory_kib()?);
        Ok(())
    });
}
