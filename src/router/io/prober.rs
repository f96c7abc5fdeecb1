//! Finds out when ejected ways are open again, so that no request has to.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use http::{Uri, uri::PathAndQuery};
use tokio_util::sync::CancellationToken;

use super::{Shared, asking::LIVE, lock, overlay::Sign};
use crate::{
    clock,
    router::health::{Target, Way},
};

/// Probes under way at once.
const MAX_PROBES: usize = 16;
/// How often unused connections are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(15);

pub(super) async fn run(shared: &Arc<Shared>, stop: CancellationToken) {
    let mut probes = FuturesUnordered::new();
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        let now = clock::now();
        while probes.len() < MAX_PROBES
            && let Some((way, target)) = shared.health().poll_probe(now)
        {
            probes.push(probe(shared, way, target));
        }
        let next = shared.health().poll_timeout();
        let due = next.filter(|_| probes.len() < MAX_PROBES).map(|(at, _)| tokio::time::Instant::from_std(at));
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.ejected.notified() => {}
            () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await }, if due.is_some() => {
                tracing::trace!(why = next.map(|(_, why)| why), "prober wakes");
            }
            _ = sweep.tick() => {
                shared.pool.sweep(clock::now());
                shared.upstreams.sweep(clock::now());
            }
            Some((way, answered)) = probes.next() => {
                tracing::debug!(node = %way.0, path = %way.1, answered, "probed an ejected way");
                if answered {
                    shared.health().on_probe_answered(way);
                } else {
                    shared.health().on_probe_failed(way, clock::now(), &mut *lock(&shared.rng));
                }
            }
        }
    }
}

async fn probe(shared: &Shared, way: Way, target: Target) -> (Way, bool) {
    let answered = match target {
        Target::Overlay(address) => match shared.pool.lease(address).await {
            Err(_) => false,
            Ok(lease) => {
                let live = Uri::builder().scheme("http").authority(address.to_string());
                match live.path_and_query(PathAndQuery::from_static(LIVE)).build() {
                    Ok(live) => lease.ask(live).await == Sign::Alive,
                    Err(_) => false,
                }
            }
        },
        Target::Tunnel(worker, url) => shared.lives_behind_tunnel(&worker, &url).await,
    };
    (way, answered)
}
