//! `wiremesh audit`: shows who did what about the mesh's members, through the coordinator's socket.

use std::{io::Write, path::Path};

use clap::builder::PossibleValuesParser;
use serde_json::Value;
use wiremesh_certs::UnixTime;

use super::{coordinator::Where, failure::Failure, socket};
use crate::{
    api::admin::{Actor, Audit, AuditQuery, AuditRow},
    coordinator::audit::Kind,
    settings::Span,
};

/// Rows shown if it is not said how many or since when.
const NEWEST: u32 = 100;
/// How long the coordinator waits for a row before it is asked once more: less than the socket's patience.
const WAIT_SECS: u64 = 15;

/// Shows who joined, waited, was refused, renewed and revoked, by whom, when and from where
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh audit --since 24h\n  wiremesh audit --follow --json\n  \
    wiremesh audit --kind join_refused --limit 10\n\n\
    A token that was used on another machine than it was made for shows as join_refused (or joined) with first_use:\n\
    who used it first, when and from where.")]
pub struct Args {
    /// Only what was done in the time before now: 15m, 24h, 7d
    #[arg(long, value_name = "DURATION")]
    since: Option<Span>,
    /// Only the newest so many [default: 100, or all with --since]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Only what was done of this kind
    #[arg(long, value_parser = PossibleValuesParser::new(Kind::ALL.iter().map(|kind| kind.word())))]
    kind: Option<String>,
    /// Goes on with what is done from here on, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Prints one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Prints rows, oldest first.
pub async fn run(args: &Args, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    show(args, &args.at.socket()?, now, out).await
}

async fn show(args: &Args, socket: &Path, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    let mut query = AuditQuery {
        newest: args.limit.or(args.since.is_none().then_some(NEWEST)),
        since: args.since.map(|span| now.minus(span.0)).unwrap_or_default(),
        kind: args.kind.clone(),
        ..AuditQuery::default()
    };
    loop {
        let Audit { rows, more } = socket::get(socket, &path(&query)).await?;
        for row in &rows {
            match args.json {
                true => writeln!(out, "{}", serde_json::to_string(row)?)?,
                false => writeln!(out, "{}", line(row))?,
            }
        }
        out.flush()?;
        query.after = rows.last().map_or(query.after, |row| row.id);
        query.newest = None;
        if !more && !args.follow {
            return Ok(());
        }
        query.wait_secs = if more { 0 } else { WAIT_SECS };
    }
}

/// Numbers, and the word of a kind: nothing that would have to be escaped.
fn path(query: &AuditQuery) -> String {
    let mut path = format!("/audit?after={}&since={}&wait_secs={}", query.after, query.since.0, query.wait_secs);
    if let Some(newest) = query.newest {
        path.push_str(&format!("&newest={newest}"));
    }
    if let Some(kind) = &query.kind {
        path.push_str(&format!("&kind={kind}"));
    }
    path
}

/// When, what, whom; then who did it, from where, and the rest.
fn line(row: &AuditRow) -> String {
    let mut line = format!("{}  {:13}", row.at, row.kind);
    if let Some(name) = &row.name {
        line.push_str(&format!("  {name}"));
    }
    if let Some(identity) = &row.identity {
        line.push_str(&format!(" ({identity})"));
    }
    match &row.by {
        Actor::Operator { uid } => line.push_str(&format!("  by operator (uid {uid})")),
        Actor::Member { identity, .. } if Some(*identity) == row.identity => {}
        Actor::Member { name, .. } => line.push_str(&format!("  by {name}")),
        Actor::Stranger => line.push_str("  by a stranger"),
        Actor::Coordinator => line.push_str("  by the coordinator"),
    }
    if let Some(from) = row.from {
        line.push_str(&format!("  from {from}"));
    }
    if let Some(token) = &row.token {
        line.push_str(&format!("  token={token}"));
    }
    for (key, value) in &row.detail {
        match value {
            Value::String(text) => line.push_str(&format!("  {key}={text}")),
            other => line.push_str(&format!("  {key}={other}")),
        }
    }
    line
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use axum::{Json, Router, extract::Query, routing::get};
    use clap::Parser;
    use serde_json::json;
    use wiremesh_certs::NodeId;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn row(id: u64) -> AuditRow {
        AuditRow {
            id,
            at: NOW,
            kind: "join_refused".into(),
            by: Actor::Stranger,
            from: Some("192.0.2.9".parse().unwrap()),
            name: Some("worker-1".parse().unwrap()),
            identity: Some(NodeId([0xab; 32])),
            token: Some("3f9a51c07b2e".into()),
            detail: json!({"why": "token_used", "uses": 1}).as_object().unwrap().clone(),
        }
    }

    /// A coordinator with five rows that gives two at a time, and breaks when it is asked to wait.
    fn coordinator(folder: &tempfile::TempDir) -> std::path::PathBuf {
        let socket = folder.path().join("coordinator.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let pages = get(async |Query(query): Query<AuditQuery>| {
            assert_eq!(query.wait_secs, 0);
            let first = query.after.max(5 - query.newest.map_or(5, u64::from)) + 1;
            Json(Audit { rows: (first..=5).take(2).map(row).collect(), more: first + 1 < 5 })
        });
        tokio::task::spawn(async move { axum::serve(listener, Router::new().route("/audit", pages)).await });
        socket
    }

    async fn shown(arguments: &[&str]) -> Vec<u64> {
        let folder = tempfile::tempdir().unwrap();
        let args = Line::parse_from([&["audit", "--json"], arguments].concat()).args;
        let mut out = Vec::new();
        let _ = show(&args, &coordinator(&folder), NOW, &mut out).await;
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| serde_json::from_str::<AuditRow>(line).unwrap().id).collect()
    }

    #[tokio::test]
    async fn all_rows_are_shown_however_many_fit_an_answer() {
        assert_eq!(shown(&["--since", "24h"]).await, [1, 2, 3, 4, 5]);
        assert_eq!(shown(&["--limit", "3"]).await, [3, 4, 5]);
        assert_eq!(shown(&["--follow"]).await, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_line_says_when_what_whom_who_and_from_where() {
        assert_eq!(
            line(&row(1)),
            "2027-01-15T08:00:00Z  join_refused   worker-1 (abababab)  by a stranger  from 192.0.2.9  \
             token=3f9a51c07b2e  uses=1  why=token_used"
        );
    }

    #[test]
    fn a_kind_that_is_none_is_refused_with_those_that_are() {
        let refused = Line::try_parse_from(["audit", "--kind", "jioned"]).map(drop).unwrap_err().to_string();

        assert!(refused.contains("join_refused"), "{refused}");
    }
}
