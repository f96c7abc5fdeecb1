//! What the router makes of requests, bodies and answers: see [`wiremesh_certs::fuzz`].

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::PathAndQuery};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use super::{
    MAX_MODEL_BYTES, ModelName, Needs, Target, Via, Work,
    calls::CallState,
    headers,
    openai::{self, Peek, Peeked},
    sse::Events,
    trace::{TRACEPARENT, TraceParent},
    via::CallId,
};
use crate::fuzz::{Choices, Verdict, told};

/// The path of a request, query included.
pub fn request_path(bytes: &[u8]) -> Verdict {
    let Ok(path) = PathAndQuery::try_from(bytes) else { return Verdict::Refused };
    let needs = Needs::of(&Method::GET, &path).and_then(told);
    if let Some(Needs { target: Target::Service(service), path: upstream, .. }) = &needs {
        assert!(upstream.as_str().starts_with('/'));
        assert_eq!(upstream.query(), path.query());
        let rest = path.path().strip_prefix("/service/").and_then(|rest| rest.strip_prefix(service.as_str()));
        assert!(rest.is_some_and(|rest| rest == upstream.path() || rest.is_empty() && upstream.path() == "/"));
        leads_nowhere_else(upstream.path());
    }
    let model = ModelName::new("m").expect("a name");
    let face = openai::call(&Method::POST, &path).or_else(|| openai::call(&Method::GET, &path));
    if face.is_some()
        && let Some(needs) = told(Needs::of_model(&Method::POST, &path, model))
    {
        leads_nowhere_else(needs.path.path());
    }
    Verdict::taken_if(needs.is_some() || face.is_some())
}

/// A browser's reading of the path, and that of a server that resolves escapes first, stay below where it begins.
fn leads_nowhere_else(path: &str) {
    let read = url::Url::parse(&format!("http://h{path}")).expect("the path of a request is one of a URL");
    assert_eq!(read.path().split('/').count(), path.split(['/', '\\']).count(), "{path} is {}", read.path());
    let decoded = path.to_ascii_lowercase().replace("%2f", "/").replace("%5c", "/").replace("%2e", ".");
    let mut parts = decoded.split(['/', '\\']);
    assert!(!parts.any(|part| part == "." || part == ".."), "{path}");
}

