//! Certificates that end, lists that must reach everybody, clocks that are wrong.

use std::time::Duration;

use anyhow::Context;
use netns_tests::{Agent, Coordinator, Lab, client, eventually, forge, story_within};
use wiremesh::clock;
use wiremesh_certs::NodeId;

const LIMIT: Duration = Duration::from_secs(180);
/// For a mesh to be whole again once its coordinator is.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// For a revoked member to be cut off on every agent that can be reached.
const CUT_WITHIN: Duration = Duration::from_secs(5);
/// The shortest life there is.
const SHORT: &str = "certificate_lifetime = \"10s\"\nheartbeat_interval = \"1s\"\n";
/// Longer than the shortest life.
const LONGER_THAN_LIFE: Duration = Duration::from_secs(13);
/// Whatever a story waits for that does not depend on certificates.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_mesh_whose_certificates_ended_while_everything_was_off_comes_back_by_itself() {
    story_within(LIMIT, |lab| {
        let (mut coordinator, mut client, mut worker) = two(lab, "renewal_window = \"1h\"")?;
        let addresses = (client.overlay_ip()?, worker.overlay_ip()?);

        coordinator.stop();
        client.power_off_agent();
        worker.power_off_agent();
        std::thread::sleep(LONGER_THAN_LIFE);
        // Without a coordinator they wait for it, and say so.
        client.launch()?;
        worker.launch()?;
        for agent in [&mut client, &mut worker] {
            eventually("it says that it waits", SOON, || {
                agent.running()?.expect_running()?;
                anyhow::ensure!(
                    agent.log().contains("our certificate has ended: waiting for a coordinator"),
                    "no word"
                );
                Ok(())
            })?;
        }
        coordinator.restart()?;

        client.wait_ready()?;
        worker.wait_ready()?;
        eventually("requests are answered again", BACK_WITHIN, || client.get("/service/ocr")?.expect_ok())?;
        assert_eq!((client.overlay_ip()?, worker.overlay_ip()?), addresses);
        Ok(())
    });
}

#[test]
fn agents_whose_certificates_ended_while_they_ran_come_back_without_a_restart() {
    story_within(LIMIT, |lab| {
        let (mut coordinator, mut client, mut worker) = two(lab, "renewal_window = \"1h\"")?;

        coordinator.stop();
        eventually("the certificates have ended", SOON, || {
            for agent in [&client, &worker] {
                let status = agent.command_json(&["status"])?;
                anyhow::ensure!(status["identity"]["standing"] == "ended", "{status}");
            }
            Ok(())
        })?;
        let troubles = client.command_json(&["status"])?["troubles"].to_string();
        assert!(troubles.contains("until a coordinator renews it"), "{troubles}");
        std::thread::sleep(Duration::from_secs(5));
        coordinator.restart()?;

        eventually("requests are answered again", BACK_WITHIN, || client.get("/service/ocr")?.expect_ok())?;
        for agent in [&client, &worker] {
            agent.expect_published()?;
        }
        for agent in [&mut client, &mut worker] {
            agent.running()?.expect_running()?;
        }
        Ok(())
    });
}

#[test]
fn beyond_the_window_each_agent_says_what_to_do_and_a_new_token_helps() {
    story_within(LIMIT, |lab| {
        let (mut coordinator, mut client, mut worker) = two(lab, "renewal_window = \"5s\"")?;
        let address = client.overlay_ip()?;

        coordinator.stop();
        client.power_off_agent();
        worker.power_off_agent();
        std::thread::sleep(LONGER_THAN_LIFE + Duration::from_secs(6));
        coordinator.restart()?;
        for agent in [&mut client, &mut worker] {
            // Its token is spent and gone, as after any first join.
            agent.forget_token()?;
            agent.launch()?;
            let status = agent.running()?.wait(SOON)?;
            assert_eq!(status.code(), Some(1));
            let log = agent.log();
            assert!(log.contains("is not renewed any more"), "{log}");
            assert!(log.contains("hint: make a join token on the coordinator (wiremesh token create)"), "{log}");
        }

        client.give_token(&coordinator.token()?)?;
        client.start()?;
        assert_eq!(client.overlay_ip()?, address, "name, keys and address stay");
        Ok(())
    });
}

