//! Starting a program inside namespaces of its own, with root's rights in them and none outside.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{fcntl::OFlag, unistd};

/// Set in the environment of what runs inside; its value is the scratch folder. Not `WIREMESH_…`: those are options.
const MARKER: &str = "SANDBOX_OF_WIREMESH";

/// Where the scratch file system may be mounted: folders that exist everywhere and that nobody needs inside. The first
/// that does not hide the program or the working directory is taken.
const SCRATCH_PLACES: &[&str] = &["/run", "/mnt", "/srv", "/media", "/opt"];

/// Where [`enter`] returned.
#[derive(Debug)]
pub enum Entered {
    /// In the sandbox, as its first process.
    Inside,
    /// Outside, after the run inside has ended with this exit code.
    Left(u8),
}

/// Why there is no sandbox on this machine.
#[derive(Debug, thiserror::Error)]
#[error("no sandbox: {step}")]
pub struct Refused {
    step: &'static str,
    source: io::Error,
    hint: Option<&'static str>,
}

impl Refused {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }
}

/// The keeper that [`enter`] waits for, so that a signal that ends us ends it.
static KEEPER: AtomicI32 = AtomicI32::new(0);

/// Runs the current program again inside a sandbox, with the same arguments and `more`, and waits for it.
pub fn enter(more: &[OsString]) -> Result<Entered, Refused> {
    if scratch().is_some() {
        return Ok(Entered::Inside);
    }
    let program = std::env::current_exe().map_err(|source| refused(Step::Begin, source))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).args(more);

    let mut child = spawn(command)?;
    KEEPER.store(child.id().cast_signed(), Ordering::Relaxed);
    on_signal(end_keeper);
    // Ctrl-C reaches the whole terminal group. The program inside decides what it means; we wait to hear how it ended.
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
    let status = child.wait().map_err(|source| refused(Step::Begin, source))?;
    Ok(Entered::Left(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Has `handler` called when this program is interrupted, told to end, or loses its terminal. It may only do what is
/// allowed in a signal handler.
pub fn on_signal(handler: extern "C" fn(libc::c_int)) {
    let handler = handler as *const () as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler has the signature that the kernel calls it with, and lives as long as the program.
        unsafe { libc::signal(signal, handler) };
    }
}

/// With the keeper goes the sandbox; `enter` then returns and its caller cleans up what is outside.
extern "C" fn end_keeper(_signal: libc::c_int) {
    // SAFETY: `kill` may be called in a signal handler.
    unsafe { libc::kill(KEEPER.load(Ordering::Relaxed), libc::SIGKILL) };
}

/// The folder inside the sandbox for everything that should vanish with it. None outside.
pub fn scratch() -> Option<PathBuf> {
    // Process 1 of the sandbox and nobody else: a program started by hand inside one is not taken for it.
    let marked = std::env::var_os(MARKER).filter(|_| std::process::id() == 1)?;
    Some(PathBuf::from(marked))
}

/// Starts `command` as process 1 of a new sandbox. As root no user namespace is made, unless root may not do without.
pub fn spawn(mut command: Command) -> Result<Child, Refused> {
    let plan = Plan::new().map_err(|source| refused(Step::Begin, source))?;
    let progress = plan.progress.0.try_clone().map_err(|source| refused(Step::Begin, source))?;
    command.env(MARKER, OsStr::from_bytes(plan.scratch.to_bytes()));
    // SAFETY: `carry_out` makes system calls only: no allocation, no lock, as is right between fork and exec.
    unsafe { command.pre_exec(move || plan.carry_out()) };
    command.spawn().map_err(|source| refused(last_step(&progress), source))
}

/// What the new process does on its way, prepared while memory may still be allocated.
struct Plan {
    scratch: CString,
    uid_map: CString,
    gid_map: CString,
    root: bool,
    /// The steps taken, one byte each, for the error message.
    progress: (OwnedFd, OwnedFd),
}

/// The steps on the way in, in their order.
#[derive(Clone, Copy)]
enum Step {
    Begin,
    Namespaces,
    Identity,
    Fork,
    Mounts,
    Program,
}

impl Plan {
    fn new() -> io::Result<Plan> {
        let (uid, gid) = (unistd::geteuid(), unistd::getegid());
        Ok(Plan {
            scratch: CString::new(scratch_place().as_os_str().as_bytes())?,
            uid_map: CString::new(format!("0 {uid} 1"))?,
            gid_map: CString::new(format!("0 {gid} 1"))?,
            root: uid.is_root(),
            progress: unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?,
        })
    }

    fn carry_out(&self) -> io::Result<()> {
        self.note(Step::Namespaces);
        let own = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID;
        if !self.root || unshare(own).is_err() {
            unshare(own | libc::CLONE_NEWUSER)?;
            self.note(Step::Identity);
            write_file(c"/proc/self/setgroups", c"deny")?;
            write_file(c"/proc/self/uid_map", &self.uid_map)?;
            write_file(c"/proc/self/gid_map", &self.gid_map)?;
        }

        self.note(Step::Fork);
        die_with_parent()?;
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => die_with_parent()?,
            process_1 => keep(process_1),
        }

        self.note(Step::Mounts);
        mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
        // In a container that hides parts of /proc this is refused. The old one serves: only what looks up a process
        // by number in it sees the numbers of outside.
        let _ = mount(Some(c"proc"), c"/proc", Some(c"proc"), libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
        mount(Some(c"tmpfs"), &self.scratch, Some(c"tmpfs"), libc::MS_NOSUID | libc::MS_NODEV)?;

        self.note(Step::Program);
        Ok(())
    }

    fn note(&self, step: Step) {
        let byte = step as u8;
        // SAFETY: one byte from a live variable into a live descriptor.
        unsafe { libc::write(self.progress.1.as_raw_fd(), (&raw const byte).cast(), 1) };
    }
}

/// The keeper: holds nothing open, waits for process 1 and ends as it did.
fn keep(process_1: libc::pid_t) -> ! {
    // SAFETY: system calls only, on a process with one thread that never returns from here.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        let mut status = 0;
        while libc::waitpid(process_1, &raw mut status, 0) == -1 && *libc::__errno_location() == libc::EINTR {}
        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) })
    }
}

fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: changes only which namespaces this process belongs to.
    checked(unsafe { libc::unshare(flags) })
}

fn die_with_parent() -> io::Result<()> {
    // SAFETY: sets an attribute of this process.
    checked(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
}

fn write_file(path: &CStr, content: &CStr) -> io::Result<()> {
    let bytes = content.to_bytes();
    // SAFETY: path and content are live for the calls; the descriptor is closed by exec.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        checked(file)?;
        match libc::write(file, bytes.as_ptr().cast(), bytes.len()) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn mount(source: Option<&CStr>, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings are live for the call.
    checked(unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, std::ptr::null()) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn scratch_place() -> PathBuf {
    let needed = [std::env::current_exe(), std::env::current_dir()];
    let hides = |place: &Path| needed.iter().flatten().any(|path| path.starts_with(place));
    SCRATCH_PLACES
        .iter()
        .map(PathBuf::from)
        .find(|place| place.is_dir() && !hides(place))
        .unwrap_or_else(|| PathBuf::from(SCRATCH_PLACES[0]))
}

fn last_step(progress: &OwnedFd) -> Step {
    let mut steps = [0; 16];
    let read = unistd::read(progress, &mut steps).unwrap_or(0);
    match steps[..read].last() {
        Some(1) => Step::Namespaces,
        Some(2) => Step::Identity,
        Some(3) => Step::Fork,
        Some(4) => Step::Mounts,
        Some(_) => Step::Program,
        None => Step::Begin,
    }
}

fn refused(step: Step, source: io::Error) -> Refused {
    const MAY_NOT: &str = "allow unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0, \
                           kernel.unprivileged_userns_clone=1, user.max_user_namespaces=10000), or run this as root; \
                           in a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined \
                           --device /dev/net/tun, or --privileged";
    let (step, hint) = match step {
        Step::Begin => ("preparing", None),
        Step::Namespaces => ("the kernel gives no new namespaces", Some(MAY_NOT)),
        Step::Identity => ("the kernel gives no rights in a user namespace", Some(MAY_NOT)),
        Step::Fork => ("starting a process", None),
        Step::Mounts => ("the kernel mounts nothing in a user namespace", Some(MAY_NOT)),
        Step::Program => ("starting the program", None),
    };
    Refused { step, source, hint }
}
