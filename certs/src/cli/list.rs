//! `list`: the certificates in folders and files, those that end first first.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Console, Failure, Source,
    found::{Found, found_in},
    life::{Due, Phase},
    revocations,
    sheet::{pretty, tame},
    span::{moment, spell},
};
use crate::{RevocationList, UnixTime, certificate::MAX_PEM_BYTES, files};

/// One folder with more files than this is hardly meant, and to read them all takes long.
const MAX_FILES: usize = 10_000;

/// Of `list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert list
  wiremesh-cert list /etc/wiremesh worker-1.crt --within 2d
  wiremesh-cert list --revocations revocations.bin --json

Of a folder the files in it are read, not those in folders below. Files that hold no certificate are passed over and
counted. Nothing is believed: \"verify\" tells whether a certificate is what it says. Through a coordinator,
\"wiremesh cert list\" lists what it has issued.")]
pub struct Args {
    /// Folders and files
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    due: Due,
    /// The signed list of revocations; --ca-crt must have signed it
    #[arg(long, value_name = "FILE")]
    revocations: Option<Source>,
    /// The authorities that may have signed --revocations
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    ca_crt: Source,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists them.
pub fn run(args: &Args, now: UnixTime, console: &mut Console<'_>) -> Result<(), Failure> {
    let now = args.at.unwrap_or(now);
    let revoked = match &args.revocations {
        Some(source) => revocations::believed(source, &args.ca_crt, now, console)?,
        None => RevocationList::default(),
    };
    let mut rows = Vec::new();
    let mut passed_over = 0;
    for file in files_of(&args.paths)? {
        // Among the files of a folder are private keys.
        let bytes = files::read_bounded(&file, MAX_PEM_BYTES as u64).map(Zeroizing::new);
        match bytes.ok().and_then(|bytes| found_in(&bytes).ok()) {
            Some(all) => rows.extend(all.into_iter().map(|found| Row::of(found, &file, args.due, &revoked, now))),
            None => passed_over += 1,
        }
    }
    rows.sort_by(|a, b| (a.found.life.until, &a.file).cmp(&(b.found.life.until, &b.file)));
    if args.json {
        let certificates: Vec<Value> = rows.iter().map(|row| row.json(now)).collect();
        return console.print(&pretty(&json!({
            "kind": "certificates", "at": now.to_string(), "certificates": certificates, "passed_over": passed_over,
        })));
    }
    console.print(&table(&rows, now, console.colours))?;
    match passed_over {
        0 => Ok(()),
        1 => console.print("1 file without a certificate was passed over\n"),
        many => console.print(&format!("{many} files without a certificate were passed over\n")),
    }
}

/// The named files, and those in the named folders.
fn files_of(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        let failed = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::not_there(path.display()),
            _ => Failure::new(format!("reading {}", path.display()), error),
        };
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            files.push(path.clone());
            continue;
        }
        for entry in fs::read_dir(path).map_err(failed)? {
            let entry = entry.map_err(failed)?.path();
            let shown = entry.strip_prefix(".").map(Path::to_owned).unwrap_or(entry);
            // Neither folders, nor what would wait for a writer for ever.
            if fs::metadata(&shown).is_ok_and(|found| found.is_file()) {
                files.push(shown);
            }
            if files.len() > MAX_FILES {
                let reading = format!("reading {}", path.display());
                return Err(Failure::new(reading, format!("more than {MAX_FILES} files"))
                    .hint("name the files, or a smaller folder"));
            }
        }
    }
    Ok(files)
}

struct Row {
    file: String,
    found: Found,
    revoked: bool,
    due: bool,
}

impl Row {
    fn of(found: Found, file: &Path, due: Due, revoked: &RevocationList, now: UnixTime) -> Row {
        Row {
            file: tame(&file.display().to_string()),
            revoked: found.is_revoked(revoked),
            due: due.why(found.kind.of(), found.life, now).is_some(),
            found,
        }
    }

    /// For people, and its colour.
    fn status(&self, now: UnixTime) -> (&'static str, &'static str) {
        match self.found.life.phase(now) {
            _ if self.revoked => ("revoked", "31"),
            Phase::Expired => ("expired", "31"),
            Phase::NotYet => ("not valid yet", "33"),
            Phase::Valid if self.due => ("needs renewal", "33"),
            Phase::Valid => ("valid", "32"),
        }
    }

    fn ends(&self, now: UnixTime) -> String {
        let until = self.found.life.until;
        if now < until {
            format!("in {}", spell(until.saturating_since(now)))
        } else {
            format!("{} ago", spell(now.saturating_since(until)))
        }
    }

    fn json(&self, now: UnixTime) -> Value {
        let Found { kind, name, mesh, address, serial, key, life, .. } = &self.found;
        json!({
            "file": self.file, "kind": kind.name(), "name": name, "mesh": mesh, "address": address, "serial": serial,
            "identity": key.to_hex(), "not_before": life.from.to_string(), "not_after": life.until.to_string(),
            "expires_in_secs": life.expires_in_secs(now), "used_percent": life.used_percent(now),
            "status": if self.revoked { "revoked" } else { life.phase(now).name() }, "needs_renewal": self.due,
        })
    }
}

fn table(rows: &[Row], now: UnixTime, colours: bool) -> String {
    let mut cells = vec![["NAME", "ADDRESS", "SERIAL", "ENDS", "STATUS", "FILE"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let name = match row.found.kind.name() {
            "node" | "coordinator" => row.found.name.clone(),
            kind => format!("{} ({kind})", row.found.name),
        };
        let address = row.found.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
        let status = row.status(now).0.to_owned();
        [name, address, row.found.serial.to_string(), row.ends(now), status, row.file.clone()]
    }));
    let widths: Vec<usize> =
        (0..6).map(|column| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (at, line) in cells.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let padded = format!("{cell:<width$}", width = widths[column]);
            let colour = at.checked_sub(1).filter(|_| colours && column == 4).map(|row| rows[row].status(now).1);
            match colour {
                Some(colour) => text.push_str(&format!("\u{1b}[{colour}m{padded}\u{1b}[0m  ")),
                None if column == 5 => text.push_str(cell),
                None => text.push_str(&format!("{padded}  ")),
            }
        }
        text.push('\n');
    }
    text
}
