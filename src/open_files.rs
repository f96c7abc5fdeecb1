//! How many files this process may have open. A connection is one: whoever opens connections and says nothing must not
//! take the last of them away from upstreams, sockets and the database.
//!
//! ```text
//! start ─► raised to the hard limit ─► a listener takes its part of it, and no more
//!                                  └► a command that we start has what there was before: see [`before`]
//! ```

use std::{io, sync::OnceLock};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// More than this is not asked for: with as many, everything here is at bounds of its own.
const ENOUGH: rlim_t = 1_048_576;
/// With fewer, listeners take fewer connections than they would.
const FEW: usize = 16_384;
/// What every system allows, if it does not say.
const USUAL: usize = 1024;

/// What the limit was when we started.
static BEFORE: OnceLock<Limit> = OnceLock::new();

/// A limit that this process had.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    soft: rlim_t,
    hard: rlim_t,
}

impl Limit {
    /// Puts it in force in this process. Nothing but system calls: for a process that is about to become a command.
    pub fn put_back(self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.soft, self.hard)?)
    }
}

/// Raises the limit as far as this process may. What the first call found is remembered.
pub fn raise() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    BEFORE.get_or_init(|| Limit { soft, hard });
    let wanted = raised(soft, hard);
    if wanted != soft
        && let Err(why) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    {
        tracing::warn!(%why, soft, hard, "the limit of open files could not be raised");
    }
    let files = limit();
    tracing::debug!(files, before = soft, "files that may be open");
    if files < FEW {
        tracing::warn!(
            files,
            "few files may be open, so that fewer connections are taken: raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        );
    }
}

/// What there was before it was raised: commands get it back, since what uses `select` breaks beyond 1,024.
pub fn before() -> Option<Limit> {
    BEFORE.get().copied()
}

/// How many files may be open.
pub fn limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

fn raised(soft: rlim_t, hard: rlim_t) -> rlim_t {
    soft.max(hard.min(ENOUGH))
}

/// For tests, whose process was not started with few: what it says there was before. They all come by here.
#[cfg(test)]
pub(crate) fn raise_from_few() -> usize {
    const A_FEW: rlim_t = 1000;
    static RAISED: std::sync::Once = std::sync::Once::new();
    RAISED.call_once(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, A_FEW, hard).unwrap();
        raise();
    });
    A_FEW as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be_and_never_lowered() {
        for (soft, hard, expected) in [
            (1024, 524_288, 524_288),
            (1024, 1024, 1024),
            (1024, nix::libc::RLIM_INFINITY, ENOUGH),
            (2 * ENOUGH, 4 * ENOUGH, 2 * ENOUGH),
        ] {
            assert_eq!(raised(soft, hard), expected);
        }
    }

    #[test]
    fn what_there_was_before_is_remembered() {
        let few = raise_from_few();

        raise();

        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(before(), Some(Limit { soft: few as rlim_t, hard }));
        assert_eq!(soft, raised(few as rlim_t, hard));
    }
}
