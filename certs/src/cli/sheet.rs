//! What a command has to show, for people and for programs, from one source.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::life::{Life, Phase};
use crate::UnixTime;

/// A titled list of facts. In JSON `kind` and one field per fact, whose names stay as they are.
#[derive(Debug)]
pub struct Sheet {
    title: String,
    rows: Vec<(&'static str, String)>,
    fields: Map<String, Value>,
    parts: Vec<Sheet>,
}

impl Sheet {
    /// Of this kind, which JSON shows; `title` is for people.
    pub fn new(kind: &str, title: impl Into<String>) -> Sheet {
        let fields = Map::from_iter([("kind".to_owned(), kind.into())]);
        Sheet { title: title.into(), rows: Vec::new(), fields, parts: Vec::new() }
    }

    /// A fact whose value is shown to both alike.
    pub fn fact(self, label: &'static str, field: &str, value: impl ToString) -> Sheet {
        let text = value.to_string();
        self.with(label, text.clone(), field, text)
    }

    /// A list of names; `none` is what people read if it is empty.
    pub fn list<T: ToString>(self, label: &'static str, field: &str, values: &[T], none: &str) -> Sheet {
        let texts: Vec<String> = values.iter().map(T::to_string).collect();
        let shown = if texts.is_empty() { none.to_owned() } else { texts.join(", ") };
        self.with(label, shown, field, texts)
    }

    /// A fact that people and programs read in different forms.
    pub fn with(mut self, label: &'static str, text: impl Into<String>, field: &str, value: impl Into<Value>) -> Sheet {
        self.rows.push((label, text.into()));
        self.field(field, value)
    }

    /// A fact for programs only.
    pub fn field(mut self, field: &str, value: impl Into<Value>) -> Sheet {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    /// From when to when it is valid, and what that means now.
    pub fn validity(self, life: Life, now: UnixTime) -> Sheet {
        let percent = life.used_percent(now);
        let text = match life.phase(now) {
            Phase::Valid => format!("{}, {percent} % used", life.text(now)),
            Phase::NotYet | Phase::Expired => life.text(now),
        };
        self.fact("valid from", "not_before", life.from)
            .with("valid until", format!("{} ({text})", life.until), "not_after", life.until.to_string())
            .field("status", life.phase(now).name())
            .field("expires_in_secs", life.expires_in_secs(now))
            .field("used_percent", percent)
    }

    /// Another sheet under this one, in the array `field`.
    pub fn part(mut self, field: &str, part: Sheet) -> Sheet {
        let parts = self.fields.entry(field).or_insert_with(|| json!([]));
        if let Value::Array(parts) = parts {
            parts.push(part.json());
        }
        self.parts.push(part);
        self
    }

    /// With another title.
    pub fn titled(self, title: impl Into<String>) -> Sheet {
        Sheet { title: title.into(), ..self }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// For programs if `json`, else for people: whole lines.
    pub fn text(&self, json: bool) -> String {
        if json { pretty(&self.json()) } else { self.lines("") }
    }

    fn lines(&self, indent: &str) -> String {
        let mut text = format!("{indent}{}\n", self.title);
        for (label, value) in &self.rows {
            let _ = writeln!(text, "{indent}  {label:<12} {value}");
        }
        for part in &self.parts {
            text.push_str(&part.lines(&format!("{indent}  ")));
        }
        text
    }
}

/// JSON in whole lines.
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Text of strangers, fit for a terminal: nothing in it moves the cursor.
pub fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: UnixTime = UnixTime(1_800_000_000);
    const END: UnixTime = UnixTime(1_800_000_000 + 8 * 86_400);

    #[test]
    fn validity_says_how_long_there_is_and_how_much_is_gone() {
        let at = |now| Sheet::new("x", "x").validity(Life { from: START, until: END }, now);
        let later = |hours: u64| START.plus(Duration::from_secs(hours * 3600));

        assert!(at(later(116)).text(false).contains("(expires in 3 d 4 h, 60 % used)"));
        assert!(at(later(8 * 24 + 2)).text(false).contains("(expired 2 h ago)"));
        assert!(at(START.minus(Duration::from_secs(60))).text(false).contains("(valid in 1 m)"));
        assert_eq!(at(later(8 * 24 + 2)).json()["status"], "expired");
        assert_eq!(at(later(8 * 24 + 2)).json()["expires_in_secs"], -7200);
        assert_eq!(at(START).json()["used_percent"], 0);
    }

    #[test]
    fn a_validity_of_no_sense_does_no_harm() {
        let sheet = Sheet::new("x", "x").validity(Life { from: END, until: UnixTime(0) }, UnixTime(u64::MAX));

        assert_eq!(sheet.json()["status"], "expired");
    }

    #[test]
    fn strangers_do_not_move_the_cursor() {
        assert_eq!(tame("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
