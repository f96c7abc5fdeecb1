//! One exchange with one coordinator: bounded in time and size, its failure told apart by what can be done about it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use reqwest::{Method, StatusCode, header};
use serde::de::DeserializeOwned;
use wiremesh_certs::UnixTime;

use super::pin::{self, Expect, SET_THE_CLOCK, WrongCoordinator};
use crate::{
    api::{self, ErrorResponse, MAX_RESPONSE_BYTES},
    clock,
    membership::skew::{Offset, Skew},
};

/// To reach a coordinator, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole exchange. Joining waits for a database; everything else is answered from memory.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Less than the coordinator waits for the next request on a connection, so that none is used as it is closed.
const IDLE_FOR: Duration = Duration::from_secs(15);
/// Connections kept open to one coordinator between requests.
const IDLE_CONNECTIONS: usize = 2;
/// How often a connection with something under way is asked for a sign of life, and how long that may take: a coordinator
/// whose machine has vanished is not waited for by one request after the other.
const PING_EVERY: Duration = Duration::from_secs(10);
/// See [`PING_EVERY`].
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The coordinator's word for a proof that is not of this minute.
const STALE_PROOF: &str = "stale_proof";

/// Why a coordinator did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No coordinator is known.
    #[error("no coordinator is known")]
    NoCoordinator,
    /// It did not answer, or not as one that works: another may, or this one later.
    #[error("{url}: {why}")]
    Unreachable {
        /// Which one.
        url: String,
        /// What happened.
        why: String,
    },
    /// Somebody else answered.
    #[error("{url}: {wrong}")]
    Wrong {
        /// Where.
        url: String,
        /// What it was told by.
        wrong: WrongCoordinator,
    },
    /// Our clock is so far off that no coordinator would take a proof of ours.
    #[error("{url}: this machine's clock is {offset} the coordinator's")]
    Clock {
        /// By whose time.
        url: String,
        /// How far.
        offset: Offset,
    },
    /// Our own certificate has ended, so nobody was asked.
    #[error("our certificate has ended, and another one comes first")]
    Ended,
    /// It said no. Asking again changes nothing.
    #[error("the coordinator refused: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// One stable word.
        kind: String,
        /// What and why.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// We could not sign the request.
    #[error("the request could not be signed: {0}")]
    Signing(String),
}

impl ClientError {
    /// Whether it may be different next time.
    pub fn is_passing(&self) -> bool {
        match self {
            ClientError::NoCoordinator
            | ClientError::Unreachable { .. }
            | ClientError::Clock { .. }
            | ClientError::Ended => true,
            // Clocks are set.
            ClientError::Wrong { wrong, .. } => wrong.clock.is_some(),
            ClientError::Refused { kind, .. } => kind == STALE_PROOF,
            ClientError::Signing(_) => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Wrong { wrong, .. } => wrong.hint,
            ClientError::Refused { hint, .. } => hint.as_deref(),
            ClientError::NoCoordinator => Some("name one in `coordinators`"),
            ClientError::Clock { .. } => Some(SET_THE_CLOCK),
            ClientError::Unreachable { .. } | ClientError::Ended | ClientError::Signing(_) => None,
        }
    }

    /// The coordinator's stable word for a refusal.
    pub fn kind(&self) -> Option<&str> {
        match self {
            ClientError::Refused { kind, .. } => Some(kind),
            _ => None,
        }
    }
}

/// Speaks HTTPS to the expected coordinator.
pub fn client(expect: Expect) -> anyhow::Result<reqwest::Client> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(pin::client_config(expect)?)
        .https_only(true)
        // An answer from elsewhere would not be the coordinator's.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXCHANGE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .pool_idle_timeout(IDLE_FOR)
        .http2_keep_alive_interval(PING_EVERY)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .user_agent(concat!("wiremesh/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(client)
}

/// A request as it is sent to any coordinator.
pub struct Asked<'a> {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// JSON.
    pub body: Option<Bytes>,
    /// Proof of who asks.
    pub proof: Option<String>,
    /// How long it may take.
    pub limit: Duration,
}

/// What the dates of coordinators' answers tell of our clock, shared by whoever asks.
#[derive(Debug, Default)]
pub struct OurClock(Mutex<Skew>);

impl OurClock {
    /// How far it is off; `None`: nobody has told yet.
    pub fn offset(&self) -> Option<Offset> {
        self.skew().offset()
    }

    fn skew(&self) -> MutexGuard<'_, Skew> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends it to `url` and reads the answer.
pub async fn exchange<T: DeserializeOwned>(
    client: &reqwest::Client,
    url: &str,
    asked: Asked<'_>,
    our_clock: &OurClock,
) -> Result<T, ClientError> {
    let (_, body) = send(client, url, asked, our_clock).await?;
    read(url, &body)
}

/// Reads what a coordinator that did what it was asked answered.
pub fn read<T: DeserializeOwned>(url: &str, body: &[u8]) -> Result<T, ClientError> {
    api::read(body).map_err(|error| ClientError::Unreachable {
        url: url.to_owned(),
        why: format!("its answer is not what this version expects: {error}"),
    })
}

/// Sends it to `url`; the answer of a coordinator that did what it was asked, for those who must tell apart what it did.
/// The answer's date, whatever else it says, tells of `our_clock`.
pub async fn send(
    client: &reqwest::Client,
    url: &str,
    asked: Asked<'_>,
    our_clock: &OurClock,
) -> Result<(StatusCode, Vec<u8>), ClientError> {
    let unreachable = |why: String| ClientError::Unreachable { url: url.to_owned(), why };
    let mut request = client.request(asked.method, format!("{url}{}", asked.path)).timeout(asked.limit);
    if let Some(proof) = asked.proof {
        request = request.header(header::AUTHORIZATION, proof);
    }
    if let Some(body) = asked.body {
        request = request.header(header::CONTENT_TYPE, "application/json").body(body);
    }
    let sent_at = clock::unix();
    let mut response = request.send().await.map_err(|error| match pin::wrong_coordinator(&error) {
        Some(wrong) => {
            wrong.clock.into_iter().for_each(|offset| our_clock.skew().handle_offset(offset));
            ClientError::Wrong { url: url.to_owned(), wrong }
        }
        None => unreachable(innermost(&error)),
    })?;
    if let Some(date) = date(response.headers()) {
        our_clock.skew().handle_date(date, sent_at, clock::unix());
    }
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(innermost(&error)))? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(unreachable("its answer is longer than any a coordinator gives".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    if status.is_success() {
        return Ok((status, body));
    }
    let Ok(ErrorResponse { error, .. }) = api::read(&body) else {
        return Err(unreachable(format!("it answered {status}")));
    };
    if is_passing(status) && error.kind != "service_not_found" {
        return Err(unreachable(error.message));
    }
    Err(ClientError::Refused { status: status.as_u16(), kind: error.kind, message: error.message, hint: error.hint })
}

/// When an answer was made, by the clock of whoever made it.
fn date(headers: &header::HeaderMap) -> Option<UnixTime> {
    let date = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    Some(UnixTime(date.duration_since(UNIX_EPOCH).ok()?.as_secs()))
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// The reason at the bottom: "connection refused" says more than "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
