//! What the overlay promises, held against real overlays on a simulated network.

mod carriers;
pub mod sim;

use std::{net::SocketAddr, time::Duration};

use proptest::{collection::vec, prelude::*};
use wiremesh_certs::WgPrivateKey;

use self::sim::{LIFETIME, Mesh, Node, address, endpoint, packet};
use super::{
    ConfiguredPeer, Dropped, Event, Left, MAX_PEERS, NotAPeer,
    admission::{INTRODUCTIONS, INTRODUCTIONS_PER_SOURCE},
    held::{HELD_FOR, HELD_PACKETS},
    introduction::{self, IntroductionKey, MAX_DATAGRAM},
    path::QUIET_AFTER,
    peer::PeerSource,
    ping::{self, PingFailed},
    session::{ATTEMPT_FOR, RETRY_AT_MOST, SUSPECT_AFTER},
};

const NOTHING: [&[u8]; 0] = [];

#[test]
fn the_first_packet_to_a_stranger_arrives_and_so_does_the_answer() {
    let mut mesh = Mesh::of(2);

    mesh.send(0, 1, b"hello").unwrap();
    mesh.send(1, 0, b"and you").unwrap();

    assert_eq!(mesh.received(1), [b"hello"]);
    assert_eq!(mesh.received(0), [b"and you"]);
    assert!(matches!(&mesh.events[0][..], [Event::Resolve(asked)] if *asked == address(1)));
    assert!(matches!(&mesh.events[1][..], [Event::Introduced(who, _)] if who.address() == address(0)));
    assert_eq!((mesh.dropped(0), mesh.dropped(1)), (vec![], vec![]));
}

#[test]
fn an_introduction_goes_just_ahead_of_the_handshake_and_fits_a_datagram() {
    let mut mesh = Mesh::of(2);

    mesh.send(0, 1, b"hello").unwrap();

    let kinds: Vec<_> = mesh.wire.iter().map(|(_, _, datagram)| datagram[0]).collect();
    assert_eq!(kinds[..3], [introduction::TYPE, 1, 2]);
    assert!(mesh.wire.iter().all(|(_, _, datagram)| datagram.len() <= MAX_DATAGRAM));
}

#[test]
fn a_member_cannot_speak_for_another() {
    let mut mesh = Mesh::of(3);
    mesh.send(0, 1, b"honest").unwrap();

    mesh.send_as(0, 2, 1, b"spoofed").unwrap();

    assert_eq!(mesh.received(1), [b"honest"]);
    assert_eq!(mesh.dropped(1), [(Dropped::SpoofedSource, 1)]);
}

#[test]
fn a_packet_for_somebody_else_is_not_passed_on() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.received(1);

    let stray = packet(address(0), address(77), b"not for you");
    let slot = mesh.overlays[0].peers.by_address(address(1)).unwrap();
    let super::Overlay { peers, own, out, .. } = &mut mesh.overlays[0];
    peers.lock(slot).unwrap().send(&stray, own, out, mesh.now).unwrap();
    mesh.settle();

    assert_eq!(mesh.received(1), NOTHING);
    assert_eq!(mesh.dropped(1), [(Dropped::WrongDestination, 1)]);
}

#[test]
fn only_packets_of_ours_to_others_in_the_overlay_leave() {
    let mut mesh = Mesh::of(1);
    let mut dropped = |from: [u8; 4], to: [u8; 4]| {
        let ip = |octets: [u8; 4]| wiremesh_certs::OverlayIp(octets.into());
        mesh.overlays[0].handle_tun_packet(&packet(ip(from), ip(to), b"x"), mesh.now).unwrap_err()
    };

    assert_eq!(dropped([10, 42, 0, 1], [10, 42, 0, 1]), Dropped::NoRoute);
    assert_eq!(dropped([10, 42, 0, 1], [192, 0, 2, 1]), Dropped::NoRoute);
    assert_eq!(dropped([10, 42, 0, 1], [10, 42, 255, 255]), Dropped::Multicast);
    assert_eq!(dropped([10, 42, 0, 1], [224, 0, 0, 22]), Dropped::Multicast);
    assert_eq!(dropped([10, 42, 0, 9], [10, 42, 0, 2]), Dropped::ForeignSource);
    assert_eq!(mesh.overlays[0].handle_tun_packet(b"no packet", mesh.now), Err(Dropped::NotIp));
    assert!(mesh.events[0].is_empty());
}

