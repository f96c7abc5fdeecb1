//! `wiremesh ping`: round trips over the overlay.

use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{agent::Where, failure::Failure, socket};
use crate::clock;

/// Sends echo requests to a node over the overlay
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh ping worker-1\n  wiremesh ping 10.42.0.7 --count 10 --json")]
pub struct Args {
    /// A node's name or overlay address
    to: String,
    /// How many
    #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Seconds from one to the next
    #[arg(long, short, default_value_t = 1.0)]
    interval: f64,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Pings and prints. Nobody answering is "not so".
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let socket = args.at.socket()?;
    if !(0.0..=3600.0).contains(&args.interval) {
        return Err(Failure::usage(anyhow::anyhow!("an interval is between 0 and 3600 seconds")));
    }
    // No agent is another thing than no answer.
    drop(socket::connect(&socket).await?);
    let mut answers = Vec::new();
    let mut last_failure = None;
    for number in 0..args.count {
        if number > 0 {
            tokio::time::sleep(Duration::from_secs_f64(args.interval)).await;
        }
        let started_at = clock::now();
        match once(&socket, &args.to).await {
            Ok(pong) => {
                if !args.json {
                    writeln!(out, "{}", line(&args.to, number, &pong))?;
                }
                answers.push(pong);
            }
            // It is not there: no use in asking again.
            Err(failure) if failure.exit == super::failure::NOT_SO => return Err(failure),
            Err(failure) => {
                if !args.json {
                    writeln!(out, "{}: {:#} ({:.1} s)", number + 1, failure.error, elapsed(started_at))?;
                }
                last_failure = Some(failure);
            }
        }
    }
    let lost = args.count as usize - answers.len();
    let millis: Vec<f64> =
        answers.iter().map(|pong| pong["round_trip_micros"].as_f64().unwrap_or(0.0) / 1000.0).collect();
    let (min, max) = millis.iter().fold((f64::MAX, 0.0_f64), |(min, max), ms| (min.min(*ms), max.max(*ms)));
    let average = millis.iter().sum::<f64>() / millis.len().max(1) as f64;
    if args.json {
        let round_trip = (!millis.is_empty()).then(|| json!({ "min_ms": min, "avg_ms": average, "max_ms": max }));
        let summary = json!({
            "to": args.to, "sent": args.count, "lost": lost, "round_trip": round_trip, "answers": answers,
        });
        writeln!(out, "{summary:#}")?;
    } else if !millis.is_empty() {
        writeln!(out, "{} sent, {lost} lost, round trip {min:.2}/{average:.2}/{max:.2} ms (min/avg/max)", args.count)?;
    }
    match last_failure {
        Some(failure) if answers.is_empty() => Err(Failure { exit: super::failure::NOT_SO, ..failure }),
        _ => Ok(()),
    }
}

async fn once(socket: &Path, to: &str) -> Result<Value, Failure> {
    // Names and addresses have no characters that a path would need escaped, but what is typed may.
    let escaped: String = to
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b':' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    socket::post(socket, &format!("/ping/{escaped}"), &json!({})).await
}

fn line(to: &str, number: u32, pong: &Value) -> String {
    format!(
        "{}: {} ({}) by {}, {:.2} ms",
        number + 1,
        pong["name"].as_str().unwrap_or(to),
        pong["address"].as_str().unwrap_or("-"),
        pong["endpoint"].as_str().unwrap_or("-"),
        pong["round_trip_micros"].as_f64().unwrap_or(0.0) / 1000.0,
    )
}

fn elapsed(since: Instant) -> f64 {
    clock::now().saturating_duration_since(since).as_secs_f64()
}
