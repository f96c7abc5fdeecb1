//! text-generation-inference says in its metrics how large its batch and its queue are.

use super::{METRICS, Question, Reading, prometheus};

pub const QUESTIONS: [Question; 1] = [Question { path: METRICS, wanted: |_| true, parse: metrics }];

fn metrics(text: &str) -> Option<Reading> {
    prometheus::running_and_waiting(text, "tgi_batch_current_size", "tgi_queue_size").if_any()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS_PAGE: &str = r#"# TYPE tgi_request_count counter
tgi_request_count 150
# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 8192
# TYPE tgi_queue_size gauge
tgi_queue_size 7
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 4
# TYPE tgi_batch_inference_duration histogram
tgi_batch_inference_duration_bucket{method="decode",le="0.000015"} 0
tgi_batch_inference_duration_bucket{method="decode",le="+Inf"} 44
"#;

    #[test]
    fn the_batch_runs_and_the_queue_waits() {
        let reading = metrics(METRICS_PAGE).unwrap();

        assert_eq!((reading.running, reading.waiting), (Some(4), Some(7)));
        assert_eq!((reading.kv_usage, reading.capacity), (None, None));
    }

    #[test]
    fn a_server_that_has_batched_nothing_yet_shows_its_queue_alone() {
        let reading = metrics("tgi_queue_size 0\n").unwrap();

        assert_eq!((reading.running, reading.waiting), (None, Some(0)));
    }

    #[test]
    fn nonsense_says_nothing() {
        for text in ["", "tgi_queue_size -1\n", "tgi_queue_size NaN\n", "tgi_queue_size", "tgi_queue_size{a=\"\n"] {
            assert_eq!(metrics(text), None, "{text}");
        }
    }
}
