//! An agent as an OpenAI-like API: what is served anywhere in the mesh is used at `http://127.0.0.1:8000/v1`, by `curl` and
//! by OpenAI's own client, as if it were there.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Agent, Lab, eventually, story};
use serde_json::{Value, json};
use wiremesh::sandbox;

/// A list of models is as old as 20 seconds, and the machine may have other things to do.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// What OpenAI's client is asked to do, and what must come of it.
const CLIENT: &str = r#"
import openai, sys, time
client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="not needed", max_retries=0)
messages = lambda text: [{"role": "user", "content": text}]

assert [model.id for model in client.models.list()] == ["llama-3.1-8b", "org/embedder", "qwen-2.5"], client.models.list()
assert client.models.retrieve("llama-3.1-8b").owned_by == "wiremesh"

for model, worker in [("llama-3.1-8b", "worker-1"), ("qwen-2.5", "worker-2")]:
    for length in [1, 1_000_000]:
        answer = client.chat.completions.create(model=model, messages=messages("x" * length))
        assert answer.choices[0].message.content == f"{worker} by {model}: {length} bytes", answer

stream = client.chat.completions.create(model="qwen-2.5", messages=messages("x"), stream=True)
came, text = [], ""
for chunk in stream:
    came.append(time.monotonic())
    text += chunk.choices[0].delta.content or ""
assert text == "all of it streamed ", text
assert came[-1] - came[0] > 0.05, "it came all at once"

assert client.embeddings.create(model="org/embedder", input="x").data[0].embedding == [1.0]
heard = client.audio.transcriptions.create(model="llama-3.1-8b", file=("a.wav", b"RIFF" * 100_000))
assert heard.text.startswith("worker-1 heard 40"), heard

try:
    client.chat.completions.create(model="llama-3.1", messages=messages("x"))
    sys.exit("an unknown model was answered")
except openai.NotFoundError as error:
    assert (error.code, error.param) == ("model_not_found", "model"), error
    assert "llama-3.1-8b" in error.message, error
print("content")
"#;

#[test]
fn curl_talks_to_models_of_other_nodes_as_if_they_were_here() {
    story(|lab| {
        let (caller, _workers) = mesh(lab, true)?;

        let listed: Value = serde_json::from_slice(&curl(&caller, "/v1/models", None)?.stdout)?;
        let ids: Vec<&str> = listed["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
        assert_eq!(ids, ["llama-3.1-8b", "org/embedder", "qwen-2.5"]);

        for (model, worker) in [("llama-3.1-8b", "worker-1"), ("qwen-2.5", "worker-2")] {
            let answer: Value = serde_json::from_slice(&curl(&caller, CHAT, Some(&chat(model, false)))?.stdout)?;
            assert_eq!(answer["choices"][0]["message"]["content"], format!("{worker} by {model}: 5 bytes"));
        }
        let streamed = String::from_utf8(curl(&caller, CHAT, Some(&chat("qwen-2.5", true)))?.stdout)?;
        assert_eq!(streamed.matches("data: {").count(), 5, "{streamed}");
        assert!(streamed.trim_end().ends_with("data: [DONE]"), "{streamed}");

        let unknown: Value = serde_json::from_slice(&curl(&caller, CHAT, Some(&chat("qwen", false)))?.stdout)?;
        assert_eq!(
            (&unknown["error"]["code"], &unknown["error"]["param"]),
            (&json!("model_not_found"), &json!("model"))
        );
        assert!(unknown["error"]["message"].as_str().is_some_and(|message| message.contains("qwen-2.5")), "{unknown}");
        Ok(())
    });
}

#[test]
fn a_connection_becomes_a_conversation_with_a_model_of_another_node() {
    story(|lab| {
        let (caller, _workers) = mesh(lab, true)?;

        let said = caller.node.run(|| -> anyhow::Result<[u8; 5]> {
            let mut stream = TcpStream::connect("127.0.0.1:8000")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(
                b"GET /v1/realtime?model=qwen-2.5 HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            )?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            anyhow::ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
            stream.write_all(b"hello")?;
            let mut said = [0; 5];
            stream.read_exact(&mut said)?;
            Ok(said)
        })??;

        assert_eq!(&said, b"hello");
        Ok(())
    });
}

#[test]
fn without_a_dht_the_coordinator_tells_who_serves_a_model() {
    story(|lab| {
        let (caller, _workers) = mesh(lab, false)?;

        let answer = caller.request(
            reqwest::Method::POST,
            CHAT,
            &[("content-type", "application/json")],
            &chat("qwen-2.5", false),
        )?;

        assert_eq!((answer.status, answer.header("x-wiremesh-worker")), (200, "worker-2"));
        Ok(())
    });
}

#[test]
fn openais_own_client_is_content() {
    // The registry is not reached from within the story's network.
    if sandbox::scratch().is_none()
        && let Err(why) = install()
    {
        eprintln!("OpenAI's client is not there, and not tried: {why:#}");
        return;
    }
    story(|lab| {
        let (caller, _workers) = mesh(lab, true)?;
        let script = lab.folder("client")?.join("client.py");
        fs::write(&script, CLIENT)?;

        let mut command = caller.node.command(python())?;
        let output = command.arg(&script).output()?;

        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"content\n");
        Ok(())
    });
}

const CHAT: &str = "/v1/chat/completions";

fn chat(model: &str, stream: bool) -> String {
    json!({"messages": [{"role": "user", "content": "hello"}], "model": model, "stream": stream}).to_string()
}

/// A caller that serves nothing, and two workers with different models, known to it.
fn mesh(lab: &mut Lab, dht: bool) -> anyhow::Result<(Agent, [Agent; 2])> {
    let coordinator = lab.coordinator()?;
    let caller = lab.node("caller")?;
    let caller = if dht { caller } else { caller.without_dht() };
    let caller = caller.join(&coordinator)?;
    let workers = [
        lab.node("worker-1")?.serving_models("llm", &["llama-3.1-8b"]).join(&coordinator)?,
        lab.node("worker-2")?.serving_models("chat", &["qwen-2.5", "org/embedder"]).join(&coordinator)?,
    ];
    eventually("all models are listed", KNOWN_WITHIN, || {
        let listed: Value = caller.get("/v1/models")?.expect_ok()?.json()?;
        let count = listed["data"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(count == 3, "{listed}");
        Ok(())
    })?;
    Ok((caller, workers))
}

fn curl(agent: &Agent, path: &str, body: Option<&str>) -> anyhow::Result<Output> {
    let mut command: Command = agent.node.command(Path::new("curl"))?;
    command.args([
        "--silent",
        "--show-error",
        "--no-buffer",
        "--max-time",
        "30",
        &format!("http://127.0.0.1:8000{path}"),
    ]);
    if let Some(body) = body {
        command.args(["-H", "Content-Type: application/json", "-d", body]);
    }
    let output = command.output().context("running curl")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// The interpreter that has OpenAI's client.
fn python() -> PathBuf {
    environment().join("bin/python")
}

/// Beside what cargo builds: made once, and gone with it.
fn environment() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client")
}

fn install() -> anyhow::Result<()> {
    let has_client = || Command::new(python()).args(["-c", "import openai"]).output().is_ok_and(|o| o.status.success());
    if has_client() {
        return Ok(());
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(environment()))?;
    run(Command::new(python()).args(["-m", "pip", "install", "--quiet", "openai"]))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
