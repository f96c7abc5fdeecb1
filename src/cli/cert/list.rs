//! `wiremesh cert list`: whose certificate ends when, and who is up to date, as the coordinator knows it.

use std::io::Write;

use wiremesh_certs::UnixTime;

use crate::{
    api::authority::{Member, Members},
    cli::{coordinator::Where, failure::Failure, socket, table},
    coordinator::care::coarse,
};

/// Lists the members' certificates, those that end first first
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh cert list\n  \
    wiremesh cert list --json | jq '.members[] | select(.living | not) | .name'")]
pub struct Args {
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Asks the coordinator and prints what it knows.
pub async fn run(args: &Args, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    let members: Members = socket::get(&args.at.socket()?, "/members").await?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&members)?)?;
    } else {
        write(&members, now, out)?;
    }
    Ok(())
}

fn write(fleet: &Members, now: UnixTime, out: &mut impl Write) -> std::io::Result<()> {
    let authority = &fleet.authority;
    let fingerprint = &authority.fingerprint.to_string()[..16];
    writeln!(out, "CA {fingerprint} {}; list {}", ends(authority.ends_at, now), fleet.number)?;
    for care in &fleet.care {
        writeln!(out, "{}: {}", care.what, care.hint)?;
    }
    let header = ["NAME", "ADDRESS", "ENDS", "CA", "LIST", "HEARD", "SERIAL"];
    table::write(header, fleet.members.iter().map(|member| row(member, fleet, now)), out)
}

fn row(member: &Member, fleet: &Members, now: UnixTime) -> [String; 7] {
    let unknown = || "?".to_owned();
    let heard = match member.heard_at {
        Some(at) => format!("{} ago", coarse(now.saturating_since(at))),
        None => "never, or left".to_owned(),
    };
    [
        member.name.to_string(),
        member.address.to_string(),
        member.ends_at.map_or_else(unknown, |at| ends(at, now)),
        member.authority.map_or_else(unknown, |authority| authority.to_string()[..16].to_owned()),
        member.enforces.map_or_else(unknown, |enforces| format!("{enforces} of {}", fleet.number)),
        heard,
        member.serial.map_or_else(unknown, |serial| serial.to_string()),
    ]
}

fn ends(at: UnixTime, now: UnixTime) -> String {
    if at > now {
        format!("ends in {}", coarse(at.saturating_since(now)))
    } else {
        format!("ended {} ago", coarse(now.saturating_since(at)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::{Fingerprint, NodeId, Serial};

    use super::*;
    use crate::api::authority::{Authority, Care};

    #[test]
    fn the_list_says_whose_certificate_ends_when_and_who_is_behind() {
        let now = UnixTime(1_800_000_000);
        let later = |secs| now.plus(Duration::from_secs(secs));
        let authority = Authority {
            fingerprint: Fingerprint([0xab; 32]),
            standing: "issuing".into(),
            since: now,
            root: Fingerprint([0xab; 32]),
            begins_at: now,
            ends_at: later(40 * 86_400),
            published: 1,
        };
        let known = Member {
            name: "worker-1".parse().unwrap(),
            address: "10.42.0.2".parse().unwrap(),
            identity: NodeId([1; 32]),
            serial: Some(Serial([2; 16])),
            ends_at: Some(later(90_061)),
            authority: Some(Fingerprint([0xab; 32])),
            enforces: Some(6),
            heard_at: Some(now.minus(Duration::from_secs(4))),
            living: true,
        };
        let silent = Member {
            name: "b".parse().unwrap(),
            ends_at: Some(now.minus(Duration::from_secs(60))),
            authority: None,
            enforces: None,
            heard_at: None,
            living: false,
            ..known.clone()
        };
        let care = vec![Care { what: "the CA ends in 40d".into(), hint: "wiremesh cert rotate".into() }];
        let mut out = Vec::new();

        write(&Members { number: 7, authority, care, members: vec![silent, known] }, now, &mut out).unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "CA abababababababab ends in 40d; list 7\n\
             the CA ends in 40d: wiremesh cert rotate\n\
             NAME      ADDRESS    ENDS          CA                LIST    HEARD           SERIAL\n\
             b         10.42.0.2  ended 1m ago  ?                 ?       never, or left  02020202020202020202020202020202\n\
             worker-1  10.42.0.2  ends in 1d1h  abababababababab  6 of 7  4s ago          02020202020202020202020202020202\n"
        );
    }
}