#[test]
fn a_certificate_is_renewed_when_an_operator_asks_for_it() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator()?;
        let agent = lab.node("agent")?.join(&coordinator)?;
        let serial = || anyhow::Ok(agent.command_json(&["status"])?["identity"]["serial"].to_string());
        let before = serial()?;

        let renewed = agent.command_json(&["cert", "renew"])?;
        let status = agent.command_json(&["status"])?;

        assert_ne!(serial()?, before);
        assert_eq!(renewed["not_after"], status["identity"]["not_after"]);
        assert!(agent.metric("wiremesh_agent_certificate_ends_timestamp_seconds", "")? > 1.0e9);
        coordinator.stop();
        let refused = agent.command(&["cert", "renew"])?;
        assert_eq!(refused.status.code(), Some(1));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("error: the certificate was not renewed") && said.contains("hint: "), "{said}");
        Ok(())
    });
}

#[test]
fn a_revoked_member_is_cut_off_on_five_agents_within_seconds_and_still_after_they_all_restart() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator()?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        let mut others = Vec::new();
        for n in 1..=5 {
            others.push(lab.node(&format!("other-{n}"))?.join(&coordinator)?);
        }
        worker.expect_published()?;
        for other in &others {
            eventually("it is served", SOON, || other.get("/service/ocr")?.expect_ok())?;
        }

        coordinator.revoke("worker")?;
        let revoked_at = clock::now();
        for other in &others {
            let left = CUT_WITHIN.saturating_sub(clock::now() - revoked_at);
            eventually("the worker is cut off", left, || is_no_peer(other, "worker"))?;
        }
        println!("cut off on all of them within {:?}", clock::now() - revoked_at);
        eventually("it knows that it is out", SOON, || {
            let troubles = worker.command_json(&["status"])?["troubles"].to_string();
            anyhow::ensure!(troubles.contains("revoked"), "{troubles}");
            Ok(())
        })?;

        coordinator.stop();
        for other in &mut others {
            other.terminate(Duration::from_secs(20))?;
        }
        for other in &mut others {
            other.start()?;
        }
        for other in &others {
            assert_ne!(other.get("/service/ocr")?.status, 200);
            let ping = other.command(&["ping", &worker.overlay_ip()?.to_string()])?;
            assert!(!ping.status.success());
            is_no_peer(other, "worker")?;
        }
        Ok(())
    });
}

#[test]
fn a_list_given_to_one_agent_reaches_all_while_the_coordinator_is_gone() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator()?;
        let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
        let mut others = Vec::new();
        for n in 1..=4 {
            others.push(lab.node(&format!("other-{n}"))?.join(&coordinator)?);
        }
        for other in &others {
            other.expect_dht_contacts(2)?;
            eventually("it is served", SOON, || other.get("/service/ocr")?.expect_ok())?;
        }
        let number = others[0].command_json(&["status"])?["list"]["number"].as_u64().context("no number")?;
        let id = worker.command_json(&["status"])?["id"].as_str().context("no id")?.parse::<NodeId>()?;
        let (authority, list) = list_after(&coordinator, number, id)?;
        let signed = authority.sign_revocations(&list)?;

        coordinator.stop();
        others[3].terminate(Duration::from_secs(20))?;
        // Whoever hands it over counts for nothing: not even one who is on the list could keep it back.
        let url = format!("http://{}:8000/revocations", others[0].overlay_ip()?);
        let mut forged = signed.as_bytes().to_vec();
        *forged.last_mut().context("no byte")? ^= 1;
        assert_eq!(post(&others[2], &url, forged)?, 400);
        assert_eq!(post(&others[2], &url, signed.as_bytes().to_vec())?, 429, "not listened to for a while");
        assert_eq!(post(&others[1], &url, signed.as_bytes().to_vec())?, 204);

        let given_at = clock::now();
        for other in &others[..3] {
            let left = (CUT_WITHIN * 2).saturating_sub(clock::now() - given_at);
            eventually("the list has come", left, || {
                let status = other.command_json(&["status"])?;
                anyhow::ensure!(status["list"]["enforced"] == number + 1, "{}", status["list"]);
                is_no_peer(other, "worker")
            })?;
        }
        println!("all have it after {:?}", clock::now() - given_at);
        // One that was off meanwhile sees in the others' records that there is a newer one.
        let late = &mut others[3];
        late.start()?;
        eventually("the late one asks for it", BACK_WITHIN * 2, || {
            let status = late.command_json(&["status"])?;
            anyhow::ensure!(status["list"]["enforced"] == number + 1, "{}", status["list"]);
            Ok(())
        })?;
        for other in &others {
            assert_eq!(std::fs::read(other.state().join("revocations.bin"))?, signed.as_bytes());
        }
        Ok(())
    });
}

