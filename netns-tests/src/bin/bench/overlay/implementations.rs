//! What is compared: which of it is installed here, and how each is started.

mod nebula;
mod wireguard;
mod wiremesh;

use std::{
    ffi::OsStr,
    net::IpAddr,
    path::{Path, PathBuf},
};

use netns_tests::Process;
use wiremesh_certs::WgPublicKey;

pub use self::wiremesh::Mesh;
use self::{nebula::Nebula, wireguard::WireGuard, wiremesh::Wiremesh};
use super::{
    daemons::Daemons,
    figures::Measure,
    place::{Place, Side},
};
use crate::programs::{Missing, found, version_of};

/// The kernel's own path, without an overlay.
pub const RAW: &str = "raw";
/// What ours is judged against.
pub const REFERENCE: &str = "wireguard-go";
/// The other one that a target names.
pub const NEBULA: &str = "nebula";

/// One implementation that can be measured here.
#[derive(Debug)]
pub struct Implementation {
    /// What it is called in the results.
    pub name: String,
    /// What it says about its version.
    pub version: String,
    /// The program; the kernel's own path has none.
    pub program: Option<PathBuf>,
    kind: Kind,
}

/// How it is configured and started.
#[derive(Debug)]
enum Kind {
    Raw,
    WireGuard(WireGuard),
    Nebula(Nebula),
    Wiremesh(Wiremesh),
}

/// One implementation at work between the two ends.
pub struct Running {
    /// What it runs as.
    pub daemons: Daemons,
    /// The MTU inside.
    pub mtu: u32,
    addresses: [IpAddr; 2],
    _beside: Beside,
}

/// What must be there besides the daemons, for as long as they run.
#[expect(dead_code, reason = "held for what happens when it is dropped")]
enum Beside {
    Nothing,
    Coordinator(Process),
    Sockets(Vec<wireguard::Socket>),
}

/// One implementation at one end alone, with peers that somebody else plays.
pub struct Device {
    /// What it runs as.
    pub daemons: Daemons,
    /// Whom the peers talk to.
    pub public_key: WgPublicKey,
    /// Its address inside.
    pub address: IpAddr,
    _beside: Beside,
}

impl Implementation {
    /// Everything there is to compare with, and `ours`. Those that are not installed come as a sentence that says so.
    pub fn all(ours: &[(String, PathBuf)]) -> Vec<Result<Implementation, Missing>> {
        let mut all = vec![Ok(Implementation {
            name: RAW.to_owned(),
            version: "the kernel's own path".to_owned(),
            program: None,
            kind: Kind::Raw,
        })];
        for wireguard in WireGuard::ALL {
            all.push(found(wireguard.name, wireguard.program, wireguard.variable).map(|program| {
                let version = version_of(&program, "--version");
                Implementation::new(wireguard.name, version, program, Kind::WireGuard(wireguard))
            }));
        }
        all.push(found(NEBULA, "nebula", "NEBULA").map(|program| {
            let version = version_of(&program, "-version");
            Implementation::new(NEBULA, version, program, Kind::Nebula(Nebula))
        }));
        all.extend(ours.iter().map(|(name, program)| {
            if !program.exists() {
                return Err(Missing { name: name.clone(), looked: format!("{} is not there", program.display()) });
            }
            let version = version_of(program, "--version");
            Ok(Implementation::new(name, version, program.clone(), Kind::Wiremesh(Wiremesh)))
        }));
        all
    }

    fn new(name: &str, version: String, program: PathBuf, kind: Kind) -> Implementation {
        Implementation { name: name.to_owned(), version, program: Some(program), kind }
    }

    /// Whether it is a build of ours, to be judged.
    pub fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Wiremesh(_))
    }

    /// Whether the measure means anything for it.
    pub fn can(&self, measure: Measure) -> bool {
        match measure {
            Measure::Peers => matches!(self.kind, Kind::WireGuard(_) | Kind::Wiremesh(_)),
            Measure::Silent => self.is_ours(),
            _ => true,
        }
    }

    /// Starts it at both ends. Its files go to `folder`; `number` makes the names of its interfaces unique.
    pub fn start(&self, place: &Place, folder: &Path, number: usize) -> anyhow::Result<Running> {
        let program = self.program.as_deref().unwrap_or(Path::new(""));
        match &self.kind {
            Kind::Raw => Ok(Running {
                daemons: Daemons::default(),
                mtu: place.cable_mtu(),
                addresses: [Side::Near.underlay().into(), Side::Far.underlay().into()],
                _beside: Beside::Nothing,
            }),
            Kind::WireGuard(wireguard) => wireguard.start(program, place, folder, number),
            Kind::Nebula(nebula) => nebula.start(program, place, folder, number),
            Kind::Wiremesh(wiremesh) => wiremesh.start(program, place, folder, number),
        }
    }

    /// Starts it at the near end, with these peers, who will call from the far end.
    pub fn start_alone(
        &self,
        place: &Place,
        folder: &Path,
        number: usize,
        peers: &[(WgPublicKey, IpAddr)],
    ) -> anyhow::Result<Device> {
        let program = self.program.as_deref().unwrap_or(Path::new(""));
        match &self.kind {
            Kind::Raw | Kind::Nebula(_) => anyhow::bail!("does not speak WireGuard"),
            Kind::WireGuard(wireguard) => wireguard.start_alone(program, place, folder, number, peers),
            Kind::Wiremesh(wiremesh) => wiremesh.start_alone(program, place, folder, number, peers),
        }
    }
}

impl Running {
    /// The address of an end that traffic goes to.
    pub fn address(&self, side: Side) -> IpAddr {
        match side {
            Side::Near => self.addresses[0],
            Side::Far => self.addresses[1],
        }
    }
}

/// `name-side.extension` in a folder.
fn file_for(folder: &Path, name: impl AsRef<OsStr>, side: Side, extension: &str) -> PathBuf {
    let mut file = name.as_ref().to_owned();
    file.push(format!("-{}.{extension}", side.name()));
    folder.join(file)
}