#[test]
fn a_stranger_is_no_peer() {
    let mut mesh = Mesh::of(2);
    let initiation = initiation_of(&mut mesh, 0, 1);

    assert_eq!(mesh.inject(endpoint(0), 1, &initiation), Err(Dropped::UnknownKey));

    assert_eq!(mesh.overlays[1].peers.len(), 0);
}

#[test]
fn a_node_of_another_authority_is_no_peer() {
    let mut mesh = Mesh::of(1);
    let (_, signed) = Node::new(&sim::authority_of("other"), 7, LIFETIME, sim::UNIX).record(&[endpoint(7)], 1);

    let introduction = introduction_to(&mesh, 0, signed.as_bytes());

    assert_eq!(mesh.inject(endpoint(7), 0, &introduction), Err(Dropped::IntroductionRefused));
    assert_eq!(mesh.overlays[0].peers.len(), 0);
}

#[test]
fn a_record_with_one_byte_changed_introduces_nobody() {
    let mut mesh = Mesh::of(2);
    let (_, signed) = mesh.nodes[1].record(&[endpoint(1)], 1);

    for at in (0..signed.as_bytes().len()).step_by(7) {
        let mut record = signed.as_bytes().to_vec();
        record[at] ^= 1;
        let introduction = introduction_to(&mesh, 0, &record);
        assert_eq!(mesh.inject(endpoint(1), 0, &introduction), Err(Dropped::IntroductionRefused), "byte {at}");
    }

    assert_eq!(mesh.overlays[0].peers.len(), 0);
}

#[test]
fn of_two_introductions_the_newer_counts() {
    let mut mesh = Mesh::of(2);
    let introduce = |mesh: &mut Mesh, port: u16, sequence: u64| {
        let (_, signed) = mesh.nodes[1].record(&[([192, 0, 2, 99], port).into()], sequence);
        let introduction = introduction_to(mesh, 0, signed.as_bytes());
        mesh.inject(endpoint(1), 0, &introduction)
    };

    introduce(&mut mesh, 2, 2000).unwrap();
    assert_eq!(introduce(&mut mesh, 1, 1000), Err(Dropped::IntroductionStale));
    introduce(&mut mesh, 3, 3000).unwrap();

    let slot = mesh.overlays[0].peers.by_address(address(1)).unwrap();
    let known = mesh.overlays[0].peers.lock(slot).unwrap().path.everywhere();
    assert_eq!(known, [endpoint(1), ([192, 0, 2, 99], 3).into()]);
}

#[test]
fn a_flood_of_bad_introductions_is_bounded_and_honest_traffic_goes_on() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"before").unwrap();
    let (_, signed) = Node::new(&sim::authority_of("other"), 7, LIFETIME, sim::UNIX).record(&[], 1);
    let bad = introduction_to(&mesh, 1, signed.as_bytes());
    let forged = {
        let mut forged = bad.clone();
        forged[10] ^= 1;
        forged
    };

    for number in 0..20_000u32 {
        let from = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0b00_0000 + number * 256), 1));
        _ = mesh.overlays[1].handle_datagram(from, &bad, mesh.now, sim::UNIX);
        _ = mesh.overlays[1].handle_datagram(from, &forged, mesh.now, sim::UNIX);
    }
    mesh.send(0, 1, b"after").unwrap();

    let counters = mesh.counters(1);
    assert_eq!(counters.of(Dropped::IntroductionForged), 20_000);
    let checked = u64::from(INTRODUCTIONS.burst) - 1;
    assert_eq!(counters.of(Dropped::IntroductionRefused), checked, "and one that was honest");
    assert_eq!(counters.of(Dropped::IntroductionRate), 20_000 - checked);
    assert_eq!(mesh.overlays[1].peers.len(), 1);
    assert_eq!(mesh.received(1), [&b"before"[..], b"after"]);
}

