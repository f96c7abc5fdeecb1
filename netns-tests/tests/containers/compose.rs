//! `deploy/compose.yaml`, as its users start it: a whole mesh with no manual step, and the same mesh again after `down`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use netns_tests::{
    containers::{Compose, Ground, in_containers},
    eventually,
};
use serde_json::Value;

/// For workers to know of each other.
const LIMIT: Duration = Duration::from_secs(30);
/// Where the API of worker-1 is published.
const API: &str = "http://127.0.0.1:8000";

#[test]
fn compose_brings_up_a_mesh_by_itself_and_after_down_the_same_one_again() {
    in_containers(|ground| {
        // There is no twin of compose: what it reads is held against the program by `deploy.rs` everywhere.
        let Some(compose) = ground.compose() else {
            println!("no engine, and so no compose");
            return Ok(());
        };
        compose.run(&["up", "--detach"])?;
        expect_calls(&compose)?;
        let before = members(&compose)?;
        let names: Vec<_> = before.keys().map(String::as_str).collect();
        assert_eq!(names, ["worker-1", "worker-2"]);
        expect_published_api(ground, &compose)?;

        compose.run(&["down"])?;
        compose.run(&["up", "--detach"])?;

        expect_calls(&compose)?;
        assert_eq!(members(&compose)?, before, "each is who it was, and nobody is there twice");
        expect_published_api(ground, &compose)?;

        // As with another image: a container that never was, with the volume of the one before.
        compose.run(&["up", "--detach", "--force-recreate", "worker-2"])?;
        expect_calls(&compose)?;
        assert_eq!(members(&compose)?, before);
        compose.run(&["down", "--volumes"])?;
        Ok(())
    });
}

/// Each worker's service answers the other.
fn expect_calls(compose: &Compose) -> anyhow::Result<()> {
    for (from, service, worker) in [("worker-2", "checksum", "worker-1"), ("worker-1", "words", "worker-2")] {
        eventually(&format!("{service} answers {from}"), LIMIT, || {
            let call = ["exec", "-T", from, "wiremesh", "call", service, "-d", "hello", "-v"];
            let output = compose.output(&call)?;
            // Without a terminal compose hands on both of a command's outputs as one.
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            anyhow::ensure!(output.status.success(), "{}: {said}", output.status);
            anyhow::ensure!(said.contains(worker) && said.contains("overlay"), "{said}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Who is in the mesh: name, address and identity.
fn members(compose: &Compose) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let text = compose.run(&["exec", "-T", "coordinator", "wiremesh", "cert", "list", "--json"])?;
    let list: Value = serde_json::from_str(&text).with_context(|| format!("it printed {text:?}"))?;
    let members = list["members"].as_array().with_context(|| format!("no members in {list}"))?;
    let word = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("no text: {value}"));
    members
        .iter()
        .map(|member| Ok((word(&member["name"])?, (word(&member["address"])?, word(&member["identity"])?))))
        .collect()
}

/// On the machine, with the key that the worker made.
fn expect_published_api(ground: &Ground, compose: &Compose) -> anyhow::Result<()> {
    let key = compose.file_in_volume("worker-1", "api.key")?;
    let url = format!("{API}/service/words");
    assert_eq!(ground.fetch(&url, &[])?.status, 401);
    assert_eq!(ground.fetch(&url, &[("authorization", "Bearer guessed")])?.status, 401);
    let answer = ground.fetch(&url, &[("authorization", &format!("Bearer {}", key.trim()))])?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ready\n"));
    Ok(())
}
