//! Agents of one mesh on loopback addresses, real servers and real clients, for the router's tests.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use wiremesh_certs::*;

use crate::{
    clock,
    router::{
        DirectoryCounters, Find, Found, HealthReport, Members, Names, Report, Source, Status, Whose, Worker,
        io::{ApiKey, Lock, Parts, Router, serve},
    },
    services::{self, Capabilities, Machine, ServiceConfig},
};

pub type Body = BoxBody<Bytes, String>;
pub const DAY: Duration = Duration::from_secs(86_400);

pub struct Mesh {
    pub audience: crate::router::io::Audience,
    authority: Authority,
    pub trust: Arc<TrustStore>,
    /// Who is a member, for all agents.
    pub register: Arc<Register>,
    rng: Mutex<StdRng>,
}

impl Mesh {
    pub fn new() -> Mesh {
        Mesh::of_seed(1)
    }

    /// Another seed, another authority.
    pub fn of_seed(seed: u64) -> Mesh {
        let mut rng = StdRng::seed_from_u64(seed);
        let parameters =
            CaParameters { mesh: "test".parse().unwrap(), network: "127.0.0.0/8".parse().unwrap(), lifetime: DAY };
        let authority = Authority::create(&parameters, clock::unix(), &mut rng).unwrap();
        let trust = Arc::new(TrustStore::new(Trust::new(authority.certificate().clone())));
        Mesh { audience: Default::default(), authority, trust, register: Arc::default(), rng: Mutex::new(rng) }
    }

    /// A key and a certificate for it.
    pub fn member(&self, name: &str, last_byte: u8) -> (Arc<IdentityKey>, Chain) {
        self.member_of(name, last_byte, &[], DAY)
    }

    /// The same, in groups, and for as long.
    pub fn member_of(
        &self,
        name: &str,
        last_byte: u8,
        groups: &[&str],
        lifetime: Duration,
    ) -> (Arc<IdentityKey>, Chain) {
        let key = IdentityKey::generate(&mut *self.rng.lock().unwrap());
        let chain = self.certify(&key, name, last_byte, groups, lifetime);
        (Arc::new(key), chain)
    }

    /// A certificate for this key; everybody hears of it.
    pub fn certify(&self, key: &IdentityKey, name: &str, last_byte: u8, groups: &[&str], lifetime: Duration) -> Chain {
        let mut rng = self.rng.lock().unwrap();
        let claims = Claims {
            identity: key.id(),
            wg: WgPrivateKey::generate(&mut *rng).public(),
            name: name.parse().unwrap(),
            address: OverlayIp([127, 0, 0, last_byte].into()),
            groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
            services: AllowedServices::Any,
            lifetime: lifetime.max(MIN_LIFETIME),
        };
        // One that ends sooner than any is issued for was issued a while ago.
        let issued_at = clock::unix().minus(MIN_LIFETIME.saturating_sub(lifetime));
        let chain = self.authority.issue(&claims, issued_at, &mut *rng).unwrap();
        let verified = self.trust.current().verify(&chain, clock::unix()).unwrap();
        self.register.known.lock().unwrap().insert(key.id(), verified);
        chain
    }

    pub fn revoke(&self, key: &IdentityKey) {
        self.apply(RevocationList { identities: [key.id()].into(), ..RevocationList::default() });
    }

    /// The member with this key is who speaks at the door of the overlay.
    pub fn speaks(&self, key: &IdentityKey) {
        *self.register.speaks.lock().unwrap() = Some(key.id());
    }

    /// Only members of these groups may offer "ocr", and only of those call it.
    pub fn rule(&self, offer: Option<&[&str]>, call: Option<&[&str]>) {
        let groups = |groups: &[&str]| groups.iter().map(|group| group.parse().unwrap()).collect();
        let rule = Rule { offer: offer.map(groups), call: call.map(groups) };
        let policy = Policy { services: [("ocr".parse().unwrap(), rule)].into(), ..Policy::default() };
        self.apply(RevocationList { policy, ..RevocationList::default() });
    }

    fn apply(&self, list: RevocationList) {
        let number = self.trust.current().revocation_number() + 1;
        let signed = self.authority.sign_revocations(&RevocationList { number, ..list }).unwrap();
        self.trust.apply_revocations(&signed, clock::unix()).unwrap();
    }

    /// An agent that offers `service` of the upstream, if there is one.
    pub async fn agent(&self, name: &str, last_byte: u8, service: Option<Service>) -> Agent {
        self.agent_of(name, last_byte, &[], service).await
    }