#[test]
fn a_flood_from_one_place_leaves_room_for_introductions_from_another() {
    let mut mesh = Mesh::of(2);
    let (_, signed) = Node::new(&sim::authority_of("other"), 7, LIFETIME, sim::UNIX).record(&[], 1);
    let bad = introduction_to(&mesh, 1, signed.as_bytes());
    for port in 0..10_000u16 {
        _ = mesh.overlays[1].handle_datagram(([198, 51, 100, 1], port).into(), &bad, mesh.now, sim::UNIX);
    }

    mesh.send(0, 1, b"honest").unwrap();

    assert_eq!(mesh.counters(1).of(Dropped::IntroductionRefused), u64::from(INTRODUCTIONS_PER_SOURCE.burst));
    assert_eq!(mesh.received(1), [b"honest"]);
}

#[test]
fn a_repeated_introduction_costs_no_signature() {
    let mut mesh = Mesh::of(2);
    let (_, signed) = mesh.nodes[1].record(&[endpoint(1)], 1);
    let introduction = introduction_to(&mesh, 0, signed.as_bytes());

    for _ in 0..10_000 {
        mesh.inject(endpoint(1), 0, &introduction).unwrap();
    }

    assert_eq!(mesh.events[0].len(), 1);
    assert_eq!(mesh.dropped(0), []);
}

#[test]
fn an_authenticated_packet_from_elsewhere_moves_the_path() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();

    mesh.at[0] = ([203, 0, 113, 5], 4444).into();
    mesh.send(0, 1, b"moved").unwrap();
    mesh.send(1, 0, b"found").unwrap();

    assert_eq!(mesh.received(1), [b"hello", b"moved"]);
    assert_eq!(mesh.received(0), [b"found"]);
}

#[test]
fn a_copied_packet_from_elsewhere_does_not_move_the_path() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    let eavesdropped = mesh.wire.clone();

    for (_, to, datagram) in eavesdropped.iter().filter(|(_, to, _)| *to == endpoint(1)) {
        assert_eq!(*to, endpoint(1));
        _ = mesh.inject(([203, 0, 113, 66], 666).into(), 1, datagram);
    }
    mesh.send(1, 0, b"still here").unwrap();

    assert_eq!(mesh.received(0), [b"still here"]);
    assert_eq!(mesh.counters(1).of(Dropped::Replayed), 3, "one handshake, a keepalive and a packet");
}

#[test]
fn lost_handshakes_are_repeated_until_one_arrives() {
    let mut mesh = Mesh::of(2);
    mesh.cut.insert(endpoint(1));

    mesh.send(0, 1, b"early").unwrap();
    mesh.advance(HELD_FOR / 4);
    mesh.cut.clear();
    mesh.advance(HELD_FOR / 2);

    assert_eq!(mesh.received(1), [b"early"]);
}

#[test]
fn an_answer_that_never_comes_is_waited_for_with_flat_effort_and_given_up() {
    let mut mesh = Mesh::of(2);
    mesh.cut.insert(endpoint(1));
    mesh.send(0, 1, b"lost").unwrap();

    mesh.advance(ATTEMPT_FOR * 4);

    let handshakes = mesh.wire.iter().filter(|(_, _, datagram)| datagram[0] == 1).count();
    assert!((15..40).contains(&handshakes), "{handshakes}");
    assert_eq!(mesh.overlays[0].poll_timeout(), None, "nothing is left to wait for");
    assert_eq!(mesh.counters(0).of(Dropped::HeldTooLong), 1);
}

#[test]
fn while_a_peer_does_not_answer_its_record_is_asked_for_again() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    let questions = |mesh: &Mesh| mesh.events[0].iter().filter(|event| matches!(event, Event::Resolve(_))).count();
    assert_eq!(questions(&mesh), 1);

    mesh.at[1] = ([203, 0, 113, 5], 4444).into();
    mesh.received(1);
    for _ in 0..10 {
        mesh.send(0, 1, b"lost").unwrap();
        mesh.advance(Duration::from_secs(1));
    }
    mesh.received(1);
    mesh.send(0, 1, b"found").unwrap();

    assert!(questions(&mesh) > 1);
    assert_eq!(mesh.received(1), [b"found"]);
}

#[test]
fn after_a_cut_of_any_length_traffic_goes_on_within_seconds() {
    for cut_for in [5, 30, 100, 400] {
        let mut mesh = Mesh::of(2);
        mesh.send(0, 1, b"hello").unwrap();
        mesh.cut.insert(endpoint(1));
        for _ in 0..cut_for {
            mesh.send(0, 1, b"lost").unwrap();
            mesh.advance(Duration::from_secs(1));
        }

        mesh.received(1);
        mesh.cut.clear();
        mesh.send(0, 1, b"healed?").unwrap();
        mesh.advance(RETRY_AT_MOST + Duration::from_secs(1));
        mesh.send(0, 1, b"healed").unwrap();

        assert_eq!(mesh.received(1).last().unwrap(), b"healed", "after {cut_for} s");
    }
}

