//! `wiremesh join`: lists the machines that wait to be let in, and decides about them, through the coordinator's socket.

use std::io::Write;

use wiremesh_certs::{NodeId, NodeName, UnixTime};

use super::{
    coordinator::Where,
    failure::Failure,
    socket,
    table::{self, coarse},
};
use crate::{
    api::admin::{DecideJoin, Join, Joins},
    settings::Span,
};

/// Lists the machines that wait to be let in, and decides about them
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh join list\n  wiremesh join approve worker-1\n  \
    wiremesh join refuse 8d3c...e1  (all 64 digits, as the list shows them)\n\n\
    Machines wait if they come with a token that was made with `wiremesh token create --approve`.\n\
    Compare the identity in the list with the one in the machine's own log before you let it in.")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Lists the machines that wait, and those decided about lately
    #[command(after_help = "Example:\n  wiremesh join list --json")]
    List {
        /// Prints JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: Where,
    },
    /// Lets a machine in: this one, and no other that calls itself so
    #[command(after_help = "Example:\n  wiremesh join approve worker-1")]
    Approve(Decided),
    /// Does not let a machine in
    #[command(after_help = "Example:\n  wiremesh join refuse worker-1")]
    Refuse(Decided),
}

/// Which machine
#[derive(Clone, Debug, clap::Args)]
struct Decided {
    /// The name under which it alone asks, or its identity of 64 hexadecimal digits
    #[arg(value_name = "NAME|IDENTITY")]
    who: String,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Runs one of the commands.
pub async fn run(args: &Args, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    match &args.command {
        Command::List { json, at } => list(*json, at, now, out).await,
        Command::Approve(decided) => decide("/joins/approve", decided, out).await,
        Command::Refuse(decided) => decide("/joins/refuse", decided, out).await,
    }
}

async fn list(json: bool, at: &Where, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    let joins: Joins = socket::get(&at.socket()?, "/joins").await?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&joins)?)?;
    } else {
        write_table(&joins.joins, now, out)?;
    }
    Ok(())
}

async fn decide(path: &str, decided: &Decided, out: &mut impl Write) -> Result<(), Failure> {
    let join: Join = socket::post(&decided.at.socket()?, path, &who(&decided.who)?).await?;
    if decided.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&join)?)?;
    } else {
        writeln!(out, "{}", outcome(&join))?;
    }
    Ok(())
}

/// No name has 64 letters.
fn who(text: &str) -> Result<DecideJoin, Failure> {
    if let Ok(identity) = text.parse::<NodeId>() {
        return Ok(DecideJoin { identity: Some(identity), ..DecideJoin::default() });
    }
    let name = NodeName::new(text).map_err(Failure::usage)?;
    Ok(DecideJoin { name: Some(name), ..DecideJoin::default() })
}

fn outcome(join: &Join) -> String {
    let (name, identity) = (&join.name, join.identity.to_hex());
    match join.standing.as_str() {
        "approved" => format!("{name} with identity {identity} may join; it does when it asks next, within a minute"),
        _ => format!("{name} with identity {identity} may not join"),
    }
}

fn write_table(joins: &[Join], now: UnixTime, out: &mut impl Write) -> std::io::Result<()> {
    if joins.is_empty() {
        return writeln!(out, "nobody waits");
    }
    let ago = |at: UnixTime| format!("{} ago", coarse(Span(now.saturating_since(at))));
    let rows = joins.iter().map(|join| {
        [
            join.name.to_string(),
            join.standing.clone(),
            ago(join.asked_at),
            ago(join.heard_at),
            join.from.to_string(),
            join.token.clone(),
            join.identity.to_hex(),
        ]
    });
    table::write(["NAME", "STANDING", "ASKED", "HEARD", "FROM", "TOKEN", "IDENTITY"], rows, out)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::WgPublicKey;

    use super::*;

    #[test]
    fn the_list_has_all_of_an_identity_for_it_is_there_to_be_compared() {
        let now = UnixTime(1_800_000_000);
        let join = Join {
            name: "worker-1".parse().unwrap(),
            identity: NodeId([0xab; 32]),
            wireguard_key: WgPublicKey([1; 32]),
            token: "3f9a51c07b2e".into(),
            from: "192.0.2.7".parse().unwrap(),
            standing: "waiting".into(),
            asked_at: now.minus(Duration::from_secs(3700)),
            heard_at: now.minus(Duration::from_secs(20)),
            ends_at: now,
        };
        let mut out = Vec::new();

        write_table(&[join], now, &mut out).unwrap();

        let identity = "ab".repeat(32);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                "NAME      STANDING  ASKED   HEARD    FROM       TOKEN         IDENTITY\n\
                 worker-1  waiting   1h ago  20s ago  192.0.2.7  3f9a51c07b2e  {identity}\n"
            )
        );
    }

    #[test]
    fn a_machine_is_named_by_its_name_or_its_identity() {
        assert!(who("worker-1").unwrap().name.is_some());
        assert!(who(&"a".repeat(64)).unwrap().identity.is_some());
        assert!(who("not a name").is_err());
    }
}
