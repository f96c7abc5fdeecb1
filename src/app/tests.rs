//! Coordinator and members in one process, over real TLS on loopback: joining, and every way it must be refused.
#![expect(clippy::disallowed_methods, reason = "the whole file is a test, its helpers too")]

mod admission;
mod disk;
mod joining;
mod keys;
mod lists;
mod registry;
mod rotation;
mod secrets;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    api::{self, admin::CreatedToken},
    clock,
    coordinator::{self, Config},
    membership::io::{ClientError, Event, JoinRefused, Member, Session, Settings, Sources, load_or_join},
    settings::Layers,
    task::{CancellationToken, Tasks},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_rustls::client::TlsStream;
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, CertificateRequest, Claims, Fingerprint, IdentityKey, JoinToken, Load,
    MeshName, NodeName, NodeRecord, ServiceName, Signed, Trust, WgPrivateKey, WgPublicKey, proof_header,
};

/// A coordinator of the mesh "lab" on a port of the system's choice, and a place for everybody's files.
struct Mesh {
    directory: tempfile::TempDir,
    extra: String,
    tasks: Tasks,
    address: SocketAddr,
}

impl Mesh {
    async fn start() -> Mesh {
        Mesh::start_with("").await
    }

    async fn start_with(extra: &str) -> Mesh {
        let mut mesh = Mesh {
            directory: tempfile::tempdir().unwrap(),
            extra: extra.to_owned(),
            tasks: Tasks::new(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        mesh.up().await;
        mesh
    }

    async fn up(&mut self) {
        self.try_up().await.unwrap();
    }

    async fn try_up(&mut self) -> anyhow::Result<()> {
        let text = format!(
            "data_dir = '{}'\nlisten = '{}'\nmesh = 'lab'\nheartbeat_interval = '1s'\n{}",
            self.data_dir().display(),
            self.address,
            self.extra
        );
        let config = Config::from_layers(Layers::new().file("test", &text).unwrap()).unwrap();
        self.tasks = Tasks::new();
        let running = coordinator::io::start(config, &self.tasks, StdRng::from_os_rng()).await?;
        self.address = running.address;
        Ok(())
    }

    async fn stop(&self) {
        assert!(self.tasks.drain(Duration::from_secs(30)).await);
        assert!(!self.tasks.failed());
    }

    async fn restart(&mut self) {
        self.stop().await;
        self.up().await;
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("coordinator")
    }

    fn state_dir(&self, of: &str) -> PathBuf {
        self.directory.path().join(of)
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn admin_key(&self) -> String {
        format!("Bearer {}", std::fs::read_to_string(self.data_dir().join("admin.key")).unwrap())
    }

    async fn token(&self, options: Value) -> JoinToken {
        let mut body = json!({"ttl_secs": 600, "uses": 1});
        body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let (status, answer) = self.admin(Method::POST, "/tokens", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        serde_json::from_value::<CreatedToken>(answer).unwrap().token.expose().parse().unwrap()
    }

    async fn join(&self, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
        self.join_in(&self.state_dir(&format!("{called}-{}", token.secret_base64().as_str())), called, token).await
    }

    async fn join_in(&self, dir: &Path, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
        join_at(dir, called, token).await
    }

    async fn admin(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let stream = UnixStream::connect(self.data_dir().join("coordinator.sock")).await.unwrap();
        exchange(stream, method, path, Some(body), None).await
    }

    async fn get(&self, path: &str, authorization: Option<&str>) -> (StatusCode, Value) {
        self.send(Method::GET, path, None, authorization).await
    }

    async fn post(&self, path: &str, body: Value, authorization: Option<&str>) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body), authorization).await
    }

    /// As a program of its own would: TLS without any of our client's care.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        authorization: Option<&str>,
    ) -> (StatusCode, Value) {
        exchange(self.connect().await, method, path, body, authorization).await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = std::fs::read_to_string(self.data_dir().join("ca.crt")).unwrap();
        let ca = wiremesh_certs::CaCertificate::from_pem(&ca).unwrap();
        roots.add(ca.der().to_vec().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("coordinator.lab.internal".try_into().unwrap(), stream).await.unwrap()
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Option<Value>,
    authorization: Option<&str>,
) -> (StatusCode, Value) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(authorization) = authorization {
        request = request.header("authorization", authorization);
    }
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn join_at(dir: &Path, called: &str, token: &JoinToken) -> anyhow::Result<(Member, Session)> {
    load_or_join(&settings(dir, called, Some(token.clone())), StdRng::from_os_rng()).await
}

async fn join_at_without_token(dir: &Path, called: &str) -> anyhow::Result<(Member, Session)> {
    load_or_join(&settings(dir, called, None), StdRng::from_os_rng()).await
}

fn settings(dir: &Path, called: &str, token: Option<JoinToken>) -> Settings {
    Settings {
        state_dir: dir.to_owned(),
        name: name(called),
        token,
        token_file: None,
        coordinators: Vec::new(),
        rotate_keys_every: None,
    }
}

/// A member whose session runs.
struct Agent {
    events: tokio::sync::Mutex<mpsc::Receiver<Event>>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn run(member: Member, session: Session, offers: &'static [&'static str]) -> Agent {
        let (sender, events) = mpsc::channel(crate::membership::io::MAX_EVENTS);
        let (stop, handle, trust) = (CancellationToken::new(), session.handle(), member.trust.clone());
        // What an agent does: it enforces a list, and says so.
        let (forward, mut happened) = mpsc::channel(crate::membership::io::MAX_EVENTS);
        tokio::spawn(async move {
            while let Some(event) = happened.recv().await {
                if matches!(event, Event::RevocationsChanged) {
                    handle.acknowledge(trust.current().revocation_number());
                }
                let _ = sender.send(event).await;
            }
        });
        let sources = Sources {
            record: Box::new(move || Some(record(&member, offers))),
            capabilities: Box::new(|| json!({"cpu_cores": 4}).as_object().unwrap().clone()),
            dht_port: Some(8468),
        };
        let running = tokio::spawn(session.run(sources, forward, stop.clone()));
        Agent { events: tokio::sync::Mutex::new(events), stop, running }
    }

    async fn reached(&self) {
        self.wait_for(|event| matches!(event, Event::CoordinatorReached)).await;
    }

    async fn wait_for(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut events = self.events.lock().await;
        let waiting = async {
            loop {
                match events.recv().await {
                    Some(event) if wanted(&event) => return event,
                    Some(_) => {}
                    None => panic!("the session ended"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the event comes")
    }

    /// Leaves as an agent does.
    async fn stop(self) {
        self.stop.cancel();
        drop(self.events);
        self.running.await.unwrap().unwrap();
    }

    /// Is gone without a word.
    async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

fn record(member: &Member, offers: &[&str]) -> Signed<NodeRecord> {
    let now = clock::unix();
    let record = NodeRecord {
        sequence: clock::unix_millis(),
        expires_at: now.plus(wiremesh_certs::RECORD_LIFE),
        endpoints: vec!["192.0.2.1:51820".parse().unwrap()],
        services: offers.iter().map(|name| service(name)).collect(),
        load: Load::from_share(0.25),
        tunnel_url: None,
        overlay: true,
        models: Vec::new(),
        revocations: 0,
        nearby: Vec::new(),
    };
    Signed::sign(&record, &member.identity, member.client.verified().chain()).unwrap()
}

fn proof(member: &Member, method: &str, path: &str) -> String {
    let audience = api::audience(&MeshName::new("lab").unwrap());
    let (key, chain) = (&member.identity, member.verified.chain());
    proof_header(key, chain, &audience, method, path, clock::unix(), &mut StdRng::from_os_rng()).unwrap()
}

/// Somebody with a good certificate of an authority that has the same name.
fn stranger() -> (IdentityKey, wiremesh_certs::Chain) {
    let mut rng = StdRng::from_os_rng();
    let now = clock::unix();
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: "10.42.0.0/16".parse().unwrap(),
        lifetime: Duration::from_secs(3600),
    };
    let authority = Authority::create(&parameters, now, &mut rng).unwrap();
    let key = IdentityKey::generate(&mut rng);
    let claims = Claims {
        identity: key.id(),
        wg: WgPrivateKey::generate(&mut rng).public(),
        name: name("alpha"),
        address: "10.42.0.2".parse().unwrap(),
        groups: Vec::new(),
        services: AllowedServices::Any,
        lifetime: Duration::from_secs(600),
    };
    let chain = authority.issue(&claims, now, &mut rng).unwrap();
    Trust::new(authority.certificate().clone()).verify(&chain, now).unwrap();
    let _ = CertificateRequest::create(&key, &claims.name, &claims.wg).unwrap();
    (key, chain)
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

fn service(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}
