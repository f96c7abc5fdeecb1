//! Connections that became something else (WebSocket): bytes are passed both ways until either side ends.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{
    believed::{Believed, over},
    outgoing::Turn,
};

/// Joins the client's side and that of the worker, `by`, once both have switched. `held` is given up at the end.
pub(super) fn splice(turn: Turn, theirs: OnUpgrade, by: Option<Believed>, held: impl Send + 'static) {
    let Turn { client: ours, connections, believed } = turn;
    let killed = connections.killed.clone();
    connections.tracker.spawn(async move {
        let _held = held;
        let passing = async {
            let (ours, theirs) = tokio::try_join!(ours, theirs)?;
            let passed = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
            passed.map_err(anyhow::Error::from)
        };
        tokio::select! {
            () = over(believed) => tracing::debug!("upgraded connection cut"),
            () = over(by) => tracing::debug!("upgraded connection cut"),
            () = killed.cancelled() => tracing::debug!("upgraded connection aborted: the drain is over"),
            passed = passing => tracing::debug!(?passed, "upgraded connection ended"),
        }
    });
}
