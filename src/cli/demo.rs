//! `wiremesh demo`: a whole mesh on this machine, in namespaces of its own, and what happens in it.
//!
//! ```text
//!  demo ──sandbox──► demo, inside ──► coordinator, alpha, beta, gamma: this same program, each on a node of its own
//!                        └── asks, breaks, asks again ──► table, exit code
//! ```
//!
//! Nothing is simulated: the programs, the packets and the answers are the ones of a real mesh.

mod mesh;
mod report;
mod request;
mod scenes;
pub mod service;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use anyhow::Context;

use super::failure::Failure;
use crate::{
    clock,
    sandbox::{self, Entered},
};
use mesh::Mesh;
use report::Report;

/// Runs a whole mesh on this machine and shows what it does
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  wiremesh demo\n  wiremesh demo --json\n  wiremesh demo --keep")]
pub struct Args {
    /// Leaves the mesh running until Ctrl-C, and says how to reach it
    #[arg(long)]
    keep: bool,
    /// Prints the result as JSON and nothing else
    #[arg(long)]
    json: bool,
    /// Where the nodes keep their files; a scratch file system that vanishes with the demo if not given
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

/// How the demo ended, when it ended by a signal: 130 as a shell would say, 0 once `--keep` has begun to wait.
static INTERRUPTED: AtomicI32 = AtomicI32::new(130);

/// Runs the demo. Must be called before the program has threads or a runtime. The code is 0 only if everything
/// happened as it should.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(scratch) = sandbox::scratch() else {
        return outside(args);
    };
    // The first process of a process namespace ignores signals that it has no handler for.
    sandbox::on_signal(interrupted);
    let folder = args.folder.clone().unwrap_or(scratch);
    inside(args, &folder, &mut io::stdout().lock())
}

fn outside(args: &Args) -> Result<ExitCode, Failure> {
    // A mesh that is kept is reached through its sockets, which must then be where others see them.
    let folder = args.keep.then(|| std::env::temp_dir().join(format!("wiremesh-demo-{}", std::process::id())));
    let more: Vec<OsString> = match &folder {
        Some(folder) => {
            std::fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
            vec!["--folder".into(), folder.into()]
        }
        None => Vec::new(),
    };

    let entered = sandbox::enter(&more);

    if let Some(folder) = folder {
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    match entered {
        Ok(Entered::Left(code)) => Ok(ExitCode::from(code)),
        Ok(Entered::Inside) => Err(anyhow::anyhow!("inside and outside of the sandbox at once").into()),
        Err(refused) => Err(match refused.hint() {
            Some(hint) => Failure::from(refused).hint(hint),
            None => refused.into(),
        }),
    }
}

fn inside(args: &Args, folder: &Path, out: &mut impl Write) -> Result<ExitCode, Failure> {
    mesh::check_tun()?;
    let mut report = Report::new(args.json, io::stdout().is_terminal(), clock::now());
    let mut mesh = Mesh::new(folder)?;

    let told = scenes::play(&mut mesh, &mut report, out);

    if let Err(error) = &told {
        report.failed(out, &format!("{error:#}"))?;
    }
    report.print(out)?;
    if !report.all_good() {
        mesh.print_logs(&mut io::stderr())?;
        return Err(
            Failure::from(anyhow::anyhow!("not everything went as it should")).hint("the logs above may say why")
        );
    }
    if args.keep {
        mesh.print_how_to_reach(out)?;
        INTERRUPTED.store(0, Ordering::Relaxed);
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends at once; everything in the sandbox ends with us.
extern "C" fn interrupted(_signal: i32) {
    // SAFETY: `_exit` may be called in a signal handler.
    unsafe { libc::_exit(INTERRUPTED.load(Ordering::Relaxed)) }
}
