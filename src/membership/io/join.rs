//! Becoming a member, or being one already: what the state directory holds decides.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::Bytes;
use ipnet::IpNet;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use reqwest::{Method, StatusCode};
use wiremesh_certs::{
    Chain, IdentityKey, JoinToken, NodeName, Refused, Renewable, SignedRevocations, Trust, TrustStore, UnixTime,
    Verified, WgPrivateKey,
};
use zeroize::Zeroizing;

use super::{
    client::Client,
    disk::{RESTORE, StateDir},
    http::{self, Asked, ClientError, EXCHANGE_TIMEOUT, OurClock},
    pin::Expect,
    rekey::KeyCare,
    renewing::{self, Ended},
    session::Session,
};
use crate::{
    api::{EnrollResponse, Instance, JoinWaiting, MAX_REQUEST_BYTES, Seed},
    backoff::Backoff,
    clock,
    membership::{
        heartbeat::Coordinators,
        joining::{self, Accepted, BadAnswer, Expected},
        skew::Offset,
        state::{self, SeedsFile},
    },
};

/// The first wait while no coordinator can be reached.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest.
pub(super) const RETRY_AT_MOST: Duration = Duration::from_secs(30);

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
    /// The certificate on disk ended too long ago, and there is no token.
    #[error("this machine's certificate ended at {ended_at} and is not renewed any more: {refused}")]
    WindowOver {
        /// When.
        ended_at: UnixTime,
        /// The coordinator's word.
        refused: ClientError,
    },
    /// The certificate on disk has ended, and the coordinator does not renew it.
    #[error("this machine's certificate has ended, and it is not renewed: {0}")]
    NotRenewed(ClientError),
}

impl JoinRefused {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            JoinRefused::Client(error) | JoinRefused::NotRenewed(error) => error.hint(),
            JoinRefused::Answer(BadAnswer::Refused(refused)) => refused.hint(),
            JoinRefused::Answer(_) => None,
            JoinRefused::NoToken => Some("make one on the coordinator (wiremesh token create) and set join_token_file"),
            JoinRefused::WindowOver { .. } => Some(
                "make a join token on the coordinator (wiremesh token create), set join_token_file and start again: name, \
                 keys and address stay",
            ),
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

    let loaded = if disk.has_joined()? { Some(load(&disk, settings, &identity, &wg, now)?) } else { None };
    let known = match loaded {
        Some(Loaded::Member(known)) => known,
        Some(Loaded::Ended(ended)) => renewed(&disk, settings, ended, &identity, &wg, &mut rng).await?,
        None => join(&disk, settings, &identity, &wg, &mut rng).await?,
    };
    let Known { trust, verified, seeds, mut list } = known;

    let stored = disk.member()?.map(|member| member.coordinators).unwrap_or_default();
    let of_token = settings.token.iter().flat_map(|token| token.urls.clone());
    let mut coordinators = Coordinators::new(settings.coordinators.iter().cloned().chain(of_token));
    coordinators.learn(&stored);
    let trust = Arc::new(TrustStore::new(trust));
    let (seed, client_rng) = (rng.next_u64(), StdRng::from_rng(&mut rng));
    let client = Client::new(identity.clone(), verified.clone(), trust.clone(), coordinators, client_rng)?;
    let enforced = disk.member()?.map(|member| member.enforced).unwrap_or_default();
    if trust.current().revocation_number() < enforced {
        list = Some(renewing::await_list(&disk, &client, &trust, &verified, enforced, rng.random()).await?);
        trust.current().verify(verified.chain(), clock::unix())?;
    }
    let mut keys_made_at = now;
    disk.change_member(&trust.current(), |member| {
        member.observe(&trust.current());
        keys_made_at = *member.keys_made_at.get_or_insert(now);
    })?;
    let care = KeyCare::new(keys_made_at, settings.rotate_keys_every, disk.has_next_keys(), &mut rng);
    let mut instance = Instance([0; 16]);
    rng.fill_bytes(&mut instance.0);
    let network = trust.current().network();
    tracing::info!(
        name = %verified.name(),
        mesh = %trust.current().mesh(),
        address = %verified.address(),
        until = %verified.not_after(),
        "member of the mesh"
    );
    let member = Member { identity, wg, verified, trust, network, seeds: seeds.seeds.clone(), client };
    let session = Session::new(member.clone(), disk, seeds, list, care, instance, seed);
    Ok((member, session))
}

/// Whom we believe, who we are, whom we know.
struct Known {
    trust: Trust,
    verified: Verified,
    seeds: SeedsFile,
    list: Option<SignedRevocations>,
}

