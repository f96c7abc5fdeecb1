//! This node, as the overlay knows it: its keys, its address, what it says of itself.

use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use wiremesh_certs::{BridgeTag, NodeRecord, OverlayIp, Serial, Signed, WgPrivateKey, WgPublicKey};

use super::{Dropped, introduction::IntroductionKey, packet::is_for_many};

/// Where we are in the overlay, which decides what may leave and what may come in.
#[derive(Clone, Copy, Debug)]
pub struct OwnAddress {
    /// Our overlay address.
    pub address: OverlayIp,
    /// The overlay network.
    pub network: IpNet,
}

/// What does not change while the overlay runs, and the record that does.
pub struct Own {
    /// Where we are in the overlay.
    pub at: OwnAddress,
    /// Our WireGuard key. Zeroed when dropped.
    pub secret: StaticSecret,
    /// Its public half, as boringtun wants it …
    pub public: PublicKey,
    /// … and as we do.
    pub key: WgPublicKey,
    /// Opens introductions made for us.
    pub introduction_key: IntroductionKey,
    /// The container engine's bridges that we are on.
    pub bridges: Vec<BridgeTag>,
    record: Option<(Signed<NodeRecord>, Serial)>,
}

impl Own {
    /// Without a record yet: nobody can be introduced to us.
    pub fn new(key: &WgPrivateKey, at: OwnAddress) -> Own {
        let secret = StaticSecret::from(*key.bytes());
        Own {
            at,
            public: PublicKey::from(&secret),
            secret,
            key: key.public(),
            introduction_key: IntroductionKey::of(&key.public()),
            bridges: Vec::new(),
            record: None,
        }
    }

    /// What we say of ourselves from here on. True if it is by another certificate than before.
    pub fn set_record(&mut self, record: Signed<NodeRecord>, serial: Serial) -> bool {
        let before = self.record.replace((record, serial));
        before.is_some_and(|(_, before)| before != serial)
    }

    /// What we say of ourselves.
    pub fn record(&self) -> Option<&Signed<NodeRecord>> {
        self.record.as_ref().map(|(record, _)| record)
    }
}

impl OwnAddress {
    /// Whether a packet of ours may go where it wants to.
    pub fn may_send(&self, source: OverlayIp, destination: OverlayIp) -> Result<(), Dropped> {
        if is_for_many(destination, &self.network) {
            return Err(Dropped::Multicast);
        }
        if source != self.address {
            return Err(Dropped::ForeignSource);
        }
        if destination == self.address || !self.network.contains(&destination.0) {
            return Err(Dropped::NoRoute);
        }
        Ok(())
    }
}
