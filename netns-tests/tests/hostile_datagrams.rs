//! What comes to the UDP socket from people with bad intentions: counted and dropped, while honest traffic goes on.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use boringtun::noise::TunnResult;
use netns_tests::{
    Agent, Coordinator, Lab, Node, Session, eventually,
    forge::{self, Identity},
    story_within, tunn,
};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use wiremesh::clock;
use wiremesh_certs::{Verified, WgPrivateKey, WgPublicKey};

const LIMIT: Duration = Duration::from_secs(120);
/// Of each kind, in a few seconds: more than any honest neighbourhood sends of handshakes and introductions.
const FLOOD: usize = 20_000;
/// Memory that a flood may leave behind.
const MEMORY_KIB: u64 = 12 * 1024;

#[test]
fn a_peer_speaks_for_its_own_address_and_no_other() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let key = WgPrivateKey::generate(&mut forge::randomness());
        let peer = format!("[[overlay.peer]]\npublic_key = \"{}\"\naddress = \"10.42.255.10\"", key.public());
        let victim = lab.node("victim")?.with_configuration(&peer).join(&coordinator)?;
        let other = lab.node("other")?.join(&coordinator)?;
        let attacker = lab.bare_node("attacker")?;
        let victim_ip = victim.overlay_ip()?;
        let to = identity_of(&coordinator, &attacker, "victim")?.wg();
        let listener = victim.node.run(|| UdpSocket::bind((victim_ip, 7000)))??;
        listener.set_read_timeout(Some(Duration::from_millis(500)))?;

        let address = SocketAddr::from((victim.node.address(), 51820));
        let mut session = attacker.run(|| Session::open(&key, &to, address))??;
        let own: IpAddr = "10.42.255.10".parse()?;
        session.send(&udp_packet(own, victim_ip, b"honest")?)?;
        assert_eq!(received(&listener)?.as_deref(), Some(&b"honest"[..]));

        let before = victim.metric("wiremesh", "spoofed_source")?;
        let lies = [other.overlay_ip()?, victim_ip, "10.42.255.11".parse()?, "8.8.8.8".parse()?, "127.0.0.1".parse()?];
        for source in lies {
            session.send(&udp_packet(source, victim_ip, b"spoofed")?)?;
        }
        session.send(&udp_packet(own, other.overlay_ip()?, b"not for you")?)?;
        session.send(b"\x45this is no packet")?;

        assert_eq!(received(&listener)?, None);
        eventually("the lies are counted", Duration::from_secs(5), || {
            let counted = victim.metric("wiremesh", "spoofed_source")? - before;
            anyhow::ensure!(counted >= lies.len() as f64, "{counted} of {}", lies.len());
            Ok(())
        })?;
        session.send(&udp_packet(own, victim_ip, b"honest again")?)?;
        assert_eq!(received(&listener)?.as_deref(), Some(&b"honest again"[..]));
        Ok(())
    });
}

#[test]
fn the_overlay_address_is_not_reachable_through_the_underlay() {
    story_within(LIMIT, |lab| {
        let coordinator = lab.coordinator()?;
        let victim = lab.node("victim")?.join(&coordinator)?;
        let neighbour = lab.bare_node("neighbour")?;
        let overlay_ip = victim.overlay_ip()?;
        neighbour.default_route(victim.node.address())?;

        let api = SocketAddr::new(overlay_ip, 8000);
        let connected = neighbour.run(|| TcpStream::connect_timeout(&api, Duration::from_secs(2)))?;
        anyhow::ensure!(connected.is_err(), "connected to {api} without WireGuard");
        // It is the address that is not reachable, not the machine.
        let echo = victim.node.run(|| TcpListener::bind((victim.node.address(), 7000)))??;
        neighbour.run(|| TcpStream::connect_timeout(&echo.local_addr()?, Duration::from_secs(2)))??;
        Ok(())
    });
}

