//! Telling a story: each in a sandbox of its own, with a time limit.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    panic::AssertUnwindSafe,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use wiremesh::{clock, sandbox};

use crate::Lab;

/// For stories that do not say how long they may take.
const LIMIT: Duration = Duration::from_secs(120);
/// What the story has after its limit to print its logs, before it is killed from outside.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// What a line begins with that is shown also when the story succeeds.
pub(crate) const SAID_ALOUD: &str = "→ ";
/// Where an engine keeps everything that is its own, on the scratch: containers' logs are kept by their names elsewhere.
pub(crate) const ENGINE_FOLDER: &str = "engine";
/// How much of each log a failed story prints: how it began, and how it ended.
const LOG_HEAD_LINES: usize = 40;
const LOG_TAIL_LINES: usize = 60;

/// Tells a story in a lab of its own. Called by a `#[test]` function and by nothing else.
pub fn story<F: FnOnce(&mut Lab) -> anyhow::Result<()>>(tell: F) {
    story_within(LIMIT, tell);
}

/// A story that may take as long as `limit`.
pub fn story_within<F: FnOnce(&mut Lab) -> anyhow::Result<()>>(limit: Duration, tell: F) {
    story_named(&name_of::<F>(), limit, |scratch| tell(&mut Lab::new(scratch)?));
}

/// The story of the test `name`, which makes for itself what it needs.
#[expect(clippy::panic, reason = "this is how a test fails")]
pub(crate) fn story_named(name: &str, limit: Duration, tell: impl FnOnce(&Path) -> anyhow::Result<()>) {
    match sandbox::scratch() {
        Some(scratch) => inside(&scratch, limit, tell),
        None => {
            if let Err(error) = outside(name, limit) {
                panic!("{error:#}");
            }
        }
    }
}

/// Asks until there is an answer. An error is a "not yet"; the last one is reported when time is up.
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = clock::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if clock::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn inside(scratch: &Path, limit: Duration, tell: impl FnOnce(&Path) -> anyhow::Result<()>) {
    let logs = scratch.to_owned();
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("the story was not over after {limit:?}");
        print_logs(&logs);
        std::process::exit(124);
    });

    let told = std::panic::catch_unwind(AssertUnwindSafe(|| tell(scratch)));

    match told {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            print_logs(scratch);
            panic!("{error:?}");
        }
        Err(panic) => {
            print_logs(scratch);
            std::panic::resume_unwind(panic);
        }
    }
}

fn outside(name: &str, limit: Duration) -> anyhow::Result<()> {
    let mut output = tempfile::tempfile().context("making a file for the story's output")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let child = sandbox::spawn(command).map_err(|refused| {
        let hint = refused.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        anyhow::anyhow!("{:#}{hint}", anyhow::Error::new(refused))
    })?;

    let ended = wait(child, limit + LAST_WORDS)?;

    let text = read_all(&mut output)?;
    println!("{text}");
    for line in text.lines().filter(|line| line.starts_with(SAID_ALOUD)) {
        // Not by a macro: the test runner would keep it to itself unless the test fails.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    match ended {
        Some(status) if status.success() && text.contains("1 passed") => Ok(()),
        Some(status) if status.success() => anyhow::bail!("no test is called {name}"),
        Some(status) => anyhow::bail!("{name}: {status}; what happened is printed above"),
        None => anyhow::bail!("{name}: killed after {limit:?}"),
    }
}

fn wait(mut child: Child, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline: Instant = clock::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if clock::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_all(file: &mut File) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of every log under `folder`.
fn print_logs(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            if !path.ends_with(ENGINE_FOLDER) {
                print_logs(&path);
            }
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read(&path).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<_> = log.lines().collect();
            let (head, rest) = lines.split_at(lines.len().min(LOG_HEAD_LINES));
            let (left_out, tail) = rest.split_at(rest.len().saturating_sub(LOG_TAIL_LINES));
            eprintln!("\n── {} ({} lines) ──", path.display(), lines.len());
            head.iter().for_each(|line| eprintln!("{line}"));
            if !left_out.is_empty() {
                eprintln!("… {} lines …", left_out.len());
            }
            tail.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The test that a closure stands in: `file::a_test::{{closure}}` is in `a_test`.
pub(crate) fn name_of<F>() -> String {
    let path = std::any::type_name::<F>();
    let path = path.split_once("::").map_or(path, |(_, rest)| rest);
    path.trim_end_matches("::{{closure}}").to_owned()
}
