//! llama.cpp shows its slots: how many there are is what it takes at once, those that work are what runs. A server
//! started without them still says how many it has in its properties, and in its metrics, if it was started with those,
//! what runs and what waits for a slot.

use serde::Deserialize;

use super::{METRICS, Question, Reading, prometheus, requests};

pub const QUESTIONS: [Question; 3] = [
    Question { path: "/slots", wanted: |_| true, parse: slots },
    Question { path: "/props", wanted: |so_far| so_far.capacity.is_none(), parse: props },
    Question { path: METRICS, wanted: |so_far| so_far.waiting.is_none(), parse: metrics },
];

fn slots(text: &str) -> Option<Reading> {
    /// Prompts and settings beside it are read over.
    #[derive(Deserialize)]
    struct Slot {
        #[serde(default)]
        is_processing: Option<bool>,
        /// Before there was `is_processing`: 0 for idle.
        #[serde(default)]
        state: Option<u32>,
    }
    let slots: Vec<Slot> = serde_json::from_str(text).ok()?;
    let works = |slot: &Slot| slot.is_processing.or(slot.state.map(|state| state != 0));
    let running = slots.iter().map(works).collect::<Option<Vec<bool>>>()?.into_iter().filter(|works| *works).count();
    let capacity = requests(slots.len() as f64).filter(|capacity| *capacity > 0)?;
    Some(Reading { running: requests(running as f64), capacity: Some(capacity), ..Reading::default() })
}

pub fn props(text: &str) -> Option<Reading> {
    #[derive(Deserialize)]
    struct Props {
        total_slots: f64,
    }
    let slots = serde_json::from_str::<Props>(text).ok().and_then(|props| requests(props.total_slots));
    Some(Reading { capacity: Some(slots.filter(|slots| *slots > 0)?), ..Reading::default() })
}

fn metrics(text: &str) -> Option<Reading> {
    prometheus::running_and_waiting(text, "llamacpp:requests_processing", "llamacpp:requests_deferred").if_any()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: &str = r#"[
      {"id":0,"id_task":135,"n_ctx":65536,"speculative":false,"is_processing":true,
       "params":{"n_predict":-1,"seed":4294967295,"temperature":0.8,"stop":[],"grammar":""},
       "next_token":[{"has_next_token":true,"n_remain":-1,"n_decoded":0}]},
      {"id":1,"id_task":-1,"n_ctx":65536,"speculative":false,"is_processing":false}
    ]"#;

    #[test]
    fn the_slots_say_how_many_and_how_many_of_them_work() {
        let reading = slots(SLOTS).unwrap();

        assert_eq!((reading.running, reading.capacity, reading.waiting), (Some(1), Some(2), None));
    }

    #[test]
    fn slots_of_older_servers_have_a_state() {
        let reading = slots(r#"[{"id":0,"state":1,"prompt":"…"},{"id":1,"state":0},{"id":2,"state":0}]"#).unwrap();

        assert_eq!((reading.running, reading.capacity), (Some(1), Some(3)));
    }

    #[test]
    fn the_properties_say_how_many_slots() {
        let text = r#"{"default_generation_settings":{"id":0,"n_ctx":4096},"total_slots":4,"model_path":"/m.gguf"}"#;

        assert_eq!(props(text).unwrap().capacity, Some(4));
    }

    #[test]
    fn the_metrics_say_what_runs_and_what_waits() {
        let text = "# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 2\n\
                    # TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 5\n";

        let reading = metrics(text).unwrap();

        assert_eq!((reading.running, reading.waiting), (Some(2), Some(5)));
    }

    #[test]
    fn nonsense_says_nothing() {
        for text in [
            "",
            "[]",
            "{}",
            "[1,2]",
            r#"[{"id":0}]"#,
            r#"[{"is_processing":"yes"}]"#,
            r#"[{"is_processing":true}"#,
            r#"{"error":{"code":501,"message":"This server does not support slots endpoint."}}"#,
        ] {
            assert_eq!(slots(text), None, "{text}");
        }
        for text in ["", "{}", r#"{"total_slots":0}"#, r#"{"total_slots":-4}"#, r#"{"total_slots":"4"}"#] {
            assert_eq!(props(text), None, "{text}");
        }
        assert_eq!(props(r#"{"total_slots":1e300}"#).unwrap().capacity, Some(1_000_000));
    }
}
