//! The mesh's policy: who may offer a service and who may call it, by the groups of their certificates, wherever they are
//! and by whichever way they come.

use std::{fs, time::Duration};

use anyhow::Context;
use netns_tests::{
    Agent, Answer, Coordinator, Lab, TokenOptions, Traffic, eventually, fetch,
    forge::{self, Identity},
    story_within,
};
use reqwest::Method;
use serde_json::{Value, json};
use wiremesh::clock;

const LIMIT: Duration = Duration::from_secs(240);
/// From a coordinator that starts with another policy to the last agent that goes by it.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(60);
/// The same for a stream, with the time that it ran before; less than its client has patience.
const CUT_WITHIN: Duration = Duration::from_secs(25);
const RULES: &str = "[policy.llm]\noffer = ['gpu']\ncall = ['apps']";

#[test]
fn who_may_offer_and_who_may_call_is_up_to_the_mesh_by_every_way_there_is_and_changes_while_agents_run() {
    story_within(LIMIT, |lab| {
        let mut coordinator = lab.coordinator_with("coordinator", RULES)?;
        let gpu = in_groups(lab.node("gpu")?.serving_models("llm", &["llama"]).with_tunnel(), &coordinator, &["gpu"])?;
        let cpu = in_groups(lab.node("cpu")?.serving_models("llm", &["qwen"]).with_tunnel(), &coordinator, &[])?;
        let app = in_groups(lab.node("app")?, &coordinator, &["apps"])?;
        let other = in_groups(lab.node("other")?, &coordinator, &[])?;
        gpu.expect_published()?;

        // Who may call it is answered, and by nobody who may not offer it.
        eventually("the worker is known", IN_FORCE_WITHIN, || app.post("/service/llm/echo", "x")?.expect_ok())?;
        for _ in 0..20 {
            assert_eq!(app.post("/service/llm/echo", "x")?.expect_ok()?.header("x-wiremesh-worker"), "gpu");
        }
        assert_eq!(ask_model(&app, "llama")?.expect_ok()?.header("x-wiremesh-worker"), "gpu");
        assert_eq!(ask_model(&app, "qwen")?.status, 404, "its service is offered by nobody who may");
        let troubles = cpu.command_json(&["status"])?["troubles"].to_string();
        assert!(troubles.contains("llm is not offered: the mesh's policy leaves it to the group gpu"), "{troubles}");
        assert_eq!(cpu.post("/service/llm/echo", "x")?.expect_ok()?.header("x-wiremesh-path"), "local");
        let rules = gpu.command_json(&["status"])?["policy"].clone();
        assert_eq!(rules, json!([{"service": "llm", "may_offer": true, "offered_by": ["gpu"], "called_by": ["apps"]}]));

        // Who may not is told so by its own agent, and by the worker if it does not ask that.
        expect_refused(&other.post("/service/llm/echo", "x")?, "other")?;
        expect_refused(&ask_model(&other, "llama")?, "other")?;
        let over_overlay = format!("http://{}:8000", gpu.overlay_ip()?);
        for (path, body) in [("/service/llm/echo", "x".to_owned()), ("/v1/chat/completions", chat("llama"))] {
            expect_refused(&past_its_agent(&other, &over_overlay, path, &[], &body)?, "gpu")?;
        }
        let udp = lab.network.cut(&other.node, &gpu.node, Traffic::Udp)?;
        let through_tunnel = format!("http://{}:8001", gpu.node.address());
        for (path, body) in [("/service/llm/echo", "x".to_owned()), ("/v1/chat/completions", chat("llama"))] {
            let proof = proof_of_a_member_without_groups(&coordinator, &gpu, path)?;
            let answer = past_its_agent(&other, &through_tunnel, path, &[("authorization", &proof)], &body)?;
            expect_refused(&answer, "gpu")?;
        }
        assert_eq!(gpu.metric("wiremesh_router_failures", "not_allowed")?, 4.0);

        // Another policy: nobody is started again but the coordinator.
        set_policy(&mut coordinator, "[policy.llm]\noffer = ['gpu']")?;
        let answer = eventually("the caller is let in by tunnel", IN_FORCE_WITHIN, || {
            other.post("/service/llm/echo", "x")?.expect_ok()
        })?;
        assert_eq!((answer.header("x-wiremesh-worker"), answer.header("x-wiremesh-path")), ("gpu", "tunnel"));
        udp.restore()?;
        assert_eq!(ask_model(&other, "llama")?.expect_ok()?.header("x-wiremesh-worker"), "gpu");

        set_policy(&mut coordinator, "")?;
        eventually("the other worker offers it too", IN_FORCE_WITHIN, || {
            let answer = ask_model(&other, "qwen")?.expect_ok()?;
            anyhow::ensure!(answer.header("x-wiremesh-worker") == "cpu", "{}", answer.route());
            Ok(())
        })?;

        set_policy(&mut coordinator, RULES)?;
        eventually("both are out again", IN_FORCE_WITHIN, || {
            expect_refused(&other.post("/service/llm/echo", "x")?, "other")?;
            anyhow::ensure!(ask_model(&app, "qwen")?.status == 404, "a model of who may not offer it is found");
            Ok(())
        })
    });
}