/// The headers of a request: a name, a colon, a value, a line each.
pub fn request_headers(bytes: &[u8]) -> Verdict {
    let mut map = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::try_from(&line[..colon]), HeaderValue::try_from(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    let uri = Uri::from_static("http://client.example/service/ocr?x=1");
    let size = headers::size(&uri, &map);
    let upgrade = headers::upgrade(&map);
    assert!(upgrade.is_none_or(|protocol| !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2c")));
    let _ = headers::expects(&map);
    assert!(headers::request_id(&map).is_none_or(|id| id.as_bytes().iter().all(u8::is_ascii_graphic)));
    if let Some(parent) = TraceParent::arriving(&mut map) {
        assert_eq!(parent.to_string().parse(), Ok(parent));
    }
    let mut peek = openai::peek(&map);
    let _ = (peek.push(b"{}"), Events::in_answer(&map));

    headers::move_host(&mut map, &uri);
    headers::strip_hop_by_hop(&mut map);
    headers::strip_ours(&mut map, Some(&headers::VIA));
    assert!(map.keys().all(|name| !name.as_str().starts_with("x-wiremesh-") || *name == headers::VIA));
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::HOST, header::TE] {
        assert!(!map.contains_key(&name), "{name} goes on");
    }
    assert!(map.get_all(TRACEPARENT).iter().count() <= 1);
    assert!(headers::size(&uri, &map) <= size + "x-forwarded-host".len() + "client.example".len());
    Verdict::taken_if(!map.is_empty())
}

/// The value of a header that agents send one another.
pub fn between_agents(bytes: &[u8]) -> Verdict {
    fn same<T: FromStr<Err: fmt::Display> + fmt::Display + PartialEq + fmt::Debug>(text: &str) -> bool {
        let Some(read) = told(text.parse::<T>()) else { return false };
        assert_eq!(told(read.to_string().parse::<T>()).as_ref(), Some(&read), "{text:?}");
        true
    }
    let Ok(value) = HeaderValue::try_from(bytes) else { return Verdict::Refused };
    let model = ModelName::from_header(&value);
    if let Some(model) = &model {
        assert_eq!(model.header(), value);
    }
    let Ok(text) = value.to_str() else { return Verdict::of(&model) };
    let taken = [
        same::<Via>(text),
        same::<CallId>(text),
        same::<Work>(text),
        same::<TraceParent>(text),
        told(text.parse::<CallState>()).is_some_and(|state| state.as_str() == text),
    ];
    Verdict::taken_if(taken.contains(&true))
}

/// A JSON body in two pieces, the first as long as the first byte says.
pub fn model_of_json(bytes: &[u8]) -> Verdict {
    let Some((cut, body)) = bytes.split_first() else { return Verdict::Refused };
    let found = at_any_cut(Peek::json, body, *cut);
    if let Ok(FirstModel(expected)) = serde_json::from_slice(body) {
        let expected = expected.as_ref().and_then(Value::as_str).and_then(ModelName::new);
        assert_eq!(model_in(&found), expected.as_ref(), "another model than a parser finds");
    }
    Verdict::taken_if(model_in(&found).is_some())
}

/// A form in parts: the content type up to the first line end, and the body behind it.
pub fn model_of_form(bytes: &[u8]) -> Verdict {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(kind), Some([cut, body @ ..])) = (parts.next(), parts.next()) else { return Verdict::Refused };
    let Ok(kind) = std::str::from_utf8(kind) else { return Verdict::Refused };
    Verdict::taken_if(model_in(&at_any_cut(|| Peek::form(kind), body, *cut)).is_some())
}

fn at_any_cut(peek: impl Fn() -> Peek, body: &[u8], cut: u8) -> Peeked {
    let whole = peek().push(body);
    let (first, second) = body.split_at(usize::from(cut).min(body.len()));
    let mut in_two = peek();
    let mut found = in_two.push(first);
    if found == Peeked::More {
        found = in_two.push(second);
    }
    assert_eq!(found, whole, "it depends on how the body is cut");
    match &whole {
        Peeked::More => _ = told(Err::<(), _>(in_two.end())),
        Peeked::Model(model) => assert!((1..=MAX_MODEL_BYTES).contains(&model.as_str().len())),
        Peeked::Bad(why) => _ = told(Err::<(), _>(why.clone())),
    }
    whole
}

fn model_in(peeked: &Peeked) -> Option<&ModelName> {
    match peeked {
        Peeked::Model(model) => Some(model),
        Peeked::More | Peeked::Bad(_) => None,
    }
}

/// The first member called `model` of an object.
struct FirstModel(Option<Value>);

impl<'de> Deserialize<'de> for FirstModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FirstModel, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = FirstModel;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<FirstModel, A::Error> {
                let mut first = None;
                while let Some(key) = map.next_key::<String>()? {
                    match first.is_none() && key == "model" {
                        true => first = Some(map.next_value()?),
                        false => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(FirstModel(first))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Another agent's list of models.
pub fn model_list(bytes: &[u8]) -> Verdict {
    let names = openai::read_listing(bytes);
    if let Some(names) = &names {
        assert!(names.iter().all(|name| ModelName::new(name.as_str()).as_ref() == Some(name)));
        if let Some(first) = names.first() {
            assert!(openai::nearby(first, names).contains(first), "a name is like itself");
        }
    }
    Verdict::of(&names)
}

/// A stream of events, in pieces, whose worker dies at the end of the input: the last event is the error.
pub fn event_stream(bytes: &[u8]) -> Verdict {
    let (mut events, mut choices, mut stream) = (Events::default(), Choices(bytes), Vec::new());
    while let Some(piece) = choices.piece() {
        events.on_bytes(piece);
        stream.extend_from_slice(piece);
    }
    let before = dispatched(&stream);
    stream.extend_from_slice(events.last_words("{}").as_bytes());
    let after = dispatched(&stream);

    assert_eq!(after.len(), before.len() + 1, "{after:?} after {before:?}");
    assert_eq!(after[..before.len()], before);
    let (kind, data) = after.last().expect("the error is one");
    assert_eq!(kind, b"error");
    assert!(data == b"{}" || data.ends_with(b"\n{}"), "{data:?}");
    Verdict::taken_if(!before.is_empty())
}

/// Kind and data of each event, as a browser reads them (HTML, section 9.2.6).
fn dispatched(stream: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut events, mut kind, mut data): (_, Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = stream.strip_prefix("\u{feff}".as_bytes()).unwrap_or(stream);
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        let line = &rest[..end];
        let ends = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[end + ends..];
        let (name, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..])),
            None => (line, &[][..]),
        };
        match name {
            b"event" => kind = value.to_vec(),
            b"data" => {
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            b"" if line.is_empty() => {
                if data.pop().is_some() {
                    events.push((std::mem::take(&mut kind), std::mem::take(&mut data)));
                }
                kind.clear();
                data.clear();
            }
            _ => {}
        }
    }
    events
}
