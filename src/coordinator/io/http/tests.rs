//! What strangers and members make the coordinator hold, over its own routes and without a network.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body as Content;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rand::{SeedableRng, rngs::StdRng};
use tokio::sync::mpsc;
use tower::ServiceExt;
use wiremesh_certs::{AllowedServices, Chain, GroupName, IdentityKey, OverlayIp, WgPublicKey, proof_header};

use super::*;
use crate::{
    coordinator::{
        Config,
        io::{
            keys,
            store::{Grant, Store},
        },
        limiter::{BURST, MAX_SOURCES},
        registry::Member,
    },
    settings::Layers,
    task::CancellationToken,
};

struct Fixture {
    shared: Arc<Shared>,
    rng: StdRng,
    _folder: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("data_dir = '{}'\nmesh = 'lab'", folder.path().display());
    let config = Config::from_layers(Layers::new().file("test", &text).unwrap()).unwrap();
    let (now, mut rng) = (clock::unix(), StdRng::seed_from_u64(1));
    let authority = keys::authority(&config, now, &mut rng).unwrap();
    let store = Store::open(&folder.path().join("coordinator.db"), &authority, now).await.unwrap();
    let ruling = crate::coordinator::io::ruling(&config, authority, &store, now).await.unwrap();
    let (looks, _) = mpsc::channel(1);
    let stopping = (CancellationToken::new(), looks);
    let key = Zeroizing::new("an admin key".to_owned());
    let shared = Shared::new(config, Vec::new(), ruling, store, &key, stopping, StdRng::seed_from_u64(2));
    Fixture { shared: Arc::new(shared), rng, _folder: folder }
}

impl Fixture {
    /// A POST from `source` whose body begins, and never ends.
    fn stalled(&self, path: &str, source: [u8; 4], proof: Option<String>) -> BoxFuture<'static, Response> {
        let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]).chain(stream::pending());
        self.post(path, source, proof, Content::from_stream(body))
    }

    fn post(&self, path: &str, source: [u8; 4], proof: Option<String>, body: Content) -> BoxFuture<'static, Response> {
        let mut request = Request::post(path).header("content-type", "application/json");
        if let Some(proof) = proof {
            request = request.header(header::AUTHORIZATION, proof);
        }
        let router = with_source(public(self.shared.clone()), source.into());
        router.oneshot(request.body(body).unwrap()).map(Result::unwrap).boxed()
    }

    fn member(&mut self, host: u8) -> (IdentityKey, Chain) {
        let key = IdentityKey::generate(&mut self.rng);
        let member = Member {
            identity: key.id(),
            name: format!("n{host}").parse().unwrap(),
            address: OverlayIp([10, 42, 0, host].into()),
            wg: WgPublicKey([host; 32]),
        };
        let grant = Grant { member: member.clone(), groups: Vec::<GroupName>::new(), services: AllowedServices::Any };
        let (chain, ..) = self.shared.issue(&grant, clock::unix()).unwrap();
        self.shared.registry().admit(member);
        (key, chain)
    }

    fn proof(&mut self, (key, chain): &(IdentityKey, Chain), path: &str) -> Option<String> {
        let audience = api::audience(self.shared.trust.current().mesh());
        Some(proof_header(key, chain, &audience, "POST", path, clock::unix(), &mut self.rng).unwrap())
    }
}

/// Requests that are being answered, and what became of them so far.
struct Answering {
    open: Vec<BoxFuture<'static, Response>>,
    statuses: Vec<u16>,
}

impl Answering {
    /// Lets each go on as far as it gets by itself.
    async fn of(requests: impl Iterator<Item = BoxFuture<'static, Response>>) -> Answering {
        let mut answering = Answering { open: requests.collect(), statuses: Vec::new() };
        for _ in 0..50 {
            answering.go_on();
            tokio::task::yield_now().await;
        }
        answering
    }

    fn go_on(&mut self) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let statuses = &mut self.statuses;
        self.open.retain_mut(|request| match Pin::new(request).poll(&mut context) {
            Poll::Ready(answer) => {
                statuses.push(answer.status().as_u16());
                false
            }
            Poll::Pending => true,
        });
    }
}