#[test]
fn a_peer_that_was_restarted_is_found_again_when_tcp_repeats_its_first_packet() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.restart(1);
    mesh.received(1);

    mesh.send(0, 1, b"lost").unwrap();
    assert_eq!(mesh.dropped(1), [(Dropped::UnknownSession, 1)]);
    mesh.advance(Duration::from_secs(1));
    mesh.send(0, 1, b"repeated").unwrap();
    mesh.advance(SUSPECT_AFTER);

    assert_eq!(mesh.received(1), [b"repeated"]);
}

#[test]
fn a_conversation_with_pauses_is_not_taken_for_a_dead_peer() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.wire.clear();

    for _ in 0..10 {
        mesh.send(0, 1, b"question").unwrap();
        mesh.advance(SUSPECT_AFTER / 2);
        mesh.send(1, 0, b"answer").unwrap();
        mesh.send(0, 1, b"thanks").unwrap();
        mesh.advance(Duration::from_secs(3));
    }

    assert!(mesh.wire.iter().all(|(_, _, datagram)| datagram[0] == 4));
    assert_eq!(mesh.received(1).len(), 21, "none twice");
}

#[test]
fn a_node_that_was_restarted_reaches_whom_it_knew() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.restart(0);

    mesh.send(0, 1, b"back").unwrap();
    mesh.send(1, 0, b"welcome").unwrap();

    assert_eq!(mesh.received(1), [&b"hello"[..], b"back"]);
    assert_eq!(mesh.received(0), [b"welcome"]);
}

#[test]
fn a_peer_that_only_listens_is_not_knocked_at_again_and_again() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.wire.clear();

    for _ in 0..100 {
        mesh.send(0, 1, b"one way").unwrap();
        mesh.advance(Duration::from_millis(100));
    }

    assert_eq!(mesh.wire.iter().filter(|(_, _, datagram)| datagram[0] == 1).count(), 1);
}

#[test]
fn an_address_nobody_has_is_asked_for_once_and_what_waits_for_it_is_bounded() {
    let mut mesh = Mesh::of(1);
    mesh.resolves = false;

    for _ in 0..50 {
        mesh.send(0, 9, b"anybody?").unwrap();
    }
    assert_eq!(mesh.events[0].len(), 1);
    assert_eq!(mesh.counters(0).of(Dropped::HeldTooMany), 50 - HELD_PACKETS as u64);

    mesh.overlays[0].unresolvable(address(9), mesh.now);
    assert_eq!(mesh.counters(0).of(Dropped::Unresolvable), HELD_PACKETS as u64);
    assert_eq!(mesh.send(0, 9, b"anybody?"), Err(Dropped::Unresolvable));
}

#[test]
fn an_expired_or_revoked_peer_is_cut_off_while_its_session_runs() {
    let mut mesh = Mesh::of(3);
    mesh.resolves = false;
    let later = |mesh: &mut Mesh, from: usize, to: usize| {
        let (record, _) = mesh.nodes[to].record(&[mesh.at[to]], mesh.sequence());
        let (now, unix) = (mesh.now, mesh.unix());
        mesh.overlays[from].upsert_peer(&mesh.nodes[to].verified, &record, now, unix).unwrap();
    };
    later(&mut mesh, 0, 1);
    later(&mut mesh, 0, 2);
    mesh.send(0, 1, b"one").unwrap();
    mesh.send(0, 2, b"two").unwrap();

    let whose = |mesh: &Mesh| mesh.overlays[0].shared().peers.load().whose(address(1)).cloned();
    assert!(matches!(whose(&mesh), Some(PeerSource::Verified(one)) if one == mesh.nodes[1].verified));

    mesh.revoke(1, 0);
    assert!(whose(&mesh).is_none());
    mesh.send(1, 0, b"revoked").unwrap();
    mesh.advance(Duration::from_secs(1));
    assert_eq!(mesh.received(0), NOTHING);
    assert_eq!(mesh.counters(0).of(Dropped::UnknownSession), 1);
    assert!(mesh.events[0].iter().any(|event| matches!(event, Event::Left(_, Left::Revoked))));

    mesh.advance(LIFETIME - Duration::from_secs(2));
    mesh.send(2, 0, b"still valid").unwrap();
    mesh.advance(Duration::from_secs(1));
    mesh.send(2, 0, b"expired").unwrap();
    mesh.advance(Duration::from_secs(5));
    assert_eq!(mesh.received(0), [b"still valid"]);
    assert!(mesh.events[0].iter().any(|event| matches!(event, Event::Left(_, Left::Expired))));
}

