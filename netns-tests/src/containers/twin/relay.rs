//! A published port: a program on the machine that passes on what comes there, from its own address on the bridge. That is
//! what an engine's userland proxy does.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, UdpSocket},
    sync::oneshot,
    task::JoinSet,
};
use wiremesh::sandbox::Namespace;

use crate::containers::{Published, Transport};

const DATAGRAM_BYTES: usize = 1 << 16;
/// More clients than any story has.
const MAX_CLIENTS: usize = 256;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A relay at work, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    _stop: oneshot::Sender<()>,
}

impl Relay {
    /// Passes on what comes to a port of the machine to the container at `to`, as from `gateway`.
    pub fn start(machine: &Arc<Namespace>, published: Published, gateway: IpAddr, to: IpAddr) -> anyhow::Result<Relay> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (machine, to) = (machine.clone(), SocketAddr::new(to, published.port));
        thread::spawn(move || {
            let relayed = machine.block_on(|| async move {
                match published.transport {
                    Transport::Tcp => {
                        let listener = TcpListener::bind(published.at).await;
                        let Some(listener) = announced(listener, &ready) else { return Ok(()) };
                        tokio::select! { _ = stopped => Ok(()), end = connections(listener, gateway, to) => end }
                    }
                    Transport::Udp => {
                        let socket = UdpSocket::bind(published.at).await;
                        let Some(socket) = announced(socket, &ready) else { return Ok(()) };
                        tokio::select! { _ = stopped => Ok(()), end = datagrams(socket, gateway, to) => end }
                    }
                }
            });
            if let Err(error) = relayed {
                eprintln!("the relay to {to} has ended: {error:#}");
            }
        });
        is_ready.recv().context("a relay")?.with_context(|| format!("listening at {}", published.at))?;
        Ok(Relay { _stop: stop })
    }
}

/// Tells whoever started the relay whether it listens.
fn announced<T>(opened: std::io::Result<T>, ready: &std::sync::mpsc::Sender<std::io::Result<()>>) -> Option<T> {
    let (told, opened) = match opened {
        Ok(opened) => (Ok(()), Some(opened)),
        Err(error) => (Err(error), None),
    };
    ready.send(told).ok()?;
    opened
}

async fn connections(listener: TcpListener, gateway: IpAddr, to: SocketAddr) -> anyhow::Result<()> {
    let mut relayed = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await?;
        while relayed.try_join_next().is_some() {}
        if relayed.len() >= MAX_CLIENTS {
            continue;
        }
        relayed.spawn(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((gateway, 0).into())?;
            let mut far = tokio::time::timeout(CONNECT_LIMIT, socket.connect(to)).await??;
            copy_bidirectional(&mut near, &mut far).await
        });
    }
}

async fn datagrams(socket: UdpSocket, gateway: IpAddr, to: SocketAddr) -> anyhow::Result<()> {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        let (length, from) = socket.recv_from(&mut datagram).await?;
        if !clients.contains_key(&from) {
            if clients.len() >= MAX_CLIENTS {
                continue;
            }
            let far = Arc::new(UdpSocket::bind((gateway, 0)).await?);
            far.connect(to).await?;
            clients.insert(from, far.clone());
            back.spawn(answers(far, socket.clone(), from));
        }
        // Nobody listens there, or not yet: a datagram that is lost.
        let _ = clients[&from].send(&datagram[..length]).await;
    }
}

async fn answers(far: Arc<UdpSocket>, socket: Arc<UdpSocket>, to: SocketAddr) {
    let mut datagram = vec![0; DATAGRAM_BYTES];
    loop {
        // An error tells about a datagram that was sent, not about this socket.
        if let Ok(length) = far.recv(&mut datagram).await {
            let _ = socket.send_to(&datagram[..length], to).await;
        }
    }
}
