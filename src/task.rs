//! Long-running tasks with names, owners and an order of leaving.
//!
//! A task that ends before it was asked to ends the whole agent: half an agent is worse than none, and whoever
//! supervises the process restarts it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The tasks of one program. Clones share them.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: Arc<AtomicBool>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Tasks of a part that is stopped on its own, before or after others, but stops at the latest with these.
    pub fn child(&self) -> Tasks {
        Tasks { tracker: TaskTracker::new(), stop: self.stop.child_token(), failed: self.failed.clone() }
    }

    /// Runs `task` under `name`. It must end soon after `stop` is cancelled, and not before.
    pub fn spawn<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        let running = task(stop.clone());
        self.tracker.spawn(
            async move {
                let mut end = End { stop: stop.clone(), failed: failed.clone(), told: false };
                let ended = running.await;
                end.told = true;
                match ended {
                    Ok(()) if stop.is_cancelled() => tracing::debug!("stopped"),
                    Ok(()) => {
                        failed.store(true, Ordering::Relaxed);
                        tracing::error!("ended by itself");
                    }
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        tracing::error!("failed: {error:#}");
                    }
                }
            }
            .instrument(tracing::info_span!("task", task = name)),
        );
    }

    /// Asks every task to end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Cancelled when the tasks are asked to end.
    pub fn token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Waits until the tasks are asked to end, by [`Tasks::stop`] or because one ended by itself.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Asks every task to end and waits at most `grace` for them. False if some had not left by then.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }

    /// Whether a task failed or ended before it was asked to.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The end of a task, in whatever way: one that panics says nothing, and must not be missing unnoticed.
struct End {
    stop: CancellationToken,
    failed: Arc<AtomicBool>,
    told: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.told {
            self.failed.store(true, Ordering::Relaxed);
            tracing::error!("panicked");
        }
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_by_itself_stops_the_others() {
        let tasks = Tasks::new();
        tasks.spawn("waits", |stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("breaks", |_| async { anyhow::bail!("disk on fire") });

        tasks.stopped().await;

        assert!(tasks.drain(Duration::from_secs(1)).await);
        assert!(tasks.failed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_stops_the_others() {
        let tasks = Tasks::new();
        tasks.spawn("panics", |_| async { panic!("on purpose") });

        tokio::time::timeout(Duration::from_secs(1), tasks.stopped()).await.expect("it is noticed");

        assert!(tasks.drain(Duration::from_secs(1)).await);
        assert!(tasks.failed());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_has_a_limit() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", |_| std::future::pending());

        assert!(!tasks.drain(Duration::from_secs(1)).await);
    }
}
