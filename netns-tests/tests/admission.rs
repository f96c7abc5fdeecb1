//! Who is let in, by whom, with what, and how it shows: tokens, an operator's word, and the audit.

use std::{
    fs::{self, File},
    process::Stdio,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Coordinator, TokenOptions, eventually, story, story_within};
use serde_json::{Value, json};
use wiremesh::clock;

const LIMIT: Duration = Duration::from_secs(20);
/// A machine that waits asks again after seconds, and after a minute at the latest.
const ASKED_AGAIN: Duration = Duration::from_secs(75);

#[test]
fn a_token_stolen_and_used_elsewhere_is_refused_and_shows_with_who_what_when_and_from_where() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let began = clock::unix().0;
        // Somebody watches from the beginning.
        let watched = lab.folder("watcher")?.join("audit.log");
        let mut watcher = lab
            .wiremesh(&coordinator.node)?
            .args(["audit", "--follow", "--json", "--config"])
            .arg(coordinator.config())
            .stdout(File::create(&watched)?)
            .stderr(Stdio::null())
            .spawn()?;
        let token = coordinator.token()?;
        let mut owner = lab.node("owner")?.prepare(&token)?;
        owner.start()?;

        let mut thief = lab.node("thief")?.prepare(&token)?;
        thief.launch()?;
        let ended = thief.running()?.wait(LIMIT)?;

        assert_eq!(ended.code(), Some(1));
        assert!(thief.log().contains("hint: make a new one"), "{}", thief.log());
        let rows = coordinator.audit()?;
        let row = rows.iter().find(|row| row["kind"] == "join_refused").context("it does not show")?;
        assert_eq!((&row["name"], &row["by"]), (&json!("thief"), &json!({"as": "stranger"})));
        assert_eq!(row["from"], thief.node.address().to_string());
        assert_eq!(row["detail"]["why"], "token_used");
        assert_eq!(row["token"], rows[0]["token"], "the first row is of the token's making");
        let at = row["at"].as_u64().context("when")?;
        assert!((began..=clock::unix().0).contains(&at), "{at}");
        let first = &row["detail"]["first_use"];
        assert_eq!((&first["name"], &first["from"]), (&json!("owner"), &json!(owner.node.address().to_string())));
        assert_eq!(first["identity"], owner.command_json(&["status"])?["id"]);
        let log = fs::read_to_string(coordinator.folder().join("coordinator.log"))?;
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains("was it stolen?")), "{log}");
        eventually("whoever watches sees the same", LIMIT, || {
            let seen = fs::read_to_string(&watched)?;
            let seen: Vec<Value> = seen.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            anyhow::ensure!(seen.contains(row), "{seen:?}");
            Ok(())
        })?;
        watcher.kill()?;
        watcher.wait()?;
        // The owner is not troubled by any of it.
        assert_eq!(owner.health()?["status"], "healthy");
        Ok(())
    });
}

#[test]
fn a_machine_waits_until_it_is_approved_and_serves_and_another_is_turned_away() {
    story_within(Duration::from_secs(240), |lab| {
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.join(&coordinator)?;
        let options = TokenOptions { uses: Some(2), approve: true, groups: &["gpu"], ..TokenOptions::default() };
        let token = coordinator.token_with(&options)?;
        let mut worker = lab.node("worker")?.serving("ocr").prepare(&token)?;
        let mut unwanted = lab.node("unwanted")?.serving("ocr").prepare(&token)?;

        worker.launch()?;
        unwanted.launch()?;
        let identity = waiting(&coordinator, "worker")?;
        waiting(&coordinator, "unwanted")?;

        let said = |log: &str| log.lines().filter(|line| line.contains("waits until an operator")).count();
        eventually("the machine says that it waits, and who it is", LIMIT, || {
            anyhow::ensure!(said(&worker.log()) == 1 && worker.log().contains(&identity), "not yet");
            Ok(())
        })?;
        assert!(!worker.log().contains("member of the mesh"), "it is no member yet");
        let approved = decide(&coordinator, "approve", &identity)?;
        assert_eq!((&approved["name"], &approved["standing"]), (&json!("worker"), &json!("approved")));
        decide(&coordinator, "refuse", "unwanted")?;

        eventually("the worker has joined", ASKED_AGAIN, || {
            let answer = worker.get("/health/ready")?;
            anyhow::ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        })?;
        let ended = unwanted.running()?.wait(ASKED_AGAIN)?;
        assert_eq!(ended.code(), Some(1));
        assert!(unwanted.log().contains("an operator refused") && unwanted.log().contains("hint: "));
        assert_eq!(said(&worker.log()), 1, "it was said once");
        worker.expect_published()?;
        let answer = client.post("/service/ocr/page", "hello")?.expect_ok()?;
        assert!(answer.route().starts_with("worker "), "{}", answer.route());
        let told: Vec<_> = coordinator
            .audit()?
            .into_iter()
            .filter(|row| row["kind"].as_str().is_some_and(|kind| kind.starts_with("join_")))
            .map(|row| (row["kind"].clone(), row["name"].clone(), row["by"]["as"].clone()))
            .collect();
        for expected in [
            ("join_waiting", "worker", "stranger"),
            ("join_waiting", "unwanted", "stranger"),
            ("join_approved", "worker", "operator"),
            ("join_declined", "unwanted", "operator"),
            ("join_refused", "unwanted", "stranger"),
        ] {
            let expected = (json!(expected.0), json!(expected.1), json!(expected.2));
            assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
        }
        Ok(())
    });
}

#[test]
fn groups_and_services_of_a_token_are_in_the_certificate_and_nothing_else_is_offered() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let client = lab.node("client")?.join(&coordinator)?;
        let options = TokenOptions { groups: &["gpu", "eu"], services: &["ocr"], ..TokenOptions::default() };
        let token = coordinator.token_with(&options)?;
        let mut worker = lab.node("worker")?.serving("ocr").serving("llm-inference").prepare(&token)?;
        worker.start()?;
        worker.expect_published()?;

        let path = worker.state().join("node.crt");
        let printed = lab.wiremesh(&worker.node)?.args(["cert", "print", "--json"]).arg(&path).output()?;
        let certificate: Value = serde_json::from_slice(&printed.stdout)
            .with_context(|| format!("cert print: {}", String::from_utf8_lossy(&printed.stderr)))?;

        let text = certificate.to_string();
        assert!(text.contains(r#"["gpu","eu"]"#) && text.contains(r#"["ocr"]"#), "{text}");
        client.post("/service/ocr/page", "hello")?.expect_ok()?;
        let refused = client.post("/service/llm-inference", "{}")?;
        assert_eq!(refused.json::<Value>()?["error"]["type"], "service_not_found");
        assert!(worker.log().contains("not offered to others: it is not allowed"));
        Ok(())
    });
}

/// The identity under which this machine waits.
fn waiting(coordinator: &Coordinator, name: &str) -> anyhow::Result<String> {
    eventually(&format!("{name} waits"), LIMIT, || {
        let listed = coordinator.command_json(&["join", "list", "--json"].map(str::to_owned))?;
        let joins = listed["joins"].as_array().context("a list")?;
        let join = joins.iter().find(|join| join["name"] == name && join["standing"] == "waiting");
        Ok(join.and_then(|join| join["identity"].as_str()).context("not in the list")?.to_owned())
    })
}

fn decide(coordinator: &Coordinator, verdict: &str, who: &str) -> anyhow::Result<Value> {
    coordinator.command_json(&["join", verdict, who, "--json"].map(str::to_owned))
}