/// What the state directory holds.
enum Loaded {
    /// A member.
    Member(Known),
    /// One whose certificate has ended, or is of an authority that is not believed any more.
    Ended(Ended),
}

fn load(
    disk: &StateDir,
    settings: &Settings,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    now: UnixTime,
) -> anyhow::Result<Loaded> {
    let directory = settings.state_dir.display();
    let authorities = disk.authorities()?;
    if let Some(token) = &settings.token
        && !disk.is_of(&token.ca)?
    {
        let mesh = authorities.first().map(|authority| authority.mesh().to_string()).unwrap_or_default();
        bail!(
            "{directory} belongs to the mesh {mesh}, the join token to another one, {}; \
             move the state directory away to join that one, or remove the token",
            token.mesh
        );
    }
    let list = disk.revocations()?;
    let trust = state::trust_of(authorities.clone(), list.as_ref(), now)
        .with_context(|| format!("ca.crt and revocations.bin in {directory} do not belong together; {RESTORE}"))?;
    let enforced = disk.member()?.map(|member| member.enforced).unwrap_or_default();
    if list.is_some() && trust.revocation_number() < enforced {
        bail!(
            "revocations.bin in {directory} is list {}, and list {enforced} was enforced here before: an older one would \
             let the revoked in again; {}",
            trust.revocation_number(),
            StateDir::REVOCATIONS_COME_AGAIN
        );
    }
    let pem = disk.certificate()?;
    let chain = || Chain::from_pem(&pem).context("node.crt was read before");
    let verified = match joining::ours(&trust, &pem, identity.id(), wg.public(), &settings.name, now) {
        Ok(verified) => verified,
        Err(BadAnswer::Refused(refused @ (Refused::Expired { .. } | Refused::AnotherAuthority { .. }))) => {
            let chain = chain()?;
            // Whether its time is really over is for the coordinator to say.
            return match trust.renewable(&chain, &authorities, Duration::MAX, now) {
                Ok(before) if is_ours(&before, identity, wg, &settings.name) => {
                    Ok(Loaded::Ended(Ended { trust, list, before, chain }))
                }
                Ok(_) => bail!("the certificate in {directory} cannot be used: {refused}, and is not ours; {RESTORE}"),
                Err(worse) => bail!("the certificate in {directory} cannot be used: {worse}{}", advice(&worse)),
            };
        }
        Err(BadAnswer::NotOurs { what: "name", given, wanted }) => bail!(
            "this machine is called {given} in the mesh, but the configuration says {wanted}; \
             keep that name, or move {directory} away and join again"
        ),
        Err(BadAnswer::Refused(refused @ Refused::NotYetValid { not_before, now })) => bail!(
            "{refused} by this machine's clock, which is most likely wrong: at least {} the coordinator's; set it",
            Offset::behind(not_before.saturating_since(now))
        ),
        Err(BadAnswer::Refused(refused)) => {
            bail!("the certificate in {directory} cannot be used: {refused}{}", advice(&refused))
        }
        Err(other) => bail!("node.crt in {directory} cannot be used: {other}"),
    };
    let seeds = disk.seeds().believed(&trust, now);
    Ok(Loaded::Member(Known { trust, verified, seeds, list }))
}

/// What to do when our own certificate is refused. Whoever is revoked is so with its keys: a token alone does not help.
fn advice(refused: &Refused) -> String {
    match refused {
        Refused::Revoked { .. } => {
            "; if this machine is to be a member again, move the state directory away and join with a new token"
                .to_owned()
        }
        other => other.hint().map(|hint| format!("; {hint}")).unwrap_or_default(),
    }
}

fn is_ours(before: &Renewable, identity: &IdentityKey, wg: &WgPrivateKey, name: &NodeName) -> bool {
    before.id() == identity.id() && before.wg() == wg.public() && before.name() == name
}