#[test]
fn who_was_revoked_is_not_taken_back() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.revoke(0, 1);
    mesh.received(1);

    for _ in 0..20 {
        mesh.send(0, 1, b"again").unwrap();
        mesh.advance(Duration::from_secs(1));
    }

    assert_eq!(mesh.received(1), NOTHING);
    assert_eq!(mesh.overlays[1].peers.len(), 0);
    assert!(mesh.counters(1).of(Dropped::IntroductionRefused) > 0);
    let (record, _) = mesh.nodes[0].record(&[endpoint(0)], 1);
    let again = mesh.overlays[1].upsert_peer(&mesh.nodes[0].verified, &record, mesh.now, sim::UNIX);
    assert_eq!(again, Err(NotAPeer::Revoked));
}

#[test]
fn a_renewed_certificate_reaches_whom_we_talk_to_and_carries_the_session_past_the_end_of_the_old() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.advance(LIFETIME / 2);
    mesh.send(0, 1, b"rekeyed").unwrap();

    mesh.renew(0);
    mesh.advance(Duration::from_secs(1));

    let slot = mesh.overlays[1].peers.by_address(address(0)).unwrap();
    let known = mesh.overlays[1].peers.lock(slot).unwrap().verified().unwrap().clone();
    assert_eq!(known.serial(), mesh.nodes[0].verified.serial());
    assert_eq!(mesh.overlays[1].shared().peers.load().certificate(&known.id()), Some(&known), "everybody is told");
    mesh.received(1);
    mesh.advance(LIFETIME / 2 + Duration::from_secs(10));
    mesh.renew(1);
    mesh.send(0, 1, b"past the end").unwrap();
    mesh.advance(Duration::from_secs(5));
    assert_eq!(mesh.received(1), [b"past the end"]);
}

#[test]
fn a_renewed_certificate_reaches_whom_we_talk_to_though_what_tells_of_it_is_lost_at_first() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.advance(Duration::from_secs(5));

    mesh.cut.insert(endpoint(0));
    mesh.renew(0);
    mesh.advance(Duration::from_secs(1));
    mesh.cut.clear();
    mesh.advance(Duration::from_secs(3));

    let slot = mesh.overlays[1].peers.by_address(address(0)).unwrap();
    let known = mesh.overlays[1].peers.lock(slot).unwrap().verified().unwrap().clone();
    assert_eq!(known.serial(), mesh.nodes[0].verified.serial());
}

#[test]
fn at_the_bound_the_peer_idle_for_longest_goes() {
    let authority = sim::authority();
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"first").unwrap();
    let nodes: Vec<_> = (0..MAX_PEERS).map(|number| sim::crowd(&authority, number as u32)).collect();

    for (number, (verified, record)) in nodes.iter().enumerate() {
        mesh.now += Duration::from_millis(1);
        mesh.overlays[0].upsert_peer(verified, record, mesh.now, sim::UNIX).unwrap();
        if number == 500 {
            mesh.send(0, 1, b"still used").unwrap();
        }
    }

    assert_eq!(mesh.overlays[0].peers.len(), MAX_PEERS);
    assert!(mesh.overlays[0].peers.by_address(address(1)).is_some());
    assert!(mesh.overlays[0].peers.by_address(nodes[0].0.address()).is_none());
}

