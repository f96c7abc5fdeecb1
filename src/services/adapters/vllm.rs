//! vLLM says in its metrics how many requests it runs and holds, and how full its KV cache is.

use super::{METRICS, Question, Reading, prometheus, share};

pub const QUESTIONS: [Question; 1] = [Question { path: METRICS, wanted: |_| true, parse: metrics }];

/// The KV cache's gauge was called after the GPU before version 0.11.
const KV_USAGE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];

/// Several engines of one server add up; the fullest cache counts.
pub fn metrics(text: &str) -> Option<Reading> {
    let requests = prometheus::running_and_waiting(text, "vllm:num_requests_running", "vllm:num_requests_waiting");
    Reading { kv_usage: prometheus::largest(text, &KV_USAGE).and_then(share), ..requests }.if_any()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = r#"# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 12673.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 24.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 72.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="Qwen/Qwen3-8B",reason="capacity"} 72.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.4565217391304348
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="Qwen/Qwen3-8B"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="Qwen/Qwen3-8B"} 311.0
"#;

    #[test]
    fn running_waiting_and_the_kv_cache_are_read() {
        let reading = metrics(V1).unwrap();

        assert_eq!((reading.running, reading.waiting, reading.capacity), (Some(24), Some(72), None));
        assert!((reading.kv_usage.unwrap() - 0.4565).abs() < 0.001);
    }

    #[test]
    fn several_engines_add_up_and_the_fullest_cache_counts() {
        let text = "vllm:num_requests_running{engine=\"0\"} 1.0\nvllm:num_requests_running{engine=\"1\"} 2.0\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.9\n";

        let reading = metrics(text).unwrap();

        assert_eq!((reading.running, reading.waiting, reading.kv_usage), (Some(3), None, Some(0.9)));
    }

    #[test]
    fn the_older_name_of_the_cache_is_understood() {
        let text =
            "vllm:num_requests_running{model_name=\"m\"} 1.0\nvllm:gpu_cache_usage_perc{model_name=\"m\"} 0.25\n";

        assert_eq!(metrics(text).unwrap().kv_usage, Some(0.25));
    }

    #[test]
    fn nonsense_says_nothing() {
        for text in [
            "",
            "vllm:num_requests_running NaN\n",
            "vllm:num_requests_running -3\n",
            "vllm:kv_cache_usage_perc -Inf\n",
            "vllm:num_requests_running{engine=\"0\"\n",
            "vllm:num_requests_running",
        ] {
            assert_eq!(metrics(text), None, "{text}");
        }
        assert_eq!(metrics("vllm:num_requests_running 1e99\n").unwrap().running, Some(1_000_000));
    }
}
