use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, http::StatusCode, routing::get};

use super::*;
use crate::services::{Capabilities, Handle, ServiceConfig, io::client::Client};

const SLOTS: &str = r#"[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]"#;
const MODELS_PAGE: &str = r#"{"object":"list","data":[{"id":"qwen3-8b"}]}"#;

/// An upstream with these pages, up, and what is learnt of it. What it costs to run is dropped with the runtime.
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
async fn upstream(pages: Router, kind: Option<Kind>) -> (Handle, wiremesh_certs::ServiceName) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = wiremesh_certs::ServiceName::new("llm").unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, pages).await });
    let config = ServiceConfig { kind, ..ServiceConfig::new(name.clone(), upstream) };
    let handle = Handle::new(vec![config], Capabilities::of(Default::default(), None));
    handle.set_up(&name);
    let (service, shared) = (handle.shared.services[&name].clone(), handle.shared.clone());
    tokio::spawn(run(service, Client::new().unwrap(), shared, CancellationToken::new()));
    (handle, name)
}

#[tokio::test]
async fn an_upstream_is_recognised_and_then_says_how_busy_it_is_and_what_it_serves() {
    let pages = Router::new()
        .route("/props", get(async || r#"{"total_slots":2}"#))
        .route("/slots", get(async || SLOTS))
        .route("/v1/models", get(async || MODELS_PAGE));
    let (handle, llm) = upstream(pages, None).await;

    let mut reports = handle.report_changes();
    reports.wait_for(|_| handle.report(&llm).is_some_and(|report| report.running == 1)).await.unwrap();

    assert_eq!(handle.kind(&llm), Some(Kind::LlamaCpp));
    assert_eq!(handle.report(&llm).unwrap().capacity, 2);
    let mut models = handle.models_changes();
    assert_eq!(models.wait_for(|all| !all.is_empty()).await.unwrap()[0].1.as_ref(), ["qwen3-8b"]);
}

#[tokio::test]
async fn an_upstream_of_no_known_kind_is_generic_and_not_asked_again() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let pages = Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        (StatusCode::OK, "hello")
    });
    let (handle, llm) = upstream(pages, None).await;

    let mut reports = handle.report_changes();
    reports.wait_for(|_| handle.kind(&llm).is_some()).await.unwrap();

    assert_eq!(handle.kind(&llm), Some(Kind::Generic));
    assert_eq!(asked.load(Ordering::SeqCst), RECOGNISED_BY.len());
    assert!(handle.models().is_empty());
}

#[tokio::test]
async fn an_answer_without_end_is_no_answer_and_the_next_question_is_asked() {
    let endless = async || {
        axum::body::Body::from_stream(futures::stream::repeat_with(|| {
            Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(&[b'['; 65536]))
        }))
    };
    let pages = Router::new()
        .route("/v1/loads", get(endless))
        .route("/get_load", get(async || r#"[{"dp_rank":0,"num_reqs":3,"num_waiting_reqs":1,"num_tokens":9}]"#));
    let (handle, llm) = upstream(pages, Some(Kind::Sglang)).await;

    let mut reports = handle.report_changes();
    reports.wait_for(|_| handle.report(&llm).is_some_and(|report| report.running == 2)).await.unwrap();

    assert_eq!(handle.report(&llm).unwrap().queued, 1);
}

#[test]
fn what_an_upstream_does_not_have_is_not_asked_again() {
    let mut polling = Polling::default();
    assert!(polling.is_worth_it(Kind::LlamaCpp));

    polling.strike(0);
    polling.strike(1);
    assert!(polling.is_worth_it(Kind::LlamaCpp) && polling.is_struck(1) && !polling.is_struck(2));
    polling.strike(2);

    assert!(!polling.is_worth_it(Kind::LlamaCpp));
    assert!(!Polling::default().is_worth_it(Kind::Ollama));
}

#[test]
fn the_last_figures_stand_for_a_few_polls_without_an_answer() {
    let mut polling = Polling::default();
    let reading = Reading { running: Some(3), ..Reading::default() };

    assert_eq!(polling.on_reading(Reading::default()), None);
    assert_eq!(polling.on_reading(reading), Some(reading));
    let after: Vec<_> = (0..MISSES).map(|_| polling.on_reading(Reading::default())).collect();

    assert_eq!(after, [Some(reading), Some(reading), None]);
}
