//! `revoke`: puts certificates and identities on the signed list of what is not believed any more.

use std::path::PathBuf;

use super::{
    Console, Failure, Sink, Source, console::Existing, describe, found::found_in, revocations, sheet::Sheet,
    signer::Signer, span::moment,
};
use crate::{NodeId, RevocationList, Serial, UnixTime};

/// Of `revoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert revoke --crt worker-1.crt --revocations revocations.bin
  wiremesh-cert revoke --serial 4f0c6a7e1d9b42358a6f0b1c2d3e4f50

The list is made if it is not there, and its number grows with each change: members keep the highest they have seen.
Where a coordinator runs, it has the list: \"wiremesh cert revoke NAME\" there, and members hear of it at once.")]
pub struct Args {
    #[command(flatten)]
    signer: Signer,
    /// A certificate: its identity is revoked, with every certificate that it has or gets; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present_any = ["serial", "identity"])]
    crt: Vec<Source>,
    /// The serial number of a certificate, which alone is revoked
    #[arg(long, value_name = "SERIAL")]
    serial: Vec<Serial>,
    /// An identity, with every certificate that it has or gets
    #[arg(long, value_name = "IDENTITY")]
    identity: Vec<NodeId>,
    /// Earlier authorities of the mesh, if one of them may have signed the list so far
    #[arg(long, value_name = "FILE")]
    old_ca_crt: Option<Source>,
    /// The signed list
    #[arg(long, value_name = "FILE", default_value = "revocations.bin")]
    revocations: PathBuf,
    /// As of this time instead of now: 2027-01-15T08:00:00Z, 2027-01-15 or @SECONDS
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<UnixTime>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Puts them on it.
pub fn run(args: &Args, now: UnixTime, console: &mut Console<'_>) -> Result<(), Failure> {
    let now = args.at.unwrap_or(now);
    let mut sources = args.signer.sources();
    sources.extend(args.crt.iter().chain(&args.old_ca_crt));
    Source::at_most_one_stdin(&sources)?;
    let file = Source::File(args.revocations.clone());
    let revoking = format!("revoking in {file}");

    let authority = args.signer.open(console)?;
    let mut identities = args.identity.clone();
    for crt in &args.crt {
        let found = found_in(&crt.bytes(console)?).map_err(|bad| Failure::new(format!("reading {crt}"), bad))?;
        identities.extend(found.first().map(|found| found.key));
    }
    if identities.contains(&authority.certificate().key()) {
        return Err(Failure::new(revoking, "an authority does not revoke itself")
            .hint("\"wiremesh-cert rotate\" makes the next one"));
    }
    let (mut trust, _) = revocations::trust_of(&authority, args.old_ca_crt.as_ref(), console)?;
    let new = file.is_missing();
    if !new {
        revocations::apply(&file, &mut trust, now, console)?;
        revocations::check_believed(&authority, &trust, &revoking)?;
    }
    let before = trust.revocations();
    let mut list = before.clone();
    list.serials.extend(&args.serial);
    list.identities.extend(identities);
    let changed = new || list != *before;
    if changed {
        list.number = before.number.checked_add(1).ok_or_else(|| Failure::new(&revoking, "its numbers are used up"))?;
        let signed = authority.sign_revocations(&list).map_err(|error| Failure::new(&revoking, error))?;
        // What nobody would take over is not written.
        let taken_over = trust.clone().apply_revocations(&signed, now);
        taken_over.map_err(|refused| Failure::new(&revoking, refused))?;
        Sink::File(args.revocations.clone()).write_bytes(signed.as_bytes(), Existing::Replace, console)?;
    }
    console.print(&sheet(&list, &file, changed, now).text(args.json))
}

fn sheet(list: &RevocationList, file: &Source, changed: bool, now: UnixTime) -> Sheet {
    let title = match changed {
        true => format!("signed list of revocations in {file}"),
        false => format!("nothing to do: all of it is in {file}"),
    };
    describe::rulings(Sheet::new("revocations", title), list, now)
        .field("file", file.to_string())
        .field("changed", changed)
}
