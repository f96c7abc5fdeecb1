//! `wiremesh token`: makes, lists and takes back join tokens, through the coordinator's socket.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::{Value, json};
use wiremesh_certs::{GroupName, JoinToken, NodeName, ServiceName, UnixTime, files};
use zeroize::Zeroizing;

use super::{
    coordinator::Where,
    failure::Failure,
    socket,
    table::{self, coarse},
};
use crate::{
    api::admin::{CreateToken, CreatedToken, TOKEN_ID_BYTES, Token, Tokens},
    settings::Span,
};

/// Makes, lists and takes back join tokens
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh token create --name worker-1 > join-token\n  wiremesh token list")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Create(CreateArgs),
    /// Lists join tokens, without their secrets
    #[command(after_help = "Example:\n  wiremesh token list --json")]
    List {
        /// Prints JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: Where,
    },
    /// Takes a join token back; who joined with it stays
    #[command(after_help = "Example:\n  wiremesh token revoke 3f9a51c07b2e")]
    Revoke {
        /// Which one, as `wiremesh token list` names it
        id: String,
        /// Prints JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: Where,
    },
}

/// Makes a join token and prints it: a secret, seen this once
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh token create --ttl 24h --uses 1 --name worker-1 > join-token\n  \
    TOKEN=$(wiremesh token create --group gpu --uses 10 --url https://203.0.113.1:8080)\n  \
    wiremesh token create --name worker-1 --out /run/join/worker-1 --ensure\n  \
    wiremesh token create --approve --uses 20 --service llm-inference > join-token")]
pub struct CreateArgs {
    /// How long it may be used: 90s, 15m, 24h, 7d, 1y
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = ttl)]
    ttl: Span,
    /// By how many machines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Only a node of this name may join with it
    #[arg(long)]
    name: Option<NodeName>,
    /// A group of the nodes that join with it; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<GroupName>,
    /// A service that they may offer; may be given several times [default: any]
    #[arg(long = "service", value_name = "SERVICE")]
    services: Vec<ServiceName>,
    /// Whoever joins with it waits until an operator lets it in: wiremesh join
    #[arg(long)]
    approve: bool,
    /// Where the coordinator is reached; may be given several times [default: its public_urls]
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// Writes the token into this file, readable for its owner alone, and prints nothing secret
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Does nothing if FILE holds a token already that may be used, or was used up: for a command that runs at each start
    #[arg(long, requires = "out")]
    ensure: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// A token that nobody could use is a slip of the finger.
fn ttl(text: &str) -> Result<Span, String> {
    let span = text.parse::<Span>().map_err(|bad| bad.to_string())?;
    if span.0.is_zero() { Err("a token must live for a while".to_owned()) } else { Ok(span) }
}

/// Runs one of the token commands.
pub async fn run(args: &Args, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    match &args.command {
        Command::Create(args) => create(args, out).await,
        Command::List { json, at } => list(*json, at, now, out).await,
        Command::Revoke { id, json, at } => revoke(id, *json, at, out).await,
    }
}

async fn create(args: &CreateArgs, out: &mut impl Write) -> Result<(), Failure> {
    let socket = args.at.socket()?;
    if args.ensure
        && let Some(path) = &args.out
        && let Some(token) = still_good(path, &socket).await?
    {
        return said(&token.id, &token.state, path, args.json, out);
    }
    // Before a token is made that could not be kept.
    if let Some(path) = args.out.as_deref().filter(|path| !args.ensure && path.exists()) {
        let exists = files::FileError::Exists(path.to_owned());
        return Err(Failure::from(exists).hint("name another file; --ensure replaces a token that is good no more"));
    }
    let body = CreateToken {
        ttl_secs: args.ttl.0.as_secs(),
        uses: args.uses,
        name: args.name.clone(),
        groups: args.groups.clone(),
        services: args.services.clone(),
        approve: args.approve,
        urls: args.urls.clone(),
    };
    let created: CreatedToken = socket::post(&socket, "/tokens", &body).await?;
    if let Some(path) = &args.out {
        keep(path, &created)?;
        said(&created.id, "usable", path, args.json, out)?;
    } else if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&created)?)?;
    } else {
        // Nothing else on standard output, so that `$(…)` and `> file` work.
        writeln!(out, "{}", created.token.expose())?;
    }
    Ok(())
}

