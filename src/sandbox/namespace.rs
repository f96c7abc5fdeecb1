//! One network namespace, held by a descriptor: work and programs can be sent into it.

use std::{
    fs::File,
    future::Future,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    thread,
};

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace. It is gone when this is dropped and the last process in it has ended.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    descriptor: OwnedFd,
}

impl Namespace {
    /// A new one with nothing in it but a loopback interface that is down.
    pub fn new(name: &str) -> anyhow::Result<Namespace> {
        let made = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN)
        });
        let descriptor = made.with_context(|| format!("making the network namespace {name}"))?.into();
        Ok(Namespace { name: name.to_owned(), descriptor })
    }

    /// The one this thread is in.
    pub fn current(name: &str) -> anyhow::Result<Namespace> {
        let descriptor = File::open(OWN).context("opening the current network namespace")?.into();
        Ok(Namespace { name: name.to_owned(), descriptor })
    }

    /// The one that a process is in, by its number as this program sees it.
    pub fn of_process(name: &str, pid: i32) -> anyhow::Result<Namespace> {
        let path = format!("/proc/{pid}/ns/net");
        let descriptor = File::open(&path).with_context(|| format!("opening {path}, the network of {name}"))?.into();
        Ok(Namespace { name: name.to_owned(), descriptor })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` in it, on a thread of its own: sockets made there belong to the namespace for good.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        on_a_thread(|| {
            setns(&self.descriptor, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
        .with_context(|| format!("entering the network namespace {}", self.name))
    }

    /// Runs the future that `make` gives in it, on a runtime of its own, to its end.
    pub fn block_on<T: Send, F: Future<Output = anyhow::Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> anyhow::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(make())
        })?
    }

    /// Netlink requests in it, by the handle given to `work`.
    pub fn netlink<F: Future<Output = Result<(), rtnetlink::Error>>>(
        &self,
        what: &str,
        work: impl FnOnce(rtnetlink::Handle) -> F + Send,
    ) -> anyhow::Result<()> {
        self.block_on(|| async {
            let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
            tokio::select! {
                done = work(handle) => done.map_err(anyhow::Error::from),
                () = connection => Err(anyhow::anyhow!("the netlink socket was closed")),
            }
        })
        .with_context(|| format!("{what} in {}", self.name))
    }

    /// A program that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> io::Result<Command> {
        let descriptor = self.descriptor.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: one system call on a descriptor that the closure owns.
        unsafe {
            command.pre_exec(move || match libc::setns(descriptor.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Ok(command)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A thread's namespace is its own: whatever happens to it there ends with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
