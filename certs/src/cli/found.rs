//! The certificates that a file holds: whose they are, and how long they live. Nothing is believed.

use super::life::{Life, Of};
use crate::{
    BadCertificate, CaCertificate, NodeId, OverlayIp, RevocationList, Serial,
    certificate::{self, COORDINATOR_NAME, NodeClaims, Outline},
};

/// What a certificate is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A node's.
    Node,
    /// For the coordinator's TLS.
    Coordinator,
    /// An authority's that signed itself.
    Root,
    /// An authority's that another signed, for nodes alone.
    Intermediate,
    /// A root's key, signed by another root: the way from that one to this.
    Cross,
}

impl Kind {
    /// An intermediate is told from a cross certificate by its path length.
    pub fn of_authority(ca: &CaCertificate) -> Kind {
        match ca.path_length() {
            _ if ca.is_root() => Kind::Root,
            Some(_) => Kind::Intermediate,
            None => Kind::Cross,
        }
    }

    /// As JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Node => "node",
            Kind::Coordinator => "coordinator",
            Kind::Root => "ca",
            Kind::Intermediate => "intermediate",
            Kind::Cross => "cross",
        }
    }

    /// Whose life it lives.
    pub fn of(self) -> Of {
        match self {
            Kind::Node | Kind::Coordinator => Of::Member,
            Kind::Root | Kind::Intermediate | Kind::Cross => Of::Authority,
        }
    }
}

/// One certificate, and what stands above it in the same file.
#[derive(Debug)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Of the node, else of the mesh.
    pub name: String,
    /// Of its mesh.
    pub mesh: String,
    /// A node's.
    pub address: Option<OverlayIp>,
    /// Its serial number.
    pub serial: Serial,
    /// Its key.
    pub key: NodeId,
    /// While all of them are valid.
    pub life: Life,
    above: Vec<(Serial, NodeId)>,
}

impl Found {
    /// Whether it is on the list, or an authority above it.
    pub fn is_revoked(&self, list: &RevocationList) -> bool {
        list.revokes(&self.serial, &self.key) || self.above.iter().any(|(serial, key)| list.revokes(serial, key))
    }
}

/// The certificates in PEM or DER: a node's or coordinator's with its chain counts as one, authorities count alone.
pub fn found_in(bytes: &[u8]) -> Result<Vec<Found>, BadCertificate> {
    let ders = match std::str::from_utf8(bytes) {
        Ok(text) if text.len() > certificate::MAX_PEM_BYTES => {
            return Err(BadCertificate("more text than a chain can have"));
        }
        Ok(text) => pem::parse_many(text)
            .map_err(|_| BadCertificate("not PEM"))?
            .into_iter()
            .filter(|block| block.tag() == "CERTIFICATE")
            .map(pem::Pem::into_contents)
            .collect(),
        Err(_) => vec![bytes.to_vec()],
    };
    let (first, above) = ders.split_first().ok_or(BadCertificate("no CERTIFICATE block in it"))?;
    match authority(first) {
        Ok(first) => {
            let rest = above.iter().map(|der| authority(der));
            [Ok(first)].into_iter().chain(rest).collect()
        }
        Err(_) => member(first, above).map(|found| vec![found]),
    }
}

fn authority(der: &[u8]) -> Result<Found, BadCertificate> {
    let ca = CaCertificate::from_der(der.to_vec())?;
    Ok(Found {
        kind: Kind::of_authority(&ca),
        name: ca.mesh().to_string(),
        mesh: ca.mesh().to_string(),
        address: None,
        serial: ca.serial(),
        key: ca.key(),
        life: Life { from: ca.not_before(), until: ca.not_after() },
        above: Vec::new(),
    })
}

fn member(der: &[u8], above: &[Vec<u8>]) -> Result<Found, BadCertificate> {
    let outline = Outline::parse(der)?;
    let mut found = Found {
        kind: Kind::Coordinator,
        name: COORDINATOR_NAME.to_owned(),
        mesh: String::new(),
        address: None,
        serial: outline.serial,
        key: outline.key,
        life: Life { from: outline.not_before, until: outline.not_after },
        above: Vec::new(),
    };
    match certificate::coordinator_mesh(&outline) {
        Some(mesh) => found.mesh = mesh.to_string(),
        None => {
            let claims = NodeClaims::of(&outline)?;
            found.kind = Kind::Node;
            found.name = claims.name.to_string();
            found.mesh = claims.mesh.to_string();
            found.address = Some(claims.address);
        }
    }
    for der in above {
        let above = authority(der)?;
        found.life.from = found.life.from.max(above.life.from);
        found.life.until = found.life.until.min(above.life.until);
        found.above.push((above.serial, above.key));
    }
    Ok(found)
}
