//! What an agent's configuration may say, and how it is told what is wrong.

use super::*;
use crate::services::Kind;

#[test]
fn the_example_file_is_a_good_configuration_with_every_option() {
    let text = include_str!("../../deploy/agent.example.toml");

    let config = read(text).unwrap();

    assert_eq!(config.name.as_str(), "worker-gpu-001");
    assert_eq!(config.services[0].name.as_str(), "llm-inference");
}

#[test]
fn nothing_given_is_enough() {
    let config = Config::read(Layers::new(), "Box_7.example.com").unwrap();

    assert_eq!(config.name.as_str(), "box-7");
    assert!(config.overlay.enabled && config.dht.enabled);
    assert!(config.api.listen.ip().is_loopback());
}

#[test]
fn each_mistake_is_named() {
    for (text, expected) in [
        ("[overlay]\nlisten_prot = 1", "listen_port"),
        ("[overlay]\nmtu = 1200", "1280"),
        ("[overlay]\nrekey_after = \"121s\"", "120s"),
        ("[overlay.offload]\ntcp = false", "tcp"),
        ("[overlay]\ninterface = \"a-name-that-is-too-long\"", "interface"),
        ("[api]\nlisten = \"0.0.0.0:8000\"", "key_file"),
        ("[api]\ntunnel_url = \"https://x.example\"", "ingress"),
        ("[telemetry]\notlp_endpoint = \"127.0.0.1:4317\"", "http or https"),
        ("[telemetry]\nsample = 2.0", "between 0 and 1"),
        ("name = \"Not A Label\"", "DNS label"),
        ("[[service]]\nname = \"a\"\nupstream = \"ftp://x\"", "http URL"),
        (
            "[[service]]\nname = \"a\"\nupstream = \"http://x\"\n[[service]]\nname = \"a\"\nupstream = \"http://x\"",
            "twice",
        ),
        ("[[service]]\nname = \"a\"\nupstream = \"http://x\"\nkind = \"vlm\"", "vllm, llama.cpp, sglang"),
        ("[[service]]\nname = \"a\"\nupstream = \"http://x\"\nhealth_status = [\"ok\"]", "\"2xx\""),
        ("[[service]]\nname = \"a\"\nupstream = \"http://x\"\nmax_concurrency = 0", "as many as the upstream says"),
        ("[[service]]\nname = \"a\"\nupstream = \"http://x\"\nstop_grace = \"1h\"", "10m"),
        ("join_token = \"a\"\njoin_token_file = \"b\"", "one is enough"),
        ("coordinators = [\"http://x\"]", "https"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn of_a_service_only_name_and_upstream_must_be_said() {
    let service = "[[service]]\nname = \"a\"\nupstream = \"http://x\"\n";

    let [unsaid] = &read(service).unwrap().services[..] else { panic!("one service") };
    assert_eq!((unsaid.kind, unsaid.max_concurrency, unsaid.metrics_port), (None, None, None));
    assert_eq!((unsaid.stop_grace, unsaid.queue), (Duration::from_secs(10), 16));
    assert!(unsaid.health_status.takes(404) && !unsaid.health_status.takes(500));

    let more = "kind = \"llama.cpp\"\nhealth_status = [\"2xx\", \"401\"]\nmetrics_port = 9\nstop_grace = \"1m\"";
    let [said] = &read(&format!("{service}{more}")).unwrap().services[..] else { panic!("one service") };
    assert_eq!((said.kind, said.metrics_port), (Some(Kind::LlamaCpp), Some(9)));
    assert_eq!(said.stop_grace, Duration::from_secs(60));
    assert!(said.health_status.takes(401) && !said.health_status.takes(404));
}

#[test]
fn a_listener_that_others_reach_needs_a_key_or_consent() {
    assert!(read("[api]\nlisten = \"0.0.0.0:8000\"\nkey_file = \"/k\"").is_ok());
    assert!(read("[api]\nlisten = \"0.0.0.0:8000\"\nallow_anonymous = true").is_ok());
}

#[test]
fn a_join_token_is_not_shown() {
    let config = read("join_token = \"wm1.secret\"").unwrap();

    assert!(!format!("{config:?}").contains("secret"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let layers = Layers::new().file("x", "name = \"a\"\n[overlay]\nlisten_port = 1").unwrap();
    let environment = [("WIREMESH_OVERLAY__LISTEN_PORT".to_owned(), "2".to_owned())];

    let config = Config::read(layers.environment(environment, &[]).unwrap(), "host").unwrap();

    assert_eq!(config.overlay.listen_port, 2);
}

fn read(text: &str) -> Result<Config, BadSettings> {
    Config::read(Layers::new().file("example", text)?, "host")
}
