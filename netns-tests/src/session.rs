//! A WireGuard session by hand: a peer that sends what no honest one would, in the order and company it likes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Context;
use boringtun::noise::{Tunn, TunnResult};
use quinn_udp::{Transmit, UdpSocketState};
use wiremesh_certs::{WgPrivateKey, WgPublicKey};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// No datagram of these stories is larger.
const MAX_BYTES: usize = 2048;

/// A session with an agent.
pub struct Session {
    tunn: Tunn,
    socket: UdpSocket,
}

impl Session {
    /// Shakes hands with the agent at `address`. To be called on a node.
    pub fn open(key: &WgPrivateKey, to: &WgPublicKey, address: SocketAddr) -> anyhow::Result<Session> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut session = Session { tunn: tunn(key, to), socket };
        let mut out = [0; MAX_BYTES];
        let TunnResult::WriteToNetwork(initiation) = session.tunn.format_handshake_initiation(&mut out, true) else {
            anyhow::bail!("no handshake to begin with");
        };
        session.socket.send(initiation)?;
        let mut answer = [0; MAX_BYTES];
        let length = session.socket.recv(&mut answer).context("no answer to a handshake")?;
        match session.tunn.decapsulate(None, &answer[..length], &mut out) {
            TunnResult::WriteToNetwork(keepalive) => session.socket.send(keepalive)?,
            other => anyhow::bail!("the handshake ended with {other:?}"),
        };
        Ok(session)
    }

    /// Sends a packet.
    pub fn send(&mut self, packet: &[u8]) -> anyhow::Result<()> {
        let datagram = self.seal(packet)?;
        self.socket.send(&datagram)?;
        Ok(())
    }

    /// Sends packets so that they arrive side by side, as far as their sizes allow: all of one size, the last may be
    /// smaller.
    pub fn send_together(&mut self, packets: &[Vec<u8>]) -> anyhow::Result<()> {
        let datagrams: Vec<_> = packets.iter().map(|packet| self.seal(packet)).collect::<anyhow::Result<_>>()?;
        let state = UdpSocketState::new((&self.socket).into())?;
        self.socket.set_nonblocking(false)?;
        for run in runs(&datagrams) {
            let contents = run.concat();
            let segment_size = (run.len() > 1).then(|| run[0].len());
            let destination = self.socket.peer_addr()?;
            let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
            state.try_send((&self.socket).into(), &transmit)?;
        }
        Ok(())
    }

    /// The next packet that comes. None: nothing comes for so long.
    pub fn receive(&mut self, limit: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        self.socket.set_read_timeout(Some(limit))?;
        let (mut datagram, mut out) = ([0; MAX_BYTES], [0; MAX_BYTES]);
        loop {
            let length = match self.socket.recv(&mut datagram) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            };
            match self.tunn.decapsulate(None, &datagram[..length], &mut out) {
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    return Ok(Some(packet.to_vec()));
                }
                TunnResult::Done | TunnResult::Err(_) => {}
                TunnResult::WriteToNetwork(answer) => _ = self.socket.send(answer)?,
            }
        }
    }

    fn seal(&mut self, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut out = [0; MAX_BYTES];
        match self.tunn.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.to_vec()),
            other => anyhow::bail!("not sealed: {other:?}"),
        }
    }
}

/// A peer that knows `to`.
pub fn tunn(key: &WgPrivateKey, to: &WgPublicKey) -> Tunn {
    Tunn::new((*key.bytes()).into(), to.0.into(), None, None, 7, None)
}

/// What one send takes: datagrams of one size, and one that is smaller.
fn runs(datagrams: &[Vec<u8>]) -> impl Iterator<Item = &[Vec<u8>]> {
    let mut end = None;
    datagrams.chunk_by(move |before, after| {
        let size = *end.get_or_insert(before.len());
        let goes_on = before.len() == size && after.len() <= size;
        if !goes_on {
            end = None;
        }
        goes_on
    })
}
