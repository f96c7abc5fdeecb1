//! The TUN device and the UDP socket against a real kernel: what passes, what is refused, how they end.

use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Node, eventually, story};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use wiremesh::overlay::{
    Dropped, NoDevice, Offloads, Transmit,
    io::{
        tun::{MAX_FRAME_BYTES, Tun, TunDevice, is_gone},
        udp::{Received, Udp, UnderlaySocket, Wait},
    },
};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a thread to get to where it waits, and for what should not happen to happen.
const A_MOMENT: Duration = Duration::from_millis(200);

const DEVICE: &str = "tun0";
const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const BITS: u8 = 24;

/// The virtio header of a packet with nothing left to do.
const FINISHED: [u8; 10] = [0; 10];
const PACKET: usize = FINISHED.len();
const PAYLOAD: usize = PACKET + 20 + 8;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: segments of UDP.
const UDP_SEGMENTS: u8 = 5;
/// An MTU of 1500, with the header in front.
const LARGEST_SINGLE: usize = PACKET + 1500;

#[test]
fn packets_come_out_whole_with_a_header_and_go_in_from_pieces() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let device = device(&node, &Offloads::default())?;
        let socket = node.run(|| UdpSocket::bind((HERE, 7000)))??;
        socket.set_read_timeout(Some(SOON))?;

        socket.send_to(b"outbound", (THERE, 7001))?;
        let frame = read_udp(&*device, Tun::read)?;
        assert_eq!(&frame[PAYLOAD..], b"outbound");

        let packet = udp_packet(b"inbound");
        let (first, second) = packet.split_at(23);
        device.write(&[IoSlice::new(&FINISHED), IoSlice::new(first), IoSlice::new(second)])?;
        let mut arrived = [0; 100];
        let (len, from) = socket.recv_from(&mut arrived)?;
        assert_eq!((&arrived[..len], from), (&b"inbound"[..], (THERE, 7001).into()));
        Ok(())
    });
}

#[test]
fn what_is_there_is_read_without_waiting_and_no_more() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let device = device(&node, &Offloads::default())?;
        let socket = node.run(|| UdpSocket::bind((HERE, 7000)))??;
        let mut frame = vec![0; MAX_FRAME_BYTES];
        eventually("the kernel's own packets are over", SOON, || {
            thread::sleep(A_MOMENT);
            anyhow::ensure!(device.read_now(&mut frame)?.is_none());
            Ok(())
        })?;

        for number in 0..50 {
            socket.send_to(&[number], (THERE, 7001))?;
        }
        let drained = (0..50).map(|_| {
            let frame = read_udp(&*device, |device, frame| device.read_now(frame)?.ok_or(ErrorKind::WouldBlock.into()));
            anyhow::Ok(frame?[PAYLOAD])
        });

        assert_eq!(drained.collect::<anyhow::Result<Vec<_>>>()?, (0..50).collect::<Vec<u8>>());
        Ok(())
    });
}

#[test]
fn a_large_send_comes_out_as_one_packet_or_as_many_without_offloads() {
    story(|lab| {
        for (name, tun) in [("a", true), ("b", false)] {
            let node = lab.bare_node(name)?;
            let device = device(&node, &Offloads { tun, ..Offloads::default() })?;
            let socket = node.run(|| UdpSocket::bind((HERE, 7000)))??;
            setsockopt(&socket, sockopt::UdpGsoSegment, &100)?;

            socket.send_to(&[7; 1000], (THERE, 7001))?;

            let frame = read_udp(&*device, Tun::read)?;
            // Linux before 6.2 does not know segments of UDP on TUN devices.
            if device.offloads().udp {
                assert_eq!((frame[1], u16::from_le_bytes([frame[4], frame[5]])), (UDP_SEGMENTS, 100));
                assert_eq!(frame.len(), PAYLOAD + 1000);
            } else {
                assert_eq!(frame[..PACKET], FINISHED);
                assert_eq!(frame.len(), PAYLOAD + 100);
                (1..10).try_for_each(|_| read_udp(&*device, Tun::read).map(|_| ()))?;
            }
            assert!(tun || !device.offloads().checksums);
        }
        Ok(())
    });
}

