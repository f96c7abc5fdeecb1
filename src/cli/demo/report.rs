//! What the demo prints: a line as each thing happens, a table at the end, or JSON alone.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde_json::json;

/// One request and how it was answered.
pub struct Row {
    /// What was going on.
    pub scene: String,
    /// The node whose client asked.
    pub asked_by: &'static str,
    /// What it asked for.
    pub service: &'static str,
    /// Who answered.
    pub worker: String,
    /// Over what.
    pub path: String,
    /// How the worker was found.
    pub source: String,
    /// How long it took, if there was an answer.
    pub took: Option<Duration>,
    /// What was not as it should be.
    pub wrong: Option<String>,
}

/// Everything that happened so far.
pub struct Report {
    rows: Vec<Row>,
    broken: Option<String>,
    style: Style,
    started_at: Instant,
}

/// How it is said.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    Json,
    Plain,
    Coloured,
}

const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";
const BOLD: &str = "1";

impl Report {
    /// Nothing happened yet. Colours are for terminals.
    pub fn new(json: bool, terminal: bool, now: Instant) -> Report {
        let style = match (json, terminal) {
            (true, _) => Style::Json,
            (false, true) => Style::Coloured,
            (false, false) => Style::Plain,
        };
        Report { rows: Vec::new(), broken: None, style, started_at: now }
    }

    /// Something happened that is not a request.
    pub fn progress(&self, out: &mut impl Write, line: &str, now: Instant) -> io::Result<()> {
        if self.style != Style::Json {
            let at = self.paint(DIM, &format!("{:6.2} s", (now - self.started_at).as_secs_f64()));
            writeln!(out, "{at}  {line}")?;
            out.flush()?;
        }
        Ok(())
    }

    /// A request was answered, or not.
    pub fn row(&mut self, out: &mut impl Write, row: Row, now: Instant) -> io::Result<()> {
        let verdict = match &row.wrong {
            None => self.paint(GREEN, "ok"),
            Some(wrong) => format!("{}: {wrong}", self.paint(RED, "failed")),
        };
        self.progress(out, &format!("{} asks for {}: {}: {verdict}", row.asked_by, row.service, row.scene), now)?;
        self.rows.push(row);
        Ok(())
    }

    /// It cannot go on.
    pub fn failed(&mut self, out: &mut impl Write, why: &str) -> io::Result<()> {
        self.broken = Some(why.to_owned());
        if self.style != Style::Json {
            writeln!(out, "{}: {why}", self.paint(RED, "failed"))?;
        }
        Ok(())
    }

    /// Whether everything happened as it should.
    pub fn all_good(&self) -> bool {
        self.broken.is_none() && !self.rows.is_empty() && self.rows.iter().all(|row| row.wrong.is_none())
    }

    /// The result.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        match self.style {
            Style::Json => self.print_json(out),
            Style::Plain | Style::Coloured => self.print_table(out),
        }
    }

    fn print_table(&self, out: &mut impl Write) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let head = ["", "asked by", "service", "answered by", "path", "found by", "time", ""].map(str::to_owned);
        let lines: Vec<[String; 8]> = std::iter::once(head).chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..8).map(width).collect();
        writeln!(out)?;
        for (number, line) in lines.iter().enumerate() {
            let mut text = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Times stand under each other's last digit.
                text += &match column {
                    6 => format!("{cell:>width$}  "),
                    _ => format!("{cell:<width$}  "),
                };
            }
            let text = text.trim_end();
            let wrong = number.checked_sub(1).is_some_and(|row| self.rows[row].wrong.is_some());
            let text = match (number, wrong) {
                (0, _) => self.paint(BOLD, text),
                (_, true) => self.paint(RED, text),
                (_, false) => text.to_owned(),
            };
            writeln!(out, "{text}")?;
        }
        let (good, all) = (self.rows.iter().filter(|row| row.wrong.is_none()).count(), self.rows.len());
        let verdict = match self.all_good() {
            true => self.paint(GREEN, &format!("All {all} requests went as they should.")),
            false => self.paint(RED, &format!("{good} of {all} requests went as they should.")),
        };
        writeln!(out, "\n{verdict}")?;
        out.flush()
    }

    fn print_json(&self, out: &mut impl Write) -> io::Result<()> {
        let requests: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "scene": row.scene,
                    "asked_by": row.asked_by,
                    "service": row.service,
                    "worker": row.worker,
                    "path": row.path,
                    "source": row.source,
                    "milliseconds": row.took.map(milliseconds),
                    "ok": row.wrong.is_none(),
                    "error": row.wrong,
                })
            })
            .collect();
        let result = json!({ "ok": self.all_good(), "error": self.broken, "requests": requests });
        writeln!(out, "{result:#}")?;
        out.flush()
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        match self.style {
            Style::Coloured => format!("\x1b[{colour}m{text}\x1b[0m"),
            Style::Json | Style::Plain => text.to_owned(),
        }
    }
}

fn cells(row: &Row) -> [String; 8] {
    let took = row.took.map(|took| format!("{:.1} ms", milliseconds(took))).unwrap_or_default();
    let verdict = if row.wrong.is_none() { "ok" } else { "FAILED" };
    [&row.scene, row.asked_by, row.service, &row.worker, &row.path, &row.source, &took, verdict].map(str::to_owned)
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(wrong: Option<&str>) -> Row {
        Row {
            scene: "found".into(),
            asked_by: "alpha",
            service: "words",
            worker: "beta".into(),
            path: "overlay".into(),
            source: "dht".into(),
            took: Some(Duration::from_micros(3240)),
            wrong: wrong.map(str::to_owned),
        }
    }

    fn printed(json: bool, rows: Vec<Row>) -> (String, bool) {
        let now = crate::clock::now();
        let mut report = Report::new(json, false, now);
        let mut out = Vec::new();
        for row in rows {
            report.row(&mut out, row, now).unwrap();
        }
        report.print(&mut out).unwrap();
        (String::from_utf8(out).unwrap(), report.all_good())
    }

    #[test]
    fn one_wrong_answer_spoils_the_whole() {
        assert!(printed(false, vec![row(None), row(None)]).1);
        assert!(!printed(false, vec![row(None), row(Some("late"))]).1);
        assert!(!printed(false, Vec::new()).1);
    }

    #[test]
    fn json_is_all_that_is_printed_when_asked_for() {
        let (text, _) = printed(true, vec![row(Some("late"))]);

        let result: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(result["requests"][0]["milliseconds"], 3.2);
        assert_eq!(result["ok"], false);
    }

    #[test]
    fn no_colours_without_a_terminal() {
        let (text, _) = printed(false, vec![row(None)]);

        assert!(text.contains("3.2 ms") && !text.contains('\x1b'));
    }
}
