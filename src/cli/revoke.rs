//! `wiremesh cert revoke`: takes a member or one certificate out of the mesh, through the coordinator's socket.

use std::io::Write;

use wiremesh_certs::{NodeId, NodeName, Serial};

use super::{coordinator::Where, failure::Failure, socket};
use crate::api::admin::{Revoke, Revoked};

/// Revokes a member with all its certificates, or one certificate
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh cert revoke worker-1\n  \
    wiremesh cert revoke 4f0c6a7e1d9b42358a6f0b1c2d3e4f50")]
pub struct Args {
    /// A member's name, an identity of 64 hexadecimal digits, or a serial number of 32
    target: String,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Revokes and says which list says so.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let body = revocation(&args.target)?;
    let revoked: Revoked = socket::post(&args.at.socket()?, "/revocations", &body).await?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&revoked)?)?;
    } else {
        let name = revoked.name.filter(|name| name.as_str() != args.target);
        let whose = name.map(|name| format!(" ({name})")).unwrap_or_default();
        writeln!(
            out,
            "revoked {}{whose} in list {}; members hear of it with their next heartbeat",
            args.target, revoked.number
        )?;
    }
    Ok(())
}

/// A name may look like a serial number (both may be 32 hexadecimal digits); a serial number is then meant.
fn revocation(target: &str) -> Result<Revoke, Failure> {
    if let Ok(serial) = target.parse::<Serial>() {
        return Ok(Revoke { serial: Some(serial), ..Revoke::default() });
    }
    if let Ok(identity) = target.parse::<NodeId>() {
        return Ok(Revoke { identity: Some(identity), ..Revoke::default() });
    }
    let name = NodeName::new(target).map_err(Failure::usage)?;
    Ok(Revoke { name: Some(name), ..Revoke::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_an_identity_or_a_serial_number() {
        assert!(revocation("worker-1").unwrap().name.is_some());
        assert!(revocation(&"a".repeat(32)).unwrap().serial.is_some());
        assert!(revocation(&"a".repeat(64)).unwrap().identity.is_some());
        assert!(revocation("not a name").is_err());
    }
}