#[test]
fn tcp_between_two_kernels_crosses_two_devices_in_large_packets_or_in_small_ones() {
    const BYTES: usize = 8 << 20;
    story(|lab| {
        for (names, tun) in [(["a", "b"], true), (["c", "d"], false)] {
            let nodes = [lab.bare_node(names[0])?, lab.bare_node(names[1])?];
            let offloads = Offloads { tun, ..Offloads::default() };
            let devices = [device_at(&nodes[0], HERE, &offloads)?, device_at(&nodes[1], THERE, &offloads)?];
            let cables = [[0, 1], [1, 0]].map(|[from, to]| cable(&devices[from], &devices[to]));
            let listener = nodes[1].run(|| TcpListener::bind((THERE, 7000)))??;
            let sent: Vec<u8> = (0..BYTES).map(|at| ((at * 31) >> 7) as u8).collect();

            let receiver = thread::spawn(move || -> io::Result<Vec<u8>> {
                let mut arrived = Vec::new();
                listener.accept()?.0.read_to_end(&mut arrived)?;
                Ok(arrived)
            });
            nodes[0].run(|| TcpStream::connect((THERE, 7000))?.write_all(&sent))??;

            assert!(receiver.join().unwrap()? == sent, "{BYTES} bytes arrived changed");
            let largest = cables[0].largest.load(Ordering::Relaxed);
            assert_eq!(largest > LARGEST_SINGLE, tun, "{largest}");

            // And the threads that wait in the devices end with these.
            for (node, cable) in nodes.iter().zip(cables) {
                delete(node)?;
                assert!(is_gone(&cable.ended.recv_timeout(SOON)?));
            }
        }
        Ok(())
    });
}

#[test]
fn an_interface_that_goes_down_and_up_again_interrupts_nobody() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let device = device(&node, &Offloads::default())?;
        let socket = node.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7000)))??;
        let (sender, frames) = mpsc::channel();
        let reads = device.clone();
        thread::spawn(move || while sender.send(read_udp(&*reads, Tun::read)).is_ok() {});

        set(&node, Link::down)?;
        let packet = udp_packet(b"x");
        let refused = device.write(&[IoSlice::new(&FINISHED), IoSlice::new(&packet)]).unwrap_err();
        assert_eq!((refused.raw_os_error(), is_gone(&refused)), (Some(nix::libc::EIO), false));
        assert_eq!(device.read_now(&mut vec![0; MAX_FRAME_BYTES])?, None);
        assert!(frames.recv_timeout(A_MOMENT).is_err(), "the reader waits");

        set(&node, Link::up)?;
        device.write(&[IoSlice::new(&FINISHED), IoSlice::new(&packet)])?;
        socket.send_to(b"again", (THERE, 7001))?;
        assert_eq!(&frames.recv_timeout(SOON)??[PAYLOAD..], b"again");
        Ok(())
    });
}

#[test]
fn a_device_whose_interface_was_deleted_is_gone_for_all_who_use_it() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let device = device(&node, &Offloads::default())?;
        let cable = cable(&device, &device);
        thread::sleep(A_MOMENT);

        delete(&node)?;

        assert!(is_gone(&cable.ended.recv_timeout(SOON)?));
        let mut frame = vec![0; MAX_FRAME_BYTES];
        let packet = udp_packet(b"x");
        assert!(is_gone(&device.read(&mut frame).unwrap_err()));
        assert!(is_gone(&device.read_now(&mut frame).unwrap_err()));
        assert!(is_gone(&device.write(&[IoSlice::new(&FINISHED), IoSlice::new(&packet)]).unwrap_err()));
        Ok(())
    });
}