#[tokio::test]
async fn a_stranger_has_few_bodies_read_at_once_and_none_for_long() {
    let fixture = fixture().await;
    tokio::time::pause();

    let mut here = Answering::of((0..500).map(|_| fixture.stalled("/api/enroll", [192, 0, 2, 1], None))).await;

    assert_eq!((here.open.len(), here.statuses.len()), (BURST as usize, 500 - BURST as usize));
    assert!(here.statuses.iter().all(|status| *status == 429));
    let there = Answering::of([fixture.stalled("/api/enroll", [192, 0, 2, 2], None)].into_iter()).await;
    assert_eq!(there.open.len(), 1, "others are heard");
    tokio::time::advance(BODY_WITHIN + Duration::from_secs(1)).await;
    here.go_on();
    assert!(here.open.is_empty());
    assert!(here.statuses.ends_with(&[408; BURST as usize]));
}

#[tokio::test]
async fn strangers_from_everywhere_have_no_more_bodies_read_than_may_be_joining() {
    let fixture = fixture().await;
    tokio::time::pause();
    let requests = (0..MAX_SOURCES as u32 / 4).map(|n| fixture.stalled("/api/enroll", n.to_be_bytes(), None));

    let answering = Answering::of(requests).await;

    // The clock of the limiter goes on: one more every tenth of a second.
    assert!(answering.open.len() < 2 * crate::coordinator::limiter::BURST_IN_ALL as usize, "{}", answering.open.len());
}

#[tokio::test]
async fn a_request_to_join_is_short() {
    let fixture = fixture().await;
    let body = Content::from(vec![b' '; api::MAX_JOIN_BYTES + 1]);

    let answer = fixture.post("/api/enroll", [192, 0, 2, 1], None, body).await;

    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn nothing_is_read_of_what_a_stranger_says_in_a_members_place() {
    let fixture = fixture().await;

    for path in ["/api/worker/register", "/api/worker/heartbeat", "/api/certs/rekey", "/api/revocations"] {
        let answering = Answering::of([fixture.stalled(path, [192, 0, 2, 1], None)].into_iter()).await;
        assert_eq!(answering.statuses, [401], "{path}");
    }
}

#[tokio::test]
async fn a_member_has_few_bodies_read_at_once_and_none_for_long() {
    for (path, most) in [("/api/worker/heartbeat", MAX_BODIES_PER_MEMBER), ("/api/revocations", 1)] {
        let mut fixture = fixture().await;
        let (one, other) = (fixture.member(7), fixture.member(8));
        tokio::time::pause();
        let proofs: Vec<_> = (0..20).map(|_| fixture.proof(&one, path)).collect();

        let requests = proofs.into_iter().map(|proof| fixture.stalled(path, [192, 0, 2, 1], proof));
        let mut answering = Answering::of(requests).await;

        assert_eq!((answering.open.len(), answering.statuses.len()), (most, 20 - most), "{path}");
        assert!(answering.statuses.iter().all(|status| *status == 429));
        let proof = fixture.proof(&other, path);
        let others = Answering::of([fixture.stalled(path, [192, 0, 2, 1], proof)].into_iter()).await;
        assert_eq!(others.open.len(), 1, "another is heard");
        tokio::time::advance(BODY_WITHIN + Duration::from_secs(1)).await;
        answering.go_on();
        assert!(answering.open.is_empty() && answering.statuses.ends_with(&[408]), "{:?}", answering.statuses);
        tokio::time::resume();
    }
}

#[tokio::test]
async fn a_connection_is_a_members_once_it_was_proven_on_it_and_not_for_asking_what_anybody_may() {
    let mut fixture = fixture().await;
    let member = fixture.member(7);
    let proof = fixture.proof(&member, "/api/worker/heartbeat");
    let patience = async |method: &str, path: &str, proof: Option<String>| {
        let peer = Arc::new(Peer::default());
        let mut request = Request::builder().method(method).uri(path).extension(peer.clone());
        request = request.header(header::AUTHORIZATION, proof.unwrap_or_else(|| "Bearer no-key".to_owned()));
        let router = with_source(public(fixture.shared.clone()), [192, 0, 2, 1].into());
        let _ = router.oneshot(request.body(Content::empty()).unwrap()).await;
        peer.patience()
    };
    let strangers = Peer::default().patience();

    assert_eq!(patience("GET", "/health", None).await, strangers);
    assert_eq!(patience("POST", "/api/worker/heartbeat", None).await, strangers);
    assert!(patience("POST", "/api/worker/heartbeat", proof).await > strangers);
}
