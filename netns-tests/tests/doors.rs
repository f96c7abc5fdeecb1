//! Where an agent's API is reached, by whom, with what.

use std::time::Duration;

use anyhow::Context;
use netns_tests::{fetch, story};
use reqwest::Method;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn an_api_on_all_addresses_wants_the_key_it_made_and_leaves_its_port_on_the_overlay_to_other_nodes() {
    story(|lab| {
        let coordinator = lab.coordinator()?;
        let key_file = lab.folder("open")?.join("api.key");
        let open = lab
            .node("open")?
            .serving("ocr")
            .with_environment("WIREMESH_API__LISTEN", "0.0.0.0:8000")
            .with_environment("WIREMESH_API__KEY_FILE", key_file.to_str().context("a path of ours")?)
            .join(&coordinator)?;
        let caller = lab.node("caller")?.join(&coordinator)?;
        let underlay = format!("http://{}:8000/service/ocr", open.node.address());
        let key = format!("Bearer {}", std::fs::read_to_string(&key_file)?);
        let ask = |headers: &[(&str, &str)]| fetch(&caller.node, Method::POST, &underlay, headers, "x", LIMIT);

        assert_eq!(ask(&[])?.status, 401);
        assert_eq!(ask(&[("authorization", "Bearer guessed")])?.status, 401);
        assert_eq!(ask(&[("authorization", &key)])?.status, 200);

        // Another node shows its certificate by its address and no key.
        caller.expect_dht_contacts(1)?;
        let answer = caller.post("/service/ocr", "x")?;
        assert_eq!((answer.status, answer.header("x-wiremesh-path")), (200, "overlay"));
        Ok(())
    });
}
