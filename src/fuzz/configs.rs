//! The files that operators write, and the environment that goes before them.

use std::fmt;

use super::{Verdict, told};
use crate::{
    config, coordinator,
    settings::{BadSettings, Layers},
};

/// What stands behind a line of this in an input is the environment, a variable a line.
pub const ENVIRONMENT: &str = "--";

/// An agent's.
pub fn agent(bytes: &[u8]) -> Verdict {
    read(bytes, |layers| config::Config::read(layers, "box-7.example.com"))
}

/// The coordinator's.
pub fn coordinator(bytes: &[u8]) -> Verdict {
    read(bytes, coordinator::Config::from_layers)
}

fn read<T: fmt::Debug>(bytes: &[u8], read: impl Fn(Layers) -> Result<T, BadSettings>) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let outcome = layers(text).and_then(&read);
    if let Ok(config) = &outcome {
        let again = layers(text).and_then(&read).map(|again| format!("{again:?}"));
        assert_eq!(again, Ok(format!("{config:?}")), "the same file, read twice");
    }
    // A place in a file is shown by the lines of it.
    let outcome = outcome.map_err(|bad| bad.to_string().replace('\n', " "));
    Verdict::of(&told(outcome))
}

fn layers(text: &str) -> Result<Layers, BadSettings> {
    let (file, environment) = text.split_once(&format!("\n{ENVIRONMENT}\n")).unwrap_or((text, ""));
    let variables = environment.lines().filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Layers::new().file("a.toml", file)?.environment(variables, &["CONFIG"])
}
