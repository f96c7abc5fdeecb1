//! SGLang has a page for its load, another before version 0.5.8, and metrics if it was started with them.

use serde::Deserialize;

use super::{METRICS, Question, Reading, prometheus, requests, share};

pub const QUESTIONS: [Question; 3] = [
    Question { path: "/v1/loads", wanted: |_| true, parse: loads },
    Question { path: "/get_load", wanted: |so_far| so_far.running.is_none(), parse: get_load },
    Question { path: METRICS, wanted: |so_far| so_far.running.is_none(), parse: metrics },
];

/// One entry for each rank; they add up, and the fullest cache counts.
pub fn loads(text: &str) -> Option<Reading> {
    #[derive(Deserialize)]
    struct Answer {
        loads: Vec<Rank>,
    }
    #[derive(Deserialize)]
    struct Rank {
        num_running_reqs: f64,
        num_waiting_reqs: f64,
        token_usage: Option<f64>,
        max_running_requests: Option<f64>,
    }
    let ranks = serde_json::from_str::<Answer>(text).ok()?.loads;
    if ranks.is_empty() {
        return None;
    }
    let at_once: Option<f64> = ranks.iter().map(|rank| rank.max_running_requests).sum();
    Some(Reading {
        running: Some(requests(ranks.iter().map(|rank| rank.num_running_reqs).sum())?),
        waiting: Some(requests(ranks.iter().map(|rank| rank.num_waiting_reqs).sum())?),
        kv_usage: ranks.iter().filter_map(|rank| rank.token_usage.and_then(share)).reduce(f64::max),
        capacity: at_once.and_then(requests).filter(|capacity| *capacity > 0),
    })
}

/// The older page: those that wait are among all.
pub fn get_load(text: &str) -> Option<Reading> {
    #[derive(Deserialize)]
    struct Rank {
        num_reqs: f64,
        num_waiting_reqs: f64,
    }
    let ranks: Vec<Rank> = serde_json::from_str(text).ok()?;
    if ranks.is_empty() {
        return None;
    }
    let all = requests(ranks.iter().map(|rank| rank.num_reqs).sum())?;
    let waiting = requests(ranks.iter().map(|rank| rank.num_waiting_reqs).sum())?;
    Some(Reading { running: Some(all.saturating_sub(waiting)), waiting: Some(waiting), ..Reading::default() })
}

fn metrics(text: &str) -> Option<Reading> {
    let requests = prometheus::running_and_waiting(text, "sglang:num_running_reqs", "sglang:num_queue_reqs");
    Reading { kv_usage: prometheus::largest(text, &["sglang:token_usage"]).and_then(share), ..requests }.if_any()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADS: &str = r#"{"timestamp":"2026-02-13T09:29:32+00:00","version":"0.5.9","accelerator":"NVIDIA H200",
      "num_accelerators":1,"loads":[
        {"dp_rank":0,"timestamp":1739439000.1,"num_running_reqs":12,"num_waiting_reqs":3,"num_used_tokens":90112,
         "max_total_num_tokens":180224,"token_usage":0.5,"gen_throughput":811.2,"cache_hit_rate":0.1,"utilization":0.4,
         "max_running_requests":48,"memory":{"weight_gb":14.9},"queues":{"waiting":3,"grammar":0}},
        {"dp_rank":1,"timestamp":1739439000.1,"num_running_reqs":1,"num_waiting_reqs":0,"token_usage":0.02,
         "max_running_requests":48}]}"#;

    #[test]
    fn ranks_add_up_and_the_fullest_cache_counts() {
        let reading = loads(LOADS).unwrap();

        assert_eq!((reading.running, reading.waiting), (Some(13), Some(3)));
        assert_eq!((reading.kv_usage, reading.capacity), (Some(0.5), Some(96)));
    }

    #[test]
    fn what_a_rank_does_not_say_is_left_out() {
        let reading = loads(r#"{"loads":[{"num_running_reqs":1,"num_waiting_reqs":0}]}"#).unwrap();

        assert_eq!((reading.kv_usage, reading.capacity), (None, None));
    }

    #[test]
    fn the_older_page_counts_those_that_wait_among_all() {
        let text =
            r#"[{"rid":null,"http_worker_ipc":null,"dp_rank":0,"num_reqs":5,"num_waiting_reqs":2,"num_tokens":77}]"#;

        let reading = get_load(text).unwrap();

        assert_eq!((reading.running, reading.waiting), (Some(3), Some(2)));
    }

    #[test]
    fn the_metrics_say_the_same() {
        let text = "sglang:num_running_reqs{model_name=\"qwen\"} 2.0\nsglang:num_queue_reqs{model_name=\"qwen\"} 1.0\n\
                    sglang:token_usage{model_name=\"qwen\"} 0.28\n";

        let reading = metrics(text).unwrap();

        assert_eq!((reading.running, reading.waiting, reading.kv_usage), (Some(2), Some(1), Some(0.28)));
    }

    #[test]
    fn nonsense_says_nothing() {
        for text in [
            "",
            "{}",
            r#"{"loads":[]}"#,
            r#"{"loads":{}}"#,
            r#"{"loads":[{"num_running_reqs":-4,"num_waiting_reqs":0}]}"#,
            r#"{"loads":[{"num_running_reqs":"many","num_waiting_reqs":0}]}"#,
            r#"{"loads":[{"num_running_reqs":1}]}"#,
            &LOADS[..LOADS.len() / 2],
        ] {
            assert_eq!(loads(text), None, "{text}");
        }
        for text in ["", "[]", "{}", r#"[{"num_reqs":1}]"#, r#"[{"num_reqs":-1,"num_waiting_reqs":0}]"#] {
            assert_eq!(get_load(text), None, "{text}");
        }
        assert_eq!(metrics("sglang:num_running_reqs NaN\n"), None);
    }
}
