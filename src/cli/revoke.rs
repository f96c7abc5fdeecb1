//! `wiremesh cert revoke`: takes a member or one certificate out of the mesh, through the coordinator's socket.

use std::io::Write;

use serde_json::json;
use wiremesh_certs::{NodeId, NodeName, Serial};

use super::{
    cert::adoption,
    coordinator::Where,
    failure::{self, Failure},
    socket,
};
use crate::{
    api::admin::{Revoke, Revoked},
    clock,
    settings::Span,
};

/// Revokes a member with all its certificates, or one certificate
///
/// With --wait it ends with 0 when every agent that is heard enforces it, and with 2 when some did not in time.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh cert revoke worker-1 --wait\n  \
    wiremesh cert revoke 4f0c6a7e1d9b42358a6f0b1c2d3e4f50")]
pub struct Args {
    /// A member's name, an identity of 64 hexadecimal digits, or a serial number of 32
    target: String,
    /// Waits until every agent that is heard enforces it, and says who does not
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "wait")]
    timeout: Span,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Revokes and says which list says so, and if asked to, who enforces it.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<u8, Failure> {
    let body = revocation(&args.target)?;
    let socket = args.at.socket()?;
    let revoked: Revoked = socket::post(&socket, "/revocations", &body).await?;
    if !args.json {
        let name = revoked.name.as_ref().filter(|name| name.as_str() != args.target);
        let whose = name.map(|name| format!(" ({name})")).unwrap_or_default();
        writeln!(out, "revoked {}{whose} in list {}", args.target, revoked.number)?;
    }
    if !args.wait {
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&revoked)?)?;
        }
        return Ok(failure::DONE);
    }
    let adoption = adoption::wait(&socket, revoked.number, args.timeout.0, |so_far| {
        let is_over = args.json || so_far.behind.is_empty();
        if is_over { Ok(()) } else { writeln!(out, "enforced by {} of {}", so_far.enforced, so_far.living) }
    })
    .await?;
    if args.json {
        let answer = json!({
            "number": revoked.number,
            "name": revoked.name,
            "agents": adoption.living + adoption.silent.len(),
            "living": adoption.living,
            "enforced": adoption.enforced,
            "behind": adoption.behind,
            "silent": adoption.silent,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
    } else {
        adoption::write(&adoption, clock::unix(), out)?;
    }
    Ok(if adoption.behind.is_empty() { failure::DONE } else { failure::NOT_SO })
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
