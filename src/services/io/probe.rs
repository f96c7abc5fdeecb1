//! Asks each upstream every two seconds whether it is there, and more often while it may come up at any moment.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use tokio_util::sync::CancellationToken;

use super::{Service, Shared, client::Client};
use crate::{clock, services::Probe};

/// How long an upstream may take to come to others' notice, or to go from it.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// The same while requests wait for an upstream that is being started again, and when it is started for the first time.
const PROBE_AWAITED_EVERY: Duration = Duration::from_millis(250);

async fn probe(service: &Service, client: &Client) -> Probe {
    let path = PathAndQuery::try_from(service.config.health.as_str());
    let Some(uri) = path.ok().and_then(|path| service.config.upstream.uri(&path)) else { return Probe::Silent };
    // The answer's body is dropped unread: a health page that streams for ever costs one connection, not a hang.
    match client.head(uri).await {
        Some(Ok(answer)) if service.config.expected.takes(answer.status().as_u16()) => Probe::Answered,
        Some(Ok(answer)) => Probe::Failing(answer.status().as_u16()),
        Some(Err(error)) if error.is_connect() => Probe::Refused,
        Some(Err(_)) | None => Probe::Silent,
    }
}

pub(super) async fn run(
    service: Arc<Service>,
    client: Client,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut due = clock::beats(PROBE_EVERY);
    let mut life = service.life.subscribe();
    loop {
        let probe = probe(&service, &client).await;
        tracing::trace!(service = %service.config.name, ?probe, "probed");
        shared.on_probe(&service, probe);
        life.mark_unchanged();
        loop {
            let is_awaited = service.is_awaited();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // Its line may have begun to wait.
                _ = life.changed() => {}
                () = tokio::time::sleep(PROBE_AWAITED_EVERY), if is_awaited => break,
                _ = due.tick(), if !is_awaited => break,
            }
        }
    }
}
