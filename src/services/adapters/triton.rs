//! Triton says in its metrics how many requests wait for a model's instances; how many run it does not say.

use serde::Deserialize;

use super::{METRICS, Question, Reading, prometheus, requests};

pub const QUESTIONS: [Question; 1] = [Question { path: METRICS, wanted: |_| true, parse: metrics }];

/// All models of a server together.
fn metrics(text: &str) -> Option<Reading> {
    let [pending] = prometheus::sums(text, ["nv_inference_pending_request_count"]);
    Reading { waiting: pending.and_then(requests), ..Reading::default() }.if_any()
}

/// Whether this is what `/v2` answers.
pub fn is_server(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Server {
        name: String,
        version: String,
    }
    serde_json::from_str::<Server>(text).is_ok_and(|server| server.name == "triton" && !server.version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS_PAGE: &str = r#"# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="resnet50",version="1"} 10240
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="resnet50",version="1"} 10240
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="resnet50",version="1"} 3
nv_inference_pending_request_count{model="bert-large",version="2"} 11
# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-aaa"} 0.78
"#;

    #[test]
    fn what_is_pending_for_any_model_waits() {
        let reading = metrics(METRICS_PAGE).unwrap();

        assert_eq!((reading.waiting, reading.running), (Some(14), None));
    }

    #[test]
    fn a_server_without_that_gauge_says_nothing() {
        assert_eq!(metrics("nv_inference_request_success{model=\"m\",version=\"1\"} 5\n"), None);
        assert_eq!(metrics("nv_inference_pending_request_count{model=\"m\"} NaN\n"), None);
        assert_eq!(metrics("nv_inference_pending_request_count{model=\"m"), None);
    }

    #[test]
    fn only_triton_is_triton() {
        assert!(is_server(r#"{"name":"triton","version":"2.60.0","extensions":["classification"]}"#));
        for text in ["", "{}", r#"{"name":"kserve","version":"1"}"#, r#"{"name":"triton"}"#, r#"{"name":["triton"]}"#] {
            assert!(!is_server(text), "{text}");
        }
    }
}
