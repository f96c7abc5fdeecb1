//! Things that are as they should be, made anew at every run of the tests, and the tests that replay the corpus.

use std::{collections::BTreeSet, path::Path};

use serde::Serialize;
use serde_json::json;
use wiremesh_certs::{
    CertificateRequest, Signed,
    fuzz::replay::{Specimen, replay},
};

use super::{NOW, TARGETS, World, address, verified};
use crate::{
    api::{
        BootstrapResponse, EnrollRequest, EnrollResponse, HeartbeatRequest, HeartbeatResponse, RegisterRequest,
        RenewResponse, Secret, Seed, TunnelFound,
    },
    directory, overlay,
};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns-tests/fuzz/corpus");

#[test]
fn the_corpus_and_what_lies_near_it_break_nothing() {
    replay(Path::new(CORPUS), TARGETS, &specimens());
}

#[test]
fn the_corpus_has_a_folder_for_each_target_and_no_other() {
    let folders = std::fs::read_dir(CORPUS).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());

    let targets = TARGETS.iter().chain(wiremesh_certs::fuzz::TARGETS).map(|(name, _)| (*name).to_owned());

    assert_eq!(folders.collect::<BTreeSet<_>>(), targets.collect::<BTreeSet<_>>());
}

type Made = Vec<(&'static str, &'static str, Vec<u8>)>;

fn specimens() -> Vec<Specimen> {
    [operators(), coordinators(), overlays(), directories(), requests(), upstreams()]
        .into_iter()
        .flatten()
        .map(|(target, name, bytes)| Specimen { target, name, bytes })
        .collect()
}

fn operators() -> Made {
    let (agent, coordinator) =
        (include_str!("../../deploy/agent.example.toml"), include_str!("../../deploy/coordinator.example.toml"));
    // Without their comments: no fuzzer is to spend its time on those.
    let bare = |text: &str| {
        let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end());
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    let environment = "\n--\nWIREMESH_OVERLAY__LISTEN_PORT=2\nWIREMESH_SERVICE__0__QUEUE=9\nPATH=/bin\n";
    let of_coordinator = "\n--\nWIREMESH_PUBLIC_URLS=https://a,https://b\nWIREMESH_CATALOG__OCR__REQUIRES=gpu\n";
    vec![
        ("agent-config", "example", bare(agent).into_bytes()),
        ("agent-config", "nothing", Vec::new()),
        ("agent-config", "environment", format!("[[service]]\nname='a'\nupstream='http://x'\n{environment}").into()),
        ("coordinator-config", "example", bare(coordinator).into_bytes()),
        ("coordinator-config", "environment", of_coordinator.into()),
    ]
}

fn coordinators() -> Made {
    let World { authority, member, other, .. } = World::get();
    let record = || Signed::sign(&overlay::fuzz::record(1), &other.key, &other.chain).unwrap();
    let csr = CertificateRequest::create(&member.key, verified(member).name(), &member.wg.public()).unwrap();
    let seed = || Seed {
        worker_id: verified(other).name().clone(),
        vpn_ip: address(other),
        tunnel_url: Some("https://x.example".parse().unwrap()),
        dht_port: 8468,
        record: record(),
    };
    let bootstrap = BootstrapResponse { seeds: vec![seed()], seed_count: 1, timestamp: NOW };
    let enrolled = EnrollResponse {
        certificate: member.chain.to_pem(),
        authority: authority.certificate().pem(),
        mesh: authority.certificate().mesh().clone(),
        overlay_address: address(member),
        network: authority.certificate().network(),
        revocations: None,
        bootstrap: vec![seed()],
        coordinators: vec!["https://coordinator.example".to_owned()],
        heartbeat_interval_secs: 10,
    };
    let answered = HeartbeatResponse {
        revocation_number: 0,
        revocations: None,
        introductions: vec![record()],
        coordinators: Vec::new(),
        interval_secs: 10,
        register: false,
        send_revocations: false,
        copied: None,
        tunnel: Some(TunnelFound {
            url: "https://worker.example".parse().unwrap(),
            leads_back: false,
            why: Some("it leads to another".to_owned()),
            looked_at: NOW,
        }),
    };
    let token = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned();
    let enrol = EnrollRequest { token: Secret::new(token), csr, wireguard_key: member.wg.public() };
    let register = RegisterRequest {
        record: record(),
        capabilities: json!({"cpu_cores": 8, "gpus": [{"name": "H100"}]}).as_object().unwrap().clone(),
        services: Some(Vec::new()),
        dht_port: Some(8468),
        revocation_number: 3,
        instance: None,
    };
    let member_file = json!({"mesh": "fuzz", "network": "10.42.0.0/16", "coordinators": ["https://a"]});
    let create = json!({"ttl_secs": 60, "uses": 1, "name": "a", "groups": ["gpu"], "urls": ["https://a:8080"]});
    vec![
        ("coordinator-answers", "enrolled", text(&enrolled)),
        (
            "coordinator-answers",
            "renewed",
            text(&RenewResponse { certificate: member.chain.to_pem(), revocations: None }),
        ),
        ("coordinator-answers", "heartbeat", text(&answered)),
        ("coordinator-answers", "bootstrap", text(&bootstrap)),
        ("coordinator-answers", "problem", text(&json!({"detail": "no", "error": {"type": "no", "message": "no"}}))),
        ("coordinator-bodies", "enrol", text(&enrol)),
        ("coordinator-bodies", "register", text(&register)),
        (
            "coordinator-bodies",
            "heartbeat",
            text(&HeartbeatRequest { record: record(), revocation_number: 3, instance: None }),
        ),
        ("coordinator-bodies", "create-token", text(&create)),
        ("coordinator-bodies", "revoke", text(&json!({"name": "node-2"}))),
        ("coordinator-bodies", "node-name", b"node-2".to_vec()),
        ("state-files", "member", text(&member_file)),
        ("state-files", "seeds", text(&json!({"seeds": [seed()]}))),
    ]
}

