//! `keygen`: makes a node's two private keys.

use std::path::PathBuf;

use rand::RngCore;

use super::{
    Console, Failure, Sink,
    console::{self, Existing},
    describe::PublicKeys,
};
use crate::generate_keys;

/// Of `keygen`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  wiremesh-cert keygen --out-key identity.key --out-wg-key wireguard.key --out-pub worker-1.pub

Run it on the node itself: the private keys need not leave it. Send on what \"request\" makes, or the public keys.")]
pub struct Args {
    /// Where the private identity key goes (Ed25519, PKCS#8 PEM, mode 0600); never replaced
    #[arg(long, value_name = "FILE", default_value = "identity.key", value_parser = console::key_path)]
    out_key: PathBuf,
    /// Where the private WireGuard key goes (as `wg genkey` prints it, mode 0600); never replaced
    #[arg(long, value_name = "FILE", default_value = "wireguard.key", value_parser = console::key_path)]
    out_wg_key: PathBuf,
    /// Where the two public keys go; - for standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out_pub: Sink,
    /// Replace the file of public keys if it exists (a private one never is)
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes both key files, or none.
pub fn run(args: &Args, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    if args.out_key == args.out_wg_key {
        return Err(Failure::usage("making keys", "--out-key and --out-wg-key name the same file"));
    }
    let existing = Existing::with_force(args.force);
    console::check_key_path(&args.out_key)?;
    console::check_key_path(&args.out_wg_key)?;
    args.out_pub.check(existing)?;

    let (identity, wireguard) = generate_keys(&mut rng);
    let public = PublicKeys { identity: identity.id(), wg: wireguard.public() };
    console::write_key(&args.out_key, &identity.to_pkcs8_pem())?;
    let wireguard = wireguard.to_base64();
    let written = console::write_key(&args.out_wg_key, &wireguard).and_then(|()| {
        let sheet = public
            .sheet()
            .titled(format!(
                "keys of a node: identity in {}, WireGuard in {}, public halves in {}",
                args.out_key.display(),
                args.out_wg_key.display(),
                args.out_pub
            ))
            .field("key_file", args.out_key.display().to_string())
            .field("wg_key_file", args.out_wg_key.display().to_string())
            .field("pub_file", args.out_pub.to_string());
        let delivered = super::deliver(&public.to_text(), &args.out_pub, existing, sheet, args.json, console);
        delivered.inspect_err(|_| drop(std::fs::remove_file(&args.out_wg_key)))
    });
    // Nobody knows the keys yet: half a pair would only stand in the way of the next attempt.
    written.inspect_err(|_| drop(std::fs::remove_file(&args.out_key)))
}
