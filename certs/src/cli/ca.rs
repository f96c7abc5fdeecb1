//! `ca`: makes a mesh's authority.

use std::path::PathBuf;

use ipnet::IpNet;
use rand::RngCore;

use super::{
    Console, Failure, Sink, Source, Span,
    console::{self, Existing},
    describe, passphrase, signer,
};
use crate::{Authority, CaParameters, MeshName, UnixTime};

/// Of `ca`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  wiremesh-cert ca --name lab --networks 10.42.0.0/16 --duration 10y --out-crt ca.crt --out-key ca.key

Who has ca.key can make any node of the mesh. Keep it on a machine without network, or where the coordinator runs.")]
pub struct Args {
    /// The mesh's name, a DNS label
    #[arg(long, value_name = "MESH")]
    name: MeshName,
    /// The overlay network: no certificate is believed for an address outside it
    #[arg(long, value_name = "NETWORK", default_value = "10.42.0.0/16")]
    networks: IpNet,
    /// How long it lives: s, m, h, d (days), y (365 days)
    #[arg(long, value_name = "DURATION", default_value = "10y")]
    duration: Span,
    /// Where its certificate goes; - for standard output
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    out_crt: Sink,
    /// Where its private key goes, mode 0600; never replaced
    #[arg(long, value_name = "FILE", default_value = "ca.key", value_parser = console::key_path)]
    out_key: PathBuf,
    /// Encrypt the private key with a passphrase, as PKCS#8 has it
    #[arg(long)]
    encrypt: bool,
    /// The passphrase of the new key, the first line of this file [default: $WIREMESH_CA_PASSPHRASE, or it is asked for
    /// at the terminal]
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    passphrase_file: Option<Source>,
    /// Replace the certificate file if it exists (a key file never is)
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the two files.
pub fn run(args: &Args, now: UnixTime, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    let making = format!("making the authority of {}", args.name);
    if args.networks != args.networks.trunc() {
        return Err(Failure::usage(&making, format!("{} is a node's address, not a network", args.networks))
            .hint(format!("--networks {}", args.networks.trunc())));
    }
    let existing = Existing::with_force(args.force);
    console::check_key_path(&args.out_key)?;
    args.out_crt.check(existing)?;

    let passphrase = match args.encrypt {
        true => {
            let known = passphrase::known(args.passphrase_file.as_ref(), console)?;
            Some(passphrase::of_new_key(&args.out_key, known, "--passphrase-file", console)?)
        }
        false => None,
    };
    let parameters = CaParameters { mesh: args.name.clone(), network: args.networks, lifetime: args.duration.0 };
    let authority = Authority::create(&parameters, now, &mut rng).map_err(|error| Failure::issue(&making, &error))?;
    let key = signer::key_text(&authority, passphrase.as_ref().map(|text| text.as_str()), &mut rng)
        .map_err(|bad| Failure::new(&making, bad))?;
    console::write_key(&args.out_key, &key)?;
    let pem = authority.certificate().pem();
    let sheet = describe::authority(authority.certificate(), now)
        .titled(format!(
            "authority of {}: certificate in {}, private key in {}",
            args.name,
            args.out_crt,
            args.out_key.display()
        ))
        .field("crt_file", args.out_crt.to_string())
        .field("key_file", args.out_key.display().to_string());
    super::deliver(&pem, &args.out_crt, existing, sheet, args.json, console).inspect_err(|_| {
        // A key without its certificate is of no use, and would stand in the way of the next attempt.
        let _ = std::fs::remove_file(&args.out_key);
    })
}
