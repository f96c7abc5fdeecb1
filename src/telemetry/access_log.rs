//! The access log: one JSON object a line, written by a task of its own. What its queue has no place for is dropped and
//! counted where it was to be put in; no request waits for a disk.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::Context;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    fs::{File, OpenOptions},
    io::{AsyncWrite, AsyncWriteExt},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::seldom::Seldom;
use crate::{clock, router::Line, task::CancellationToken};

/// Lines that wait to be written; a second of a busy agent.
pub const QUEUE_LINES: usize = 8192;
/// Lines that are written at once.
const MAX_BATCH: usize = 256;

/// Where the lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum To {
    /// Standard output.
    Stdout,
    /// A file, appended to. It is opened again on SIGHUP, so that it can be moved away.
    File(PathBuf),
}

/// The access log, opened.
pub struct AccessLog {
    out: Pin<Box<dyn AsyncWrite + Send>>,
    /// The file, and what asks to open it again.
    file: Option<(PathBuf, Signal)>,
    seldom: Seldom,
}

impl AccessLog {
    /// Opens it.
    pub async fn open(to: &To) -> anyhow::Result<AccessLog> {
        Ok(match to {
            To::Stdout => AccessLog { out: Box::pin(tokio::io::stdout()), file: None, seldom: Seldom::default() },
            To::File(path) => {
                let file = Some((path.clone(), signal(SignalKind::hangup())?));
                AccessLog { out: Box::pin(append(path).await?), file, seldom: Seldom::default() }
            }
        })
    }

    /// Writes `lines` until `stop`, and what is in the queue then. Lines that cannot be written count as `dropped`.
    pub async fn run(
        mut self,
        mut lines: mpsc::Receiver<Line>,
        dropped: Counter,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        loop {
            tokio::select! {
                taken = lines.recv_many(&mut batch, MAX_BATCH) => match taken {
                    0 => return Ok(()),
                    _ => self.write(&mut batch, &dropped).await,
                },
                () = again(&mut self.file) => self.reopen().await,
                () = stop.cancelled(), if !lines.is_closed() => lines.close(),
            }
        }
    }

    async fn write(&mut self, batch: &mut Vec<Line>, dropped: &Counter) {
        let mut text = Vec::with_capacity(batch.len() * 512);
        for line in batch.iter() {
            // Strings and numbers always have a form in JSON.
            let _ = serde_json::to_writer(&mut text, line);
            text.push(b'\n');
        }
        let written = async {
            self.out.write_all(&text).await?;
            self.out.flush().await
        };
        if let Err(error) = written.await {
            dropped.inc_by(batch.len() as u64);
            if self.seldom.is_due(clock::now()) {
                tracing::warn!(%error, "the access log cannot be written");
            }
        }
        batch.clear();
    }

    async fn reopen(&mut self) {
        let Some((path, _)) = &self.file else { return };
        match append(path).await {
            Ok(file) => {
                self.out = Box::pin(file);
                tracing::info!(file = %path.display(), "access log opened again");
            }
            Err(error) => tracing::warn!("the access log stays the one it was: {error:#}"),
        }
    }
}

/// When the file is to be opened again; never, if there is none.
async fn again(file: &mut Option<(PathBuf, Signal)>) {
    match file {
        Some((_, hangup)) => _ = hangup.recv().await,
        None => std::future::pending().await,
    }
}

/// Makes the file, and its folder, if need be.
async fn append(path: &Path) -> anyhow::Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        // Just this one: a longer way that is not there is a slip.
        let made = tokio::fs::DirBuilder::new().mode(0o750).create(folder).await;
        made.with_context(|| format!("making {} for the access log", folder.display()))?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    options.open(path).await.with_context(|| format!("opening the access log {}", path.display()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use super::*;
    use crate::router::Outcome;

    #[tokio::test]
    async fn lines_are_appended_and_a_file_moved_away_is_followed_by_a_new_one_on_sighup() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let (sender, lines) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let log = AccessLog::open(&To::File(path.clone())).await.unwrap();
        let writing = tokio::task::spawn(log.run(lines, Counter::default(), stop.clone()));

        sender.send(line("r-1")).await.unwrap();
        let first = until(&path, 2).await;
        std::fs::rename(&path, &moved).unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        until(&path, 0).await;
        sender.send(line("r-2")).await.unwrap();
        stop.cancel();
        writing.await.unwrap().unwrap();

        assert!(first.starts_with("before\n{\"time\":") && first.contains("\"id\":\"r-1\""), "{first}");
        assert!(until(&path, 1).await.contains("\"id\":\"r-2\""));
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_in_the_queue_is_written_before_the_end_and_what_cannot_be_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        for (path, written, lost) in [(folder.path().join("access.log"), 2, 0), (PathBuf::from("/dev/full"), 0, 2)] {
            let (sender, lines) = mpsc::channel(8);
            let (stop, dropped) = (CancellationToken::new(), Counter::default());
            let log = AccessLog::open(&To::File(path.clone())).await.unwrap();
            sender.send(line("r-1")).await.unwrap();
            sender.send(line("r-2")).await.unwrap();
            stop.cancel();

            log.run(lines, dropped.clone(), stop).await.unwrap();

            assert_eq!(dropped.get(), lost);
            if written > 0 {
                assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), written);
            }
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_made_and_what_cannot_be_opened_is_told_at_the_start() {
        let above = tempfile::tempdir().unwrap();
        let file = above.path().join("log/access.log");

        AccessLog::open(&To::File(file.clone())).await.unwrap();
        let failed = AccessLog::open(&To::File(above.path().join("log/there/is/none/access.log"))).await;

        assert!(file.exists());
        assert!(failed.is_err_and(|error| error.to_string().contains("log/there/is/none")));
    }

    /// The file once it is there with so many lines.
    async fn until(path: &Path, lines: usize) -> String {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if text.lines().count() == lines => return text,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    fn line(id: &str) -> Line {
        Line {
            time: String::new(),
            id: id.to_owned(),
            trace: None,
            method: "GET".to_owned(),
            service: None,
            model: None,
            from: None,
            worker: None,
            path: None,
            source: None,
            attempts: 0,
            request_bytes: 0,
            answer_bytes: 0,
            head_ms: None,
            first_byte_ms: None,
            duration_ms: 0.0,
            status: None,
            outcome: Outcome::Ok,
        }
    }
}
