//! Looks at members' tunnel URLs: one GET each, as any stranger could. An ingress refuses it and says whose it is.
//!
//! A URL is the member's own choice, so that nothing is sent to where only this machine gets: see [`tunnel`].

use std::{error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use hyper_rustls::ConfigBuilderExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::mpsc;
use wiremesh_certs::{NodeId, NodeName, TunnelUrl};

use super::shared::Shared;
use crate::{api::WORKER, clock, coordinator::tunnels::Seen, task::CancellationToken, tunnel};

/// Looks that wait for their turn; beyond, the member's next heartbeat asks again.
pub const MAX_WAITING: usize = 256;
/// Looks at once.
const MAX_AT_ONCE: usize = 8;
/// A URL that takes longer is as good as none.
const LIMIT: Duration = Duration::from_secs(5);
/// What is asked for: an agent refuses it without doing anything.
const PATH: &str = "/health/live";

/// A URL to be looked at.
pub struct Look {
    /// Whose it is.
    pub member: NodeId,
    /// What that member is called.
    pub name: NodeName,
    /// The URL.
    pub url: TunnelUrl,
}

/// Looks, until stopped.
pub async fn keep(shared: Arc<Shared>, mut looks: mpsc::Receiver<Look>, stop: CancellationToken) -> anyhow::Result<()> {
    let http = client()?;
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some((look, seen)) = running.next() => report(&shared, &look, &seen),
            Some(look) = looks.recv(), if running.len() < MAX_AT_ONCE => {
                let http = http.clone();
                running.push(async move {
                    let seen = look_at(&http, &look.url).await;
                    (look, seen)
                });
            }
        }
    }
}

fn report(shared: &Shared, look: &Look, seen: &Seen) {
    let found = shared.tunnels().on_seen(look.member, &look.name, &look.url, seen, clock::unix());
    let Some(found) = found else { return };
    match &found.why {
        Some(why) => tracing::warn!(name = %look.name, url = %look.url, why, "a tunnel URL does not lead back"),
        None => tracing::info!(name = %look.name, url = %look.url, "a tunnel URL leads back"),
    }
}

async fn look_at(http: &reqwest::Client, url: &TunnelUrl) -> Seen {
    match tunnel::leads_elsewhere(url) {
        true => ask(http, url).await,
        false => Seen::Home,
    }
}

async fn ask(http: &reqwest::Client, url: &TunnelUrl) -> Seen {
    let answer = match http.get(format!("{url}{PATH}")).send().await {
        Ok(answer) => answer,
        Err(error) => return Seen::Nobody(root_of(&error)),
    };
    let worker = answer.headers().get(WORKER).and_then(|name| name.to_str().ok()).and_then(|name| name.parse().ok());
    match worker {
        Some(name) => Seen::Member(name),
        None => Seen::Other(answer.status().as_u16()),
    }
}

/// What it came from, which is what says something; the rest repeats the URL.
fn root_of(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", LIMIT.as_secs());
    }
    let mut root: &dyn Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string().chars().take(200).collect()
}

/// As agents reach tunnels: the roots of the web, HTTP/1.1. What it is told to go elsewhere for is not followed: the
/// member names the URL, and nobody else.
fn client() -> anyhow::Result<reqwest::Client> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_webpki_roots()
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .timeout(LIMIT)
        .pool_max_idle_per_host(0)
        .user_agent(concat!("wiremesh/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(Elsewhere))
        .build()?)
}

/// What a name means, less this machine: a name is as easily pointed there as an address is written out.
struct Elsewhere;

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = addresses.filter(|at| tunnel::is_elsewhere(at.ip())).collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name leads to no other machine").into());
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};

    use super::*;

    #[tokio::test]
    async fn an_ingress_tells_whose_it_is_and_everything_else_is_told_from_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ingress = get(async || (StatusCode::UNAUTHORIZED, [(WORKER, "worker-1")], "no proof"));
        let elsewhere = get(async || (StatusCode::FOUND, [("location", "/health/live")], ""));
        let pages = Router::new().route("/health/live", ingress).route("/moved/health/live", elsewhere);
        tokio::task::spawn(async move { axum::serve(listener, pages).await });
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let http = client().unwrap();
        let look = async |url: String| ask(&http, &url.parse().unwrap()).await;

        assert_eq!(look(format!("http://{address}")).await, Seen::Member("worker-1".parse().unwrap()));
        assert_eq!(look(format!("http://{address}/other")).await, Seen::Other(404));
        assert_eq!(look(format!("http://{address}/moved")).await, Seen::Other(302), "it is not followed");
        let Seen::Nobody(why) = look(format!("http://{free}")).await else { panic!("nobody listens there") };
        assert!(why.contains("refused"), "{why}");
        let Seen::Nobody(why) = look(format!("https://{address}")).await else { panic!("it speaks no TLS") };
        assert!(!why.contains("http"), "{why}");
    }

    #[tokio::test]
    async fn nothing_is_sent_to_this_machine_whatever_a_member_calls_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let http = client().unwrap();

        for host in
            ["127.0.0.1", "localhost", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
        {
            let url = format!("http://{host}:{port}").parse().unwrap();
            assert_eq!(look_at(&http, &url).await, Seen::Home, "{host}");
        }
        // As a name would that somebody points here: the URL says nothing, its address does.
        let Seen::Nobody(why) = ask(&http, &format!("http://localhost:{port}").parse().unwrap()).await else {
            panic!()
        };
        assert_eq!(why, "the name leads to no other machine");
        let accepted = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(accepted.is_err(), "somebody came");
    }
}