#[test]
fn an_address_belongs_to_the_newer_certificate() {
    let mut mesh = Mesh::of(1);
    let older = Node::with_keys(&mesh.authority, 5, 50, LIFETIME, sim::UNIX);
    let newer = Node::with_keys(&mesh.authority, 5, 51, LIFETIME, sim::UNIX.plus(Duration::from_secs(60)));
    let (record, _) = older.record(&[endpoint(5)], 1);
    let (now, unix) = (mesh.now, sim::UNIX.plus(Duration::from_secs(60)));

    mesh.overlays[0].upsert_peer(&older.verified, &record, now, unix).unwrap();
    mesh.overlays[0].upsert_peer(&newer.verified, &record, now, unix).unwrap();
    let again = mesh.overlays[0].upsert_peer(&older.verified, &record, now, unix);

    assert_eq!(again, Err(NotAPeer::Superseded));
    assert_eq!(mesh.overlays[0].peers.len(), 1);
    assert!(mesh.overlays[0].peers.by_id(&newer.verified.id()).is_some());
}

#[test]
fn nobody_takes_our_own_address_or_that_of_a_configured_peer() {
    let mut mesh = Mesh::of(2);
    let configured = configured(&WgPrivateKey::generate(&mut rng(9)), "10.42.0.2/32", None);
    mesh.overlays[0].configure_peer(&configured, mesh.now).unwrap();
    let (record, _) = mesh.nodes[1].record(&[endpoint(1)], 1);

    let taken = mesh.overlays[0].upsert_peer(&mesh.nodes[1].verified, &record, mesh.now, sim::UNIX);
    let ourselves = mesh.overlays[0].upsert_peer(&mesh.nodes[0].verified, &record, mesh.now, sim::UNIX);

    assert_eq!((taken, ourselves), (Err(NotAPeer::Configured), Err(NotAPeer::Ourselves)));
}

#[test]
fn a_configured_peer_needs_no_introduction_and_speaks_for_its_networks_alone() {
    let mut mesh = Mesh::of(3);
    mesh.resolves = false;
    let known =
        |mesh: &Mesh, node: usize, allowed: &str| configured(&mesh.nodes[node].wg, allowed, Some(endpoint(node as u8)));
    let (one, zero) = (known(&mesh, 1, "10.42.0.2/32"), known(&mesh, 0, "10.42.0.1/32"));
    mesh.overlays[0].configure_peer(&one, mesh.now).unwrap();
    mesh.overlays[1].configure_peer(&zero, mesh.now).unwrap();

    mesh.send(0, 1, b"plain wireguard").unwrap();
    mesh.send_as(0, 2, 1, b"spoofed").unwrap();

    assert_eq!(mesh.received(1), [b"plain wireguard"]);
    assert_eq!(mesh.dropped(1), [(Dropped::SpoofedSource, 1)]);
    assert!(mesh.wire.iter().all(|(_, _, datagram)| datagram[0] != introduction::TYPE));
    let slot = mesh.overlays[0].peers.by_address(address(1)).unwrap();
    assert!(matches!(mesh.overlays[0].peers.lock(slot).unwrap().source, PeerSource::Configured));
}

#[test]
fn a_refused_send_is_a_fact_about_a_path_and_leads_to_another() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.at[1] = ([203, 0, 113, 5], 4444).into();
    let (record, _) = mesh.nodes[1].record(&[mesh.at[1]], mesh.sequence() + 1);
    mesh.overlays[0].upsert_peer(&mesh.nodes[1].verified, &record, mesh.now, sim::UNIX).unwrap();

    mesh.send(0, 1, b"lost").unwrap();
    mesh.overlays[0].on_send_failed(endpoint(1), Dropped::Unreachable, mesh.now);
    mesh.advance(Duration::from_millis(1));
    mesh.send(0, 1, b"the other way").unwrap();

    assert_eq!(mesh.received(1).last().unwrap(), b"the other way");
}

#[test]
fn a_datagram_too_large_for_a_path_says_nothing_against_the_path() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.wire.clear();

    mesh.overlays[0].on_send_failed(endpoint(1), Dropped::TooBig, mesh.now);
    mesh.advance(Duration::from_secs(1));

    assert_eq!(mesh.counters(0).of(Dropped::TooBig), 1);
    assert!(mesh.wire.is_empty());
}

#[test]
fn a_quiet_peer_gets_no_packets() {
    let mut mesh = Mesh::of(2);
    mesh.send(0, 1, b"hello").unwrap();
    mesh.send(1, 0, b"hello").unwrap();
    mesh.wire.clear();

    mesh.advance(QUIET_AFTER * 100);

    assert!(mesh.wire.is_empty());
    assert_eq!(mesh.overlays[0].poll_timeout(), None);
}

