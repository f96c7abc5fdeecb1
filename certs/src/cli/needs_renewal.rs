//! `needs-renewal`: whether it is time to renew a certificate, for scripts and timers.

use super::{
    Console, Exit, Failure, Source,
    found::{Found, found_in},
    life::{Due, Phase, Why},
    sheet::Sheet,
    span::{moment, spell},
};
use crate::{BadCertificate, UnixTime};

/// Of `needs-renewal`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert needs-renewal --crt worker-1.crt && ./renew-it
  wiremesh-cert needs-renewal worker-1.crt --at-percent 66 --within 2d

Exit status: 0 yes, 1 no, 2 there is no such file, 64 bad usage, or the file is there and cannot be opened. A file that
holds no certificate of wiremesh is of no use to anybody: yes. Of a node's chain the certificate that ends first counts,
of several authorities the first.")]
pub struct Args {
    /// The certificate; - for standard input
    #[arg(value_name = "FILE", required_unless_present = "crt", conflicts_with = "crt")]
    file: Option<Source>,
    /// The same, as other commands have it
    #[arg(long, value_name = "FILE")]
    crt: Option<Source>,
    #[command(flatten)]
    due: Due,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Says it in one line, and with the exit status.
pub fn run(args: &Args, now: UnixTime, console: &mut Console<'_>) -> Result<Exit, Failure> {
    let now = args.at.unwrap_or(now);
    let Some(source) = args.file.as_ref().or(args.crt.as_ref()) else {
        return Err(Failure::usage("looking at a certificate", "needs a file"));
    };
    if source.is_missing() {
        return Err(Failure::not_there(source));
    }
    let bytes = source.bytes(console).map_err(|failure| failure.exit(Exit::Usage))?;
    let first = found_in(&bytes).map(|mut found| found.swap_remove(0));
    let (needed, line, sheet) = match &first {
        Ok(found) => judged(found, args.due, source, now),
        Err(bad) => unreadable(bad, source),
    };
    let sheet = sheet.field("file", source.to_string()).field("needs_renewal", needed);
    console.print(&if args.json { sheet.text(true) } else { line })?;
    Ok(if needed { Exit::Done } else { Exit::No })
}

fn judged(found: &Found, due: Due, source: &Source, now: UnixTime) -> (bool, String, Sheet) {
    let (of, life) = (found.kind.of(), found.life);
    let (why, at) = (due.why(of, life, now), due.at(of, life));
    let used = life.used_percent(now);
    let line = match why {
        Some(Why::Expired) => format!("yes: {source} {}", life.text(now)),
        Some(Why::Used(limit)) => {
            format!("yes: {source} has used {used} % of its life of {limit} %; {}", life.text(now))
        }
        Some(Why::EndsWithin(limit)) => format!("yes: {source} {}, which is within {}", life.text(now), spell(limit)),
        None if life.phase(now) == Phase::NotYet => format!("no: {source} is not valid yet; {}", life.text(now)),
        None => format!(
            "no: {source} has used {used} % of its life and {}; it is due in {}, at {at}",
            life.text(now),
            spell(at.saturating_since(now))
        ),
    };
    let sheet = Sheet::new("renewal", "")
        .field("name", found.name.as_str())
        .field("due_at", at.to_string())
        .field("reason", why.map(Why::name))
        .validity(life, now);
    (why.is_some(), format!("{line}\n"), sheet)
}

fn unreadable(bad: &BadCertificate, source: &Source) -> (bool, String, Sheet) {
    let line = format!("yes: {source} holds no certificate that anybody would take: {bad}\n");
    (true, line, Sheet::new("renewal", "").field("reason", "unreadable").field("why", bad.to_string()))
}
