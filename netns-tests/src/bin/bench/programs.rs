//! Programs that others wrote: where they are, and waiting until one that was started is ready.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use netns_tests::Process;
use wiremesh::clock;

/// A program that was started is asked this often whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A program that cannot be measured here.
#[derive(Clone, Debug)]
pub struct Missing {
    /// What it is called in the results.
    pub name: String,
    /// Where it was not.
    pub looked: String,
}

/// Where a program is: where `variable` says, in the folder that `netns-tests/run --peers` installs into, or in PATH.
pub fn found(name: &str, program: &str, variable: &str) -> Result<PathBuf, Missing> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        let looked = format!("{variable} says {}, which is not there", path.display());
        return if path.exists() { Ok(path) } else { Err(Missing { name: name.to_owned(), looked }) };
    }
    let installed = installed_peers();
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = installed.clone().into_iter().chain(env::split_paths(&path));
    folders.find(|folder| folder.join(program).is_file()).map(|folder| folder.join(program)).ok_or_else(|| Missing {
        name: name.to_owned(),
        looked: format!(
            "no {program} in PATH or target/peers/bin, and {variable} is not set (netns-tests/run --peers)"
        ),
    })
}

/// `target/peers/bin`, beside the folder of the profile that we were built with.
fn installed_peers() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.parent()?.join("peers/bin"))
}

/// The first line that the program prints when asked for its version.
pub fn version_of(program: &Path, option: &str) -> String {
    let Ok(output) = Command::new(program).arg(option).output() else { return "cannot be started".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or("of unknown version").trim().to_owned()
}

/// Asks until `process` is so far as to answer. Once it has ended nobody asks again.
pub fn until_ready<T>(
    process: &mut Process,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = clock::now() + limit;
    loop {
        process.expect_running()?;
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if clock::now() >= deadline => return Err(error.context(format!("not ready after {limit:?}"))),
            Err(_) => thread::sleep(ASK_EVERY),
        }
    }
}
