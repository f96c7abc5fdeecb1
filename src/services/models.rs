//! The models that an upstream serves, as it lists them in OpenAI's words.

use std::sync::Arc;

use serde::Deserialize;

/// Models of one service that are remembered; those listed after are left out.
pub const MAX_MODELS: usize = 64;
/// A longer name is left out.
pub const MAX_NAME_BYTES: usize = 128;

/// The names in `{"data": [{"id": NAME}, …]}`, each once, in the order of the list; `None` if it is no such list.
pub fn listed(text: &str) -> Option<Arc<[String]>> {
    #[derive(Deserialize)]
    struct List {
        /// Null where there are none yet.
        #[serde(deserialize_with = "Option::deserialize")]
        data: Option<Vec<Model>>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }
    let list: List = serde_json::from_str(text).ok()?;
    let mut names: Vec<String> = Vec::new();
    for Model { id } in list.data.unwrap_or_default() {
        if names.len() == MAX_MODELS {
            break;
        }
        if is_name(&id) && !names.contains(&id) {
            names.push(id);
        }
    }
    Some(names.into())
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_read_each_once() {
        let text = r#"{"object":"list","data":[
            {"id":"Qwen/Qwen3-8B","object":"model","created":1739439000,"owned_by":"vllm","permission":[{}]},
            {"id":"my-lora","object":"model","parent":"Qwen/Qwen3-8B"},
            {"id":"my-lora","object":"model"}]}"#;

        assert_eq!(listed(text).unwrap().as_ref(), ["Qwen/Qwen3-8B", "my-lora"]);
    }

    #[test]
    fn a_server_without_models_has_an_empty_list() {
        for text in [r#"{"object":"list","data":[]}"#, r#"{"object":"list","data":null}"#] {
            assert_eq!(listed(text).unwrap().len(), 0, "{text}");
        }
    }

    #[test]
    fn names_that_are_none_are_left_out_and_not_more_than_fit_are_kept() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let text = serde_json::json!({ "data": [{"id": ""}, {"id": long}, {"id": "a\nb"}, {"id": "good"}] });
        assert_eq!(listed(&text.to_string()).unwrap().as_ref(), ["good"]);

        let many: Vec<_> = (0..1000).map(|n| serde_json::json!({ "id": format!("m{n}") })).collect();
        assert_eq!(listed(&serde_json::json!({ "data": many }).to_string()).unwrap().len(), MAX_MODELS);
    }

    #[test]
    fn what_is_no_list_is_not_read() {
        for text in ["", "[]", "{}", r#"{"data":[1]}"#, r#"{"data":[{"id":7}]}"#, r#"{"data":[{"id":"a"}"#] {
            assert_eq!(listed(text), None, "{text}");
        }
    }
}
