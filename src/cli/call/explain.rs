//! `wiremesh call --explain`: who would be asked, in which order, and why.

use std::{io::Write, path::Path};

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::Request;
use serde_json::Value;

use super::{collect, full, refusal, send};
use crate::cli::failure::{DONE, FAILED, Failure, NOT_SO};

/// Asks the agent and prints its plan. The exit code is 2 if nobody offers the service.
pub async fn run(target: &str, json: bool, socket: &Path, out: &mut impl Write) -> Result<u8, Failure> {
    let service = target.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
    let request = Request::get(format!("/routes/{service}"))
        .body(full(Bytes::new()))
        .map_err(|_| Failure::usage(anyhow!("{service:?} is no service")))?;
    let answer = send(request, socket).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer, FAILED).await);
    }
    let plan: Value = serde_json::from_slice(&collect(answer).await?).context("reading the plan")?;
    let ways = plan["ways"].as_array().map(Vec::as_slice).unwrap_or_default();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
    } else {
        match ways.is_empty() && plan["forbidden"] == true {
            true => writeln!(out, "{service}: the mesh's policy does not let this node call it")?,
            false => out.write_all(table(service, plan["source"].as_str().unwrap_or("-"), ways).as_bytes())?,
        }
    }
    Ok(if ways.is_empty() { NOT_SO } else { DONE })
}

/// The ways as a table, those that are not asked first with the reason, the parts of each score below it.
fn table(service: &str, source: &str, ways: &[Value]) -> String {
    let mut text = match ways.len() {
        0 => return format!("{service}: nobody offers it\n"),
        1 => format!("{service}: 1 way, known from {source}\n"),
        more => format!("{service}: {more} ways, known from {source}\n"),
    };
    text +=
        &format!("  {:<8} {:<20} {:>9} {:>5} {:>8}  NOT FIRST BECAUSE\n", "PATH", "WORKER", "SCORE", "LOAD", "SAID");
    for way in ways {
        let word = |field: &str| way[field].as_str().unwrap_or("-").to_owned();
        let seconds = way["report_age_seconds"].as_f64().or_else(|| way["age_seconds"].as_f64());
        let age = seconds.map_or("now".to_owned(), |age| format!("{age:.0} s ago"));
        let score = way["score"].as_f64().map_or("-".to_owned(), |score| format!("{score:.3}"));
        let load = format!("{:.0} %", way["load"].as_f64().unwrap_or_default() * 100.0);
        let why = way["excluded"].as_str().unwrap_or_default();
        let line = format!("  {:<8} {:<20} {score:>9} {load:>5} {age:>8}  {why}", word("path"), word("worker"));
        text += line.trim_end();
        text.push('\n');
        let parts: Vec<String> = way["parts"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, part)| {
                part.as_f64().filter(|part| *part != 0.0).map(|part| format!("{name} {part:.3}"))
            })
            .collect();
        if !parts.is_empty() {
            text += &format!("  {:<8} {}\n", "", parts.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_ways_are_a_table_in_their_order_with_scores_and_what_speaks_against_them() {
        let ways = [
            json!({"path": "overlay", "worker": "bob", "load": 0.5, "age_seconds": 3, "score": 0.8125,
                   "parts": {"work": 0.8, "rtt": 0.0125, "cold": 0.0}, "excluded": null}),
            json!({"path": "tunnel", "worker": "ann", "load": 0.25, "age_seconds": 9, "report_age_seconds": 1.4,
                   "excluded": "ejected"}),
        ];

        assert_eq!(
            table("ocr", "dht", &ways),
            "ocr: 2 ways, known from dht\n\
             \x20 PATH     WORKER                   SCORE  LOAD     SAID  NOT FIRST BECAUSE\n\
             \x20 overlay  bob                      0.812  50 %  3 s ago\n\
             \x20          rtt 0.013, work 0.800\n\
             \x20 tunnel   ann                          -  25 %  1 s ago  ejected\n"
        );
        assert_eq!(table("ocr", "dht", &[]), "ocr: nobody offers it\n");
    }
}
