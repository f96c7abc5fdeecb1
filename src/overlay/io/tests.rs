//! The loop and the threads over channels in place of the device and the socket.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::timeout,
};

use super::{Event, Handle, MAX_COMMANDS, MAX_EVENTS, Outside, Place, Tun, Udp, Wait, carry, run, udp::Received};
use crate::{
    clock,
    overlay::{
        Dropped, Transmit,
        offload::{Takes, VIRTIO_HEADER},
        ping::PingFailed,
        tests::sim::{self, Node, address, endpoint, packet},
    },
    task::{CancellationToken, Tasks},
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
async fn refused_sends_and_failed_receives_end_nothing() {
    let mut lab = Lab::of(2);
    lab.introduce(0, 1).await;
    lab.net.lock().unwrap().refuse = true;
    let inbox = lab.net.lock().unwrap().inbox(0);
    inbox.send(None).await.unwrap();
    lab.kernels[0].send(b"refused", 0, 1).await;
    while lab.kernels[0].handle.status().await.unwrap().dropped[Dropped::Unreachable.label()] == 0 {}

    lab.net.lock().unwrap().refuse = false;
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
    let runtime = runtime::Handle::current();
    let stopped = tasks.token().clone();
    let tun = ChannelTun { from_kernel: Mutex::new(from_kernel), to_kernel, runtime: runtime.clone(), stopped };
    let closed = tasks.token().child_token();
    let udp = ChannelUdp { own: endpoint(number), datagrams: Mutex::new(datagrams), net: net.clone(), runtime, closed };
    let (tun, udp) = (Arc::new(tun), Arc::new(udp));
    let overlay = node.overlay(number.into(), clock::now());
    let asides = carry(&overlay, Takes::TcpAndUdp, &tun, &udp, tasks);
    let outside = Outside { tun, udp, asides, commands, events: events_sender, place: place.clone() };
    let handle = Handle::new(commands_sender, place, overlay.shared());
    tasks.spawn("overlay", |stop| run(overlay, outside, stop));
    Kernel { handle, events, device: Some(device), received }
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
    from_kernel: Mutex<mpsc::Receiver<Vec<u8>>>,
    to_kernel: mpsc::Sender<Vec<u8>>,
    runtime: runtime::Handle,
    stopped: CancellationToken,
}

impl ChannelTun {
    fn fill(packet: &[u8], frame: &mut [u8]) -> usize {
        frame[..VIRTIO_HEADER].fill(0);
        frame[VIRTIO_HEADER..][..packet.len()].copy_from_slice(packet);
        VIRTIO_HEADER + packet.len()
    }
}

impl Tun for ChannelTun {
    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        let mut from_kernel = self.from_kernel.lock().unwrap();
        let packet = self.runtime.block_on(self.stopped.run_until_cancelled(from_kernel.recv())).flatten();
        Ok(ChannelTun::fill(&packet.ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?, frame))
    }

    fn read_now(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let packet = self.from_kernel.lock().unwrap().try_recv();
        Ok(packet.ok().map(|packet| ChannelTun::fill(&packet, frame)))
    }

    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let frame: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.to_kernel.try_send(frame[VIRTIO_HEADER..].to_vec()).map_err(|_| io::ErrorKind::WouldBlock.into())
    }
}

struct ChannelUdp {
    own: SocketAddr,
    datagrams: Mutex<mpsc::Receiver<Arrival>>,
    net: Arc<Mutex<Net>>,
    runtime: runtime::Handle,
    closed: CancellationToken,
}

impl Udp for ChannelUdp {
    fn recv(&self, into: &mut Received) -> io::Result<()> {
        into.clear();
        let mut datagrams = self.datagrams.lock().unwrap();
        match self.runtime.block_on(self.closed.run_until_cancelled(datagrams.recv())).flatten() {
            Some(Some((from, datagram))) => into.push(from, &datagram),
            Some(None) => return Err(io::ErrorKind::ConnectionRefused.into()),
            None => {}
        }
        Ok(())
    }

    fn send(&self, transmit: &Transmit<'_>, _: Wait) -> Result<(), Dropped> {
        let net = self.net.lock().unwrap();
        if net.refuse {
            return Err(Dropped::Unreachable);
        }
        let (_, inbox) = net.inboxes.iter().find(|(at, _)| *at == transmit.to).ok_or(Dropped::Unreachable)?;
        for datagram in transmit.datagrams() {
            // The network loses what is too much for it.
            _ = inbox.try_send(Some((self.own, datagram.to_vec())));
        }
        Ok(())
    }

    fn close(&self) {
        self.closed.cancel();
    }
}
