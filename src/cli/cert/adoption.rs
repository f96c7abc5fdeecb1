//! Waiting until the members that are heard enforce a list.

use std::{io::Write, path::Path, time::Duration};

use wiremesh_certs::UnixTime;

use crate::{
    api::authority::Adoption,
    cli::{failure::Failure, socket},
    clock,
    coordinator::care::coarse,
};

/// One question waits no longer: the socket's answers have a time limit of their own.
pub const ASK_AGAIN: Duration = Duration::from_secs(20);

/// Waits until all enforce list `number`, or for `timeout`. Tells `progress` of each change.
pub async fn wait(
    socket: &Path,
    number: u64,
    timeout: Duration,
    mut progress: impl FnMut(&Adoption) -> std::io::Result<()>,
) -> Result<Adoption, Failure> {
    let deadline = clock::now() + timeout;
    let mut adoption: Adoption = socket::get(socket, &format!("/adoption?number={number}")).await?;
    loop {
        progress(&adoption)?;
        let left = deadline.saturating_duration_since(clock::now()).min(ASK_AGAIN);
        if adoption.behind.is_empty() || left.is_zero() {
            return Ok(adoption);
        }
        let (version, secs) = (adoption.version, left.as_secs().max(1));
        let path = format!("/adoption?number={number}&version={version}&wait_secs={secs}");
        adoption = socket::get(socket, &path).await?;
    }
}

/// How many enforce it, and who does not.
pub fn write(adoption: &Adoption, now: UnixTime, out: &mut impl Write) -> std::io::Result<()> {
    let all = adoption.living + adoption.silent.len();
    writeln!(out, "enforced by {} of {all} agents", adoption.enforced)?;
    for behind in &adoption.behind {
        let heard = coarse(now.saturating_since(behind.heard_at));
        writeln!(out, "  not by {}: heard {heard} ago, it enforces list {}", behind.name, behind.enforces)?;
    }
    for silent in &adoption.silent {
        let since = match silent.heard_at {
            Some(at) => format!("not heard for {}", coarse(now.saturating_since(at))),
            None => "it has left, or was never heard".to_owned(),
        };
        writeln!(out, "  not by {}: {since}; it hears of it when it is back", silent.name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::authority::{Behind, Silent};

    #[test]
    fn who_does_not_enforce_it_is_named_with_when_it_was_heard() {
        let now = UnixTime(1_800_000_000);
        let ago = |secs| now.minus(Duration::from_secs(secs));
        let adoption = Adoption {
            number: 7,
            living: 3,
            enforced: 2,
            behind: vec![Behind { name: "b".parse().unwrap(), heard_at: ago(4), enforces: 6, authority: None }],
            silent: vec![
                Silent { name: "c".parse().unwrap(), heard_at: Some(ago(90_000)) },
                Silent { name: "d".parse().unwrap(), heard_at: None },
            ],
            version: 1,
        };
        let mut out = Vec::new();

        write(&adoption, now, &mut out).unwrap();

        assert_eq!(
            String::from_utf8(out).unwrap(),
            "enforced by 2 of 5 agents\n  \
             not by b: heard 4s ago, it enforces list 6\n  \
             not by c: not heard for 1d1h; it hears of it when it is back\n  \
             not by d: it has left, or was never heard; it hears of it when it is back\n"
        );
    }
}