/// The token in the file, if it is one that the coordinator knows and that is not taken back or over. One that was used up
/// is good: whoever was to use it has.
async fn still_good(path: &Path, socket: &Path) -> Result<Option<Token>, Failure> {
    let id = match files::read_secret(path) {
        Ok(text) => match text.parse::<JoinToken>() {
            Ok(token) => created_id(&token),
            Err(bad) => {
                let what = format!("{} is there and is {bad}", path.display());
                return Err(Failure::from(anyhow::anyhow!(what)).hint("name another file, or remove this one"));
            }
        },
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let known: Tokens = socket::get(socket, "/tokens").await?;
    Ok(known.tokens.into_iter().find(|token| token.id == id && matches!(token.state.as_str(), "usable" | "used")))
}

/// As the coordinator makes it of the token that it keeps as a hash.
fn created_id(token: &JoinToken) -> String {
    hex::encode(&token.secret_hash()[..TOKEN_ID_BYTES])
}

/// Writes a new token where one was not, or is good no more.
fn keep(path: &Path, created: &CreatedToken) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let line = Zeroizing::new(format!("{}\n", created.token.expose()));
    // It may be the last that is seen of it: one that cannot be written is no use to anybody.
    files::replace(path, line.as_bytes(), 0o600).map_err(|error| {
        let revoke = format!("make room for it, and: wiremesh token revoke {}", created.id);
        Failure::from(anyhow::Error::new(error).context("the token was made and could not be written")).hint(revoke)
    })
}

fn said(id: &str, state: &str, path: &Path, json: bool, out: &mut impl Write) -> Result<(), Failure> {
    if json {
        writeln!(out, "{}", json!({ "id": id, "state": state, "file": path }))?;
    } else {
        writeln!(out, "join token {id} ({state}) is in {}", path.display())?;
    }
    Ok(())
}

async fn list(json: bool, at: &Where, now: UnixTime, out: &mut impl Write) -> Result<(), Failure> {
    let tokens: Tokens = socket::get(&at.socket()?, "/tokens").await?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&tokens)?)?;
    } else {
        write_table(&tokens.tokens, now, out)?;
    }
    Ok(())
}

async fn revoke(id: &str, json: bool, at: &Where, out: &mut impl Write) -> Result<(), Failure> {
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Failure::usage(anyhow::anyhow!("{id:?} is not the id of a join token"))
            .hint("wiremesh token list names them"));
    }
    let revoked: Value = socket::post(&at.socket()?, &format!("/tokens/{id}/revoke"), &json!({})).await?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&revoked)?)?;
    } else {
        writeln!(out, "join token {id} is revoked; who joined with it stays a member")?;
    }
    Ok(())
}

fn write_table(tokens: &[Token], now: UnixTime, out: &mut impl Write) -> std::io::Result<()> {
    if tokens.is_empty() {
        return writeln!(out, "no join tokens");
    }
    let header = ["ID", "STATE", "USED", "ENDS", "NAME", "GROUPS", "SERVICES", "APPROVAL"];
    let rows = tokens.iter().map(|token| {
        let ends = if token.expires_at > now {
            format!("in {}", coarse(Span(token.expires_at.saturating_since(now))))
        } else {
            format!("{} ago", coarse(Span(now.saturating_since(token.expires_at))))
        };
        [
            token.id.clone(),
            token.state.clone(),
            format!("{}/{}", token.used, token.uses),
            ends,
            token.name.as_ref().map_or("any".to_owned(), ToString::to_string),
            joined(&token.groups, "none"),
            joined(&token.services, "any"),
            if token.approve { "asked for" } else { "none" }.to_owned(),
        ]
    });
    table::write(header, rows, out)
}

fn joined(names: &[impl ToString], none: &str) -> String {
    match names {
        [] => none.to_owned(),
        names => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests;