    /// The same, in groups.
    pub async fn agent_of(&self, name: &str, last_byte: u8, groups: &[&str], service: Option<Service>) -> Agent {
        let (key, chain) = self.member_of(name, last_byte, groups, DAY);
        let id = key.id();
        let own = self.trust.current().verify(&chain, clock::unix()).unwrap();
        let identity = key.clone();
        let proofs = Mutex::new(StdRng::seed_from_u64(u64::from(last_byte)));
        let prove: crate::router::Prove = Arc::new(move |worker, method, path| {
            let mut rng = proofs.lock().unwrap();
            let audience = worker.to_hex();
            Ok(proof_header(&key, &chain, &audience, method.as_str(), path, clock::unix(), &mut *rng)?)
        });
        let configs: Vec<ServiceConfig> = service.iter().map(Service::config).collect();
        let services = services::Handle::new(configs, Capabilities::of(Machine::default(), None));
        if let Some(service) = &service {
            services.set_up(&service.name.parse().unwrap());
        }
        let directory = Arc::new(Directory::default());
        let router = Router::new(Parts {
            name: name.parse().unwrap(),
            services: services.clone(),
            directory: directory.clone(),
            prove,
            members: Arc::new(Neighbours { own, register: self.register.clone() }),
            trust: self.trust.clone(),
            overlay: true,
            audience: self.audience.clone(),
            seed: u64::from(last_byte),
        })
        .unwrap();
        let stop = CancellationToken::new();
        let report: Arc<dyn Report> = Arc::new(Facts(name.parse().unwrap(), services.clone()));
        let mut agent = Agent {
            id,
            key: identity,
            name: name.parse().unwrap(),
            router: router.clone(),
            services,
            directory,
            local: SocketAddr::from(([127, 0, 0, 1], 0)),
            overlay: SocketAddr::from(([127, 0, 0, last_byte], 0)),
            ingress: SocketAddr::from(([127, 0, 0, 1], 0)),
            stop,
            served: Vec::new(),
        };
        let network = "127.0.0.0/8".parse().unwrap();
        let surfaces = [
            router.local(Lock::Address(Names::OfThisMachine), report.clone(), axum::Router::new()),
            router.overlay(network, report.clone(), axum::Router::new()),
            router.ingress(id, report),
        ];
        for (surface, address) in surfaces.into_iter().zip([&mut agent.local, &mut agent.overlay, &mut agent.ingress]) {
            let listener = TcpListener::bind(*address).await.unwrap();
            *address = listener.local_addr().unwrap();
            let serving = serve(listener, surface, agent.stop.clone(), Duration::from_secs(5));
            agent.served.push(tokio::task::spawn(serving));
        }
        agent
    }

    /// A surface with an API key, for an agent without services.
    pub async fn behind_key(&self, agent: &Agent, key: &str) -> SocketAddr {
        let report: Arc<dyn Report> = Arc::new(Facts(agent.name.clone(), agent.services.clone()));
        let surface = agent.router.local(Lock::Key(ApiKey::new(key)), report, axum::Router::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::task::spawn(serve(listener, surface, agent.stop.clone(), Duration::from_secs(5)));
        address
    }
}

pub struct Service {
    pub name: &'static str,
    pub upstream: SocketAddr,
    pub max_concurrency: usize,
    pub queue: usize,
}

impl Service {
    pub fn ocr(upstream: SocketAddr) -> Option<Service> {
        Some(Service { name: "ocr", upstream, max_concurrency: 100, queue: 100 })
    }