/// By the certificate that has ended: waits for a coordinator as long as it takes. Where its time is over for good, by
/// the token, if there is one.
async fn renewed(
    disk: &StateDir,
    settings: &Settings,
    ended: Ended,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    rng: &mut StdRng,
) -> anyhow::Result<Known> {
    let stored = disk.member()?.map(|member| member.coordinators).unwrap_or_default();
    let of_token = settings.token.iter().flat_map(|token| token.urls.clone());
    let urls = Coordinators::new(settings.coordinators.iter().cloned().chain(of_token).chain(stored));
    let ended_at = ended.before.not_after();
    match renewing::renew_ended(disk, ended, identity, urls.urls(), rng).await {
        Ok((trust, verified, list)) => {
            let seeds = disk.seeds().believed(&trust, clock::unix());
            Ok(Known { trust, verified, seeds, list })
        }
        Err(error) => match error.downcast_ref::<ClientError>().cloned() {
            Some(refused) if refused.kind() == Some(renewing::WINDOW_OVER) && settings.token.is_some() => {
                tracing::warn!(why = %refused, "the certificate is not renewed any more, joining again by token");
                join(disk, settings, identity, wg, rng).await
            }
            Some(refused) if refused.kind() == Some(renewing::WINDOW_OVER) => {
                Err(JoinRefused::WindowOver { ended_at, refused }.into())
            }
            Some(refused) => Err(JoinRefused::NotRenewed(refused).into()),
            None => Err(error),
        },
    }
}

/// By token: every coordinator of it in turn, again and again, until one says yes or no. One that says "not yet" is
/// asked again with the same request: nothing else is needed when its operator has decided.
async fn join(
    disk: &StateDir,
    settings: &Settings,
    identity: &IdentityKey,
    wg: &WgPrivateKey,
    rng: &mut StdRng,
) -> anyhow::Result<Known> {
    let token = settings.token.as_ref().ok_or_else(|| match &settings.token_file {
        Some(path) => JoinRefused::NoTokenFile(path.clone()),
        None => JoinRefused::NoToken,
    })?;
    anyhow::ensure!(
        disk.is_of(&token.ca)?,
        "{} is of another mesh; move it away to join this one",
        settings.state_dir.display()
    );
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
                let (wait, hint) = (backoff.next_delay(), error.hint());
                tracing::warn!(why = %error, hint, again_in = ?wait, "this machine cannot join yet");
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(JoinRefused::Client(error).into()),
        }
    };
    let now = clock::unix();
    let Accepted { trust, verified } = joining::accept(&answer, &expected, now).map_err(JoinRefused::Answer)?;
    let (given, enforced) =
        (trust.revocation_number(), disk.member()?.map(|member| member.enforced).unwrap_or_default());
    if given < enforced {
        let older = Refused::OlderRevocations { given, ours: enforced };
        return Err(JoinRefused::Answer(older.into()).into());
    }

    let mut seeds = SeedsFile::default();
    seeds.merge(answer.bootstrap);
    let seeds = seeds.believed(&trust, now);
    disk.keep_joined(&trust, answer.revocations.as_ref(), &verified.authority(), now)?;
    let coordinators = merged(urls.urls(), answer.coordinators);
    disk.change_member(&trust, |member| {
        member.observe(&trust);
        member.coordinators = coordinators;
    })?;
    disk.keep_seeds(&seeds)?;
    // The certificate last: where it is, everything is.
    disk.keep_certificate(&verified.chain().to_pem())?;
    Ok(Known { trust, verified, seeds, list: answer.revocations })
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
        match enroll(http, url, body).await {
            Ok(answer) => return Ok(answer),
            Err(refused @ ClientError::Refused { .. }) => return Err(refused),
            Err(wrong @ ClientError::Wrong { .. }) => {
                tracing::warn!(why = %wrong, hint = wrong.hint(), "passed over");
                if !matches!(failed, ClientError::Unreachable { .. }) {
                    failed = wrong;
                }
            }
            Err(other) => failed = other,
        }
    }
    Err(failed)
}

/// Asks one coordinator. First for no more than its time: a machine whose clock is far off would spend its token and be
/// of no use to anybody.
async fn enroll(http: &reqwest::Client, url: &str, body: &Bytes) -> Result<Answer, ClientError> {
    let our_clock = OurClock::default();
    let (limit, proof) = (EXCHANGE_TIMEOUT, None);
    let asked = Asked { method: Method::GET, path: "/health", body: None, proof: proof.clone(), limit };
    http::exchange::<serde_json::Value>(http, url, asked, &our_clock).await?;
    if let Some(offset) = our_clock.offset().filter(|offset| offset.refutes_proofs()) {
        return Err(ClientError::Clock { url: url.to_owned(), offset });
    }
    let asked = Asked { method: Method::POST, path: "/api/enroll", body: Some(body.clone()), proof, limit };
    let (status, body) = http::send(http, url, asked, &our_clock).await?;
    match status {
        StatusCode::ACCEPTED => http::read(url, &body).map(Answer::NotYet),
        _ => http::read(url, &body).map(Answer::Welcome),
    }
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
