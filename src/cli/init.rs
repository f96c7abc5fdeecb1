//! Being the first process of a container: passing on signals, and asking how orphans ended.
//!
//! The kernel gives the first process of a PID namespace two duties that no program expects: signals without a handler do
//! not end it, and whatever loses its parent becomes its child, a zombie until it is waited for. So the first process does
//! only that, and what was asked for runs in its child, an ordinary process.

use std::process::ExitCode;

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, getpid},
};

/// A program that a signal ended has this and the signal's number as its exit code, as shells have it.
const SIGNALLED: u8 = 128;
/// What a process does to itself, or the kernel to it for a fault: not passed on.
const OUR_OWN: &[Signal] = &[
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGTRAP,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// Returns in the process that is to do the work, with `None`: at once where we are not the first, else in a child. In the
/// first process it returns when that child has ended, with its exit code.
///
/// Must be called before there are threads.
pub fn serve_as_first() -> nix::Result<Option<ExitCode>> {
    if getpid() != Pid::from_raw(1) {
        return Ok(None);
    }
    let mut ours = SigSet::all();
    OUR_OWN.iter().for_each(|signal| ours.remove(*signal));
    // Before the child is there: none of its signals may be lost.
    ours.thread_block()?;
    // SAFETY: there are no threads whose locks the child could find held.
    match unsafe { fork() }? {
        ForkResult::Child => {
            ours.thread_unblock()?;
            Ok(None)
        }
        ForkResult::Parent { child } => tend(child, &ours).map(|code| Some(ExitCode::from(code))),
    }
}

/// Until `child` ends. Its exit code.
fn tend(child: Pid, ours: &SigSet) -> nix::Result<u8> {
    loop {
        match ours.wait()? {
            Signal::SIGCHLD => {
                if let Some(code) = reap(child)? {
                    return Ok(code);
                }
            }
            // It may have ended just now, which we are about to hear.
            signal => _ = kill(child, signal),
        }
    }
}

/// Asks how all that ended did: one signal may stand for several ends. The exit code of `child`, if it was among them.
fn reap(child: Pid) -> nix::Result<Option<u8>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, exited)) if pid == child => code = Some(u8::try_from(exited).unwrap_or(u8::MAX)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                code = Some(u8::try_from(signal as i32).map_or(u8::MAX, |number| SIGNALLED.saturating_add(number)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
