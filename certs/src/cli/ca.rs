//! `ca`: makes a mesh's authority: a root, or an intermediate below one.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use rand::RngCore;
use zeroize::Zeroizing;

use super::{
    Console, Failure, Sink, Source, Span,
    console::{self, Existing},
    describe, passphrase,
    sign::lifetime_within,
    signer::{self, Signer},
};
use crate::{Authority, CaCertificate, CaParameters, MeshName, UnixTime};

/// The overlay network of a mesh whose operator has no wish.
const USUAL_NETWORK: &str = "10.42.0.0/16";
/// A root lives this long if nobody says otherwise, and an intermediate too, or until its root ends.
const USUAL_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Of `ca`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert ca --name lab --networks 10.42.0.0/16 --duration 10y --out-crt ca.crt --out-key ca.key
  wiremesh-cert ca --name lab --encrypt --out-crt root.crt --out-key root.key
  wiremesh-cert ca --intermediate --ca-crt root.crt --ca-key root.key --out-crt ca.crt --out-key ca.key

Who has a root's key can make any node of the mesh. Keep it, encrypted, on a machine without network, and give the
coordinator an intermediate: ca.crt and ca.key in its data directory. A small mesh can have its root there.")]
pub struct Args {
    /// The mesh's name, a DNS label; an intermediate's is that of its root
    #[arg(long, value_name = "MESH", required_unless_present = "intermediate")]
    name: Option<MeshName>,
    /// The overlay network: no certificate is believed for an address outside it [default: 10.42.0.0/16, or that of the
    /// root above, which an intermediate may only narrow]
    #[arg(long, value_name = "NETWORK")]
    networks: Option<IpNet>,
    /// How long it lives: s, m, h, d (days), y (365 days) [default: 10y, or as long as the root above if that is shorter]
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,
    /// Make an authority that signs nodes and no further authorities, below the root of --ca-crt and --ca-key
    #[arg(long)]
    intermediate: bool,
    /// The certificate of the root above
    #[arg(long, value_name = "FILE", requires = "intermediate", required_if_eq("intermediate", "true"))]
    ca_crt: Option<Source>,
    /// The private key of the root above
    #[arg(long, value_name = "FILE", requires = "intermediate", required_if_eq("intermediate", "true"))]
    ca_key: Option<Source>,
    /// A passphrase, the first line of this file: of --ca-key, or without --intermediate of the new key [default:
    /// $WIREMESH_CA_PASSPHRASE, or it is asked for at the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<Source>,
    /// Encrypt the new private key with a passphrase, as PKCS#8 has it
    #[arg(long)]
    encrypt: bool,
    /// The passphrase of the new key, the first line of this file [default: with --intermediate it is asked for at the
    /// terminal]
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    out_passphrase_file: Option<Source>,
    /// Where its certificate goes, and that of the root above behind it; - for standard output
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    out_crt: Sink,
    /// Where its private key goes, mode 0600; never replaced
    #[arg(long, value_name = "FILE", default_value = "ca.key", value_parser = console::key_path)]
    out_key: PathBuf,
    /// Replace the certificate file if it exists (a key file never is)
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the two files.
pub fn run(args: &Args, now: UnixTime, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    let root = root_above(args);
    let making = match &args.name {
        Some(name) => format!("making the authority of {name}"),
        None => "making an intermediate authority".to_owned(),
    };
    check_usage(args, &making)?;
    let mut sources = root.iter().flat_map(Signer::sources).collect::<Vec<_>>();
    sources.extend(&args.out_passphrase_file);
    Source::at_most_one_stdin(&sources)?;
    let existing = Existing::with_force(args.force);
    console::check_key_path(&args.out_key)?;
    args.out_crt.check(existing)?;

    let root = root.map(|root| root.open(console)).transpose()?;
    let passphrase = new_passphrase(args, console)?;
    let authority = create(args, root.as_ref(), now, &mut rng, &making)?;
    let key = signer::key_text(&authority, passphrase.as_ref().map(|text| text.as_str()), &mut rng)
        .map_err(|bad| Failure::new(&making, bad))?;
    console::write_key(&args.out_key, &key)?;
    let sheet = describe::authority(authority.certificate(), now)
        .titled(format!(
            "{} of {}: certificate in {}, private key in {}",
            if root.is_some() { "intermediate authority" } else { "authority" },
            authority.certificate().mesh(),
            args.out_crt,
            args.out_key.display()
        ))
        .field("crt_file", args.out_crt.to_string())
        .field("key_file", args.out_key.display().to_string())
        .field("key_encrypted", passphrase.is_some());
    let chain: Vec<CaCertificate> = [authority.certificate()].into_iter().chain(authority.above()).cloned().collect();
    let pem = CaCertificate::bundle_to_pem(&chain);
    super::deliver(&pem, &args.out_crt, existing, sheet, args.json, console).inspect_err(|_| {
        // A key without its certificate is of no use, and would stand in the way of the next attempt.
        let _ = std::fs::remove_file(&args.out_key);
    })
}

fn root_above(args: &Args) -> Option<Signer> {
    Some(Signer {
        ca_crt: args.ca_crt.clone()?,
        ca_key: args.ca_key.clone()?,
        passphrase_file: args.passphrase_file.clone(),
    })
}

fn check_usage(args: &Args, making: &str) -> Result<(), Failure> {
    if let Some(networks) = args.networks.filter(|networks| *networks != networks.trunc()) {
        return Err(Failure::usage(making, format!("{networks} is a node's address, not a network"))
            .hint(format!("--networks {}", networks.trunc())));
    }
    if args.passphrase_file.is_some() && !args.encrypt && !args.intermediate {
        return Err(
            Failure::usage(making, "there is a --passphrase-file, but no key that is encrypted").hint("add --encrypt")
        );
    }
    if args.passphrase_file.is_some() && args.out_passphrase_file.is_some() && !args.intermediate {
        return Err(Failure::usage(making, "--passphrase-file and --out-passphrase-file are for one key"));
    }
    Ok(())
}

/// The root's passphrase is none for its intermediate: that is used on a machine that is online.
fn new_passphrase(args: &Args, console: &mut Console<'_>) -> Result<Option<Zeroizing<String>>, Failure> {
    if !args.encrypt {
        return Ok(None);
    }
    let known = match &args.out_passphrase_file {
        Some(file) => Some(passphrase::in_file(file, console)?),
        None if args.intermediate => None,
        None => passphrase::known(args.passphrase_file.as_ref(), console)?,
    };
    passphrase::of_new_key(&args.out_key, known, "--out-passphrase-file", console).map(Some)
}

fn create(
    args: &Args,
    root: Option<&Authority>,
    now: UnixTime,
    mut rng: &mut dyn RngCore,
    making: &str,
) -> Result<Authority, Failure> {
    let created = match root {
        Some(root) => {
            let above = root.certificate();
            let parameters = CaParameters {
                mesh: args.name.clone().unwrap_or_else(|| above.mesh().clone()),
                network: args.networks.unwrap_or(above.network()),
                lifetime: lifetime_within(args.duration, USUAL_LIFETIME, above, now)
                    .map_err(|because| because(making))?,
            };
            root.create_intermediate(&parameters, now, &mut rng)
        }
        None => {
            let Some(mesh) = args.name.clone() else {
                return Err(Failure::usage(making, "needs --name"));
            };
            let network = args.networks.unwrap_or(USUAL_NETWORK.parse().expect("a network"));
            let lifetime = args.duration.map_or(USUAL_LIFETIME, |span| span.0);
            Authority::create(&CaParameters { mesh, network, lifetime }, now, &mut rng)
        }
    };
    created.map_err(|error| Failure::issue(making, &error))
}