#[test]
fn a_clock_that_is_an_hour_off_is_told_for_what_it_is_and_joining_waits_for_it() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        for (name, offset, joining, running) in [
            ("early", "+1h", "clock is 1 h 0 min ahead of the coordinator's", "1 h 0 min ahead of the coordinator's"),
            (
                "late",
                "-1h",
                "most likely wrong: at least 55 min behind the coordinator's",
                "min behind the coordinator's",
            ),
        ] {
            let agent = lab.node(name)?.with_a_clock_of_its_own()?;
            agent.set_clock(offset)?;
            let mut agent = agent.prepare(&coordinator.token()?)?;
            agent.launch()?;
            eventually("it says that its clock is wrong", SOON, || {
                agent.running()?.expect_running()?;
                anyhow::ensure!(agent.log().contains(joining), "{}", agent.log());
                anyhow::ensure!(agent.log().contains("set this machine's clock"), "it does not say what to do");
                Ok(())
            })?;
            // Its token is not spent: with the clock set right it joins.
            agent.set_clock("+0")?;
            agent.wait_ready()?;

            agent.set_clock(offset)?;
            let status = eventually("it is told while it runs", SOON, || {
                let status = agent.command_json(&["status"])?;
                anyhow::ensure!(status["clock"]["wrong"] == true, "{}", status["clock"]);
                Ok(status)
            })?;
            assert!(status["troubles"].to_string().contains(running), "{}", status["troubles"]);
            assert_eq!(agent.health()?["status"], "degraded");
            let ahead = agent.metric("wiremesh_agent_clock_offset_seconds", "")?;
            assert!((3290.0..3610.0).contains(&ahead.abs()), "{ahead}");
            assert_eq!(ahead > 0.0, offset.starts_with('+'));
            let told = || agent.log().matches("the coordinator's: set it\"").count();
            eventually("it is in the log", SOON, || {
                anyhow::ensure!(told() > 0, "not yet");
                Ok(())
            })?;
            assert_eq!(told(), 1, "once");

            agent.set_clock("+0")?;
            eventually("it is right again", Duration::from_secs(90), || {
                let status = agent.command_json(&["status"])?;
                anyhow::ensure!(status["clock"]["wrong"] == false, "{}", status["clock"]);
                anyhow::ensure!(status["coordinator"]["connected"] == true, "{}", status["coordinator"]);
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// A mesh of certificates that are short-lived: a client, and a worker that it has been served by.
fn two(lab: &mut Lab, configuration: &str) -> anyhow::Result<(Coordinator, Agent, Agent)> {
    let coordinator = lab.coordinator_with("coordinator", &format!("{SHORT}{configuration}"))?;
    let client = lab.node("client")?.join(&coordinator)?;
    let worker = lab.node("worker")?.serving("ocr").join(&coordinator)?;
    eventually("it is served", SOON, || client.get("/service/ocr")?.expect_ok())?;
    Ok((coordinator, client, worker))
}

/// What the mesh's authority would say next: that list, without this member.
fn list_after(
    coordinator: &Coordinator,
    number: u64,
    without: NodeId,
) -> anyhow::Result<(wiremesh_certs::Authority, wiremesh_certs::RevocationList)> {
    let authority = forge::authority_of(coordinator)?;
    let list = wiremesh_certs::RevocationList {
        number: number + 1,
        identities: [without].into(),
        ..wiremesh_certs::RevocationList::default()
    };
    Ok((authority, list))
}

fn is_no_peer(agent: &Agent, name: &str) -> anyhow::Result<()> {
    let peers = agent.command_json(&["peers"])?;
    let is_there = peers["peers"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["name"] == name));
    anyhow::ensure!(!is_there, "{name} is a peer of {}", agent.name());
    Ok(())
}

fn post(from: &Agent, url: &str, body: Vec<u8>) -> anyhow::Result<u16> {
    from.node.block_on(|| async { Ok(client()?.post(url).body(body).send().await?.status().as_u16()) })
}
