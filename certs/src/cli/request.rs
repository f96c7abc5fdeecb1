//! `request`: makes a request for a certificate.

use super::{Console, Failure, Sink, Source, console::Existing, describe};
use crate::{CertificateRequest, IdentityKey, NodeName, WgPrivateKey};

/// Of `request`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  wiremesh-cert request --name worker-1 --out-req worker-1.req

The request holds public keys only, and proves that its maker has the identity key. Hand it to whoever has ca.key.")]
pub struct Args {
    /// The node's name, a DNS label
    #[arg(long, value_name = "NAME")]
    name: NodeName,
    /// The private identity key; - for standard input
    #[arg(long, value_name = "FILE", default_value = "identity.key")]
    in_key: Source,
    /// The private WireGuard key; - for standard input
    #[arg(long, value_name = "FILE", default_value = "wireguard.key")]
    in_wg_key: Source,
    /// Where the request goes; - for standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out_req: Sink,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes the request.
pub fn run(args: &Args, console: &mut Console<'_>) -> Result<(), Failure> {
    let existing = Existing::with_force(args.force);
    Source::at_most_one_stdin(&[&args.in_key, &args.in_wg_key])?;
    args.out_req.check(existing)?;
    let hint = "\"wiremesh-cert keygen\" makes both keys";
    let identity = args.in_key.secret(console).map_err(|failure| failure.hint(hint))?;
    let identity = IdentityKey::from_pkcs8_pem(&identity)
        .map_err(|bad| Failure::new(format!("reading {}", args.in_key), bad).hint(hint))?;
    let wireguard = args.in_wg_key.secret(console).map_err(|failure| failure.hint(hint))?;
    let wireguard = WgPrivateKey::from_base64(&wireguard)
        .map_err(|bad| Failure::new(format!("reading {}", args.in_wg_key), bad).hint(hint))?;

    let asking = format!("asking for a certificate for {}", args.name);
    let pem = CertificateRequest::create(&identity, &args.name, &wireguard.public())
        .map_err(|bad| Failure::new(&asking, bad))?;
    let made = CertificateRequest::parse(&pem).map_err(|bad| Failure::new(&asking, bad))?;
    let sheet = describe::request(&made)
        .titled(format!("certificate request in {}", args.out_req))
        .field("req_file", args.out_req.to_string());
    super::deliver(&pem, &args.out_req, existing, sheet, args.json, console)
}
