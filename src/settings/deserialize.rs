//! Serde over a tree of options: text becomes what is wanted, and unknown keys are refused with the nearest known one.

use std::{fmt, vec};

use serde::{
    Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, Visitor, value::StrDeserializer},
};

use super::{BTreeMap, BadSettings, ENVIRONMENT_PREFIX, Node, Origin};
use crate::words;

/// Names less alike than this are no suggestion.
const ALIKE: f64 = 0.7;

/// A node of the tree, being read.
pub(super) struct Value(pub Node);

impl de::Error for BadSettings {
    fn custom<T: fmt::Display>(what: T) -> BadSettings {
        BadSettings { path: Vec::new(), origin: None, what: words::few(what) }
    }
}

/// Adds where an error happened to what happened.
fn located(mut error: BadSettings, key: &str, origin: Option<Origin>) -> BadSettings {
    error.path.insert(0, key.to_owned());
    error.origin = error.origin.or_else(|| origin.map(|origin| origin.to_string()));
    error
}

/// Typed values of a file serve only as their own type; text serves as whatever it reads as.
macro_rules! from_text {
    ($($method:ident $visit:ident $kind:ty,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, BadSettings> {
            match &self.0 {
                Node::Text(text, _) => match text.trim().parse::<$kind>() {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => Err(de::Error::invalid_value(de::Unexpected::Str(text), &visitor)),
                },
                _ => self.deserialize_any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Value {
    type Error = BadSettings;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, BadSettings> {
        match self.0 {
            Node::Text(text, _) => visitor.visit_string(text),
            Node::Table(table) => visitor.visit_map(Entries::of(table)),
            Node::List(list) => visitor.visit_seq(Items { rest: list.into_iter(), index: 0 }),
            Node::Typed(value, _) => value.deserialize_any(visitor).map_err(|error| de::Error::custom(error.message())),
        }
    }

    from_text! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8,
        deserialize_i16 visit_i16 i16,
        deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
        deserialize_f32 visit_f32 f32,
        deserialize_f64 visit_f64 f64,
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, BadSettings> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, BadSettings> {
        visitor.visit_newtype_struct(self)
    }

    /// Text is a list as TOML writes one (`["a", "b"]`), or separated by commas; empty text is an empty list.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, BadSettings> {
        match self.0 {
            Node::Text(text, origin) => {
                visitor.visit_seq(Items { rest: list_from_text(&text, &origin)?.into_iter(), index: 0 })
            }
            // `WIREMESH_SERVICE__0__NAME` without any list in the file.
            Node::Table(table) if !table.is_empty() && table.keys().all(|key| key.parse::<usize>().is_ok()) => {
                let mut numbered: Vec<_> =
                    table.into_iter().map(|(key, node)| (key.parse::<usize>().unwrap_or_default(), node)).collect();
                numbered.sort_by_key(|(index, _)| *index);
                let list: Vec<_> = numbered.into_iter().map(|(_, node)| node).collect();
                visitor.visit_seq(Items { rest: list.into_iter(), index: 0 })
            }
            node => Value(node).deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, BadSettings> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, BadSettings> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, BadSettings> {
        let Node::Table(mut table) = self.0 else { return self.deserialize_any(visitor) };
        table.retain(|key, node| fields.contains(&key.as_str()) || !is_service_link(key, node));
        if let Some((key, node)) = table.iter().find(|(key, _)| !fields.contains(&key.as_str())) {
            return Err(located(unknown_key(key, fields), key, node.origin().cloned()));
        }
        visitor.visit_map(Entries::of(table))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, BadSettings> {
        match self.0 {
            Node::Text(text, _) | Node::Typed(toml::Value::String(text), _) => {
                visitor.visit_enum(StrDeserializer::new(&text))
            }
            node => Value(node).deserialize_any(visitor),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct map identifier ignored_any
    }
}

/// A table, key by key; errors learn the key.
struct Entries {
    rest: std::collections::btree_map::IntoIter<String, Node>,
    current: Option<(String, Node)>,
}

impl Entries {
    fn of(table: BTreeMap<String, Node>) -> Entries {
        Entries { rest: table.into_iter(), current: None }
    }
}

impl<'de> de::MapAccess<'de> for Entries {
    type Error = BadSettings;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, BadSettings> {
        self.current = self.rest.next();
        let Some((key, node)) = &self.current else { return Ok(None) };
        let read: Result<_, BadSettings> = seed.deserialize(key.as_str().into_deserializer());
        read.map(Some).map_err(|error| located(error, key, node.origin().cloned()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, BadSettings> {
        let (key, node) = self.current.take().ok_or_else(|| de::Error::custom("a value without a key"))?;
        let origin = node.origin().cloned();
        seed.deserialize(Value(node)).map_err(|error| located(error, &key, origin))
    }
}

/// A list, item by item; errors learn the index.
struct Items {
    rest: vec::IntoIter<Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Items {
    type Error = BadSettings;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, BadSettings> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        let (index, origin) = (self.index, node.origin().cloned());
        self.index += 1;
        seed.deserialize(Value(node)).map(Some).map_err(|error| located(error, &index.to_string(), origin))
    }
}

fn list_from_text(text: &str, origin: &Origin) -> Result<Vec<Node>, BadSettings> {
    let text = text.trim();
    if text.starts_with('[') {
        #[derive(serde::Deserialize)]
        struct Wrapped {
            list: Vec<toml::Value>,
        }
        let wrapped: Wrapped =
            toml::from_str(&format!("list = {text}")).map_err(|error| de::Error::custom(error.message()))?;
        return Ok(wrapped.list.into_iter().map(|value| Node::of(value, origin)).collect());
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(items.map(|item| Node::Text(item.to_owned(), origin.clone())).collect())
}

fn unknown_key(key: &str, known: &[&str]) -> BadSettings {
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), *name))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let what = match nearest {
        Some((_, name)) => format!("there is no such option; did you mean `{name}`?"),
        None => format!("there is no such option; known are {}", known.join(", ")),
    };
    BadSettings { path: Vec::new(), origin: None, what }
}

/// Kubernetes puts variables such as `WIREMESH_SERVICE_HOST` and `WIREMESH_PORT_8080_TCP_ADDR` into every container of a
/// namespace that has a service called `wiremesh`. They are not meant for us.
fn is_service_link(key: &str, node: &Node) -> bool {
    let Node::Text(_, origin) = node else { return false };
    let from_environment = origin.contains(ENVIRONMENT_PREFIX);
    let port = |rest: &str| rest.is_empty() || rest.starts_with('_');
    from_environment
        && (key.ends_with("service_host")
            || key.rsplit_once("service_port").is_some_and(|(_, rest)| port(rest))
            || key == "port"
            || key.ends_with("_port")
            || key.contains("port_") && (key.contains("_tcp") || key.contains("_udp")))
}