#[test]
fn a_packet_that_the_kernel_does_not_understand_is_an_error_of_that_packet_alone() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let device = device(&node, &Offloads::default())?;
        let socket = node.run(|| UdpSocket::bind((HERE, 7000)))??;
        socket.set_read_timeout(Some(SOON))?;
        let packet = udp_packet(b"good");
        let mut unknown = FINISHED;
        unknown[1] = 0x7f;

        let refused = device.write(&[IoSlice::new(&unknown), IoSlice::new(&packet)]).unwrap_err();
        assert_eq!((refused.raw_os_error(), is_gone(&refused)), (Some(nix::libc::EINVAL), false));

        device.write(&[IoSlice::new(&FINISHED), IoSlice::new(&packet)])?;
        assert_eq!(socket.recv(&mut [0; 100])?, 4);
        Ok(())
    });
}

#[test]
fn a_name_is_had_by_one_interface_and_free_again_when_its_device_is_dropped() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let make = |name: &str| node.run(|| TunDevice::create(name, &Offloads::default()));

        let first = make(DEVICE)??;

        assert!(matches!(make(DEVICE)?, Err(NoDevice::NameTaken(_))));
        assert!(matches!(make("lo")?, Err(NoDevice::NameTaken(_))));
        assert!(matches!(make("a-name-that-is-too-long")?, Err(NoDevice::Unsuitable(_))));
        assert!(matches!(make("")?, Err(NoDevice::Unsuitable(_))));
        drop(first);
        assert!(!node.has_interface(DEVICE)?);
        assert!(make(DEVICE)?.is_ok());
        Ok(())
    });
}

#[test]
fn datagrams_cross_a_cable_whole_also_those_larger_than_it_takes() {
    story(|lab| {
        let (a, b) = (lab.bare_node("a")?, lab.bare_node("b")?);
        let from = a.run(|| UnderlaySocket::bind(0, &Offloads::default()))??;
        let at = Arc::new(b.run(|| UnderlaySocket::bind(0, &Offloads::default()))??);
        let to = SocketAddr::new(b.address(), at.port()?);

        // In the middle a run that the kernel cannot cut for an MTU of 1500. It is sent singly, and fragmented.
        for (count, segment) in [(40, 1452), (20, 2900), (40, 1452)] {
            let sent: Vec<Vec<u8>> = (0..count).map(|number| vec![number; segment]).collect();
            for wait in [Wait::Yes, Wait::No] {
                let payload = sent.concat();
                from.send(&Transmit { to, payload: &payload, segment }, wait)
                    .map_err(|why| anyhow::anyhow!("{why}"))?;

                let (arrived, buffers) = receive(&at, sent.len())?;

                assert_eq!(arrived, sent);
                assert_eq!(buffers == 1, segment < 1500, "{segment} came in {buffers} buffers");
            }
        }
        Ok(())
    });
}

#[test]
fn a_full_socket_buffer_drops_what_may_not_wait_and_holds_up_what_may() {
    story(|lab| {
        let node = lab.bare_node("a")?;
        let socket = Arc::new(node.run(|| UnderlaySocket::bind(0, &Offloads::default()))??);
        let IpAddr::V4(address) = node.address() else { anyhow::bail!("the lab speaks IPv4 unless asked otherwise") };
        let (payload, [a, b, c, _]) = (vec![7; 44 * 1452], address.octets());
        let send = move |socket: &UnderlaySocket, host: u8, wait| {
            // The kernel keeps a little for every neighbour that it looks for, until it finds that nobody is there.
            let to = (Ipv4Addr::new(a, b, c, host), 7000).into();
            socket.send(&Transmit { to, payload: &payload, segment: 1452 }, wait)
        };

        let refused = (2..250).flat_map(|host| [host; 2]).find_map(|host| send(&socket, host, Wait::No).err());
        assert_eq!(refused, Some(Dropped::Congested));

        let (sender, done) = mpsc::channel();
        thread::spawn(move || sender.send(send(&socket, 250, Wait::Yes)));
        assert!(done.recv_timeout(A_MOMENT).is_err(), "there is no room yet");
        assert_eq!(done.recv_timeout(2 * SOON)?, Ok(()));
        Ok(())
    });
}