    fn config(&self) -> ServiceConfig {
        let upstream = format!("http://{}", self.upstream).parse().unwrap();
        ServiceConfig {
            max_concurrency: Some(self.max_concurrency),
            queue: self.queue,
            ..ServiceConfig::new(self.name.parse().unwrap(), upstream)
        }
    }
}

pub struct Agent {
    pub id: NodeId,
    pub key: Arc<IdentityKey>,
    pub name: NodeName,
    pub router: Router,
    pub services: services::Handle,
    pub directory: Arc<Directory>,
    pub local: SocketAddr,
    pub overlay: SocketAddr,
    pub ingress: SocketAddr,
    pub stop: CancellationToken,
    pub served: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Agent {
    /// As others know it: reachable both ways.
    pub fn worker(&self) -> Worker {
        Worker {
            id: self.id,
            name: self.name.clone(),
            overlay: Some(self.overlay),
            tunnel: Some(format!("http://{}", self.ingress).parse().unwrap()),
            load: Load::default(),
            published_at: clock::unix(),
        }
    }

    pub fn by_overlay(&self) -> Worker {
        Worker { tunnel: None, ..self.worker() }
    }

    pub fn by_tunnel(&self) -> Worker {
        Worker { overlay: None, ..self.worker() }
    }

    pub fn knows(&self, workers: impl IntoIterator<Item = Worker>) {
        *self.directory.workers.lock().unwrap() = workers.into_iter().collect();
    }

    /// Its service serves these models.
    pub fn serves(&self, models: &[&str]) {
        let service = self.services.configured().next().unwrap().clone();
        self.services.set_models(&service, models);
    }

    /// These workers are found by this, and by what else it is found by nobody.
    pub fn knows_by(&self, offer: Offer, workers: impl IntoIterator<Item = Worker>) {
        self.directory.by_offer.lock().unwrap().insert(offer, workers.into_iter().collect());
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.local)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A worker at an address where nothing is.
pub async fn nobody(last_byte: u8) -> Worker {
    let gone = TcpListener::bind(SocketAddr::from(([127, 0, 0, last_byte], 0))).await.unwrap();
    Worker {
        id: NodeId([last_byte; 32]),
        name: format!("gone-{last_byte}").parse().unwrap(),
        overlay: Some(gone.local_addr().unwrap()),
        tunnel: None,
        load: Load::default(),
        published_at: clock::unix(),
    }
}

#[derive(Default)]
pub struct Directory {
    pub workers: Mutex<Vec<Worker>>,
    /// Where this has an answer, it is the answer.
    pub by_offer: Mutex<BTreeMap<Offer, Vec<Worker>>>,
    pub forgotten: Mutex<Vec<NodeId>>,
    /// Whether policy keeps the agent from calling anybody.
    pub forbidden: AtomicBool,
}

/// Who is a member, and whom the loopback address stands for that all connections in these tests come from.
#[derive(Default)]
pub struct Register {
    pub known: Mutex<BTreeMap<NodeId, Verified>>,
    pub speaks: Mutex<Option<NodeId>>,
}

struct Neighbours {
    own: Verified,
    register: Arc<Register>,
}

impl Members for Neighbours {
    fn own(&self) -> Verified {
        self.own.clone()
    }

    fn whose(&self, _: OverlayIp) -> Whose {
        match *self.register.speaks.lock().unwrap() {
            Some(id) => self.known(&id).map_or(Whose::Nobody, Whose::Member),
            None => Whose::Stranger,
        }
    }

    fn known(&self, member: &NodeId) -> Option<Verified> {
        self.register.known.lock().unwrap().get(member).cloned()
    }

    fn latest<'a>(&'a self, _: &'a Verified) -> BoxFuture<'a, Option<Verified>> {
        std::future::ready(None).boxed()
    }
}

impl Find for Directory {
    fn find<'a>(&'a self, offer: &'a Offer) -> BoxFuture<'a, Found> {
        let known = self.by_offer.lock().unwrap().get(offer).cloned();
        let workers = known.unwrap_or_else(|| self.workers.lock().unwrap().clone());
        let forbidden = self.forbidden.load(Ordering::Relaxed);
        let workers = if forbidden { Vec::new() } else { workers };
        std::future::ready(Found { workers, source: Source::Dht, forbidden }).boxed()
    }

    fn forget(&self, _: &Offer, worker: &NodeId) {
        self.forgotten.lock().unwrap().push(*worker);
    }
}

struct Facts(NodeName, services::Handle);

impl Report for Facts {
    fn health(&self) -> HealthReport {
        HealthReport {
            status: Status::Healthy,
            worker_id: self.0.clone(),
            vpn_ip: None,
            services: self.1.offered(),
            dht_enabled: false,
            uptime: Duration::ZERO,
        }
    }

    fn directory(&self) -> DirectoryCounters {
        DirectoryCounters::default()
    }

    fn metrics(&self) -> futures::future::BoxFuture<'_, String> {
        Box::pin(async { "# EOF\n".into() })
    }
}

/// An HTTP/1.1 server that answers with `handler`. What it returns an error for breaks the connection.
pub async fn upstream<H, F>(handler: H) -> SocketAddr
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Body>, String>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let handler = handler.clone();
            let service = service_fn(handler);
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::task::spawn(connection);
        }
    });
    address
}

/// An upstream that says its name and counts how often it was asked.
pub async fn named(name: &'static str) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = count.clone();
    let address = upstream(move |request: Request<Incoming>| {
        let counted = counted.clone();
        async move {
            request.into_body().collect().await.map_err(|e| e.to_string())?;
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok(Response::new(text(name)))
        }
    })
    .await;
    (address, count)
}

pub fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|e: Infallible| match e {}).boxed()
}

/// A body whose pieces are sent through the channel; `Err` breaks it.
pub fn piped() -> (mpsc::Sender<Result<Bytes, String>>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, BodyExt::boxed(StreamBody::new(futures::StreamExt::map(stream, |piece| piece.map(Frame::data)))))
}

pub fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build(HttpConnector::new())
}

pub async fn get(url: String) -> Response<Incoming> {
    client().request(Request::get(url).body(text("")).unwrap()).await.unwrap()
}

pub async fn post(url: String, body: Body) -> Response<Incoming> {
    client().request(Request::post(url).body(body).unwrap()).await.unwrap()
}

pub async fn read(answer: Response<Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub async fn json(answer: Response<Incoming>) -> serde_json::Value {
    serde_json::from_str(&read(answer).await).unwrap()
}

pub fn said<'a, B>(answer: &'a Response<B>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// A TCP connection in between that can be cut: bytes stop, and neither side is told.
pub struct Cable {
    pub end: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Cable {
    pub async fn to(address: SocketAddr) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let end = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        tokio::task::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let is_cut = is_cut.clone();
                tokio::task::spawn(async move {
                    let far = TcpStream::connect(address).await.unwrap();
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    tokio::join!(pass(near_in, far_out, is_cut.clone()), pass(far_in, near_out, is_cut))
                });
            }
        });
        Cable { end, cut }
    }

    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut is_cut: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 65536];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        let _ = is_cut.wait_for(|cut| !cut).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
