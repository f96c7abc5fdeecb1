//! The socket over the loopback interface, with each offload and without.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use super::*;
use crate::overlay::batch::Transmits;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a thread to get to where it waits.
const A_MOMENT: Duration = Duration::from_millis(50);

/// Has the kernel refuse to cut: without checksums there is nothing it could do them for. Stands in for devices and
/// ways out on which it refuses for other reasons.
#[derive(Clone, Copy, Debug)]
struct NoChecksums;
nix::setsockopt_impl!(NoChecksums, libc::SOL_SOCKET, libc::SO_NO_CHECK, libc::c_int, SetInt);

#[test]
fn a_batch_crosses_the_kernel_whole_and_in_order_over_both_families_with_and_without_offloads() {
    // One of another size in between, one alone at the end.
    let sent: Vec<Vec<u8>> = (0..150u8).map(|i| vec![i; if i == 30 { 77 } else { 1452 }]).chain([vec![9; 3]]).collect();
    for (families, local) in [(Families::Both, "::1"), (Families::Both, "127.0.0.1"), (Families::V4, "127.0.0.1")] {
        for (udp_send, udp_receive) in [(true, true), (true, false), (false, true), (false, false)] {
            let offloads = Offloads { udp_send, udp_receive, ..Offloads::default() };
            let lab = Lab::new(families, local, &offloads);

            lab.send(&sent);

            let (arrived, _) = lab.receive(sent.len());
            assert_eq!(arrived, sent, "{families:?} {local} {offloads:?}");
        }
    }
}

#[test]
fn what_is_sent_in_one_is_received_in_one() {
    for (families, local) in [(Families::Both, "::1"), (Families::Both, "127.0.0.1"), (Families::V4, "127.0.0.1")] {
        let lab = Lab::new(families, local, &Offloads::default());

        lab.send(&vec![vec![7; 1452]; 40]);

        let (arrived, buffers) = lab.receive(40);
        assert_eq!((arrived.len(), buffers), (40, 1), "{families:?} {local}");
    }
}

#[test]
fn one_by_one_is_one_by_one() {
    let offloads = Offloads { udp_receive: false, ..Offloads::default() };
    let lab = Lab::new(Families::V4, "127.0.0.1", &offloads);

    lab.send(&vec![vec![7; 1452]; 40]);

    let (arrived, buffers) = lab.receive(40);
    assert_eq!((arrived.len(), buffers), (40, 40));
}

#[test]
fn where_the_kernel_refuses_to_cut_datagrams_go_singly_and_none_is_lost() {
    let lab = Lab::new(Families::V4, "127.0.0.1", &Offloads::default());
    setsockopt(&lab.from.socket, NoChecksums, &1).unwrap();
    let sent: Vec<Vec<u8>> = (0..40u8).map(|i| vec![i; 1452]).collect();

    lab.send(&sent);

    assert_eq!(lab.receive(sent.len()).0, sent);
    let refusals = lab.from.segments.as_ref().unwrap();
    assert!(!refusals.allow("127.0.0.1".parse().unwrap()) && refusals.allow("127.0.0.2".parse().unwrap()));
}

#[test]
fn what_the_kernel_would_not_take_in_one_is_not_offered_to_it() {
    let to = ([192, 0, 2, 1], 1).into();
    let payload = vec![0; 70_000];
    let fits = |len: usize, segment| fitting_segment(&whole(&payload[..len], segment, to)).is_some();

    assert!(fits(2904, 1452) && fits(1453, 1452) && fits(64 * 1000, 1000));
    assert!(!fits(1452, 1452) && !fits(0, 0) && !fits(10, 0), "one datagram, or none");
    assert!(!fits(64 * 100 + 1, 100), "too many segments");
    assert!(!fits(MAX_SEGMENTED_BYTES + 1, 1452), "too many bytes");
    assert!(!fits(70_000, 69_000), "too large a segment");
}

#[test]
fn the_largest_datagram_arrives_whole_and_a_larger_one_is_too_big() {
    let lab = Lab::new(Families::Both, "127.0.0.1", &Offloads::default());
    let largest = vec![7; 65_507];

    assert_eq!(lab.from.send(&whole(&largest, largest.len(), lab.to), Wait::Yes), Ok(()));
    assert_eq!(lab.from.send(&whole(&[0; 65_508], 65_508, lab.to), Wait::Yes), Err(Dropped::TooBig));

    assert_eq!(lab.receive(1).0, [largest]);
}

