//! The QUIC endpoint on our overlay address, as a libp2p transport.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use libp2p_core::{
    Multiaddr,
    muxing::StreamMuxerBox,
    transport::{Boxed, DialOpts, ListenerId, Transport, TransportError, TransportEvent},
};
use libp2p_identity::PeerId;
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use wiremesh_certs::{IdentityKey, TrustStore};

use super::{
    gate::{Admitted, Gate, NotAdmitted, multiaddr, peer_id},
    stream::Muxer,
    tls::{self, Credentials},
};

/// A dial that takes longer has failed: in the overlay a member answers within a few round trips or not at all.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// An inbound handshake that takes longer is given up.
pub const INBOUND_TIMEOUT: Duration = Duration::from_secs(5);
/// Inbound handshakes at a time; beyond it they are refused. Each costs about 2 ms of a core.
pub const MAX_HANDSHAKES: usize = 32;
/// A connection on which nothing came for this long is gone. Longer than the swarm's own limit for unused ones, which
/// says goodbye: without that both sides would let it time out at the same moment, and requests would fall between. No
/// keep-alive: a contact costs nothing while it is not needed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(220);
/// Streams the other side may have open at a time; further ones wait.
pub const MAX_STREAMS: u32 = 256;
/// Until the path has been measured. Small, so that a lost first packet is repeated within 150 ms and not 1 s.
pub const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Headers of IPv6 and UDP, to be left of the overlay's MTU.
const HEADER_BYTES: u16 = 48;
/// What one stream may hold unread: a packet of Kademlia, twice.
const STREAM_WINDOW: u32 = 128 * 1024;
/// What one connection may hold unread.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// What the endpoint is made from.
pub struct EndpointSettings<'a> {
    /// Our overlay address and the port of the table.
    pub bind: SocketAddr,
    /// The overlay's interface, so that nothing leaves by the underlay while it is down.
    pub device: Option<&'a str>,
    /// The overlay's MTU.
    pub mtu: u16,
}

/// Opens the endpoint.
pub fn endpoint(
    settings: &EndpointSettings<'_>,
    identity: &IdentityKey,
    credentials: Arc<Credentials>,
    trust: Arc<TrustStore>,
) -> anyhow::Result<Endpoint> {
    let (client, server) = tls::configs(credentials, trust)?;
    let transport = Arc::new(transport_config(settings.mtu));

    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport.clone());
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(transport).migration(false).max_incoming(MAX_HANDSHAKES * 2);

    // Derived from the identity: after a crash the same keys are back, and who still sends to a connection of before
    // is told at once that it is gone, instead of finding out by its idle time-out.
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &derived(identity, b"wiremesh quic stateless reset v1"));
    let [a, b, c, d, e, f, g, h, ..] = derived(identity, b"wiremesh quic connection ids v1");
    let id_key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let mut config = EndpointConfig::new(Arc::new(reset_key));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));

    let socket = bind(settings).with_context(|| format!("binding the directory to {}", settings.bind))?;
    let mut endpoint = Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// The endpoint as libp2p sees it: connections to members, and their identity.
pub fn transport(endpoint: Endpoint, gate: Arc<Gate>) -> Boxed<(PeerId, StreamMuxerBox)> {
    let accepting = stream::unfold(endpoint.clone(), |endpoint| async move {
        let incoming = endpoint.accept().await?;
        Some((incoming, endpoint))
    });
    Quic {
        endpoint,
        gate,
        accepting: accepting.boxed(),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        listener: None,
        to_announce: None,
    }
    .boxed()
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// Not even begun.
    #[error(transparent)]
    Connect(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// Not by this gate.
    #[error("not admitted: {0}")]
    NotAdmitted(#[from] NotAdmitted),
    /// Its certificate's key is none that libp2p can name.
    #[error("its key is no Ed25519 key")]
    BadKey,
    /// One listener is all there is.
    #[error(transparent)]
    Io(#[from] io::Error),
}

struct Quic {
    endpoint: Endpoint,
    gate: Arc<Gate>,
    accepting: BoxStream<'static, Incoming>,
    handshakes: Arc<Semaphore>,
    listener: Option<ListenerId>,
    to_announce: Option<Multiaddr>,
}

type Connected = Result<(PeerId, StreamMuxerBox), QuicError>;

impl Transport for Quic {
    type Output = (PeerId, StreamMuxerBox);
    type Error = QuicError;
    type ListenerUpgrade = BoxFuture<'static, Connected>;
    type Dial = BoxFuture<'static, Connected>;

    fn listen_on(&mut self, id: ListenerId, _: Multiaddr) -> Result<(), TransportError<QuicError>> {
        let address = self.endpoint.local_addr().map_err(|error| TransportError::Other(error.into()))?;
        self.listener = Some(id);
        self.to_announce = Some(multiaddr(address));
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listener.take_if(|listener| *listener == id).is_some()
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<QuicError>> {
        let Some(to) = self.gate.dialable(&address) else {
            tracing::debug!(%address, "not an address of this mesh, not dialled");
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let (endpoint, gate) = (self.endpoint.clone(), self.gate.clone());
        Ok(async move {
            let connecting = endpoint.connect(to, tls::SERVER_NAME)?;
            let connected = tokio::time::timeout(DIAL_TIMEOUT, connecting).await;
            connection(gate.admit(connected.map_err(|_| QuicError::TimedOut(DIAL_TIMEOUT))??)?)
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, QuicError>> {
        let Some(listener_id) = self.listener else { return Poll::Pending };
        if let Some(listen_addr) = self.to_announce.take() {
            return Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr });
        }
        loop {
            let Some(incoming) = futures::ready!(self.accepting.poll_next_unpin(cx)) else {
                self.listener = None;
                return Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason: Ok(()) });
            };
            let from = incoming.remote_address();
            if !self.gate.is_of_the_mesh(from) {
                incoming.ignore();
                continue;
            }
            let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let gate = self.gate.clone();
            let upgrade = async move {
                let connected = tokio::time::timeout(INBOUND_TIMEOUT, incoming.accept()?).await;
                drop(permit);
                connection(gate.admit(connected.map_err(|_| QuicError::TimedOut(INBOUND_TIMEOUT))??)?)
            };
            let local_addr = self.endpoint.local_addr().map(multiaddr).unwrap_or_else(|_| Multiaddr::empty());
            let send_back_addr = multiaddr(from);
            let upgrade = upgrade.boxed();
            return Poll::Ready(TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr });
        }
    }
}

fn connection(admitted: Admitted) -> Connected {
    let peer = peer_id(&admitted.verified.id()).ok_or(QuicError::BadKey)?;
    Ok((peer, StreamMuxerBox::new(Muxer::new(admitted))))
}

fn transport_config(mtu: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu.saturating_sub(HEADER_BYTES).max(1200));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(None)
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .mtu_discovery_config(Some(discovery));
    transport
}

fn bind(settings: &EndpointSettings<'_>) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(settings.bind), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = settings.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.bind(&settings.bind.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A key for one purpose that does not give away the identity's.
fn derived(identity: &IdentityKey, purpose: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, identity.seed()), purpose);
    let mut key = [0; 32];
    key.copy_from_slice(tag.as_ref());
    key
}