type Link = LinkMessageBuilder<LinkUnspec>;

/// A thread that hands what comes out of one device to another.
struct Cable {
    /// The largest frame so far.
    largest: Arc<AtomicUsize>,
    /// Why it ended.
    ended: mpsc::Receiver<io::Error>,
}

fn cable(from: &Arc<TunDevice>, to: &Arc<TunDevice>) -> Cable {
    let (from, to, largest) = (from.clone(), to.clone(), Arc::new(AtomicUsize::new(0)));
    let (sender, ended) = mpsc::channel();
    let seen = largest.clone();
    thread::spawn(move || {
        let mut frame = vec![0; MAX_FRAME_BYTES];
        loop {
            match from.read(&mut frame) {
                Ok(len) => {
                    seen.fetch_max(len, Ordering::Relaxed);
                    let (header, packet) = frame[..len].split_at(PACKET);
                    // A packet lost is sent again.
                    let _ = to.write(&[IoSlice::new(header), IoSlice::new(packet)]);
                }
                Err(error) => {
                    // Whoever asked may have gone.
                    let _ = sender.send(error);
                    return;
                }
            }
        }
    });
    Cable { largest, ended }
}

fn device(node: &Node, offloads: &Offloads) -> anyhow::Result<Arc<TunDevice>> {
    device_at(node, HERE, offloads)
}

fn device_at(node: &Node, address: Ipv4Addr, offloads: &Offloads) -> anyhow::Result<Arc<TunDevice>> {
    let device = node.run(|| TunDevice::create(DEVICE, offloads))??;
    node.bring_up(DEVICE, IpAddr::V4(address), BITS)?;
    Ok(Arc::new(device))
}

fn set(node: &Node, change: fn(Link) -> Link) -> anyhow::Result<()> {
    let index = node.run(|| if_nametoindex(DEVICE))??;
    node.namespace().netlink("changing a device", async |handle| {
        handle.link().set(change(LinkUnspec::new_with_index(index)).build()).execute().await
    })
}

fn delete(node: &Node) -> anyhow::Result<()> {
    let index = node.run(|| if_nametoindex(DEVICE))??;
    node.namespace().netlink("deleting a device", async |handle| handle.link().del(index).execute().await)
}

/// The next frame with UDP over IPv4 in it: the kernel sends other things on every new interface.
fn read_udp<T>(device: &T, read: impl Fn(&T, &mut [u8]) -> io::Result<usize>) -> anyhow::Result<Vec<u8>> {
    let mut frame = vec![0; MAX_FRAME_BYTES];
    loop {
        let len = read(device, &mut frame).context("reading from the device")?;
        if frame[PACKET] >> 4 == 4 && frame[PACKET + 9] == 17 {
            frame.truncate(len);
            return Ok(frame);
        }
    }
}

/// The next `count` datagrams, and in how many buffers they came.
fn receive(at: &Arc<UnderlaySocket>, count: usize) -> anyhow::Result<(Vec<Vec<u8>>, usize)> {
    let (sender, done) = mpsc::channel();
    let at = at.clone();
    thread::spawn(move || -> io::Result<()> {
        let (mut received, mut arrived, mut buffers) = (Received::default(), Vec::new(), 0);
        while arrived.len() < count {
            at.recv(&mut received)?;
            buffers += received.buffers().count();
            arrived.extend(received.buffers().flat_map(|buffer| buffer.datagrams().map(<[u8]>::to_vec)));
        }
        // Whoever asked may have given up.
        let _ = sender.send((arrived, buffers));
        Ok(())
    });
    done.recv_timeout(SOON).context("not all datagrams arrived")
}

/// From there to here, without a checksum of UDP's.
fn udp_packet(payload: &[u8]) -> Vec<u8> {
    let len = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(THERE.octets());
    packet.extend(HERE.octets());
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    packet[10..12].copy_from_slice(&(!((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes());
    packet.extend(7001u16.to_be_bytes());
    packet.extend(7000u16.to_be_bytes());
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