fn overlays() -> Made {
    let World { member, other, .. } = World::get();
    let payload = minicbor::to_vec(overlay::fuzz::record(1)).unwrap();
    let record = Signed::sign(&overlay::fuzz::record(1), &other.key, &other.chain).unwrap();
    let hello = overlay::fuzz::packet(member, other);
    let one = [&(hello.len() as u16).to_be_bytes()[..], &hello].concat();
    let introduction = overlay::fuzz::introduced(record.as_bytes()).unwrap();
    vec![
        ("datagrams", "introduction", overlay::fuzz::piece(0, &introduction)),
        ("datagrams", "record", overlay::fuzz::piece(1, record.as_bytes())),
        ("datagrams", "payload", overlay::fuzz::piece(2, &payload)),
        ("datagrams", "handshake", overlay::fuzz::specimen_of_a_handshake()),
        ("inner-packets", "one", one.clone()),
        ("inner-packets", "two", one.repeat(2)),
        ("introduction", "record", introduction),
    ]
}

fn directories() -> Made {
    let (key, value) = directory::fuzz::specimen();
    let put = [&[key.len() as u8][..], &key, &value].concat();
    let run = [[0, 0, 4, 0], [0, 15, 5, 1], [2, 0, 0, 0], [0, 0, 36, 9], [1, 0, 6, 0], [2, 0, 0, 0], [3, 0, 0, 63]];
    let mut made = vec![
        ("dht-value", "two-records", value.clone()),
        ("dht-value", "no-record", value[..1].to_vec()),
        ("dht-put", "two-records", put),
        ("dht-store", "run", run.concat()),
    ];
    made.extend(directory::fuzz::specimens_of_keys().into_iter().map(|(name, key)| ("dht-key", name, key)));
    made
}

fn requests() -> Made {
    let form = "multipart/form-data; boundary=x\n\x05--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc\r\n--x\r\n\
                Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--x--\r\n";
    let headers = "host: h\nconnection: close, x-private\nx-private: 1\nx-wiremesh-via: v\nx-wiremesh-worker: fake\n\
                   traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\ncontent-type: text/plain\n";
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let list = json!({"object": "list", "data": [{"id": "llama"}, {"id": "whisper-1"}]});
    let events = [&b"\0\x09data: 1\n\n"[..], b"\0\x07data: 2"].concat();
    vec![
        ("agent-headers", "via", b"worker-1;0102030405060708090a0b0c0d0e0f10".to_vec()),
        ("agent-headers", "load", b"c=4;r=3;q=2;l=75;s=812;st=ready".to_vec()),
        ("agent-headers", "trace", trace.into()),
        ("agent-headers", "call-state", b"never-seen".to_vec()),
        ("event-stream", "broken-off", events),
        ("model-form", "two-parts", form.into()),
        ("model-json", "first", b"\x05{\"model\":\"llama\",\"messages\":[]}".to_vec()),
        (
            "model-json",
            "last",
            b"\x20{\"messages\":[{\"content\":\"\\u00e4\\\\\"}],\"stream\":true,\"model\":\"llama\"}".to_vec(),
        ),
        ("model-list", "two", text(&list)),
        ("request-headers", "forwarded", headers.into()),
        ("request-path", "service", b"/service/ocr/v1/scan?a=%20".to_vec()),
        ("request-path", "service-alone", b"/service/ocr".to_vec()),
        ("request-path", "model", b"/v1/audio/transcriptions?x=1".to_vec()),
    ]
}

fn upstreams() -> Made {
    let metrics = "# HELP x y\nvllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_waiting{engine=\"0\"} 3\n\
                   vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n";
    let loads =
        r#"{"loads":[{"num_running_reqs":12,"num_waiting_reqs":3,"token_usage":0.5,"max_running_requests":48}]}"#;
    let slots = r#"[{"id":0,"is_processing":true},{"id":1,"state":0}]"#;
    vec![
        ("upstream-answers", "vllm-metrics", metrics.into()),
        ("upstream-answers", "sglang-loads", loads.into()),
        ("upstream-answers", "llama-slots", slots.into()),
        ("upstream-answers", "llama-props", br#"{"total_slots":4}"#.to_vec()),
        ("upstream-answers", "triton", br#"{"name":"triton","version":"2.40.0"}"#.to_vec()),
        ("upstream-answers", "models", br#"{"object":"list","data":[{"id":"m"}]}"#.to_vec()),
        ("upstream-answers", "url", b"http://127.0.0.1:8000/api".to_vec()),
    ]
}

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}
