//! `wiremesh cert rotate`: replaces the mesh's authority while everything goes on, through the coordinator's socket.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use wiremesh_certs::UnixTime;

use super::adoption::ASK_AGAIN;
use crate::{
    api::authority::{Brought, Rotate, Rotation},
    cli::{
        coordinator::Where,
        failure::{self, Failure},
        socket,
    },
    clock,
    coordinator::care::coarse,
    settings::Span,
};

/// Replaces the mesh's authority: announces another, has it issue when every agent that is heard knows it, and retires the
/// old one when none depends on it
///
/// The coordinator does it by itself once begun, also across restarts. Agents that are away find back when they return.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh cert rotate && wiremesh cert rotate --status --wait\n  \
    wiremesh cert rotate --ca-crt new.crt --ca-key new.key --cross new.cross.crt")]
pub struct Args {
    /// The certificate of an authority that was made elsewhere, with those above it, the root last
    /// [default: the coordinator makes one]
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    ca_crt: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "ca_crt")]
    ca_key: Option<PathBuf>,
    /// The new root's key in a certificate by the present root, if that is offline
    #[arg(long, value_name = "FILE", requires = "ca_crt")]
    cross: Option<PathBuf>,
    /// Says how far it is
    #[arg(long, group = "what", conflicts_with = "ca_crt")]
    status: bool,
    /// Takes it back, while the new authority issues nothing
    #[arg(long, group = "what", conflicts_with = "ca_crt")]
    cancel: bool,
    /// Retires the old authority although agents depend on it, and says whom that cuts off until they renew
    #[arg(long, group = "what", conflicts_with = "ca_crt")]
    force: bool,
    /// Waits until it is over
    #[arg(long, conflicts_with_all = ["cancel", "force"])]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "wait")]
    timeout: Span,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// Does it and says how far it is. With --wait the exit code says whether it is over.
pub async fn run(args: &Args, out: &mut impl Write) -> Result<u8, Failure> {
    let socket = args.at.socket()?;
    let mut rotation: Rotation = match command(args)? {
        Some(command) => socket::post(&socket, "/rotation", &command).await?,
        None => socket::get(&socket, "/rotation").await?,
    };
    let mut exit = failure::DONE;
    if args.wait {
        let progress = |so_far: &Rotation, out: &mut _| if args.json { Ok(()) } else { write_line(so_far, out) };
        rotation = wait(&socket, rotation, args.timeout.0, progress, out).await?;
        exit = if is_over(&rotation) { failure::DONE } else { failure::NOT_SO };
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&rotation)?)?;
    } else {
        write(&rotation, clock::unix(), out)?;
    }
    Ok(exit)
}

fn command(args: &Args) -> Result<Option<Rotate>, Failure> {
    if args.status {
        return Ok(None);
    }
    if args.cancel {
        return Ok(Some(Rotate::Cancel));
    }
    if args.force {
        return Ok(Some(Rotate::Force));
    }
    // The coordinator reads them, and stands elsewhere.
    let absolute = |path: &Path| std::path::absolute(path).map_err(Failure::usage);
    let brought = match (&args.ca_crt, &args.ca_key) {
        (Some(certificate), Some(key)) => Some(Brought {
            certificate: absolute(certificate)?,
            key: absolute(key)?,
            cross: args.cross.as_deref().map(absolute).transpose()?,
        }),
        _ => None,
    };
    Ok(Some(Rotate::Begin { brought }))
}

async fn wait<W: Write>(
    socket: &Path,
    mut rotation: Rotation,
    timeout: Duration,
    progress: impl Fn(&Rotation, &mut W) -> std::io::Result<()>,
    out: &mut W,
) -> Result<Rotation, Failure> {
    let deadline = clock::now() + timeout;
    let mut told = None;
    loop {
        let state = (rotation.stage.clone(), rotation.waits_for.len(), rotation.living);
        if told.as_ref() != Some(&state) {
            progress(&rotation, out)?;
            told = Some(state);
        }
        let left = deadline.saturating_duration_since(clock::now()).min(ASK_AGAIN);
        if is_over(&rotation) || left.is_zero() {
            return Ok(rotation);
        }
        let path = format!("/rotation?version={}&wait_secs={}", rotation.version, left.as_secs().max(1));
        rotation = socket::get(socket, &path).await?;
    }
}

