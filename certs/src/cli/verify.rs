//! `verify`: checks a node's certificate as every member of the mesh does, and says which check fails.

use serde_json::{Value, json};

use super::{Console, Failure, Source, describe, revocations, sheet::pretty, span::moment};
use crate::{CaCertificate, Chain, Check, Fingerprint, Refused, Trust, UnixTime};

/// Of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert verify --ca-crt ca.crt --crt worker-1.crt
  wiremesh-cert verify --ca-crt ca.crt --crt worker-1.crt --revocations revocations.cbor --at 2027-01-01

Exit status: 0 every check passed, 2 the certificate is refused, 1 a file could not be read, 64 bad usage.")]
pub struct Args {
    /// The certificate of the mesh's authority, or of several that are believed
    #[arg(long, value_name = "FILE", default_value = "ca.crt", visible_alias = "ca")]
    ca_crt: Source,
    /// The node's certificate, and those of intermediates after it; - for standard input
    #[arg(long, value_name = "FILE")]
    crt: Source,
    /// A signed list of revocations, as it travels or in base64
    #[arg(long, value_name = "FILE")]
    revocations: Option<Source>,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks it.
pub fn run(args: &Args, now: UnixTime, console: &mut Console<'_>) -> Result<(), Failure> {
    let now = args.at.unwrap_or(now);
    let sources = [Some(&args.ca_crt), Some(&args.crt), args.revocations.as_ref()];
    Source::at_most_one_stdin(&sources.into_iter().flatten().collect::<Vec<_>>())?;
    let mut trust = revocations::trust_in(&args.ca_crt, console)?;
    let mut lines = Vec::new();
    let crt = args.crt.bytes(console)?;
    if let Some(source) = &args.revocations {
        let bytes = source.bytes(console)?;
        lines.push(Line { name: "revocation_list", outcome: apply(&mut trust, &bytes, now) });
    }
    let chain = std::str::from_utf8(&crt).map_err(|_| crate::BadCertificate("not PEM")).and_then(Chain::from_pem);
    let authority = chain.as_ref().ok().and_then(|chain| vouching(chain, &trust, now));
    match &chain {
        Ok(chain) => lines.extend(trust.examine(chain, now).into_iter().map(|(check, outcome)| Line {
            name: check.name(),
            outcome: match (check, outcome) {
                (Check::Revocation, Ok(())) if args.revocations.is_none() => {
                    Outcome::Skipped("no --revocations to check against")
                }
                (_, Ok(())) => Outcome::Passed(passed(check, &trust, authority.as_ref(), now)),
                (_, Err(refused)) => Outcome::Failed(refused),
            },
        })),
        Err(bad) => lines.push(Line { name: Check::Form.name(), outcome: Outcome::Failed(bad.clone().into()) }),
    }
    for check in Check::ALL {
        if !lines.iter().any(|line| line.name == check.name()) {
            lines.push(Line { name: check.name(), outcome: Outcome::Skipped("cannot be checked") });
        }
    }
    let shown = chain.ok().and_then(|chain| describe::node(chain.leaf(), now).ok());
    if args.json {
        let checks: Vec<Value> = lines.iter().map(Line::json).collect();
        let verified = first_refusal(&lines).is_none();
        let node = shown.map_or(Value::Null, |sheet| sheet.json());
        console.print(&pretty(&json!({
            "kind": "verification", "verified": verified, "at": now.to_string(), "checks": checks, "node": node,
            "authority": authority,
        })))?;
    } else {
        let text: String = lines.iter().map(|line| line.text(console.colours)).collect();
        console.print(&text)?;
    }
    match first_refusal(&lines) {
        None => Ok(()),
        Some(refused) => {
            let failure = Failure::refused(format!("{} is refused", args.crt), refused);
            Err(match refused {
                Refused::Certificate(_) => failure.hint("\"wiremesh-cert print\" shows what a file holds"),
                _ => failure,
            })
        }
    }
}

struct Line {
    name: &'static str,
    outcome: Outcome,
}

enum Outcome {
    Passed(String),
    Failed(Refused),
    Skipped(&'static str),
}

impl Line {
    fn text(&self, colours: bool) -> String {
        let (word, colour, why) = match &self.outcome {
            Outcome::Passed(what) => ("ok", "32", what.clone()),
            Outcome::Failed(refused) => ("FAILED", "31", refused.to_string()),
            Outcome::Skipped(why) => ("-", "2", (*why).to_owned()),
        };
        let word = format!("{word:<6}");
        let word = if colours { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word };
        format!("{word}  {:<15}  {why}\n", self.name)
    }

    fn json(&self) -> Value {
        match &self.outcome {
            Outcome::Passed(_) => json!({"check": self.name, "outcome": "ok"}),
            Outcome::Failed(refused) => json!({
                "check": self.name, "outcome": "failed", "reason": refused.reason(), "why": refused.to_string(),
                "hint": refused.hint(),
            }),
            Outcome::Skipped(why) => json!({"check": self.name, "outcome": "skipped", "why": why}),
        }
    }
}

fn first_refusal(lines: &[Line]) -> Option<&Refused> {
    lines.iter().find_map(|line| match &line.outcome {
        Outcome::Failed(refused) => Some(refused),
        Outcome::Passed(_) | Outcome::Skipped(_) => None,
    })
}

/// What it means that a check passed.
fn passed(check: Check, trust: &Trust, authority: Option<&Fingerprint>, now: UnixTime) -> String {
    match check {
        Check::Form => "it is a certificate of a node, of the form that wiremesh issues".to_owned(),
        Check::Issuer => {
            let authority = authority.map(ToString::to_string).unwrap_or_default();
            format!("signatures lead up to the authority {}", authority.get(..16).unwrap_or_default())
        }
        Check::Authority => "each authority in the chain kept to its limits".to_owned(),
        Check::Time => format!("all certificates of the chain are valid at {now}"),
        Check::Mesh => format!("it names this mesh, {}", trust.mesh()),
        Check::Network => format!("its address is one of {}", trust.network()),
        Check::Revocation => format!("it is not in revocation list {}", trust.revocation_number()),
    }
}

/// Which of the authorities it is that the signatures lead up to.
fn vouching(chain: &Chain, trust: &Trust, now: UnixTime) -> Option<Fingerprint> {
    let vouches = |authority: &&CaCertificate| {
        let checks = Trust::new((*authority).clone()).examine(chain, now);
        checks.iter().any(|(check, outcome)| *check == Check::Issuer && outcome.is_ok())
    };
    trust.authorities().iter().find(vouches).map(CaCertificate::fingerprint)
}

fn apply(trust: &mut Trust, bytes: &[u8], now: UnixTime) -> Outcome {
    match revocations::signed_in(bytes).and_then(|signed| trust.apply_revocations(&signed, now)) {
        Ok(_) => Outcome::Passed(format!("revocation list {} is signed by the authority", trust.revocation_number())),
        Err(refused) => Outcome::Failed(refused),
    }
}
