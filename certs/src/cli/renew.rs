//! `renew`: a fresh certificate for what an old one says, by the authority's own hand.

use std::time::Duration;

use rand::RngCore;

use super::{
    Console, Failure, Sink, Source, Span, console::Existing, describe, revocations, sign::lifetime_within,
    signer::Signer, span::moment,
};
use crate::{BACKDATED, Chain, Claims, UnixTime};

/// Of `renew`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert renew --crt worker-1.crt --force
  wiremesh-cert renew --crt worker-1.crt --duration 30d --revocations revocations.bin --out-crt worker-1.new.crt
  wiremesh-cert renew --crt worker-1.crt --ca-crt next.crt --ca-key next.key --old-ca-crt ca.crt --force

Name, keys, address, groups and services stay as they are; the old certificate may have expired. Whether it was revoked
is known from --revocations alone. A node of a running mesh renews by itself, through its coordinator.")]
pub struct Args {
    #[command(flatten)]
    signer: Signer,
    /// The old certificate; - for standard input
    #[arg(long, value_name = "FILE")]
    crt: Source,
    /// Earlier authorities of the mesh, if one of them may have signed the old certificate
    #[arg(long, value_name = "FILE")]
    old_ca_crt: Option<Source>,
    /// The signed list of revocations: what is on it is not renewed
    #[arg(long, value_name = "FILE")]
    revocations: Option<Source>,
    /// How long it lives: s, m, h, d (days), y (365 days) [default: as long as the old one, or as long as the authority
    /// if that is shorter]
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,
    /// Where the fresh certificate goes; - for standard output [default: in place of --crt, with --force]
    #[arg(long, value_name = "FILE")]
    out_crt: Option<Sink>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Renews it.
pub fn run(args: &Args, now: UnixTime, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    let now = args.at.unwrap_or(now);
    let mut sources = args.signer.sources();
    sources.push(&args.crt);
    sources.extend(args.old_ca_crt.iter().chain(&args.revocations));
    Source::at_most_one_stdin(&sources)?;
    let existing = Existing::with_force(args.force);
    let out = out(args)?;
    out.check(existing)?;

    let chain = Chain::from_pem(&args.crt.text(console)?)
        .map_err(|bad| Failure::new(format!("reading {}", args.crt), bad).hint("--crt names a node's certificate"))?;
    let authority = args.signer.open(console)?;
    let refusing = format!("{} is not renewed", args.crt);
    let (mut trust, former) = revocations::trust_of(&authority, args.old_ca_crt.as_ref(), console)?;
    if let Some(list) = &args.revocations {
        revocations::apply(list, &mut trust, now, console)?;
        revocations::check_believed(&authority, &trust, &refusing)?;
    }
    // However long ago it ended: who has the authority's key may sign anything.
    let old = trust
        .renewable(&chain, &former, Duration::MAX, now)
        .map_err(|refused| Failure::refused(&refusing, &refused))?;
    let renewing = format!("renewing {}", old.name());
    let lived = old.not_after().saturating_since(old.not_before().plus(BACKDATED));
    let claims = Claims {
        identity: old.id(),
        wg: old.wg(),
        name: old.name().clone(),
        address: old.address(),
        groups: old.groups().to_vec(),
        services: old.services().clone(),
        lifetime: lifetime_within(args.duration, lived, authority.certificate(), now)
            .map_err(|because| because(&renewing))?,
    };
    let fresh = authority.issue(&claims, now, &mut rng).map_err(|error| Failure::issue(&renewing, &error))?;
    let sheet = describe::node(fresh.leaf(), now)
        .map_err(|why| Failure::new(&renewing, why))?
        .titled(format!("renewed node certificate in {out}"))
        .field("crt_file", out.to_string())
        .field("replaces", old.serial().to_string());
    super::deliver(&fresh.to_pem(), &out, existing, sheet, args.json, console)
}

fn out(args: &Args) -> Result<Sink, Failure> {
    match (&args.out_crt, &args.crt) {
        (Some(out), _) => Ok(out.clone()),
        (None, Source::Stdin) => Ok(Sink::Stdout),
        (None, Source::File(path)) if args.force => Ok(Sink::File(path.clone())),
        (None, Source::File(path)) => {
            Err(Failure::usage(format!("renewing {}", path.display()), "it is not said where the fresh one goes")
                .hint("--force puts it in place of the old one, --out-crt FILE somewhere else"))
        }
    }
}
