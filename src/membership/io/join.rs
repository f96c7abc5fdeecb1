//! Becoming a member, or being one already: what the state directory holds decides.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use ipnet::IpNet;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use reqwest::{Method, StatusCode};
use wiremesh_certs::{IdentityKey, JoinToken, NodeName, Refused, Trust, TrustStore, UnixTime, Verified, WgPrivateKey};
use zeroize::Zeroizing;

use super::{
    client::Client,
    disk::StateDir,
    http::{self, Asked, ClientError},
    pin::Expect,
    rekey::KeyCare,
    session::Session,
};
use crate::{
    api::{EnrollResponse, Instance, JoinWaiting, MAX_REQUEST_BYTES, Seed},
    backoff::Backoff,
    clock,
    membership::{
        heartbeat::Coordinators,
        joining::{self, Accepted, BadAnswer, Expected},
        state::{MemberFile, SeedsFile},
    },
};

/// The first wait while no coordinator can be reached.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest.
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// The longest wait before a coordinator is asked again whether it was decided to let us in.
const ASK_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// What a member is told by its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it keeps what must survive.
    pub state_dir: PathBuf,
    /// What it is called.
    pub name: NodeName,
    /// Needed until it has joined.
    pub token: Option<JoinToken>,
    /// Where the token was looked for, if in a file.
    pub token_file: Option<PathBuf>,
    /// Coordinators besides those of the token.
    pub coordinators: Vec<String>,
    /// How often it changes its keys; `None`: when told to.
    pub rotate_keys_every: Option<Duration>,
}

/// A member of the mesh: ourselves.
#[derive(Clone)]
pub struct Member {
    /// Our identity key.
    pub identity: Arc<IdentityKey>,
    /// Our WireGuard key.
    pub wg: Arc<WgPrivateKey>,
    /// What the mesh says we are. Renewals come as events; [`Client::verified`] is always the latest.
    pub verified: Verified,
    /// Whom we believe. All parts of the agent share it.
    pub trust: Arc<TrustStore>,
    /// The overlay network.
    pub network: IpNet,
    /// Members to begin with: from the join, or the last known ones. Their records were checked.
    pub seeds: Vec<Seed>,
    /// The coordinator.
    pub client: Client,
}

/// The coordinator said no, or is not the one that the token names. Final.
#[derive(Debug, thiserror::Error)]
pub enum JoinRefused {
    /// The coordinator, or whoever answered in its place.
    #[error("could not join: {0}")]
    Client(ClientError),
    /// Its answer.
    #[error("could not join: {0}")]
    Answer(#[from] BadAnswer),
    /// There is nothing to join with.
    #[error("this machine has not joined a mesh yet, and there is no join token")]
    NoToken,
    /// The file that is to hold it is not there.
    #[error("this machine has not joined a mesh yet, and there is no join token: {} does not exist", .0.display())]
    NoTokenFile(PathBuf),
    /// The certificate on disk is over.
    #[error("this machine's certificate ended at {0}, and there is no join token to join again with")]
    Ended(UnixTime),
}

impl JoinRefused {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            JoinRefused::Client(error) => error.hint(),
            JoinRefused::Answer(BadAnswer::Refused(refused)) => refused.hint(),
            JoinRefused::Answer(_) => None,
            JoinRefused::NoToken | JoinRefused::Ended(_) => {
                Some("make one on the coordinator (wiremesh token create) and set join_token_file")
            }
            JoinRefused::NoTokenFile(_) => Some("make one on the coordinator (wiremesh token create) and put it there"),
        }
    }
}