#[test]
fn a_datagram_for_a_family_the_machine_lacks_is_refused_and_no_more() {
    let socket = UnderlaySocket::bind_families(0, Families::V4, &Offloads::default()).unwrap();
    let to = "[2001:db8::1]:1".parse().unwrap();

    assert_eq!(socket.send(&whole(b"x", 1, to), Wait::Yes), Err(Dropped::Unreachable));
}

#[test]
fn each_failure_to_send_has_its_reason() {
    assert_eq!(
        [libc::EAGAIN, libc::ENOBUFS, libc::EMSGSIZE, libc::ENETUNREACH]
            .map(|code| reason(&io::Error::from_raw_os_error(code))),
        [Dropped::Congested, Dropped::Congested, Dropped::TooBig, Dropped::Unreachable]
    );
}

#[test]
fn an_empty_datagram_is_none_and_the_socket_lives_on() {
    let lab = Lab::new(Families::Both, "::1", &Offloads::default());

    sys::send(lab.from.socket.as_fd(), &lab.to, &[], &[], 0).unwrap();
    lab.send(&[b"after it".to_vec()]);

    assert_eq!(lab.receive(1).0, [b"after it"]);
}

#[test]
fn closing_wakes_who_waits_and_nobody_waits_again() {
    for families in [Families::Both, Families::V4] {
        let socket = Arc::new(UnderlaySocket::bind_families(0, families, &Offloads::default()).unwrap());
        let arrived = receiving(socket.clone(), 3);
        thread::sleep(A_MOMENT);
        assert!(arrived.try_recv().is_err());

        socket.close();

        for _ in 0..3 {
            assert_eq!(arrived.recv_timeout(SOON).unwrap().unwrap(), 0);
        }
    }
}

#[test]
fn what_arrived_before_closing_is_not_given_after_it() {
    let lab = Lab::new(Families::V4, "127.0.0.1", &Offloads::default());
    lab.send(&[b"late".to_vec()]);

    lab.at.close();

    assert_eq!(receiving(lab.at.clone(), 1).recv_timeout(SOON).unwrap().unwrap(), 0);
}

/// Two sockets on the loopback interface.
struct Lab {
    from: UnderlaySocket,
    at: Arc<UnderlaySocket>,
    to: SocketAddr,
}

impl Lab {
    fn new(families: Families, local: &str, offloads: &Offloads) -> Lab {
        let from = UnderlaySocket::bind_families(0, families, offloads).unwrap();
        let at = Arc::new(UnderlaySocket::bind_families(0, families, offloads).unwrap());
        let to = SocketAddr::new(local.parse().unwrap(), at.port().unwrap());
        Lab { from, at, to }
    }

    fn send(&self, datagrams: &[Vec<u8>]) {
        let mut batch = Transmits::new();
        datagrams.iter().for_each(|datagram| assert!(batch.copy(datagram, self.to)));
        while let Some(transmit) = batch.pop() {
            self.from.send(&transmit, Wait::Yes).unwrap();
        }
    }

    /// The next `count` datagrams, and in how many buffers they came.
    fn receive(&self, count: usize) -> (Vec<Vec<u8>>, usize) {
        let (sender, done) = mpsc::channel();
        let (at, from) = (self.at.clone(), SocketAddr::new(self.to.ip(), self.from.port().unwrap()));
        thread::spawn(move || {
            let (mut received, mut arrived, mut buffers) = (Received::default(), Vec::new(), 0);
            while arrived.len() < count {
                at.recv(&mut received).unwrap();
                for buffer in received.buffers() {
                    assert_eq!(buffer.from, from);
                    arrived.extend(buffer.datagrams().map(<[u8]>::to_vec));
                    buffers += 1;
                }
            }
            // Whoever asked may have given up.
            let _ = sender.send((arrived, buffers));
        });
        done.recv_timeout(SOON).unwrap()
    }
}

/// Receives so many times on a thread, and tells how many buffers came.
fn receiving(socket: Arc<UnderlaySocket>, times: usize) -> Receiver<io::Result<usize>> {
    let (sender, arrived) = mpsc::channel();
    thread::spawn(move || {
        let mut received = Received::default();
        for _ in 0..times {
            let result = socket.recv(&mut received).map(|()| received.buffers().count());
            if sender.send(result).is_err() {
                return;
            }
        }
    });
    arrived
}

fn whole(payload: &[u8], segment: usize, to: SocketAddr) -> Transmit<'_> {
    Transmit { to, payload, segment }
}