fn is_over(rotation: &Rotation) -> bool {
    rotation.stage == "idle"
}

fn write_line(rotation: &Rotation, out: &mut impl Write) -> std::io::Result<()> {
    let ready = rotation.living - rotation.waits_for.len().min(rotation.living);
    match rotation.stage.as_str() {
        "announced" => writeln!(out, "the new CA is known to {ready} of {} agents", rotation.living),
        "replacing" => writeln!(out, "{ready} of {} agents have a certificate of the new CA", rotation.living),
        _ => writeln!(out, "no rotation is under way"),
    }
}

fn write(rotation: &Rotation, now: UnixTime, out: &mut impl Write) -> std::io::Result<()> {
    for authority in &rotation.authorities {
        writeln!(
            out,
            "{:8} {}  since {}, {}",
            authority.standing,
            &authority.fingerprint.to_string()[..16],
            coarse(now.saturating_since(authority.since)),
            match authority.ends_at.saturating_since(now) {
                left if left.is_zero() => "ended".to_owned(),
                left => format!("ends in {}", coarse(left)),
            }
        )?;
    }
    write_line(rotation, out)?;
    if !is_over(rotation) && !rotation.heard_everybody {
        writeln!(out, "the coordinator was started lately and waits until it has heard everybody")?;
    }
    for behind in &rotation.waits_for {
        let heard = coarse(now.saturating_since(behind.heard_at));
        let what = match rotation.stage.as_str() {
            "announced" => format!("it enforces list {}", behind.enforces),
            _ => "its certificate is from the old CA".to_owned(),
        };
        writeln!(out, "  waits for {}: {what}; heard {heard} ago", behind.name)?;
    }
    for name in &rotation.cut_off {
        writeln!(out, "  cut off: {name}, until it renews")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use wiremesh_certs::Fingerprint;

    use super::*;
    use crate::api::authority::{Authority, Behind};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from(["rotate"].iter().chain(line)).map(|line| line.args)
    }

    #[test]
    fn what_is_asked_for_is_one_thing() {
        let asked = |line: &[&str]| command(&parse(line).unwrap()).unwrap();

        assert!(matches!(asked(&[]), Some(Rotate::Begin { brought: None })));
        assert!(asked(&["--status", "--wait"]).is_none());
        assert!(matches!(asked(&["--cancel"]), Some(Rotate::Cancel)));
        assert!(matches!(asked(&["--force"]), Some(Rotate::Force)));
        let brought = asked(&["--ca-crt", "a.crt", "--ca-key", "/b.key", "--cross", "c.crt"]);
        let Some(Rotate::Begin { brought: Some(brought) }) = brought else { panic!() };
        assert!(brought.certificate.is_absolute() && brought.key == Path::new("/b.key"));
        for wrong in [&["--cancel", "--force"][..], &["--ca-crt", "a"], &["--cross", "a"], &["--cancel", "--wait"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn it_says_how_far_it_is_and_for_whom_it_waits() {
        let now = UnixTime(1_800_000_000);
        let authority = |byte, standing: &str| Authority {
            fingerprint: Fingerprint([byte; 32]),
            standing: standing.to_owned(),
            since: now.minus(Duration::from_secs(30)),
            root: Fingerprint([byte; 32]),
            begins_at: now,
            ends_at: now.plus(Duration::from_secs(86_400)),
            published: 1,
        };
        let rotation = Rotation {
            stage: "replacing".into(),
            authorities: vec![authority(0xaa, "leaving"), authority(0xbb, "issuing")],
            living: 3,
            waits_for: vec![Behind {
                name: "b".parse().unwrap(),
                heard_at: now.minus(Duration::from_secs(4)),
                enforces: 6,
                authority: None,
            }],
            heard_everybody: true,
            cut_off: Vec::new(),
            number: 7,
            version: 1,
        };
        let mut out = Vec::new();

        write(&rotation, now, &mut out).unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "leaving  aaaaaaaaaaaaaaaa  since 30s, ends in 1d\n\
             issuing  bbbbbbbbbbbbbbbb  since 30s, ends in 1d\n\
             2 of 3 agents have a certificate of the new CA\n  \
             waits for b: its certificate is from the old CA; heard 4s ago\n"
        );
    }
}
