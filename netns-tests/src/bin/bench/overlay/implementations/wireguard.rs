//! Daemons that are configured by WireGuard's cross-platform interface: wireguard-go, boringtun, gotatun.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use netns_tests::{Process, forge};
use wiremesh_certs::{WgPrivateKey, WgPublicKey};

use super::{Beside, Device, Running, file_for};
use crate::{
    overlay::{
        daemons::Daemons,
        place::{Place, SIDES, Side},
    },
    programs::until_ready,
};

/// Where every implementation has its socket, named as its interface.
const SOCKETS: &str = "/var/run/wireguard";
const PORT: u16 = 51820;
const START_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const OVERLAY_BITS: u8 = 16;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct WireGuard {
    /// What it is called in the results.
    pub name: &'static str,
    /// What its program is called.
    pub program: &'static str,
    /// The variable that says where it is.
    pub variable: &'static str,
    /// What precedes the name of the interface.
    arguments: &'static [&'static str],
}

/// The file that a device is configured by. A device ends when it is removed, and a killed one leaves it behind.
pub struct Socket(PathBuf);

/// A peer, as a device must know it.
struct Peer {
    key: WgPublicKey,
    allowed: IpAddr,
    endpoint: Option<SocketAddr>,
}

impl WireGuard {
    /// All that we know.
    pub const ALL: [WireGuard; 3] = [
        WireGuard {
            name: super::REFERENCE,
            program: "wireguard-go",
            variable: "WIREGUARD_GO",
            arguments: &["--foreground"],
        },
        WireGuard {
            name: "boringtun",
            program: "boringtun-cli",
            variable: "BORINGTUN",
            arguments: &["--foreground", "--disable-drop-privileges"],
        },
        WireGuard {
            name: "gotatun",
            program: "gotatun",
            variable: "GOTATUN",
            arguments: &["--foreground", "--disable-drop-privileges", "--verbosity", "error"],
        },
    ];

    pub(super) fn start(&self, program: &Path, place: &Place, folder: &Path, number: usize) -> anyhow::Result<Running> {
        let keys = SIDES.map(|_| WgPrivateKey::generate(&mut forge::randomness()));
        let addresses = SIDES.map(own_address);
        let mut launched = Vec::new();
        for (at, side) in SIDES.into_iter().enumerate() {
            let peer = Peer {
                key: keys[1 - at].public(),
                allowed: addresses[1 - at],
                endpoint: Some((side.other().underlay(), PORT).into()),
            };
            launched.push(self.launch(program, place, side, folder, number, &keys[at], &[peer])?);
        }
        let (processes, sockets): (Vec<Process>, Vec<Socket>) = launched.into_iter().unzip();
        let beside = Beside::Sockets(sockets);
        Ok(Running { daemons: Daemons::new(processes)?, mtu: place.overlay_mtu(), addresses, _beside: beside })
    }

    pub(super) fn start_alone(
        &self,
        program: &Path,
        place: &Place,
        folder: &Path,
        number: usize,
        peers: &[(WgPublicKey, IpAddr)],
    ) -> anyhow::Result<Device> {
        let key = WgPrivateKey::generate(&mut forge::randomness());
        let peers: Vec<Peer> =
            peers.iter().map(|(key, allowed)| Peer { key: *key, allowed: *allowed, endpoint: None }).collect();
        let (process, socket) = self.launch(program, place, Side::Near, folder, number, &key, &peers)?;
        Ok(Device {
            daemons: Daemons::new([process])?,
            public_key: key.public(),
            address: own_address(Side::Near),
            _beside: Beside::Sockets(vec![socket]),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "two devices of one run differ in each of these")]
    fn launch(
        &self,
        program: &Path,
        place: &Place,
        side: Side,
        folder: &Path,
        number: usize,
        key: &WgPrivateKey,
        peers: &[Peer],
    ) -> anyhow::Result<(Process, Socket)> {
        // The sockets of all network namespaces are in one folder.
        let interface = format!("bench{number}{}", &side.name()[..1]);
        let socket = PathBuf::from(SOCKETS).join(format!("{interface}.sock"));
        let mut command = place.namespace(side).command(program)?;
        command.args(self.arguments).arg(&interface).env("LOG_LEVEL", "error");
        let mut process = Process::start(self.name, command, &file_for(folder, self.name, side, "log"))?;
        let socket = Socket(socket);
        until_ready(&mut process, START_LIMIT, || configure(&socket.0, &configuration(key, peers)?))?;
        place.bring_up(side, &interface, own_address(side), OVERLAY_BITS, place.overlay_mtu())?;
        Ok((process, socket))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The program may have done so itself.
        let _ = fs::remove_file(&self.0);
    }
}

fn own_address(side: Side) -> IpAddr {
    IpAddr::V4(match side {
        Side::Near => Ipv4Addr::new(10, 42, 0, 1),
        Side::Far => Ipv4Addr::new(10, 42, 0, 2),
    })
}

/// The text that sets a device up.
fn configuration(key: &WgPrivateKey, peers: &[Peer]) -> anyhow::Result<String> {
    let mut text = format!("set=1\nprivate_key={}\nlisten_port={PORT}\n", hexadecimal(key.bytes()));
    for Peer { key, allowed, endpoint } in peers {
        writeln!(text, "public_key={}", hexadecimal(&key.0))?;
        if let Some(endpoint) = endpoint {
            writeln!(text, "endpoint={endpoint}")?;
        }
        let bits = if allowed.is_ipv4() { 32 } else { 128 };
        writeln!(text, "replace_allowed_ips=true\nallowed_ip={allowed}/{bits}")?;
    }
    text.push('\n');
    Ok(text)
}

fn configure(socket: &Path, text: &str) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("reading whether it was configured")?;
    anyhow::ensure!(answer.trim() == "errno=0", "refused: {answer}");
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_described_as_the_interface_wants_it() {
        let key = WgPrivateKey::generate(&mut forge::randomness());
        let peer = Peer {
            key: WgPublicKey([0xab; 32]),
            allowed: "10.42.0.2".parse().unwrap(),
            endpoint: Some("203.0.113.2:51820".parse().unwrap()),
        };

        let text = configuration(&key, &[peer]).unwrap();

        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "listen_port=51820",
                &format!("public_key={}", "ab".repeat(32)),
                "endpoint=203.0.113.2:51820",
                "replace_allowed_ips=true",
                "allowed_ip=10.42.0.2/32",
                ""
            ]
        );
    }
}
