//! Options from a file, the environment and flags, in that order, read into one typed struct.
//!
//! ```text
//! file (TOML) ─┐
//! environment ─┼─► Layers: one tree, each leaf knows where it came from ─► T: Deserialize
//! flags ───────┘
//! ```
//!
//! What the environment and flags give is text; the type that is asked for decides how it is read, so `8080` serves as
//! a number and as a name. A key that the target struct does not have is refused with the nearest one it has.

mod deserialize;
mod place;
mod span;

pub use place::Place;
pub use span::Span;

use std::{collections::BTreeMap, fmt, rc::Rc};

use serde::de::DeserializeOwned;

use crate::words;

/// Variables that begin so are ours: `WIREMESH_API__LISTEN` is `api.listen`.
pub const ENVIRONMENT_PREFIX: &str = "WIREMESH_";
/// Deeper keys than this are nobody's.
const MAX_DEPTH: usize = 16;

/// What is shown of where an option was given: the name of a variable, a file.
const MAX_ORIGIN_BYTES: usize = 100;
/// What is shown of the option's own name.
const MAX_PATH_BYTES: usize = 80;

/// A configuration that cannot be used. Says which option, where it was given, and what is wrong with it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{}{what}", .origin.as_ref().map(|origin| format!("{}: ", words::fewer(origin, MAX_ORIGIN_BYTES))).unwrap_or_default(), at(.path))]
pub struct BadSettings {
    path: Vec<String>,
    origin: Option<String>,
    what: String,
}

impl BadSettings {
    /// An option that parses but cannot be used, found after reading.
    pub fn about(path: &str, what: impl fmt::Display) -> BadSettings {
        BadSettings { path: path.split('.').map(str::to_owned).collect(), origin: None, what: words::few(what) }
    }
}

fn at(path: &[String]) -> String {
    if path.is_empty() { String::new() } else { format!("`{}`: ", words::fewer(path.join("."), MAX_PATH_BYTES)) }
}

/// Options as given so far. Later layers win, key by key; lists are replaced whole.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    root: BTreeMap<String, Node>,
}

impl Layers {
    /// Nothing given: every option at its default.
    pub fn new() -> Layers {
        Layers::default()
    }

    /// Adds a TOML file's contents. `name` is for error messages.
    pub fn file(mut self, name: &str, text: &str) -> Result<Layers, BadSettings> {
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| BadSettings {
            path: Vec::new(),
            origin: Some(name.to_owned()),
            what: not_toml(&error, text),
        })?;
        merge(&mut self.root, table, &Rc::from(name));
        Ok(self)
    }

    /// Adds the variables that begin with [`ENVIRONMENT_PREFIX`]: `__` stands between levels, case does not matter.
    /// Those named in `others` (without the prefix) have another meaning and are passed over.
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
        others: &[&str],
    ) -> Result<Layers, BadSettings> {
        let mut ours: Vec<_> = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(ENVIRONMENT_PREFIX)?.to_owned(), name, value)))
            .filter(|(key, ..)| !others.contains(&key.as_str()))
            .collect();
        // The same order on every start, whatever the environment's own.
        ours.sort();
        for (key, name, value) in ours {
            let path: Vec<_> = key.to_lowercase().split("__").map(str::to_owned).collect();
            insert(&mut self.root, &path, value, &Rc::from(format!("environment variable {name}")))?;
        }
        Ok(self)
    }

    /// Sets one option, as a flag or a variable of another name does. `origin` is for error messages: `--listen`.
    pub fn set(mut self, path: &str, value: impl Into<String>, origin: &str) -> Result<Layers, BadSettings> {
        let path: Vec<_> = path.split('.').map(str::to_owned).collect();
        insert(&mut self.root, &path, value.into(), &Rc::from(origin))?;
        Ok(self)
    }

    /// [`Layers::set`] if there is a value.
    pub fn set_if(self, path: &str, value: Option<impl Into<String>>, origin: &str) -> Result<Layers, BadSettings> {
        match value {
            Some(value) => self.set(path, value, origin),
            None => Ok(self),
        }
    }

    /// Reads what was given into `T`.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, BadSettings> {
        T::deserialize(deserialize::Value(Node::Table(self.root)))
    }
}

/// What is wrong, with the line it is in, unless that is none to be shown.
fn not_toml(error: &toml::de::Error, text: &str) -> String {
    let shown = error.to_string();
    if shown.len() <= words::MAX_WORDS_BYTES && !shown.chars().any(|c| c.is_control() && c != '\n') {
        return shown.trim_end().to_owned();
    }
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    words::few(format_args!("line {}: {}", before.matches('\n').count() + 1, error.message()))
}

/// Where a value was given.
type Origin = Rc<str>;

#[derive(Clone, Debug)]
enum Node {
    Table(BTreeMap<String, Node>),
    List(Vec<Node>),
    /// A number, bool or string of a file: already typed.
    Typed(toml::Value, Origin),
    /// From the environment or a flag: read as whatever is wanted.
    Text(String, Origin),
}

impl Node {
    fn of(value: toml::Value, origin: &Origin) -> Node {
        match value {
            toml::Value::Table(table) => {
                Node::Table(table.into_iter().map(|(key, value)| (key, Node::of(value, origin))).collect())
            }
            toml::Value::Array(values) => Node::List(values.into_iter().map(|value| Node::of(value, origin)).collect()),
            scalar => Node::Typed(scalar, origin.clone()),
        }
    }

    fn origin(&self) -> Option<&Origin> {
        match self {
            Node::Typed(_, origin) | Node::Text(_, origin) => Some(origin),
            Node::Table(table) => table.values().find_map(Node::origin),
            Node::List(list) => list.iter().find_map(Node::origin),
        }
    }
}

fn merge(into: &mut BTreeMap<String, Node>, table: toml::Table, origin: &Origin) {
    for (key, value) in table {
        match (into.get_mut(&key), value) {
            (Some(Node::Table(existing)), toml::Value::Table(table)) => merge(existing, table, origin),
            (_, value) => {
                into.insert(key, Node::of(value, origin));
            }
        }
    }
}

fn insert(
    root: &mut BTreeMap<String, Node>,
    path: &[String],
    value: String,
    origin: &Origin,
) -> Result<(), BadSettings> {
    let refused =
        |what: &str| BadSettings { path: path.to_vec(), origin: Some(origin.to_string()), what: what.to_owned() };
    if path.len() > MAX_DEPTH || path.iter().any(String::is_empty) {
        return Err(refused("not the path of an option"));
    }
    let [above @ .., last] = path else { return Err(refused("not the path of an option")) };
    let mut table = root;
    let mut rest = above.iter();
    while let Some(key) = rest.next() {
        let mut node = table.entry(key.clone()).or_insert_with(|| Node::Table(BTreeMap::new()));
        // `service.0.name` names a field of the first table of a list.
        while let Node::List(list) = node {
            let Some(index) = rest.next() else { return Err(refused("a list: name one of its entries by number")) };
            node = index
                .parse()
                .ok()
                .and_then(|index: usize| list.get_mut(index))
                .ok_or_else(|| refused("no such entry in the list"))?;
        }
        let Node::Table(inner) = node else { return Err(refused("an option that has no parts")) };
        table = inner;
    }
    table.insert(last.clone(), Node::Text(value, origin.clone()));
    Ok(())
}

#[cfg(test)]
mod tests;
