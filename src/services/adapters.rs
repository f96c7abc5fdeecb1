//! What upstreams of known kinds say about themselves, and how they are asked.
//!
//! | kind | asked | says |
//! |---|---|---|
//! | vLLM | `/metrics` | running, waiting, KV cache |
//! | llama.cpp | `/slots`, `/props`, `/metrics` | running, how many at once, waiting |
//! | SGLang | `/v1/loads`, else `/get_load`, else `/metrics` | running, waiting, how many at once, KV cache |
//! | TGI | `/metrics` | running, waiting |
//! | Triton | `/metrics` on the port two above | waiting |
//! | Ollama, OpenAI-like, generic | nothing | nothing: our own permits are the meter |
//!
//! Whatever is absent, too large or nonsense is left out; nothing an upstream says can do more harm than a wrong figure
//! within its bounds.

mod llama_cpp;
mod prometheus;
mod sglang;
mod tgi;
mod triton;
mod vllm;

use std::str::FromStr;

use super::{DEFAULT_CAPACITY, models};

/// A figure beyond is nonsense, and cut.
pub const MAX_REQUESTS: u32 = 1_000_000;
/// For upstreams that batch as many requests as fit and do not say how many: enough to keep them busy, few enough that
/// the rest can still go elsewhere.
const BATCHING_CAPACITY: usize = 64;
/// Triton shows its metrics on 8002 where it serves on 8000, and so on for those that were moved together.
const TRITON_METRICS_ABOVE: u16 = 2;

/// What an upstream is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Nothing is asked but its health.
    Generic,
    /// vLLM's server.
    Vllm,
    /// llama.cpp's server.
    LlamaCpp,
    /// SGLang's server.
    Sglang,
    /// Hugging Face's text-generation-inference.
    Tgi,
    /// NVIDIA's Triton.
    Triton,
    /// Ollama.
    Ollama,
    /// Of another make, with a list of its models at `/v1/models`.
    OpenAi,
}

/// What an upstream says about itself at one moment; nothing where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Requests it works on.
    pub running: Option<u32>,
    /// Requests in its own line.
    pub waiting: Option<u32>,
    /// How full the memory is that a request needs while it runs, from 0 to 1.
    pub kv_usage: Option<f64>,
    /// Requests it works on at once.
    pub capacity: Option<u32>,
}

/// One thing to ask an upstream of some kind.
pub struct Question {
    /// Where.
    pub path: &'static str,
    /// Whether it is to be asked after what was read already.
    pub wanted: fn(&Reading) -> bool,
    /// What the answer says; `None` if it is not such an answer.
    pub parse: fn(&str) -> Option<Reading>,
}

