use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::router::openai::MAX_MODEL_BYTES;

fn model(name: &str) -> Peeked {
    Peeked::Model(ModelName::new(name).unwrap())
}

fn json_of(body: &str) -> Peeked {
    Peek::json().push(body.as_bytes())
}

#[test]
fn the_model_of_an_object_is_its_own_and_the_first() {
    for (body, name) in [
        (r#"{"model":"a"}"#, "a"),
        (" {\n \"model\" :\t\"gpt-oss:20b\" , ...whatever follows", "gpt-oss:20b"),
        (r#"{"messages":[{"model":"no","content":"\"model\":\"no\""}],"model":"yes"}"#, "yes"),
        (r#"{"x":{"model":"no","y":[[{"z":"]}"}]]},"model":"yes"}"#, "yes"),
        (r#"{"n":-1.5e3,"t":true,"z":null,"s":"","a":[],"o":{},"model":"yes"}"#, "yes"),
        (r#"{"model":"first","model":"second"}"#, "first"),
        (r#"{"mod\u0065l":"org\/m\u00e4\ud83d\ude00"}"#, "org/mä😀"),
        (r#"{"models":"no","Model":"no","mode":"no","model":"yes"}"#, "yes"),
        (r#"{"":"no","stop":"\\","model":"Größe"}"#, "Größe"),
    ] {
        assert_eq!(json_of(body), model(name), "{body}");
    }
}

#[test]
fn what_names_no_model_is_told_why() {
    let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(MAX_MODEL_BYTES + 1));
    for (body, why) in [
        ("{}", BadModel::Missing),
        (r#"{"messages":[],"temperature":1}"#, BadModel::Missing),
        (r#"{"model":1}"#, BadModel::NotAName),
        (r#"{"model":null}"#, BadModel::NotAName),
        (r#"{"model":["a"]}"#, BadModel::NotAName),
        (r#"{"model":""}"#, BadModel::NotAName),
        (r#"{"model":"a\nb"}"#, BadModel::NotAName),
        (&long, BadModel::NotAName),
    ] {
        assert_eq!(json_of(body), Peeked::Bad(why), "{body}");
    }
    for body in ["[]", "\"model\"", "model=a", "{model", "{\"a\" 1}", "{\"a\":,", "{\"a\":\"b\" \"c\"", "\u{1f}\u{8b}"]
    {
        assert!(matches!(json_of(body), Peeked::Bad(BadModel::Body(_))), "{body}");
    }
    for body in [r#"{"model":"\ud83d"}"#, r#"{"model":"\ud83dx"}"#, r#"{"model":"\q"}"#, "{\"model\":\"a\nb\"}"] {
        assert!(matches!(json_of(body), Peeked::Bad(_)), "{body}");
    }
    assert_eq!(Peek::json().end(), BadModel::Body("it is empty"));
}

const FORM: &str = "multipart/form-data; charset=utf-8; boundary=\"--x y\"";

fn form(parts: &[(&str, &str)], line: &str) -> String {
    let parts = parts.iter().map(|(disposition, content)| {
        format!("----x y{line}Content-Disposition: form-data; {disposition}\r\ncontent-type: x/y\r\n\r\n{content}\r\n")
    });
    parts.collect::<String>() + "----x y--\r\n"
}

#[test]
fn the_model_of_a_form_is_its_part_of_that_name() {
    for parts in [
        &[("name=\"model\"", "whisper-1")][..],
        &[("name=\"file\"; filename=\"a;name=model\"", "\r\n--x\r\n\r\r\n----x"), ("name=model", "whisper-1")],
        &[("filename=\"model\"; name=\"prompt\"", "model"), ("NAME=\"model\"", "whisper-1"), ("name=\"model\"", "b")],
    ] {
        for line in ["\r\n", " \r\n"] {
            assert_eq!(Peek::form(FORM).push(form(parts, line).as_bytes()), model("whisper-1"), "{parts:?}");
        }
    }
}

#[test]
fn a_form_without_a_model_or_a_boundary_is_told_why() {
    let without = form(&[("name=\"file\"", "model")], "\r\n");

    assert_eq!(Peek::form(FORM).push(without.as_bytes()), Peeked::Bad(BadModel::Missing));
    assert_eq!(
        Peek::form(FORM).push(form(&[("name=\"model\"", "")], "\r\n").as_bytes()),
        Peeked::Bad(BadModel::NotAName)
    );
    assert!(matches!(Peek::form("multipart/form-data").push(b"--"), Peeked::Bad(BadModel::Body(_))));
    let endless = "x".repeat(100_000);
    let headers = format!("----x y\r\n{endless}");
    assert!(matches!(Peek::form(FORM).push(headers.as_bytes()), Peeked::Bad(BadModel::Body(_))));
    let model = form(&[("name=\"model\"", &endless)], "\r\n");
    assert_eq!(Peek::form(FORM).push(model.as_bytes()), Peeked::Bad(BadModel::NotAName));
}

/// Pushes the body in pieces that end at these places.
fn in_pieces(mut peek: Peek, body: &[u8], cuts: &[usize]) -> Peeked {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (body.len() + 1)).chain([0, body.len()]).collect();
    cuts.sort_unstable();
    for ends in cuts.windows(2) {
        let peeked = peek.push(&body[ends[0]..ends[1]]);
        if peeked != Peeked::More {
            return peeked;
        }
    }
    Peeked::More
}

/// Any JSON, with texts that look like what is sought.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof!["model", ".{0,12}", Just("\"model\":\"x\"".to_owned()), Just("\\\u{1f600}\\\"".to_owned())];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((text.clone(), inner), 0..4)
                .prop_map(|pairs| pairs.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_an_object_holds_its_model_is_found_at_any_cut(
        before in proptest::collection::vec((".{0,8}", any_json()), 0..4),
        name in "[a-zA-Z0-9/:äß😀.-]{1,40}",
        pretty: bool,
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let mut object = serde_json::Map::new();
        object.extend(before.into_iter().filter(|(key, _)| key != "model"));
        object.insert("model".into(), name.as_str().into());
        object.insert("zz".into(), json!({"model": "no"}));
        let value = Value::Object(object);
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();

        prop_assert_eq!(in_pieces(Peek::json(), &body, &cuts), model(&name));
    }

    #[test]
    fn what_any_json_names_is_what_a_parser_finds(value in any_json(), cuts in proptest::collection::vec(any::<usize>(), 0..4)) {
        let body = serde_json::to_vec(&value).unwrap();

        let expected = value.as_object().and_then(|object| object.get("model")).and_then(Value::as_str);
        let expected = expected.and_then(ModelName::new);
        let found = match in_pieces(Peek::json(), &body, &cuts) {
            Peeked::Model(model) => Some(model),
            Peeked::More | Peeked::Bad(_) => None,
        };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_form_is_read_alike_at_any_cut(
        file in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'x'), any::<u8>()], 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let head = b"preamble\r\n----x y\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
        let tail = b"\r\n----x y\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n----x y--\r\n";
        let is_delimiter = file.windows(7).any(|window| window == b"----x y");
        let body = [&head[..], &file, tail].concat();

        prop_assume!(!is_delimiter);
        prop_assert_eq!(in_pieces(Peek::form(FORM), &body, &cuts), model("whisper-1"));
    }

    #[test]
    fn anything_is_scanned_without_a_panic_and_alike_at_any_cut(
        body in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b'{'), Just(b'\\'), Just(b'u'), Just(b':'), any::<u8>()], 0..300),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        prop_assert_eq!(in_pieces(Peek::json(), &body, &cuts), in_pieces(Peek::json(), &body, &[]));
        prop_assert_eq!(in_pieces(Peek::form(FORM), &body, &cuts), in_pieces(Peek::form(FORM), &body, &[]));
    }
}