#[test]
fn a_stream_is_cut_when_policy_no_longer_lets_its_caller_call() {
    story_within(LIMIT, |lab: &mut Lab| {
        let mut coordinator = lab.coordinator_with("coordinator", RULES)?;
        let gpu = in_groups(lab.node("gpu")?.serving("llm"), &coordinator, &["gpu"])?;
        let app = in_groups(lab.node("app")?, &coordinator, &["apps"])?;
        gpu.expect_published()?;
        eventually("the worker is known", IN_FORCE_WITHIN, || app.post("/service/llm/echo", "x")?.expect_ok())?;

        let begun_at = clock::now();
        let (cut, policy) = std::thread::scope(|scope| {
            let streaming = scope.spawn(|| app.get("/service/llm/sse?count=100000&every_ms=50"));
            std::thread::sleep(Duration::from_secs(2));
            let policy = set_policy(&mut coordinator, "[policy.llm]\ncall = ['staff']");
            (streaming.join(), policy)
        });

        policy?;
        let ended = cut.map_err(|_| anyhow::anyhow!("asking panicked"))?;
        assert!(ended.is_err(), "an answer that is cut does not end cleanly");
        let took = clock::now() - begun_at;
        assert!(took < CUT_WITHIN, "{took:?}: its client gave up first");
        Ok(())
    });
}

/// Joins by a token for these groups.
fn in_groups(agent: Agent, coordinator: &Coordinator, groups: &'static [&'static str]) -> anyhow::Result<Agent> {
    let token = coordinator.token_with(&TokenOptions { groups, ..TokenOptions::default() })?;
    let mut agent = agent.prepare(&token)?;
    agent.start()?;
    Ok(agent)
}

/// Another policy than the one that its configuration ends with.
fn set_policy(coordinator: &mut Coordinator, rules: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(coordinator.config())?;
    let without = text.split_once("[policy").map_or(text.as_str(), |(before, _)| before);
    fs::write(coordinator.config(), format!("{without}\n{rules}\n"))?;
    coordinator.restart()
}

fn chat(model: &str) -> String {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}]}).to_string()
}

fn ask_model(agent: &Agent, model: &str) -> anyhow::Result<Answer> {
    agent.request(Method::POST, "/v1/chat/completions", &[("content-type", "application/json")], &chat(model))
}

/// As any program on a member's machine could: the worker's listeners are reachable from there.
fn past_its_agent(
    from: &Agent,
    base: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> anyhow::Result<Answer> {
    let headers = [headers, &[("content-type", "application/json")]].concat();
    fetch(&from.node, Method::POST, &format!("{base}{path}"), &headers, body, Duration::from_secs(20))
}

fn proof_of_a_member_without_groups(coordinator: &Coordinator, worker: &Agent, path: &str) -> anyhow::Result<String> {
    let status = worker.command_json(&["status"])?;
    let audience = status["id"].as_str().with_context(|| format!("no id in {status}"))?;
    let member = Identity::by(&forge::authority_of(coordinator)?, "nobody-in-particular", [10, 42, 200, 1].into())?;
    member.proof(audience, "POST", path, clock::unix())
}

fn expect_refused(answer: &Answer, by: &str) -> anyhow::Result<()> {
    let said = (answer.status, answer.header("x-wiremesh-executed"), answer.header("x-wiremesh-worker"));
    anyhow::ensure!(said == (403, "no", by), "{said:?}: {}", answer.text());
    let error: Value = answer.json()?;
    anyhow::ensure!(error["error"]["type"] == "not_allowed", "{error}");
    Ok(())
}
