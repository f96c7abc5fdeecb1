//! `rotate`: makes the next authority of a mesh, and what leads to it from the present one.

use std::path::PathBuf;

use rand::RngCore;
use zeroize::Zeroizing;

use super::{
    Console, Failure, Sink, Source, Span,
    console::{self, Existing},
    describe, passphrase,
    sheet::Sheet,
    signer::{self, Signer},
};
use crate::{Authority, BACKDATED, CaCertificate, CaParameters, IssueError, UnixTime};

/// Of `rotate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  wiremesh-cert rotate --ca-crt ca.crt --ca-key ca.key --out-crt next.crt --out-key next.key --out-cross cross.crt

The next root has a key of its own and the same mesh and network. The cross certificate is signed by the present one for
the key of the next: who believes the present one believes the next through it. Until the last certificate of the present
one is replaced, members have to believe both. A running coordinator does all this by itself: \"wiremesh cert rotate\".")]
pub struct Args {
    #[command(flatten)]
    signer: Signer,
    /// How long the next one lives: s, m, h, d (days), y (365 days) [default: as long as the present one did]
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,
    /// Encrypt its private key with a passphrase; it is anyway if the present one is
    #[arg(long)]
    encrypt: bool,
    /// Its passphrase, the first line of this file [default: that of the present key]
    #[arg(long, value_name = "FILE")]
    out_passphrase_file: Option<Source>,
    /// Where its certificate goes
    #[arg(long, value_name = "FILE", default_value = "next.crt", value_parser = console::file_path)]
    out_crt: PathBuf,
    /// Where its private key goes, mode 0600; never replaced
    #[arg(long, value_name = "FILE", default_value = "next.key", value_parser = console::key_path)]
    out_key: PathBuf,
    /// Where the cross certificate goes
    #[arg(long, value_name = "FILE", default_value = "cross.crt", value_parser = console::file_path)]
    out_cross: PathBuf,
    /// Replace the files of certificates if they exist (a key file never is)
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the three files, or none.
pub fn run(args: &Args, now: UnixTime, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    let making = "making the next authority";
    let mut sources = args.signer.sources();
    sources.extend(&args.out_passphrase_file);
    Source::at_most_one_stdin(&sources)?;
    if args.out_crt == args.out_cross || [&args.out_crt, &args.out_cross].contains(&&args.out_key) {
        return Err(Failure::usage(making, "two of --out-crt, --out-key and --out-cross name the same file"));
    }
    let existing = Existing::with_force(args.force);
    let (out_crt, out_cross) = (Sink::File(args.out_crt.clone()), Sink::File(args.out_cross.clone()));
    console::check_key_path(&args.out_key)?;
    out_crt.check(existing)?;
    out_cross.check(existing)?;

    let (present, known) = args.signer.open_with_passphrase(console)?;
    let passphrase = new_passphrase(args, known, console)?;
    let (next, cross) = successor(args, &present, now, &mut rng).map_err(|error| Failure::issue(making, &error))?;
    let key = signer::key_text(&next, passphrase.as_ref().map(|text| text.as_str()), &mut rng)
        .map_err(|bad| Failure::new(making, bad))?;
    console::write_key(&args.out_key, &key)?;
    let written = out_cross.write(&cross.pem(), existing, console).and_then(|()| {
        let written = out_crt.write(&next.certificate().pem(), existing, console);
        written.inspect_err(|_| {
            if existing == Existing::Keep {
                let _ = std::fs::remove_file(&args.out_cross);
            }
        })
    });
    // A key without its certificate is of no use, and would stand in the way of the next attempt.
    written.inspect_err(|_| drop(std::fs::remove_file(&args.out_key)))?;

    let sheet = Sheet::new(
        "rotation",
        format!("next authority of {}: private key in {}", cross.mesh(), args.out_key.display()),
    )
    .field("crt_file", args.out_crt.display().to_string())
    .field("key_file", args.out_key.display().to_string())
    .field("key_encrypted", passphrase.is_some())
    .field("cross_file", args.out_cross.display().to_string())
    .part("next", describe::authority(next.certificate(), now).titled(format!("certificate in {out_crt}")))
    .part("cross", describe::authority(&cross, now).titled(format!("cross certificate in {out_cross}")));
    console.print(&sheet.text(args.json))?;
    if args.json { Ok(()) } else { console.print(&what_to_do(args)) }
}

fn new_passphrase(
    args: &Args,
    of_present: Option<Zeroizing<String>>,
    console: &mut Console<'_>,
) -> Result<Option<Zeroizing<String>>, Failure> {
    let known = match &args.out_passphrase_file {
        Some(file) => Some(passphrase::in_file(file, console)?),
        None => of_present,
    };
    if known.is_none() && !args.encrypt {
        return Ok(None);
    }
    passphrase::of_new_key(&args.out_key, known, "--out-passphrase-file", console).map(Some)
}

fn successor(
    args: &Args,
    present: &Authority,
    now: UnixTime,
    mut rng: &mut dyn RngCore,
) -> Result<(Authority, CaCertificate), IssueError> {
    let ca = present.certificate();
    let lived = ca.not_after().saturating_since(ca.not_before().plus(BACKDATED));
    let parameters = CaParameters {
        mesh: ca.mesh().clone(),
        network: ca.network(),
        lifetime: args.duration.map_or(lived, |span| span.0),
    };
    let next = Authority::create(&parameters, now, &mut rng)?;
    let cross = present.cross_sign(next.certificate(), now, &mut rng)?;
    Ok((next, cross))
}

fn what_to_do(args: &Args) -> String {
    let (old, new, key) = (&args.signer.ca_crt, args.out_crt.display(), args.out_key.display());
    format!(
        "what to do next:
  1. have every member believe both: \"cat {new} {old} > both.crt\", and both.crt in place of its ca.crt
  2. sign with {key} from then on, and each node anew:
     wiremesh-cert renew --ca-crt {new} --ca-key {key} --old-ca-crt {old} --crt NODE.crt --force
  3. when every node passes \"wiremesh-cert verify --ca-crt {new}\": have them believe {new} alone, and put the old key away
Whoever believes {old} alone believes a node of the next one by the chain NODE.crt {cross}.
",
        cross = args.out_cross.display()
    )
}
