//! What the files of the state directory say.
//!
//! | file | holds | mode | lost |
//! |------|-------|------|------|
//! | `identity.key` | Ed25519 key, PKCS#8 PEM | 0600 | the node is another one: new token, new address |
//! | `wireguard.key` | X25519 key, as `wg genkey` | 0600 | the node must join again |
//! | `ca.crt` | the mesh's authority, PEM | 0644 | the node must join again |
//! | `node.crt` | our chain, PEM; its presence means joined | 0644 | the node must join again |
//! | `member.json` | [`MemberFile`] | 0644 | coordinators must be configured |
//! | `seeds.json` | [`SeedsFile`] | 0644 | first contacts come from the coordinator |
//! | `revocations.bin` | the signed revocation list | 0644 | the coordinator gives it again |
//! | `*.next`, `*.old` | a change of keys under way | 0600 | it begins again |

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wiremesh_certs::{MeshName, Trust, UnixTime};

use crate::api::{MAX_COORDINATORS, MAX_SEEDS, Seed};

/// Seeds kept on disk: more than one answer has, so that one bad answer does not replace all.
pub const MAX_KEPT_SEEDS: usize = 4 * MAX_SEEDS;

/// Which mesh we are in and who runs it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemberFile {
    /// The mesh's name, for people; the authority's certificate says it too.
    pub mesh: MeshName,
    /// The overlay network, for people.
    pub network: IpNet,
    /// Where coordinators are reached.
    pub coordinators: Vec<String>,
    /// When the keys in use were made; absent in directories of before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_made_at: Option<UnixTime>,
}

impl MemberFile {
    /// Reads the file; says what is wrong with it.
    pub fn parse(text: &str) -> Result<MemberFile, serde_json::Error> {
        let mut file: MemberFile = serde_json::from_str(text)?;
        file.coordinators.truncate(MAX_COORDINATORS);
        Ok(file)
    }

    /// The file's contents.
    pub fn to_text(&self) -> String {
        text(self)
    }
}

/// Members that were healthy when a coordinator last told us.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct SeedsFile {
    /// Newest first.
    pub seeds: Vec<Seed>,
}

impl SeedsFile {
    /// Reads the file; says what is wrong with it.
    pub fn parse(text: &str) -> Result<SeedsFile, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The file's contents.
    pub fn to_text(&self) -> String {
        text(self)
    }

    /// Takes in fresh seeds, one per node, the freshest first, at most [`MAX_KEPT_SEEDS`].
    pub fn merge(&mut self, fresh: Vec<Seed>) {
        let kept = std::mem::replace(&mut self.seeds, fresh);
        for seed in kept {
            if !self.seeds.iter().any(|known| known.worker_id == seed.worker_id) {
                self.seeds.push(seed);
            }
        }
        self.seeds.truncate(MAX_KEPT_SEEDS);
    }

    /// Drops whoever is no longer believed. What lies on a disk is believed no more than what comes over the network.
    pub fn believed(mut self, trust: &Trust, now: UnixTime) -> SeedsFile {
        self.seeds.truncate(MAX_KEPT_SEEDS);
        self.seeds.retain(|seed| {
            trust
                .open(&seed.record, now)
                .is_ok_and(|opened| opened.by.address() == seed.vpn_ip && *opened.by.name() == seed.worker_id)
        });
        self
    }
}

fn text(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("names, addresses and URLs are JSON");
    text.push('\n');
    text
}
