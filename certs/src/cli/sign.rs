//! `sign`: a node's certificate, from its request or from its public keys.

use std::time::Duration;

use ipnet::IpNet;
use rand::RngCore;

use super::{
    Console, Failure, Sink, Source, Span,
    console::Existing,
    describe::{self, PublicKeys},
    signer::Signer,
    span::spell,
};
use crate::{
    CaCertificate, CertificateRequest, Claims, GroupName, MIN_LIFETIME, NodeName, OverlayIp, ServiceName, UnixTime,
    allowed_services,
};

/// A node's certificate lives this long if nobody says otherwise, or until its authority ends.
const USUAL_LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// Of `sign`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  wiremesh-cert sign --in-req worker-1.req --networks 10.42.0.7 --groups gpu --duration 30d
  wiremesh-cert sign --in-pub worker-1.pub --name worker-1 --networks 10.42.0.7/16 --out-crt -

What the authority's own limits forbid is refused. That no two nodes get one name or address is for you to see to.")]
pub struct Args {
    #[command(flatten)]
    signer: Signer,
    /// The node's request; - for standard input
    #[arg(long, value_name = "FILE", required_unless_present = "in_pub", conflicts_with = "in_pub")]
    in_req: Option<Source>,
    /// Instead of a request the node's public keys, as keygen's --out-pub gives them: nothing then proves who has them
    #[arg(long, value_name = "FILE", requires = "name")]
    in_pub: Option<Source>,
    /// The node's name; with a request it may be left out, and must be the one in it
    #[arg(long, value_name = "NAME")]
    name: Option<NodeName>,
    /// The node's overlay address, with or without the prefix length of its network
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    networks: Address,
    /// Its groups
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
    groups: Vec<GroupName>,
    /// The services it may offer; without this, any
    #[arg(long, value_name = "SERVICE,…", value_delimiter = ',')]
    services: Vec<ServiceName>,
    /// How long it lives: s, m, h, d (days), y (365 days) [default: 7d, or as long as the authority if that is shorter]
    #[arg(long, value_name = "DURATION")]
    duration: Option<Span>,
    /// Where the certificate goes; - for standard output [default: NAME.crt]
    #[arg(long, value_name = "FILE")]
    out_crt: Option<Sink>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Signs it.
pub fn run(args: &Args, now: UnixTime, mut rng: &mut dyn RngCore, console: &mut Console<'_>) -> Result<(), Failure> {
    let asked = args.in_req.as_ref().or(args.in_pub.as_ref());
    Source::at_most_one_stdin(&args.signer.sources().into_iter().chain(asked).collect::<Vec<_>>())?;
    let (name, keys) = subject(args, console)?;
    let existing = Existing::with_force(args.force);
    let out = args.out_crt.clone().unwrap_or_else(|| Sink::File(format!("{name}.crt").into()));
    out.check(existing)?;

    let signing = format!("signing {name}");
    let authority = args.signer.open(console)?;
    let claims = Claims {
        identity: keys.identity,
        wg: keys.wg,
        address: args.networks.within(authority.certificate()).map_err(|failure| failure(&signing))?,
        groups: args.groups.clone(),
        services: allowed_services(args.services.clone()),
        lifetime: lifetime_within(args.duration, USUAL_LIFETIME, authority.certificate(), now)
            .map_err(|failure| failure(&signing))?,
        name,
    };
    let chain = authority.issue(&claims, now, &mut rng).map_err(|error| Failure::issue(&signing, &error))?;
    let sheet = describe::node(chain.leaf(), now)
        .map_err(|why| Failure::new(&signing, why))?
        .titled(format!("node certificate in {out}"))
        .field("crt_file", out.to_string());
    super::deliver(&chain.to_pem(), &out, existing, sheet, args.json, console)
}

/// Whose certificate it is to be.
fn subject(args: &Args, console: &mut Console<'_>) -> Result<(NodeName, PublicKeys), Failure> {
    match (&args.in_req, &args.in_pub, &args.name) {
        (Some(source), _, name) => {
            let reading = format!("reading {source}");
            let request =
                CertificateRequest::parse(&source.text(console)?).map_err(|bad| Failure::new(&reading, bad))?;
            if name.as_ref().is_some_and(|name| *name != request.name) {
                return Err(Failure::new(reading, format!("it asks for the name {}", request.name))
                    .hint("leave out --name, or have the node make a request for the other one"));
            }
            Ok((request.name, PublicKeys { identity: request.identity, wg: request.wg }))
        }
        (None, Some(source), Some(name)) => {
            let keys = PublicKeys::parse(&source.text(console)?);
            Ok((name.clone(), keys.map_err(|why| Failure::new(format!("reading {source}"), why))?))
        }
        (None, _, _) => Err(Failure::usage("signing", "needs --in-req, or --in-pub and --name")),
    }
}

/// A failure that lacks only what was being done.
pub type Because = Box<dyn FnOnce(&str) -> Failure>;

/// As long as asked, which must not be longer than the authority's own life; else as long as usual or as that.
pub fn lifetime_within(
    asked: Option<Span>,
    usual: Duration,
    ca: &CaCertificate,
    now: UnixTime,
) -> Result<Duration, Because> {
    let left = ca.not_after().saturating_since(now);
    match asked {
        None => Ok(usual.min(left).max(MIN_LIFETIME)),
        Some(Span(asked)) if asked <= left || left.is_zero() => Ok(asked),
        Some(_) => {
            let until = ca.not_after();
            Err(Box::new(move |signing| {
                Failure::new(signing, format!("it would outlive its authority, which ends at {until}"))
                    .hint(format!("a --duration of at most {}", spell(left).replace(' ', "")))
            }))
        }
    }
}

/// As the option gives it.
#[derive(Clone, Copy, Debug)]
enum Address {
    Bare(OverlayIp),
    WithPrefix(IpNet),
}

impl Address {
    /// A prefix length, if given, must be the network's: a node is not given a part of it.
    fn within(self, ca: &CaCertificate) -> Result<OverlayIp, Because> {
        let network = ca.network();
        match self {
            Address::Bare(address) => Ok(address),
            Address::WithPrefix(found) if found.prefix_len() == network.prefix_len() => Ok(OverlayIp(found.addr())),
            Address::WithPrefix(found) => Err(Box::new(move |signing| {
                Failure::new(
                    signing,
                    format!("{found} has another prefix length than the authority's network {network}"),
                )
                .hint(format!("--networks {}", found.addr()))
            })),
        }
    }
}

fn address(text: &str) -> Result<Address, &'static str> {
    let bare = text.parse().map(Address::Bare);
    bare.or_else(|_| text.parse().map(Address::WithPrefix))
        .map_err(|_| "expected an address such as 10.42.0.7 or 10.42.0.7/16")
}