/// Ourselves from disk if this machine has joined, else by joining; the latter waits for a coordinator as long as it
/// takes. An error is final; [`JoinRefused`] in it has a hint.
pub async fn load_or_join(settings: &Settings, mut rng: StdRng) -> anyhow::Result<(Member, Session)> {
    let disk = StateDir::open(&settings.state_dir)?;
    if disk.finish_switch(clock::unix())? {
        tracing::info!("switched to the next keys");
    }
    let identity = Arc::new(disk.identity(&mut rng)?);
    let wg = Arc::new(disk.wireguard(&mut rng)?);
    let now = clock::unix();

    let known = if disk.has_joined()? { load(&disk, settings, &identity, &wg, now)? } else { None };
    let (trust, verified, seeds) = match known {
        Some(known) => known,
        None => {
            let token = settings.token.as_ref().ok_or_else(|| match &settings.token_file {
                Some(path) => JoinRefused::NoTokenFile(path.clone()),
                None => JoinRefused::NoToken,
            })?;
            join(&disk, settings, token, &identity, &wg, &mut rng).await?
        }
    };

    let mut stored = disk.member()?;
    if let Some(member) = stored.as_mut().filter(|member| member.keys_made_at.is_none()) {
        member.keys_made_at = Some(now);
        disk.keep_member(member)?;
    }
    let keys_made_at = stored.as_ref().and_then(|member| member.keys_made_at).unwrap_or(now);
    let care = KeyCare::new(keys_made_at, settings.rotate_keys_every, disk.has_next_keys(), &mut rng);
    let mut instance = Instance([0; 16]);
    rng.fill_bytes(&mut instance.0);
    let stored = stored.map(|member| member.coordinators).unwrap_or_default();
    let of_token = settings.token.iter().flat_map(|token| token.urls.clone());
    let mut coordinators = Coordinators::new(settings.coordinators.iter().cloned().chain(of_token));
    coordinators.learn(&stored);
    let trust = Arc::new(TrustStore::new(trust));
    let (seed, client_rng) = (rng.next_u64(), StdRng::from_rng(&mut rng));
    let client = Client::new(identity.clone(), verified.clone(), trust.clone(), coordinators, client_rng)?;
    let network = trust.current().network();
    tracing::info!(
        name = %verified.name(),
        mesh = %trust.current().mesh(),
        address = %verified.address(),
        until = %verified.not_after(),
        "member of the mesh"
    );
    let member = Member { identity, wg, verified, trust, network, seeds: seeds.seeds.clone(), client };
    let session = Session::new(member.clone(), disk, seeds, care, instance, seed);
    Ok((member, session))
}

type Known = (Trust, Verified, SeedsFile);

/// From disk. `None`: the certificate is over, and there is a token to join again with.
fn load(
    disk: &StateDir,
    settings: &Settings,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    now: UnixTime,
) -> anyhow::Result<Option<Known>> {
    let directory = settings.state_dir.display();
    let authority = disk.authority()?;
    if let Some(token) = settings.token.as_ref().filter(|token| token.ca != authority.fingerprint()) {
        bail!(
            "{directory} belongs to the mesh {}, the join token to another one, {}; \
             move the state directory away to join that one, or remove the token",
            authority.mesh(),
            token.mesh
        );
    }
    let mut trust = Trust::new(authority);
    if let Some(revocations) = disk.revocations()? {
        trust
            .apply_revocations(&revocations, now)
            .with_context(|| format!("revocations.bin in {directory}: {}", StateDir::REVOCATIONS_COME_AGAIN))?;
    }
    let pem = disk.certificate()?;
    let verified = match joining::ours(&trust, &pem, identity.id(), wg.public(), &settings.name, now) {
        Ok(verified) => verified,
        Err(BadAnswer::Refused(Refused::Expired { not_after, .. })) => match settings.token {
            Some(_) => {
                tracing::warn!(%not_after, "the certificate has ended, joining again");
                return Ok(None);
            }
            None => return Err(JoinRefused::Ended(not_after).into()),
        },
        Err(BadAnswer::NotOurs { what: "name", given, wanted }) => bail!(
            "this machine is called {given} in the mesh, but the configuration says {wanted}; \
             keep that name, or move {directory} away and join again"
        ),
        Err(BadAnswer::Refused(refused)) => {
            let hint = refused.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            bail!("the certificate in {directory} cannot be used: {refused}{hint}")
        }
        Err(other) => bail!("node.crt in {directory} cannot be used: {other}"),
    };
    let seeds = disk.seeds().believed(&trust, now);
    Ok(Some((trust, verified, seeds)))
}