#[test]
fn a_ping_is_answered_by_the_other_kernel_and_its_answer_does_not_reach_ours() {
    let mut mesh = Mesh::of(2);

    let id = mesh.overlays[0].ping(address(1), mesh.now).unwrap();
    mesh.settle();
    let request = mesh.received_packets(1).remove(0);
    let mut reply = request.clone();
    super::packet::write_header(address(1), address(0), 1, request.len() - 20, &mut reply);
    reply[20] = 0;
    mesh.now += Duration::from_millis(7);
    mesh.overlays[1].handle_tun_packet(&reply, mesh.now).unwrap();
    mesh.settle();

    let (answered, pong) = mesh.overlays[0].poll_pong().unwrap();
    let pong = pong.unwrap();
    assert_eq!((answered, pong.round_trip_micros), (id, 7000));
    assert_eq!((pong.name.as_deref(), pong.endpoint), (Some("node-1"), Some(endpoint(1))));
    assert_eq!(mesh.received_packets(0), NOTHING);
}

#[test]
fn a_ping_to_nobody_ends() {
    let mut mesh = Mesh::of(2);
    mesh.cut.insert(endpoint(1));
    let ping = |mesh: &mut Mesh, to: u8| {
        mesh.overlays[0].ping(address(to), mesh.now).unwrap();
        mesh.settle();
        mesh.advance(ping::TIMEOUT);
        mesh.overlays[0].poll_pong().unwrap().1.unwrap_err()
    };

    assert_eq!(ping(&mut mesh, 1), PingFailed::TimedOut);
    assert_eq!(ping(&mut mesh, 200), PingFailed::Unresolvable);
    assert_eq!(ping(&mut mesh, 0), PingFailed::NotAnother);
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_counted(kind in 0u8..=0x60, bytes in vec(any::<u8>(), 0..200)) {
        let mut mesh = Mesh::of(1);
        let datagram = [&[kind], &bytes[..]].concat();

        let done = mesh.inject(endpoint(9), 0, &datagram);

        prop_assert!(done.is_err());
        prop_assert_eq!(mesh.dropped(0).iter().map(|(_, count)| count).sum::<u64>(), 1);
    }

    #[test]
    fn real_datagrams_cut_short_or_changed_never_panic(which: prop::sample::Index, cut: prop::sample::Index, flip: u8) {
        let mut mesh = Mesh::of(2);
        mesh.send(0, 1, b"hello").unwrap();
        let (from, to, mut datagram) = which.get(&mesh.wire).clone();
        let at = cut.index(datagram.len());
        match flip {
            0 => datagram.truncate(at),
            flip => datagram[at] ^= flip,
        }

        _ = mesh.inject(from, usize::from(to == endpoint(1)), &datagram);
        mesh.send(0, 1, b"still works").unwrap();

        prop_assert_eq!(mesh.received(1).pop().unwrap(), b"still works");
    }

    #[test]
    fn any_packet_from_the_device_is_routed_or_counted(bytes in vec(any::<u8>(), 0..100)) {
        let mut mesh = Mesh::of(1);

        let done = mesh.overlays[0].handle_tun_packet(&bytes, mesh.now);

        prop_assert!(done.is_err());
    }
}

fn introduction_to(mesh: &Mesh, to: usize, record: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; MAX_DATAGRAM];
    let len = IntroductionKey::of(&mesh.nodes[to].wg.public()).seal(record, &mut datagram).unwrap();
    datagram.truncate(len);
    datagram
}

/// What `from` would send to `to`, not delivered.
fn initiation_of(mesh: &mut Mesh, from: usize, to: usize) -> Vec<u8> {
    mesh.cut.insert(mesh.at[to]);
    mesh.send(from, to, b"knock").unwrap();
    mesh.cut.clear();
    let initiation = mesh.wire.iter().find(|(_, _, datagram)| datagram[0] == 1);
    initiation.unwrap().2.clone()
}

fn configured(key: &WgPrivateKey, allowed: &str, endpoint: Option<SocketAddr>) -> ConfiguredPeer {
    let allowed = vec![allowed.parse().unwrap()];
    ConfiguredPeer { public_key: key.public(), allowed, endpoint, keepalive_secs: None }
}

fn rng(seed: u64) -> rand::rngs::StdRng {
    rand::SeedableRng::seed_from_u64(seed)
}
