use std::{collections::BTreeMap, net::SocketAddr};

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Options {
    name: String,
    lifetime: Option<Span>,
    urls: Vec<String>,
    overlay: Overlay,
    service: Vec<Service>,
    catalog: BTreeMap<String, Service>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Overlay {
    enabled: bool,
    listen_port: u16,
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Service {
    name: String,
    queue: u32,
}

fn environment(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn read(file: &str, variables: &[(&str, &str)]) -> Result<Options, String> {
    Layers::new()
        .file("agent.toml", file)
        .and_then(|layers| layers.environment(environment(variables), &["CONFIG"]))
        .and_then(Layers::read)
        .map_err(|error| error.to_string())
}

#[test]
fn later_layers_win_key_by_key() {
    let options: Options = Layers::new()
        .file("agent.toml", "name = 'a'\n[overlay]\nenabled = true\nlisten_port = 1")
        .unwrap()
        .environment(environment(&[("WIREMESH_OVERLAY__LISTEN_PORT", "2"), ("WIREMESH_NAME", "b")]), &[])
        .unwrap()
        .set("name", "c", "--name")
        .unwrap()
        .read()
        .unwrap();

    assert_eq!(options.name, "c");
    assert_eq!((options.overlay.enabled, options.overlay.listen_port), (true, 2));
}

#[test]
fn text_is_read_as_what_is_wanted() {
    let options = read(
        "",
        &[
            ("WIREMESH_NAME", "007"),
            ("WIREMESH_LIFETIME", "7d"),
            ("WIREMESH_OVERLAY__ENABLED", "true"),
            ("WIREMESH_OVERLAY__LISTEN", "[::1]:80"),
            ("WIREMESH_URLS", "https://a:1, https://b:2"),
            ("WIREMESH_SERVICE__0__NAME", "x"),
            ("WIREMESH_SERVICE__0__QUEUE", "16"),
            ("WIREMESH_CATALOG__OCR__QUEUE", "3"),
        ],
    )
    .unwrap();

    assert_eq!(options.name, "007");
    assert_eq!(options.lifetime, Some(Span(std::time::Duration::from_secs(604_800))));
    assert!(options.overlay.enabled);
    assert_eq!(options.overlay.listen, Some("[::1]:80".parse().unwrap()));
    assert_eq!(options.urls, ["https://a:1", "https://b:2"]);
    assert_eq!(options.service, [Service { name: "x".into(), queue: 16 }]);
    assert_eq!(options.catalog["ocr"].queue, 3);
}

#[test]
fn lists_in_text_may_be_written_as_in_the_file() {
    assert_eq!(read("", &[("WIREMESH_URLS", r#"["a", "b"]"#)]).unwrap().urls, ["a", "b"]);
    assert_eq!(read("urls = ['z']", &[("WIREMESH_URLS", "")]).unwrap().urls, <[&str; 0]>::default());
}

#[test]
fn an_entry_of_a_list_in_the_file_can_be_changed() {
    let file = "[[service]]\nname = 'a'\nqueue = 1\n[[service]]\nname = 'b'";

    let options = read(file, &[("WIREMESH_SERVICE__0__QUEUE", "9")]).unwrap();

    assert_eq!(options.service[0], Service { name: "a".into(), queue: 9 });
    assert!(read(file, &[("WIREMESH_SERVICE__7__QUEUE", "9")]).unwrap_err().contains("no such entry"));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (file, variables, expected) in [
        ("nmae = 'a'", &[][..], "agent.toml: `nmae`: there is no such option; did you mean `name`?"),
        (
            "[overlay]\nlisten_prot = 1",
            &[],
            "agent.toml: `overlay.listen_prot`: there is no such option; did you mean `listen_port`?",
        ),
        ("[[service]]\nnme = 'a'", &[], "agent.toml: `service.0.nme`: there is no such option; did you mean `name`?"),
        (
            "zzz = 1",
            &[],
            "agent.toml: `zzz`: there is no such option; known are name, lifetime, urls, overlay, service, catalog",
        ),
        (
            "",
            &[("WIREMESH_OVERLAY__PORTT", "1")],
            "environment variable WIREMESH_OVERLAY__PORTT: `overlay.portt`: there is no such option; known are enabled, listen_port, listen",
        ),
        ("name = 3", &[], "agent.toml: `name`: invalid type: integer `3`, expected a string"),
        (
            "[overlay]\nlisten_port = 70000",
            &[],
            "agent.toml: `overlay.listen_port`: invalid value: integer `70000`, expected u16",
        ),
        (
            "",
            &[("WIREMESH_OVERLAY__ENABLED", "yes")],
            "environment variable WIREMESH_OVERLAY__ENABLED: `overlay.enabled`: invalid value: string \"yes\", expected a boolean",
        ),
        (
            "overlay = 3",
            &[("WIREMESH_OVERLAY__ENABLED", "true")],
            "environment variable WIREMESH_OVERLAY__ENABLED: `overlay.enabled`: an option that has no parts",
        ),
    ] {
        assert_eq!(read(file, variables).unwrap_err(), expected);
    }
    assert!(read("lifetime = '7w'", &[]).unwrap_err().starts_with("agent.toml: `lifetime`: \"7w\" is not a duration"));
    assert!(read("name = ", &[]).unwrap_err().starts_with("agent.toml: TOML parse error at line 1"));
}

#[test]
fn variables_with_another_meaning_are_passed_over() {
    let options = read(
        "",
        &[
            ("WIREMESH_CONFIG", "x.toml"),
            ("WIREMESH_SERVICE_HOST", "10.0.0.1"),
            ("WIREMESH_SERVICE_PORT", "8080"),
            ("WIREMESH_PORT", "tcp://10.0.0.1:8080"),
            ("WIREMESH_COORDINATOR_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ],
    );

    assert_eq!(options, Ok(Options::default()));
}

#[test]
fn what_is_wrong_is_said_in_few_words_and_moves_no_cursor() {
    let long = "x".repeat(1 << 16);
    for (file, begins) in [
        (format!("a = 1\nname = {long}"), "agent.toml: line 2: "),
        (format!("name = [\"{long}\"]"), "agent.toml: `name`: invalid type: sequence"),
        (format!("lifetime = \"{long}\""), "agent.toml: `lifetime`: \"xxxx"),
        (format!("{long} = 1"), "agent.toml: `xxxx"),
        ("\"\\u001b[2J\" = 1".to_owned(), "agent.toml: `\u{fffd}[2J`: there is no such option"),
        ("name = \u{1b}[2J".to_owned(), "agent.toml: line 1: "),
    ] {
        let bad = read(&file, &[]).unwrap_err();
        assert!(bad.starts_with(begins) && bad.len() < 800, "{bad}");
        assert!(!bad.contains('\u{1b}'), "{bad:?}");
    }
}
