//! Lists of models: one worker's as it is read, all of them as they are shown, names like a name nobody knows.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use wiremesh_certs::NodeName;

use super::ModelName;

/// Models read from the list of one worker; what it lists beyond is not offered by us.
pub const MAX_WORKER_MODELS: usize = 512;
/// Names that are suggested in the place of an unknown one.
pub const MAX_NEARBY: usize = 5;

/// What one worker serves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Served {
    /// Who.
    pub worker: NodeName,
    /// Which models.
    pub models: Vec<ModelName>,
}

/// Every model that somebody serves, by whom.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listed(BTreeMap<ModelName, Vec<NodeName>>);

impl Listed {
    /// What these serve, together.
    pub fn of(all: impl IntoIterator<Item = Served>) -> Listed {
        let mut listed = BTreeMap::<ModelName, Vec<NodeName>>::new();
        for served in all {
            for model in served.models {
                let workers = listed.entry(model).or_default();
                if !workers.contains(&served.worker) {
                    workers.push(served.worker.clone());
                }
            }
        }
        Listed(listed)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &ModelName> {
        self.0.keys()
    }

    /// The body of `GET /v1/models`.
    pub fn json(&self) -> Value {
        let data: Vec<Value> = self.0.iter().map(|(model, workers)| entry(model, workers)).collect();
        json!({"object": "list", "data": data})
    }

    /// The body of `GET /v1/models/{model}`.
    pub fn one(&self, model: &ModelName) -> Option<Value> {
        self.0.get(model).map(|workers| entry(model, workers))
    }
}

fn entry(model: &ModelName, workers: &[NodeName]) -> Value {
    let workers: Vec<&str> = workers.iter().map(NodeName::as_str).collect();
    // Upstreams do not agree on what a date of creation is; clients want a number.
    json!({"id": model.as_str(), "object": "model", "created": 0, "owned_by": "wiremesh", "workers": workers})
}

/// The names in another agent's list, or an upstream's. What is no name is left out; `None` if it is no list.
pub fn read_listing(body: &[u8]) -> Option<Vec<ModelName>> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        id: String,
    }
    let list: List = serde_json::from_slice(body).ok()?;
    Some(list.data.iter().filter_map(|entry| ModelName::new(&entry.id)).take(MAX_WORKER_MODELS).collect())
}

/// Those of `names` that are most like `wanted`; of few names all.
pub fn nearby<'a>(wanted: &ModelName, names: impl IntoIterator<Item = &'a ModelName>) -> Vec<ModelName> {
    let wanted = wanted.as_str().to_lowercase();
    let likeness = |name: &ModelName| {
        let name = name.as_str().to_lowercase();
        let part = name.contains(&wanted) || wanted.contains(&name);
        if part { 2.0 } else { strsim::jaro_winkler(&wanted, &name) }
    };
    let mut names: Vec<(f64, &ModelName)> = names.into_iter().map(|name| (likeness(name), name)).collect();
    names.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    names.into_iter().take(MAX_NEARBY).map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ModelName {
        ModelName::new(text).unwrap()
    }

    fn served(worker: &str, models: &[&str]) -> Served {
        Served { worker: worker.parse().unwrap(), models: models.iter().copied().map(name).collect() }
    }

    #[test]
    fn lists_are_merged_and_a_model_of_several_workers_is_listed_once() {
        let listed =
            Listed::of([served("one", &["llama", "whisper"]), served("two", &["llama"]), served("one", &["llama"])]);

        assert_eq!(
            listed.json(),
            json!({"object": "list", "data": [
                {"id": "llama", "object": "model", "created": 0, "owned_by": "wiremesh", "workers": ["one", "two"]},
                {"id": "whisper", "object": "model", "created": 0, "owned_by": "wiremesh", "workers": ["one"]},
            ]})
        );
        assert_eq!(listed.one(&name("whisper")).unwrap()["id"], "whisper");
        assert_eq!(listed.one(&name("mistral")), None);
    }

    #[test]
    fn a_list_is_read_as_far_as_it_is_one() {
        let list = br#"{"object":"list","data":[{"id":"a","x":1},{"id":""},{"id":"b"}]}"#;

        assert_eq!(read_listing(list), Some(vec![name("a"), name("b")]));
        assert_eq!(read_listing(b"<html>"), None);
        let many: Vec<Value> = (0..1000).map(|number| json!({"id": format!("m{number}")})).collect();
        assert_eq!(read_listing(json!({"data": many}).to_string().as_bytes()).unwrap().len(), MAX_WORKER_MODELS);
    }

    #[test]
    fn names_like_an_unknown_one_come_first() {
        let names = ["mistral-7b", "llama-3.1-8b", "whisper-1", "llama-3.1-70b", "bge-m3", "qwen"].map(name);

        let suggested = nearby(&name("Llama-3.1"), &names);

        assert_eq!(suggested.len(), MAX_NEARBY);
        assert!(suggested[..2].iter().all(|name| name.as_str().starts_with("llama")));
    }
}
