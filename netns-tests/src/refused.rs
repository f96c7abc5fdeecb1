//! Older kernels, as an agent meets them: what this kernel would do is refused, in the words of one that cannot.
//!
//! Done with seccomp, which sees the numbers that a system call is given and nothing of the memory they point to: a send
//! that asks to be cut into datagrams looks like any other. `src/bin/refusing.rs` has itself refused things, and becomes
//! the program.

use std::{fmt, str::FromStr};

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Datagrams of one sender put together (UDP GRO).
    UdpReceive,
    /// One send cut into datagrams (UDP GSO), when a program asks whether it may.
    UdpSend,
    /// A TUN device whose packets are unfinished.
    TunOffloads,
    /// Reading from a TUN device only what is there.
    ReadsAtOnce,
}

impl Refused {
    /// Every kind.
    pub const ALL: &[Refused] = &[Refused::UdpReceive, Refused::UdpSend, Refused::TunOffloads, Refused::ReadsAtOnce];

    /// Has the kernel refuse it to this thread, and to the program that it may become, for good.
    pub fn apply(self) -> anyhow::Result<()> {
        let (call, arguments, error) = match self {
            Refused::UdpReceive => (libc::SYS_setsockopt, option(libc::UDP_GRO), libc::ENOPROTOOPT),
            Refused::UdpSend => (libc::SYS_setsockopt, option(libc::UDP_SEGMENT), libc::ENOPROTOOPT),
            Refused::TunOffloads => (libc::SYS_ioctl, vec![(1, libc::TUNSETOFFLOAD)], libc::EINVAL),
            Refused::ReadsAtOnce => (libc::SYS_preadv2, Vec::new(), libc::EOPNOTSUPP),
        };
        let is = |(argument, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
        let conditions = arguments.into_iter().map(is).collect::<Result<Vec<_>, _>>()?;
        // A call without rules is refused whatever its arguments.
        let rules = if conditions.is_empty() { Vec::new() } else { vec![SeccompRule::new(conditions)?] };
        let filter = SeccompFilter::new(
            [(call, rules)].into(),
            SeccompAction::Allow,
            SeccompAction::Errno(error.cast_unsigned()),
            std::env::consts::ARCH.try_into()?,
        )?;
        let program: BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program).with_context(|| format!("having {self} refused"))
    }

    fn name(self) -> &'static str {
        match self {
            Refused::UdpReceive => "udp-receive",
            Refused::UdpSend => "udp-send",
            Refused::TunOffloads => "tun-offloads",
            Refused::ReadsAtOnce => "reads-at-once",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Refused {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Refused> {
        let found = Refused::ALL.iter().find(|refused| refused.name() == text);
        found.copied().with_context(|| format!("{text} is nothing that could be refused"))
    }
}

/// The arguments of `setsockopt` that name an option of UDP.
fn option(name: libc::c_int) -> Vec<(u8, u64)> {
    vec![(1, libc::SOL_UDP as u64), (2, name as u64)]
}
