//! Finds out what an upstream is, and asks it every two seconds how busy it is and every thirty which models it serves.
//!
//! ```text
//! up ──► which kind? ──► load, models, load, load, … ──► down, or started again: all forgotten ──► up …
//! ```
//!
//! Its tasks touch no request: an upstream that answers slowly, or never, makes figures old and nothing else.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Service, Shared,
    client::{Client, Said},
};
use crate::{
    clock,
    services::{
        Kind, Reading,
        adapters::{METRICS, MODELS, RECOGNISED_BY},
        models,
    },
};

/// On the beat of the probes.
const POLL_EVERY: Duration = Duration::from_secs(2);
/// Models come and go seldom.
const POLLS_PER_LISTING: u32 = 15;
/// An upstream that is up and cannot say what it is is asked so often, then taken for what it says without that.
const RECOGNISE_TRIES: u32 = 5;
/// After so many polls in a row without an answer the last one says nothing any more.
const MISSES: u32 = 3;

pub(super) async fn run(
    service: Arc<Service>,
    client: Client,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut life = service.life.subscribe();
    loop {
        let up = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            up = life.wait_for(Option::is_some) => *up?,
        };
        let Some(life_number) = up else { continue };
        let known = Known { service: &service, client: &client, shared: &shared, life_number };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = life.changed() => {}
            () = known.live() => {}
        }
    }
}

/// One life of an upstream, from when it first answers to when it does not.
struct Known<'a> {
    service: &'a Service,
    client: &'a Client,
    shared: &'a Shared,
    life_number: u64,
}

impl Known<'_> {
    /// Asks for as long as there is something to be learnt. Never ends by itself: what ends it is the end of this life.
    async fn live(&self) {
        let mut due = clock::beats(POLL_EVERY);
        let kind = match self.service.config.kind {
            Some(kind) => kind,
            None => {
                let mut tries = 1;
                loop {
                    if let Some(kind) = self.recognise(tries == RECOGNISE_TRIES).await {
                        tracing::debug!(service = %self.service.config.name, kind = kind.as_str(), "upstream recognised");
                        break kind;
                    }
                    due.tick().await;
                    tries += 1;
                }
            }
        };
        self.shared.on_kind(self.service, self.life_number, kind);
        let mut polling = Polling::default();
        let mut polls = 0_u32;
        loop {
            if kind.lists_models() && polls.is_multiple_of(POLLS_PER_LISTING) {
                self.list_models().await;
            }
            if polling.is_worth_it(kind) {
                let reading = self.poll(kind, &mut polling).await;
                self.shared.on_reading(self.service, self.life_number, reading);
            } else if !kind.lists_models() {
                return std::future::pending().await;
            }
            due.tick().await;
            polls = polls.wrapping_add(1);
        }
    }

    /// `None` if the upstream cannot say yet, and this is not the `last` time that it is asked.
    async fn recognise(&self, last: bool) -> Option<Kind> {
        for (path, tells) in RECOGNISED_BY {
            match self.ask(path, None).await {
                Said::Text(text) => match tells(&text) {
                    Some(kind) => return Some(kind),
                    None => continue,
                },
                Said::NotNow if !last => return None,
                Said::Nothing | Said::NotNow => continue,
            }
        }
        Some(Kind::Generic)
    }

    async fn poll(&self, kind: Kind, polling: &mut Polling) -> Option<Reading> {
        let mut reading = Reading::default();
        for (number, question) in kind.questions().iter().enumerate() {
            if polling.is_struck(number) || !(question.wanted)(&reading) {
                continue;
            }
            let port = (question.path == METRICS).then(|| self.metrics_port(kind));
            match self.ask(question.path, port).await {
                Said::Text(text) => match (question.parse)(&text) {
                    Some(more) => reading = reading.or(more),
                    None => polling.strike(number),
                },
                Said::Nothing => polling.strike(number),
                Said::NotNow => {}
            }
        }
        polling.on_reading(reading)
    }

    async fn list_models(&self) {
        if let Said::Text(text) = self.ask(MODELS, None).await
            && let Some(models) = models::listed(&text)
        {
            self.shared.on_models(self.service, self.life_number, models);
        }
    }

    async fn ask(&self, path: &str, port: Option<u16>) -> Said {
        match self.service.config.upstream.beside(path, port) {
            Some(uri) => self.client.ask(uri).await,
            None => Said::Nothing,
        }
    }

    fn metrics_port(&self, kind: Kind) -> u16 {
        let config = &self.service.config;
        config.metrics_port.unwrap_or_else(|| kind.metrics_port(config.upstream.port()))
    }
}

/// What one life of an upstream has shown of its answers.
#[derive(Default)]
struct Polling {
    /// Questions that it does not understand; they are not asked again in this life.
    struck: u32,
    reading: Reading,
    misses: u32,
}

impl Polling {
    fn is_worth_it(&self, kind: Kind) -> bool {
        (0..kind.questions().len()).any(|number| !self.is_struck(number))
    }

    fn is_struck(&self, number: usize) -> bool {
        self.struck & (1 << number) != 0
    }

    /// A question without an answer to it: that kind of upstream, or the way it was started, does not have it.
    fn strike(&mut self, number: usize) {
        self.struck |= 1 << number;
    }

    /// A few polls without any answer are forgiven: a busy upstream is slow to say that it is busy.
    fn on_reading(&mut self, reading: Reading) -> Option<Reading> {
        if reading != Reading::default() {
            (self.reading, self.misses) = (reading, 0);
            return Some(reading);
        }
        self.misses = self.misses.saturating_add(1);
        (self.misses < MISSES && self.reading != Reading::default()).then_some(self.reading)
    }
}

#[cfg(test)]
mod tests;
