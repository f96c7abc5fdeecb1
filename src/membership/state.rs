//! What the files of the state directory say.
//!
//! | file | holds | mode | lost |
//! |------|-------|------|------|
//! | `identity.key` | Ed25519 key, PKCS#8 PEM | 0600 | the node is another one: new token, new address |
//! | `wireguard.key` | X25519 key, as `wg genkey` | 0600 | the node must join again |
//! | `ca.crt` | the authorities that are believed, PEM, the one that issues first | 0644 | the node must join again |
//! | `node.crt` | our chain, PEM; its presence means joined | 0644 | the node must join again |
//! | `member.json` | [`MemberFile`] | 0644 | coordinators must be configured; a list older than one that was enforced is not noticed |
//! | `seeds.json` | [`SeedsFile`] | 0644 | first contacts come from the coordinator |
//! | `revocations.bin` | the signed list in force | 0644 | the coordinator gives it again |
//! | `*.next`, `*.old` | a change of keys under way | 0600 | it begins again |
//!
//! When a list names other authorities, `ca.crt` is written twice: with the old and the new ones before the list, with the
//! new ones alone after it. Whatever a crash leaves in between starts: the list that is there is signed by one of them.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wiremesh_certs::{
    CaCertificate, Fingerprint, MAX_AUTHORITIES, MeshName, Refused, SignedRevocations, Trust, UnixTime,
};

use crate::api::{self, BadJson, MAX_COORDINATORS, MAX_SEEDS, Seed};

/// Seeds kept on disk: more than one answer has, so that one bad answer does not replace all.
pub const MAX_KEPT_SEEDS: usize = 4 * MAX_SEEDS;

/// Authorities remembered after they were believed, so that a token of the mesh's earlier days is not taken for another
/// mesh's. At the bound the oldest is forgotten: its tokens have ended long ago.
pub const MAX_FORMER_AUTHORITIES: usize = 32;

/// Which mesh we are in, who runs it, and what it must not fall back behind.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MemberFile {
    /// The mesh's name, for people; the authority's certificate says it too.
    pub mesh: MeshName,
    /// The overlay network, for people.
    pub network: IpNet,
    /// Where coordinators are reached.
    pub coordinators: Vec<String>,
    /// Every authority that was ever believed, the latest first.
    #[serde(default)]
    pub authorities: Vec<Fingerprint>,
    /// The highest number of a list that was ever enforced here.
    #[serde(default)]
    pub enforced: u64,
    /// When the keys in use were made; absent in directories of before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_made_at: Option<UnixTime>,
}

impl MemberFile {
    /// Of the mesh that `trust` is of, without coordinators.
    pub fn of(trust: &Trust) -> MemberFile {
        let mut file = MemberFile {
            mesh: trust.mesh().clone(),
            network: trust.network(),
            coordinators: Vec::new(),
            authorities: Vec::new(),
            enforced: 0,
            keys_made_at: None,
        };
        file.observe(trust);
        file
    }

    /// Reads the file; says what is wrong with it.
    pub fn parse(text: &str) -> Result<MemberFile, BadJson> {
        let mut file: MemberFile = api::read(text.as_bytes())?;
        file.coordinators.truncate(MAX_COORDINATORS);
        file.authorities.truncate(MAX_FORMER_AUTHORITIES);
        Ok(file)
    }

    /// Takes note of whom `trust` believes and what it enforces. True if any of it is news.
    pub fn observe(&mut self, trust: &Trust) -> bool {
        let before = (self.enforced, self.authorities.clone());
        self.enforced = self.enforced.max(trust.revocation_number());
        for authority in trust.authorities().iter().rev() {
            let fingerprint = authority.fingerprint();
            if !self.authorities.contains(&fingerprint) {
                self.authorities.insert(0, fingerprint);
            }
        }
        self.authorities.truncate(MAX_FORMER_AUTHORITIES);
        (self.enforced, &self.authorities) != (before.0, &before.1)
    }

