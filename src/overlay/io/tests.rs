//! The loop over channels in place of the device and the socket.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, watch},
    time::timeout,
};

use super::{Event, Handle, MAX_COMMANDS, MAX_EVENTS, Outside, Packets, Place, Received, Tun, Udp, run};
use crate::{
    clock,
    overlay::{
        Dropped, Transmit,
        ping::PingFailed,
        tests::sim::{self, Node, address, endpoint, packet},
    },
    task::Tasks,
};

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_packet_goes_in_at_one_device_and_out_at_another() {
    let mut lab = Lab::of(2);
    lab.introduce(0, 1).await;

    lab.kernels[0].send(b"over there", 0, 1).await;

    assert_eq!(lab.kernels[1].receive().await, b"over there");
    assert!(matches!(lab.kernels[1].event().await, Event::Introduced(who, _) if who.address() == address(0)));
    assert!(lab.tasks.drain(SOON).await && !lab.tasks.failed());
}

#[tokio::test]
async fn an_unknown_destination_is_asked_for_and_holds_up_nobody() {
    let mut lab = Lab::of(2);
    lab.introduce(0, 1).await;

    for _ in 0..1000 {
        lab.kernels[0].send(b"anybody?", 0, 9).await;
    }
    lab.kernels[0].send(b"hello", 0, 1).await;

    assert_eq!(lab.kernels[1].receive().await, b"hello");
    assert!(matches!(lab.kernels[0].event().await, Event::Resolve(asked) if asked == address(9)));
}

#[tokio::test]
async fn refused_sends_and_failed_receives_do_not_end_the_loop() {
    let mut lab = Lab::of(2);
    lab.introduce(0, 1).await;
    lab.net.lock().await.refuse = true;
    lab.net.lock().await.inbox(0).send(None).await.unwrap();
    lab.kernels[0].send(b"refused", 0, 1).await;
    while lab.kernels[0].handle.status().await.unwrap().dropped[Dropped::Unreachable.label()] == 0 {}

    lab.net.lock().await.refuse = false;
    lab.kernels[0].send(b"taken", 0, 1).await;

    while lab.kernels[1].receive().await != b"taken" {}
}

#[tokio::test]
async fn a_device_that_is_gone_ends_the_agent() {
    let mut lab = Lab::of(1);

    lab.kernels[0].device.take();

    timeout(SOON, lab.tasks.stopped()).await.unwrap();
    assert!(lab.tasks.drain(SOON).await && lab.tasks.failed());
}

#[tokio::test]
async fn questions_are_answered_until_the_loop_stops_and_then_at_once() {
    let lab = Lab::of(1);
    let handle = &lab.kernels[0].handle;

    assert_eq!(handle.status().await.unwrap().address, address(0));
    assert_eq!(handle.ping(address(0)).await, Err(PingFailed::NotAnother));
    assert!(lab.tasks.drain(SOON).await);

    assert_eq!(handle.status().await, None);
    assert_eq!(handle.ping(address(1)).await, Err(PingFailed::Stopped));
    handle.unresolvable(address(1)).await;
}

/// Loops that are joined by a network of channels.
struct Lab {
    nodes: Vec<Node>,
    kernels: Vec<Kernel>,
    net: Arc<Mutex<Net>>,
    tasks: Tasks,
}

/// What stands on the other side of a loop.
struct Kernel {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    device: Option<mpsc::Sender<Vec<u8>>>,
    received: mpsc::Receiver<Vec<u8>>,
}

impl Lab {
    fn of(count: u8) -> Lab {
        let (authority, unix, tasks) = (sim::authority(), clock::unix(), Tasks::new());
        let nodes: Vec<_> = (0..count).map(|number| Node::new(&authority, number, sim::LIFETIME, unix)).collect();
        let net = Arc::new(Mutex::new(Net::default()));
        let kernels = nodes.iter().enumerate().map(|(at, node)| start(at as u8, node, &net, &tasks)).collect();
        Lab { nodes, kernels, net, tasks }
    }

