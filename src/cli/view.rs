//! `wiremesh status`, `peers` and `services`: what the running agent knows, with the age of its evidence.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use serde_json::Value;
use wiremesh_certs::cli::spell;

use super::{agent::Where, failure::Failure, socket, table};

/// How often `--watch` looks again.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Options of the three views
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    at: Where,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Looks again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Which view.
#[derive(Clone, Copy, Debug)]
pub enum View {
    /// The agent itself.
    Status,
    /// Who it exchanges packets with.
    Peers,
    /// Who offers what.
    Services,
}

/// Prints a view.
pub async fn run(view: View, args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let socket = args.at.socket()?;
    let path = match view {
        View::Status => "/status",
        View::Peers => "/peers",
        View::Services => "/services",
    };
    loop {
        let value: Value = socket::get(&socket, path).await?;
        let text = if args.json { format!("{value:#}\n") } else { render(view, &value) };
        if args.watch && std::io::stdout().is_terminal() {
            // Home, and clear to the end: no scrolling.
            write!(out, "\x1b[H\x1b[J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

fn render(view: View, value: &Value) -> String {
    match view {
        View::Status => status(value),
        View::Peers => peers(value),
        View::Services => services(value),
    }
}

fn status(value: &Value) -> String {
    let mut lines = Vec::new();
    let address = value["overlay_ip"].as_str().map(|ip| format!(" ({ip})")).unwrap_or_default();
    lines.push(format!(
        "{}{address} in mesh {}: {}, up {}",
        text(&value["name"]),
        text(&value["mesh"]),
        text(&value["state"]),
        age(&value["uptime_secs"]),
    ));
    for trouble in value["troubles"].as_array().into_iter().flatten() {
        lines.push(format!("             ! {}", text(trouble)));
    }
    let identity = &value["identity"];
    lines.push(format!(
        "identity     {}, certificate ends in {} ({} % used), is renewed in {}",
        text(&value["id"]).chars().take(8).collect::<String>(),
        age(&identity["ends_in_secs"]),
        identity["used_percent"],
        age(&identity["renew_in_secs"]),
    ));
    let (authority, list) = (&value["authority"], &value["list"]);
    lines.push(format!(
        "authority    {}{}, list {} in force here, last word from a coordinator {}",
        text(&authority["fingerprint"]).chars().take(8).collect::<String>(),
        match authority["successor"].as_str() {
            Some(successor) => format!(" (being replaced by {})", successor.chars().take(8).collect::<String>()),
            None => format!(", ends in {}", age(&authority["ends_in_secs"])),
        },
        list["enforced"],
        ago(&list["confirmed_secs_ago"]),
    ));
    let (overlay, reach) = (&value["overlay"], &value["reach"]);
    lines.push(match overlay.is_null() {
        true => format!("overlay      off, other nodes are reached by their tunnel URLs: {}", text(&reach["why"])),
        false => format!(
            "overlay      {}, MTU {}, UDP {}, {} peers, {} of them heard in the last minute",
            text(&overlay["interface"]),
            overlay["mtu"],
            overlay["listen_port"],
            overlay["peers"],
            overlay["peers_heard"],
        ),
    });
    for gain in reach["gains"].as_array().into_iter().flatten() {
        let how = gain["here"].as_str().or(gain["run"].as_str()).unwrap_or_default();
        lines.push(format!("             lacks {}: {} ({how})", text(&gain["lacks"]), text(&gain["costs"])));
    }
    let dht = &value["dht"];
    lines.push(match dht["enabled"] == true {
        true => format!(
            "dht          {} connections, {} members known, our record stored by {}, last answer {}",
            dht["connections"],
            dht["members"],
            dht["stored_by"],
            ago(&dht["answered_secs_ago"]),
        ),
        false => "dht          off: services are found through the coordinator".to_owned(),
    });
    let coordinator = &value["coordinator"];
    let trouble = coordinator["last_error"].as_str().filter(|_| coordinator["connected"] != true);
    lines.push(format!(
        "coordinator  {}, heard {}{}",
        coordinator["url"].as_str().unwrap_or("none"),
        ago(&coordinator["heard_secs_ago"]),
        trouble.map(|why| format!(": {why}")).unwrap_or_default(),
    ));
    let offered: Vec<String> = value["services"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|service| match service["offered"] == true {
            true => {
                let starting = if service["state"] == "loading" { ", upstream starting" } else { "" };
                let (running, waiting) = (&service["running"], &service["waiting"]);
                format!("{} ({running} running, {waiting} waiting{starting})", text(&service["name"]))
            }
            false => format!("{} (not offered: {})", text(&service["name"]), text(&service["why_not"])),
        })
        .collect();
    lines.push(format!("services     {}", if offered.is_empty() { "none".to_owned() } else { offered.join(", ") }));
    lines.join("\n") + "\n"
}

fn peers(value: &Value) -> String {
    let rows = value["peers"].as_array().into_iter().flatten().map(|peer| {
        let key: String = text(&peer["public_key"]).chars().take(8).collect();
        [
            peer["name"].as_str().map_or(format!("({key}…)"), str::to_owned),
            text(&peer["address"]),
            text(&peer["endpoint"]),
            if peer["proven"] == true { "yes" } else { "no" }.to_owned(),
            ago(&peer["heard_secs_ago"]),
            ago(&peer["handshake_secs_ago"]),
        ]
    });
    table(["NAME", "ADDRESS", "ENDPOINT", "CONNECTED", "HEARD", "HANDSHAKE"], rows)
}

fn services(value: &Value) -> String {
    let rows = value["services"].as_array().into_iter().flatten().flat_map(|service| {
        service["workers"].as_array().into_iter().flatten().map(|worker| {
            [
                text(&service["name"]),
                text(&worker["name"]),
                text(&worker["address"]),
                format!("{} %", worker["load_percent"]),
                worker["tunnel_url"].as_str().unwrap_or("-").to_owned(),
                ago(&worker["published_secs_ago"]),
            ]
        })
    });
    table(["SERVICE", "WORKER", "ADDRESS", "LOAD", "TUNNEL", "PUBLISHED"], rows)
}

/// A table as text.
fn table<const COLUMNS: usize>(head: [&str; COLUMNS], rows: impl IntoIterator<Item = [String; COLUMNS]>) -> String {
    let mut text = Vec::new();
    table::write(head, rows, &mut text).expect("writing to memory does not fail");
    String::from_utf8_lossy(&text).into_owned()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn ago(seconds: &Value) -> String {
    if seconds.is_number() { format!("{} ago", age(seconds)) } else { "never".to_owned() }
}

/// The two largest units: "3 d 4 h".
fn age(seconds: &Value) -> String {
    // Ages of what happened in this program's life, or the life of a certificate: far below 2^63.
    spell(Duration::from_secs(seconds.as_f64().unwrap_or(0.0).max(0.0) as u64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ages_are_read_at_a_glance() {
        for (seconds, expected) in [
            (0.2, "0 s"),
            (59.9, "59 s"),
            (60.0, "1 m"),
            (3_725.0, "1 h 2 m"),
            (273_600.0, "3 d 4 h"),
            (315_273_600.0, "9 y 364 d"),
        ] {
            assert_eq!(age(&json!(seconds)), expected);
        }
        assert_eq!(ago(&Value::Null), "never");
    }

    #[test]
    fn columns_line_up() {
        let table = table(["A", "LONG"], [["worker-1".into(), "x".into()]]);

        assert_eq!(table, "A         LONG\nworker-1  x\n");
    }

    #[test]
    fn the_end_of_the_certificate_and_of_its_authority_are_forecast() {
        let identity = json!({"ends_in_secs": 273_600, "used_percent": 55, "renew_in_secs": 3_725});
        let mut value = json!({
            "id": "4f0c6a7e1d9b4235", "identity": identity, "list": {"enforced": 7, "confirmed_secs_ago": 3},
            "authority": {"fingerprint": "a1b2c3d4e5f6", "ends_in_secs": 86_400, "successor": null},
        });

        let text = status(&value);
        assert!(text.contains("4f0c6a7e, certificate ends in 3 d 4 h (55 % used), is renewed in 1 h 2 m"), "{text}");
        let expected = "a1b2c3d4, ends in 1 d, list 7 in force here, last word from a coordinator 3 s ago";
        assert!(text.contains(expected), "{text}");

        value["authority"]["successor"] = json!("99887766aa");
        assert!(status(&value).contains("a1b2c3d4 (being replaced by 99887766), list 7"), "{}", status(&value));
    }

    #[test]
    fn an_empty_answer_still_reads() {
        assert!(status(&json!({})).contains("coordinator  none, heard never"));
        assert_eq!(peers(&json!({})).lines().count(), 1);
    }
}
