//! The coordinator manages, it does not route: with it gone everything goes on. Without the DHT it is what finds workers.

use std::time::Duration;

use netns_tests::{Traffic, eventually, story};

#[test]
fn an_agent_without_dht_finds_workers_at_the_coordinator() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.without_dht().join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;

        let answer = eventually("the coordinator knows the worker", Duration::from_secs(15), || {
            client.get("/service/ocr")?.expect_ok()
        })?;

        assert_eq!(answer.route(), "worker overlay http");
        assert_eq!(client.routing("dht_lookups")?, 0);
        assert!(client.routing("http_lookups")? >= 1);
        assert_eq!(client.health()?["dht_enabled"], false);
        assert_eq!(worker.health()?["dht_enabled"], true);
        Ok(())
    });
}

#[test]
fn requests_are_routed_and_agents_restart_while_the_coordinator_is_gone() {
    story(|lab| {
        let mut coordinator = lab.coordinator()?;
        let mut client = lab.node("client")?.join(&coordinator)?;
        let mut worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        let third = lab.node("third")?.serving("audio").join(&coordinator)?;
        for agent in [&client, &worker, &third] {
            agent.expect_published()?;
        }

        coordinator.stop();

        assert_eq!(client.get("/service/ocr")?.expect_ok()?.route(), "worker overlay dht");
        assert!(client.terminate(Duration::from_secs(20))?.success());
        client.start()?;
        let answer = eventually("routing again", Duration::from_secs(15), || client.get("/service/ocr")?.expect_ok())?;
        assert_eq!(answer.route(), "worker overlay dht");
        worker.running()?.kill()?;
        worker.start()?;
        eventually("the worker is back", Duration::from_secs(30), || third.get("/service/ocr")?.expect_ok())?;
        Ok(())
    });
}

#[test]
fn two_agents_that_never_spoke_meet_while_the_coordinator_is_gone() {
    story(|lab| {
        let mut coordinator = lab.coordinator()?;
        let one = lab.node("one")?.serving("ocr").join(&coordinator)?;
        let between = lab.node("between")?.serving("audio").join(&coordinator)?;
        let other = lab.node("other")?.serving("chat");
        let apart = lab.network.cut(&one.node, &other.node, Traffic::Everything)?;
        let other = other.join(&coordinator)?;
        for agent in [&one, &between, &other] {
            agent.expect_published()?;
        }

        coordinator.stop();
        apart.restore()?;

        let answer = eventually("they meet", Duration::from_secs(45), || one.get("/service/chat")?.expect_ok())?;
        assert_eq!((answer.header("x-wiremesh-worker"), answer.header("x-wiremesh-path")), ("other", "overlay"));
        eventually("and back", Duration::from_secs(45), || other.get("/service/ocr")?.expect_ok())?;
        Ok(())
    });
}

#[test]
fn the_coordinator_restarts_without_losing_a_member() {
    story(|lab| {
        let mut coordinator = lab.coordinator()?;
        let mut client = lab.node("client")?.without_dht().join(&coordinator)?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        let addresses = (client.overlay_ip()?, worker.overlay_ip()?);

        coordinator.restart()?;
        client.terminate(Duration::from_secs(20))?;
        client.start()?;

        eventually("found at the coordinator", Duration::from_secs(30), || client.get("/service/ocr")?.expect_ok())?;
        assert_eq!((client.overlay_ip()?, worker.overlay_ip()?), addresses);
        let newcomer = lab.node("newcomer")?.join(&coordinator)?;
        assert!(![addresses.0, addresses.1].contains(&newcomer.overlay_ip()?));
        Ok(())
    });
}