    /// `node` is told where `other` is.
    async fn introduce(&self, node: usize, other: usize) {
        let (record, _) = self.nodes[other].record(&[endpoint(other as u8)], clock::unix_millis());
        let (_, own) = self.nodes[node].record(&[endpoint(node as u8)], clock::unix_millis());
        self.kernels[node].handle.set_own_record(own).await;
        self.kernels[node].handle.upsert_peer(self.nodes[other].verified.clone(), record).await;
    }
}

impl Kernel {
    async fn send(&self, payload: &[u8], from: u8, to: u8) {
        self.device.as_ref().unwrap().send(packet(address(from), address(to), payload)).await.unwrap();
    }

    async fn receive(&mut self) -> Vec<u8> {
        timeout(SOON, self.received.recv()).await.unwrap().unwrap()[20..].to_vec()
    }

    async fn event(&mut self) -> Event {
        timeout(SOON, self.events.recv()).await.unwrap().unwrap()
    }
}

fn start(number: u8, node: &Node, net: &Arc<Mutex<Net>>, tasks: &Tasks) -> Kernel {
    let (device, from_kernel) = mpsc::channel(64);
    let (to_kernel, received) = mpsc::channel(64);
    let (inbox, datagrams) = mpsc::channel(64);
    let (commands_sender, commands) = mpsc::channel(MAX_COMMANDS);
    let (events_sender, events) = mpsc::channel(MAX_EVENTS);
    let (_, place) = watch::channel(Place::default());
    net.try_lock().unwrap().inboxes.push((endpoint(number), inbox));
    let outside = Outside {
        tun: ChannelTun { from_kernel, to_kernel },
        udp: ChannelUdp { own: endpoint(number), datagrams, net: net.clone() },
        commands,
        events: events_sender,
        place: place.clone(),
    };
    let overlay = node.overlay(number.into(), clock::now());
    tasks.spawn("overlay", |stop| run(overlay, outside, stop));
    Kernel { handle: Handle::new(commands_sender, place), events, device: Some(device), received }
}

/// A datagram, or a failure to receive one.
type Arrival = Option<(SocketAddr, Vec<u8>)>;

#[derive(Default)]
struct Net {
    inboxes: Vec<(SocketAddr, mpsc::Sender<Arrival>)>,
    refuse: bool,
}

impl Net {
    fn inbox(&self, number: u8) -> mpsc::Sender<Arrival> {
        self.inboxes.iter().find(|(at, _)| *at == endpoint(number)).unwrap().1.clone()
    }
}

struct ChannelTun {
    from_kernel: mpsc::Receiver<Vec<u8>>,
    to_kernel: mpsc::Sender<Vec<u8>>,
}

impl Tun for ChannelTun {
    async fn recv(&mut self, into: &mut Packets) -> io::Result<()> {
        let packet = self.from_kernel.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        into.spare(packet.len()).unwrap()[..packet.len()].copy_from_slice(&packet);
        into.push(packet.len());
        Ok(())
    }

    async fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.to_kernel.send(packet.to_vec()).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct ChannelUdp {
    own: SocketAddr,
    datagrams: mpsc::Receiver<Arrival>,
    net: Arc<Mutex<Net>>,
}

impl Udp for ChannelUdp {
    async fn recv(&mut self, into: &mut Received) -> io::Result<()> {
        match self.datagrams.recv().await {
            None => std::future::pending().await,
            Some(None) => Err(io::ErrorKind::ConnectionReset.into()),
            Some(Some((from, datagram))) => {
                into.replace(from, &datagram);
                Ok(())
            }
        }
    }

    async fn send(&mut self, transmit: &Transmit<'_>) -> Result<(), Dropped> {
        let net = self.net.lock().await;
        if net.refuse {
            return Err(Dropped::Unreachable);
        }
        if let Some((_, inbox)) = net.inboxes.iter().find(|(at, _)| *at == transmit.to) {
            for datagram in transmit.datagrams() {
                // A full inbox loses datagrams, as networks do.
                _ = inbox.try_send(Some((self.own, datagram.to_vec())));
            }
        }
        Ok(())
    }
}
