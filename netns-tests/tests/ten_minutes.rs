//! Certificates that live for a minute, ten minutes of traffic, and a coordinator that is gone half of the time: nobody
//! notices.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context;
use futures::TryStreamExt;
use netns_tests::{Agent, Transfer, client, story_within};
use wiremesh::clock;

const LIFE: &str = "certificate_lifetime = \"60s\"\nheartbeat_interval = \"2s\"";
/// How long it goes on: each agent renews some fifteen times.
const LASTS: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(LASTS.as_secs() + 150);
/// Down as long as up, and never so long that a certificate ends: there are 24 s between renewal and end.
const HALF: Duration = Duration::from_secs(12);
/// 64 KiB of each direction in so much time: some 5 Mbit/s.
const PAUSE: Duration = Duration::from_millis(100);
const BYTES: u64 = LASTS.as_secs() * 10 * 65_536;
/// A transfer in which nothing moved for so long was cut, whatever came later.
const STANDS_STILL: Duration = Duration::from_secs(3);
/// Between requests, and between the events of the streams.
const EVERY: Duration = Duration::from_millis(500);

#[test]
fn ten_minutes_of_traffic_with_certificates_of_a_minute_and_a_coordinator_that_is_gone_half_of_the_time() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator_with("coordinator", LIFE)?;
        let near = lab.node("near")?.serving("ocr").join(&coordinator)?;
        let far = lab.node("far")?.serving("chat").join(&coordinator)?;
        for agent in [&near, &far] {
            agent.expect_dht_contacts(1)?;
            agent.expect_published()?;
        }
        let serials = [serial(&near)?, serial(&far)?];
        let over = AtomicBool::new(false);
        let over = &over;

        let transfer = Transfer::begin_paced(&near.node, &far.node, far.overlay_ip()?, 1, BYTES, PAUSE)?;
        let (streamed, requests, renewals, outages) = thread::scope(|scope| {
            let streams =
                [(&near, "chat"), (&far, "ocr")].map(|(agent, service)| scope.spawn(|| stream(agent, service)));
            let requests =
                [(&near, "chat"), (&far, "ocr")].map(|(agent, service)| scope.spawn(|| ask(agent, service, over)));
            let watched = scope.spawn(|| watch(&near, over));
            let outages = (|| {
                let mut outages = 0;
                let (begun_at, mut moved, mut moved_at) = (clock::now(), 0, clock::now());
                let mut turn_at = clock::now() + HALF;
                while !transfer.is_over() && clock::now() < begun_at + LASTS + HALF * 4 {
                    thread::sleep(Duration::from_millis(200));
                    if transfer.moved() > moved {
                        (moved, moved_at) = (transfer.moved(), clock::now());
                    }
                    let still = clock::now() - moved_at;
                    anyhow::ensure!(still < STANDS_STILL || transfer.is_over(), "nothing moves since {still:?}");
                    if clock::now() >= turn_at {
                        turn_at += HALF;
                        match coordinator.process.is_some() {
                            true => coordinator.stop(),
                            false => coordinator.restart()?,
                        }
                        outages += u32::from(coordinator.process.is_none());
                    }
                }
                anyhow::Ok(outages)
            })();
            over.store(true, Ordering::Relaxed);
            let joined = |what: &str| format!("{what} panicked");
            let mut streamed = 0;
            for stream in streams {
                streamed += stream.join().map_err(|_| anyhow::anyhow!(joined("a stream")))??;
            }
            let mut asked = 0;
            for request in requests {
                asked += request.join().map_err(|_| anyhow::anyhow!(joined("a client")))??;
            }
            let renewals = watched.join().map_err(|_| anyhow::anyhow!(joined("the watch")))??;
            anyhow::Ok((streamed, asked, renewals, outages?))
        })?;

        let done = transfer.finish()?;
        println!("{}; {requests} requests, {streamed} events, {renewals} renewals, {outages} outages", done.summary());
        assert_eq!(done.bytes, 2 * BYTES);
        assert!(outages >= 20 && renewals >= 8, "{outages} outages, {renewals} renewals");
        assert_ne!([serial(&near)?, serial(&far)?], serials);
        Ok(())
    });
}

fn serial(agent: &Agent) -> anyhow::Result<String> {
    let status = agent.command_json(&["status"])?;
    Ok(status["identity"]["serial"].as_str().with_context(|| format!("no serial in {status}"))?.to_owned())
}

/// Counts the certificates that an agent had.
fn watch(agent: &Agent, over: &AtomicBool) -> anyhow::Result<u32> {
    let (mut renewals, mut last) = (0, serial(agent)?);
    while !over.load(Ordering::Relaxed) {
        thread::sleep(EVERY * 4);
        let now = serial(agent)?;
        renewals += u32::from(now != last);
        last = now;
    }
    Ok(renewals)
}

/// One request after the other through the router: each is answered by the other node.
fn ask(agent: &Agent, service: &str, over: &AtomicBool) -> anyhow::Result<u32> {
    let mut asked = 0;
    while !over.load(Ordering::Relaxed) {
        let answer =
            agent.get(&format!("/service/{service}"))?.expect_ok().with_context(|| format!("request {asked}"))?;
        anyhow::ensure!(answer.header("x-wiremesh-path") == "overlay", "by {}", answer.route());
        asked += 1;
        thread::sleep(EVERY);
    }
    Ok(asked)
}

/// One answer that is not over before the story is, event by event.
fn stream(agent: &Agent, service: &str) -> anyhow::Result<u64> {
    let events = LASTS.as_millis() / EVERY.as_millis();
    let url = format!("http://127.0.0.1:8000/service/{service}/sse?count={events}&every_ms={}", EVERY.as_millis());
    let came = agent.node.block_on(|| async {
        let answer = client()?.get(&url).send().await?.error_for_status()?;
        let count = |(text, came): (String, u64), piece: bytes::Bytes| async move {
            let text = text + &String::from_utf8_lossy(&piece);
            let whole = text.rfind("\n\n").map_or(0, |end| end + 2);
            let came = came + text[..whole].matches("data:").count() as u64;
            Ok((text[whole..].to_owned(), came))
        };
        let (_, came) = answer.bytes_stream().try_fold((String::new(), 0), count).await.context("a stream was cut")?;
        Ok(came)
    })?;
    anyhow::ensure!(u128::from(came) >= events, "{came} of {events} events came");
    Ok(came)
}