/// By token: every coordinator of it in turn, again and again, until one says yes or no. One that says "not yet" is
/// asked again with the same request: nothing else is needed when its operator has decided.
async fn join(
    disk: &StateDir,
    settings: &Settings,
    token: &JoinToken,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    rng: &mut StdRng,
) -> anyhow::Result<Known> {
    let expected = Expected {
        identity: identity.id(),
        wg: wg.public(),
        name: settings.name.clone(),
        mesh: token.mesh.clone(),
        authority: token.ca,
    };
    let http = http::client(Expect::Pinned { mesh: token.mesh.clone(), authority: token.ca })?;
    let urls = Coordinators::new(token.urls.iter().chain(&settings.coordinators).cloned());
    // The token's secret is in it. With all the room it needs from the start: a buffer that grows leaves its old
    // contents behind.
    let mut body = Zeroizing::new(Vec::with_capacity(MAX_REQUEST_BYTES));
    serde_json::to_writer(&mut *body, &joining::request(token, identity, wg, &settings.name)?)?;
    let body = Bytes::from_owner(body);
    let mut backoff = Backoff::new(RETRY_AFTER, RETRY_AT_MOST, rng.random());
    let mut patience = Backoff::new(RETRY_AFTER, ASK_AGAIN_AT_MOST, rng.random());
    let answer = loop {
        match ask_all(&http, urls.urls(), &body).await {
            Ok(Answer::Welcome(answer)) => break answer,
            Ok(Answer::NotYet(waiting)) => {
                backoff.reset();
                tell_waiting(&waiting, &expected, patience.failures());
                let at_least = Duration::from_secs(waiting.ask_again_secs).min(ASK_AGAIN_AT_MOST);
                tokio::time::sleep(at_least + patience.next_delay()).await;
            }
            Err(error) if error.is_passing() => {
                let wait = backoff.next_delay();
                tracing::warn!(why = %error, again_in = ?wait, "no coordinator lets us join yet");
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(JoinRefused::Client(error).into()),
        }
    };
    let now = clock::unix();
    let Accepted { trust, verified } = joining::accept(&answer, &expected, now).map_err(JoinRefused::Answer)?;

    let mut seeds = SeedsFile::default();
    seeds.merge(answer.bootstrap);
    let seeds = seeds.believed(&trust, now);
    let member = MemberFile {
        mesh: trust.mesh().clone(),
        network: trust.network(),
        coordinators: answer.coordinators,
        // Whoever joins again has older keys.
        keys_made_at: disk.member()?.and_then(|member| member.keys_made_at).or(Some(now)),
    };
    disk.keep_authority(trust.authority())?;
    if let Some(revocations) = &answer.revocations {
        disk.keep_revocations(revocations)?;
    }
    disk.keep_member(&MemberFile { coordinators: merged(urls.urls(), member.coordinators), ..member })?;
    disk.keep_seeds(&seeds)?;
    // The certificate last: where it is, everything is.
    disk.keep_certificate(&verified.chain().to_pem())?;
    Ok((trust, verified, seeds))
}

/// What a coordinator says to a request that it does not refuse.
enum Answer {
    Welcome(Box<EnrollResponse>),
    NotYet(JoinWaiting),
}

/// The first answer that is one. A wrong coordinator among several is passed over as long as another may be right.
async fn ask_all(http: &reqwest::Client, urls: &[String], body: &Bytes) -> Result<Answer, ClientError> {
    let mut failed = ClientError::NoCoordinator;
    for url in urls {
        let asked = Asked { method: Method::POST, path: "/api/enroll", body: Some(body.clone()), proof: None };
        let answer = http::send(http, url, asked).await.and_then(|(status, body)| match status {
            StatusCode::ACCEPTED => http::read(url, &body).map(Answer::NotYet),
            _ => http::read(url, &body).map(Answer::Welcome),
        });
        match answer {
            Ok(answer) => return Ok(answer),
            Err(refused @ ClientError::Refused { .. }) => return Err(refused),
            Err(wrong @ ClientError::Wrong { .. }) => {
                tracing::warn!(why = %wrong, "passed over");
                if !matches!(failed, ClientError::Unreachable { .. }) {
                    failed = wrong;
                }
            }
            Err(other) => failed = other,
        }
    }
    Err(failed)
}

/// Once for people, then for those who search. The identity is our own, not the one in the answer: it is there to be
/// compared.
fn tell_waiting(waiting: &JoinWaiting, expected: &Expected, before: u32) {
    let (name, identity) = (&expected.name, expected.identity.to_hex());
    if before == 0 {
        let how = &waiting.compare;
        tracing::info!(%name, identity, until = %waiting.ends_at, how, "this machine waits until an operator lets it join");
    } else {
        tracing::debug!(%name, identity, asked = before, "this machine still waits for an operator");
    }
}

fn merged(first: &[String], then: Vec<String>) -> Vec<String> {
    let mut coordinators = Coordinators::new(first.iter().cloned());
    coordinators.learn(&then);
    coordinators.urls().to_vec()
}