#[test]
fn garbage_and_floods_of_bad_introductions_are_counted_and_honest_traffic_goes_on() {
    story_within(LIMIT, |lab| {
        let (caller, mut victim, to, attacker) = under_attack(lab)?;
        let memory = victim.running()?.memory_kib()?;
        let counters = ["garbage", "introduction_forged", "introduction_refused", "introduction_rate"];
        let count = |victim: &Agent| -> anyhow::Result<Vec<f64>> {
            counters.iter().map(|counter| victim.metric("wiremesh", counter)).collect()
        };
        let before = count(&victim)?;
        let cpu = victim.running()?.cpu_time()?;
        let started_at = clock::now();

        let over = AtomicBool::new(false);
        let (sent, honest) = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let sent = attacker.run(|| flood(SocketAddr::from((victim.node.address(), 51820)), &to));
                over.store(true, Ordering::Relaxed);
                sent
            });
            let mut honest = Vec::new();
            while !over.load(Ordering::Relaxed) {
                honest.push(caller.post("/service/ocr", "an honest page")?.expect_ok()?);
            }
            let sent = sending.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))???;
            anyhow::Ok((sent, honest))
        })?;

        let (took, used) = (clock::now() - started_at, victim.running()?.cpu_time()? - cpu);
        let after = count(&victim)?;
        println!("{sent} datagrams in {took:?}, processor {used:?}, {} honest requests", honest.len());
        assert!(honest.iter().all(|answer| answer.header("x-wiremesh-path") == "overlay"));
        assert!(honest.len() > 5, "{} honest requests in {took:?}", honest.len());
        for ((counter, before), after) in counters.iter().zip(before).zip(after) {
            assert!(after > before, "{counter} stayed at {after}");
        }
        let grown = victim.running()?.memory_kib()?.saturating_sub(memory);
        assert!(grown < MEMORY_KIB, "{grown} KiB more");

        // And when it is over, it is over.
        let quiet = victim.running()?.cpu_time()?;
        thread::sleep(Duration::from_secs(3));
        let quiet = victim.running()?.cpu_time()? - quiet;
        assert!(quiet < Duration::from_millis(600), "still busy after the flood: {quiet:?} of 3 s");
        assert_eq!(caller.post("/service/ocr", "after")?.expect_ok()?.header("x-wiremesh-path"), "overlay");
        Ok(())
    });
}

fn under_attack(lab: &mut Lab) -> anyhow::Result<(Agent, Agent, WgPublicKey, Node)> {
    let coordinator = lab.coordinator()?;
    let caller = lab.node("caller")?.join(&coordinator)?;
    let victim = lab.node("victim")?.serving("ocr").join(&coordinator)?;
    victim.expect_published()?;
    caller.post("/service/ocr", "before")?.expect_ok()?;
    let attacker = lab.bare_node("attacker")?;
    let to = identity_of(&coordinator, &attacker, "victim")?.wg();
    Ok((caller, victim, to, attacker))
}

fn identity_of(coordinator: &Coordinator, from: &Node, name: &str) -> anyhow::Result<Verified> {
    let authority = forge::authority_of(coordinator)?;
    let asker = Identity::by(&authority, "asker", "10.42.200.9".parse()?)?;
    eventually("the coordinator knows it", Duration::from_secs(15), || {
        forge::who_is(from, coordinator, &authority, &asker, name)
    })
}

/// Everything that is wrong in some way, mixed: random bytes, cut messages, introductions by people who do not know the
/// key, and by people who do.
fn flood(to: SocketAddr, key: &WgPublicKey) -> anyhow::Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut rng = SmallRng::seed_from_u64(1);
    let stranger = WgPrivateKey::generate(&mut forge::randomness());
    let mut initiation = [0; 148];
    let mut tunn = tunn(&stranger, key);
    let TunnResult::WriteToNetwork(initiation) = tunn.format_handshake_initiation(&mut initiation, true) else {
        anyhow::bail!("no handshake to begin with");
    };
    let mut sent = 0;
    for number in 0..FLOOD {
        let mut bytes = vec![0; rng.random_range(0..1400)];
        rng.fill_bytes(&mut bytes);
        if let Some(kind) = bytes.first_mut().filter(|_| number % 2 == 0) {
            *kind = [0, 1, 2, 3, 4, 5, 0x57][number / 2 % 7];
        }
        let record = &bytes[..bytes.len().min(1000)];
        let datagrams = [
            bytes.clone(),
            initiation[..number % initiation.len()].to_vec(),
            initiation.to_vec(),
            forge::introduction(record, &stranger.public())?,
            forge::introduction(record, key)?,
        ];
        for datagram in datagrams {
            match socket.send_to(&datagram, to) {
                Ok(_) => sent += 1,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => anyhow::bail!("nobody listens"),
                Err(_) => {}
            }
        }
        // About 20,000 a second: as much as this test can say without being the bottleneck itself.
        if number % 20 == 0 {
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(sent)
}

/// An IPv4 packet with a UDP datagram for port 7000.
fn udp_packet(from: IpAddr, to: IpAddr, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { anyhow::bail!("IPv4 only") };
    let length = u16::try_from(28 + payload.len())?;
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&7000_u16.to_be_bytes());
    packet.extend_from_slice(&7000_u16.to_be_bytes());
    packet.extend_from_slice(&(length - 20).to_be_bytes());
    // A checksum of zero: none.
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    Ok(packet)
}

fn received(listener: &UdpSocket) -> anyhow::Result<Option<Vec<u8>>> {
    let mut bytes = [0; 2048];
    match listener.recv(&mut bytes) {
        Ok(length) => Ok(Some(bytes[..length].to_vec())),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