impl Kind {
    /// All that can be said in a configuration, besides `auto`.
    pub const ALL: [Kind; 8] =
        [Kind::Generic, Kind::Vllm, Kind::LlamaCpp, Kind::Sglang, Kind::Tgi, Kind::Triton, Kind::Ollama, Kind::OpenAi];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Generic => "generic",
            Kind::Vllm => "vllm",
            Kind::LlamaCpp => "llama.cpp",
            Kind::Sglang => "sglang",
            Kind::Tgi => "tgi",
            Kind::Triton => "triton",
            Kind::Ollama => "ollama",
            Kind::OpenAi => "openai",
        }
    }

    /// What to ask it every time.
    pub fn questions(self) -> &'static [Question] {
        match self {
            Kind::Vllm => &vllm::QUESTIONS,
            Kind::LlamaCpp => &llama_cpp::QUESTIONS,
            Kind::Sglang => &sglang::QUESTIONS,
            Kind::Tgi => &tgi::QUESTIONS,
            Kind::Triton => &triton::QUESTIONS,
            Kind::Ollama | Kind::OpenAi | Kind::Generic => &[],
        }
    }

    /// Whether it lists its models at [`MODELS`].
    pub fn lists_models(self) -> bool {
        match self {
            Kind::Vllm | Kind::LlamaCpp | Kind::Sglang | Kind::Tgi | Kind::Ollama | Kind::OpenAi => true,
            Kind::Triton | Kind::Generic => false,
        }
    }

    /// Requests at once where neither the operator nor the upstream says.
    pub fn capacity_unless_said(self) -> usize {
        match self {
            Kind::Vllm | Kind::Sglang | Kind::Tgi => BATCHING_CAPACITY,
            Kind::LlamaCpp | Kind::Triton | Kind::Ollama | Kind::OpenAi | Kind::Generic => DEFAULT_CAPACITY,
        }
    }

    /// The port of its metrics, for one that serves on `port`.
    pub fn metrics_port(self, port: u16) -> u16 {
        match self {
            Kind::Triton => port.saturating_add(TRITON_METRICS_ABOVE),
            Kind::Vllm | Kind::LlamaCpp | Kind::Sglang | Kind::Tgi | Kind::Ollama | Kind::OpenAi | Kind::Generic => {
                port
            }
        }
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Kind, ()> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl Reading {
    /// What this says, and where it is silent what `other` says.
    pub fn or(self, other: Reading) -> Reading {
        Reading {
            running: self.running.or(other.running),
            waiting: self.waiting.or(other.waiting),
            kv_usage: self.kv_usage.or(other.kv_usage),
            capacity: self.capacity.or(other.capacity),
        }
    }

    /// Itself, if it says anything.
    fn if_any(self) -> Option<Reading> {
        (self != Reading::default()).then_some(self)
    }
}

/// Where metrics are on every kind that has them.
pub const METRICS: &str = "/metrics";
/// Where models are listed.
pub const MODELS: &str = "/v1/models";

/// Says what an upstream is by one of its answers.
pub type Tells = fn(&str) -> Option<Kind>;

/// How an upstream of unknown kind is recognised: asked in this order, until an answer tells.
pub const RECOGNISED_BY: [(&str, Tells); 7] = [
    (METRICS, by_metrics),
    ("/v1/loads", |text| sglang::loads(text).map(|_| Kind::Sglang)),
    ("/get_load", |text| sglang::get_load(text).map(|_| Kind::Sglang)),
    ("/props", |text| llama_cpp::props(text).map(|_| Kind::LlamaCpp)),
    ("/v2", |text| triton::is_server(text).then_some(Kind::Triton)),
    ("/", |text| (text.trim() == "Ollama is running").then_some(Kind::Ollama)),
    (MODELS, |text| models::listed(text).map(|_| Kind::OpenAi)),
];

fn by_metrics(text: &str) -> Option<Kind> {
    prometheus::samples(text).find_map(|(name, _)| {
        let of = |prefix| name.starts_with(prefix);
        match () {
            () if of("vllm:") => Some(Kind::Vllm),
            () if of("sglang:") => Some(Kind::Sglang),
            () if of("llamacpp:") => Some(Kind::LlamaCpp),
            () if of("tgi_") => Some(Kind::Tgi),
            () if of("nv_inference_") => Some(Kind::Triton),
            () => None,
        }
    })
}

/// A number of requests, if it is one.
fn requests(value: f64) -> Option<u32> {
    // Between 0 and the maximum after the clamp.
    (value.is_finite() && value >= 0.0).then(|| value.min(f64::from(MAX_REQUESTS)).round() as u32)
}

/// A share, if it is one.
fn share(value: f64) -> Option<f64> {
    (value.is_finite() && value >= 0.0).then(|| value.min(1.0))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn an_upstream_is_recognised_by_the_first_answer_that_tells() {
        let recognise = |path: &str, text: &str| {
            RECOGNISED_BY.iter().find(|(asked, _)| *asked == path).and_then(|(_, tells)| tells(text))
        };
        for (path, text, kind) in [
            (
                "/metrics",
                "# HELP x\nprocess_cpu_seconds_total 1\nvllm:num_requests_running{engine=\"0\"} 0.0\n",
                Kind::Vllm,
            ),
            ("/metrics", "sglang:num_running_reqs{model_name=\"m\"} 0\n", Kind::Sglang),
            ("/metrics", "llamacpp:requests_processing 0\n", Kind::LlamaCpp),
            ("/metrics", "tgi_queue_size 0\n", Kind::Tgi),
            ("/v1/loads", r#"{"loads":[{"num_running_reqs":0,"num_waiting_reqs":0}]}"#, Kind::Sglang),
            ("/get_load", r#"[{"dp_rank":0,"num_reqs":0,"num_waiting_reqs":0,"num_tokens":0}]"#, Kind::Sglang),
            ("/props", r#"{"total_slots":4,"model_path":"x"}"#, Kind::LlamaCpp),
            ("/v2", r#"{"name":"triton","version":"2.40.0","extensions":[]}"#, Kind::Triton),
            ("/", "Ollama is running", Kind::Ollama),
            ("/v1/models", r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#, Kind::OpenAi),
        ] {
            assert_eq!(recognise(path, text), Some(kind), "{path}: {text}");
        }
        for (path, _) in RECOGNISED_BY {
            for text in ["", "{}", "[]", "null", "ok", "<html>", r#"{"who":"a","headers":{"data":"x"}}"#] {
                assert_eq!(recognise(path, text), None, "{path}: {text}");
            }
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("auto".parse::<Kind>(), Err(()));
    }

    #[test]
    fn nonsense_is_no_number_of_requests_and_too_many_are_cut() {
        assert_eq!([f64::NAN, f64::INFINITY, -1.0, -0.1].map(requests), [None; 4]);
        assert_eq!(requests(1e300), Some(MAX_REQUESTS));
        assert_eq!([f64::NAN, -0.5].map(share), [None; 2]);
        assert_eq!(share(73.0), Some(1.0));
    }

    proptest! {
        #[test]
        fn no_answer_whatever_breaks_anything(bytes in vec(any::<u8>(), 0..300)) {
            let text = String::from_utf8_lossy(&bytes);
            for kind in Kind::ALL {
                for question in kind.questions() {
                    let _ = (question.parse)(&text);
                }
            }
            for (_, tells) in RECOGNISED_BY {
                let _ = tells(&text);
            }
        }

        #[test]
        fn cut_off_anywhere_an_answer_is_less_and_never_wrong(at in 0_usize..400) {
            let whole = "vllm:num_requests_running{engine=\"0\"} 2\nvllm:num_requests_waiting{engine=\"0\"} 3\n";
            let reading = vllm::metrics(&whole[..at.min(whole.len())]);
            prop_assert!(reading.is_none_or(|r| r.running.is_none_or(|n| n == 2) && r.waiting.is_none_or(|n| n == 3)));
        }
    }
}