    /// Whether this is, or was, an authority of the mesh.
    pub fn knows(&self, authority: &Fingerprint) -> bool {
        self.authorities.contains(authority)
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
    pub fn parse(text: &str) -> Result<SeedsFile, BadJson> {
        api::read(text.as_bytes())
    }

    /// The file's contents.
    pub fn to_text(&self) -> String {
        text(self)
    }

    /// Takes in fresh seeds, one per node, the freshest first, at most [`MAX_KEPT_SEEDS`].
    pub fn merge(&mut self, fresh: Vec<Seed>) {
        let kept = std::mem::take(&mut self.seeds);
        for seed in fresh.into_iter().chain(kept) {
            let is_known = self.seeds.iter().any(|known| known.worker_id == seed.worker_id);
            if !is_known && self.seeds.len() < MAX_KEPT_SEEDS {
                self.seeds.push(seed);
            }
        }
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

/// The trust that `ca.crt` and the list beside it make. The file may hold old and new authorities, more than a mesh has at
/// once, if a crash came between; the list says which count.
pub fn trust_of(
    authorities: Vec<CaCertificate>,
    list: Option<&SignedRevocations>,
    now: UnixTime,
) -> Result<Trust, Refused> {
    let windows = authorities.windows(authorities.len().clamp(1, MAX_AUTHORITIES));
    let mut made = Trust::of(Vec::new());
    for window in windows {
        made = Trust::of(window.to_vec()).and_then(|mut trust| {
            if let Some(list) = list {
                trust.apply_revocations(list, now)?;
            }
            Ok(trust)
        });
        if made.is_ok() {
            break;
        }
    }
    made
}

/// What `ca.crt` is to hold before the list `signed` is written, and after: see the table above. `own` is the authority of
/// our certificate, if that is known; should it be out, it is needed to know the certificate for ours until there is
/// another.
pub fn authorities_around(
    before: &Trust,
    after: &Trust,
    signed: &SignedRevocations,
    own: Option<&Fingerprint>,
    now: UnixTime,
) -> Option<(Vec<CaCertificate>, Vec<CaCertificate>)> {
    if before.authorities() == after.authorities() {
        return None;
    }
    let out = |authority: &&CaCertificate| !after.believes(&authority.fingerprint());
    let out = before.authorities().iter().filter(out).cloned();
    let (mut both, mut alone) = (after.authorities().to_vec(), after.authorities().to_vec());
    both.extend(out.clone());
    alone.extend(out.filter(|authority| own.is_none_or(|own| authority.fingerprint() == *own)));
    // One that signs the list and does not name itself in it is still needed to believe that list.
    let alone = if trust_of(alone.clone(), Some(signed), now).is_ok() { alone } else { both.clone() };
    Some((both, alone))
}

fn text(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("names, addresses and URLs are JSON");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wiremesh_certs::{Authority, CaParameters, RevocationList};

    use super::*;
    use crate::fuzz::World;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn root() -> Authority {
        let parameters = CaParameters {
            mesh: "lab".parse().unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400),
        };
        Authority::create(&parameters, NOW, &mut rand::rng()).unwrap()
    }

    /// A list by `signer` that names `authorities`, with what leads from `before` to each of them.
    fn list(signer: &Authority, number: u64, authorities: &[&Authority], before: &Authority) -> SignedRevocations {
        let leads = |to: &&&Authority| to.certificate() != before.certificate();
        let cross =
            |to: &&Authority| before.cross_sign(to.certificate(), NOW, &mut rand::rng()).unwrap().der().to_vec();
        let list = RevocationList {
            number,
            authorities: authorities.iter().map(|authority| authority.certificate().der().to_vec()).collect(),
            crosses: authorities.iter().filter(leads).map(cross).collect(),
            ..RevocationList::default()
        };
        signer.sign_revocations(&list).unwrap()
    }

    fn with(trust: &Trust, signed: &SignedRevocations) -> Trust {
        let mut trust = trust.clone();
        trust.apply_revocations(signed, NOW).unwrap();
        trust
    }

    fn around(
        before: &Trust,
        after: &Trust,
        signed: &SignedRevocations,
        own: &Authority,
    ) -> (Vec<CaCertificate>, Vec<CaCertificate>) {
        authorities_around(before, after, signed, Some(&own.certificate().fingerprint()), NOW).unwrap()
    }

    #[test]
    fn the_authority_of_a_certificate_that_is_to_be_renewed_stays_on_disk_and_is_not_believed() {
        let (old, new) = (root(), root());
        let before = Trust::new(old.certificate().clone());
        let signed = list(&new, 1, &[&new], &old);
        let after = with(&before, &signed);

        let (_, kept) = around(&before, &after, &signed, &old);

        assert!(kept.contains(old.certificate()));
        assert_eq!(trust_of(kept, Some(&signed), NOW).unwrap().authorities(), [new.certificate().clone()]);
    }

    #[test]
    fn a_crash_at_any_point_of_taking_over_other_authorities_leaves_what_starts() {
        let (old, new) = (root(), root());
        let mut trust = Trust::new(old.certificate().clone());
        let steps = [list(&old, 1, &[&old], &old), list(&old, 2, &[&old, &new], &old), list(&new, 3, &[&new], &old)];
        let mut on_disk: (Vec<CaCertificate>, Option<SignedRevocations>) = (trust.authorities().to_vec(), None);
        for signed in steps {
            let after = with(&trust, &signed);
            let mut states = vec![on_disk.clone()];
            let around = authorities_around(&trust, &after, &signed, Some(&new.certificate().fingerprint()), NOW);
            if let Some((both, _)) = &around {
                states.push((both.clone(), on_disk.1.clone()));
            }
            let authorities = states.last().unwrap().0.clone();
            states.push((authorities, Some(signed.clone())));
            if let Some((_, alone)) = around {
                states.push((alone, Some(signed.clone())));
            }
            for (authorities, list) in &states {
                let started = trust_of(authorities.clone(), list.as_ref(), NOW).unwrap();
                assert!([trust.revocation_number(), after.revocation_number()].contains(&started.revocation_number()));
            }
            on_disk = states.pop().unwrap();
            trust = after;
        }
        let started = trust_of(on_disk.0.clone(), on_disk.1.as_ref(), NOW).unwrap();
        assert_eq!((started.revocation_number(), started.authorities()), (3, &[new.certificate().clone()][..]));
        assert_eq!(on_disk.0, [new.certificate().clone()], "the old one is gone from the disk too");
    }

    #[test]
    fn a_list_whose_signer_does_not_name_itself_can_still_be_read_back() {
        let (old, new) = (root(), root());
        let before = Trust::new(old.certificate().clone());
        let signed = list(&old, 1, &[&new], &old);
        let after = with(&before, &signed);

        let (_, kept) = around(&before, &after, &signed, &new);

        let started = trust_of(kept, Some(&signed), NOW).unwrap();
        assert_eq!(started.authorities(), after.authorities());
    }

    #[test]
    fn more_authorities_than_a_mesh_has_at_once_may_lie_in_the_file_between_two_lists() {
        let (first, others) = (root(), [root(), root(), root(), root()]);
        let before = Trust::new(first.certificate().clone());
        let signed = list(&others[0], 1, &others.each_ref(), &first);
        let after = with(&before, &signed);

        let (both, _) = around(&before, &after, &signed, &others[0]);

        assert_eq!(both.len(), MAX_AUTHORITIES + 1);
        assert_eq!(trust_of(both.clone(), Some(&signed), NOW).unwrap().authorities(), after.authorities());
        let old = list(&first, 0, &[], &first);
        assert!(trust_of(both, Some(&old), NOW).unwrap().believes(&first.certificate().fingerprint()));
    }

    #[test]
    fn what_was_ever_believed_and_enforced_is_remembered_within_bounds() {
        let roots: Vec<Authority> = (0..MAX_FORMER_AUTHORITIES + 3).map(|_| root()).collect();
        let mut file = MemberFile::parse(r#"{"mesh":"lab","network":"10.42.0.0/16","coordinators":[]}"#).unwrap();

        for root in &roots {
            assert!(file.observe(&Trust::new(root.certificate().clone())));
        }
        let last = Trust::new(roots.last().unwrap().certificate().clone());
        assert!(!file.observe(&last), "no news");
        let signed = list(roots.last().unwrap(), 7, &[], roots.last().unwrap());
        assert!(file.observe(&with(&last, &signed)) && !file.observe(&last));

        assert_eq!((file.enforced, file.authorities.len()), (7, MAX_FORMER_AUTHORITIES));
        assert!(file.knows(&roots.last().unwrap().certificate().fingerprint()));
        assert!(!file.knows(&roots[0].certificate().fingerprint()));
        assert_eq!(MemberFile::parse(&file.to_text()).unwrap(), file);
    }

    #[test]
    fn a_node_named_many_times_over_takes_one_place_and_puts_nobody_out() {
        let World { member, .. } = World::get();
        let record = World::record_by(member, &[]).unwrap();
        let seed = |name: &str| Seed {
            worker_id: name.parse().unwrap(),
            vpn_ip: "10.42.0.2".parse().unwrap(),
            tunnel_url: None,
            dht_port: 8468,
            record: record.clone(),
        };
        let mut kept = SeedsFile { seeds: vec![seed("old")] };

        kept.merge(vec![seed("new"); 2 * MAX_KEPT_SEEDS]);

        let names: Vec<_> = kept.seeds.iter().map(|seed| seed.worker_id.as_str()).collect();
        assert_eq!(names, ["new", "old"]);
    }
}
