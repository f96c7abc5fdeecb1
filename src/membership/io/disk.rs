//! The state directory: keys that are made once, the rest written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use wiremesh_certs::{
    CaCertificate, Fingerprint, IdentityKey, SignedRevocations, Trust, UnixTime, WgPrivateKey, files,
};

use crate::membership::state::{self, MemberFile, SeedsFile};

/// Held by the agent whose state directory it is in.
pub const LOCK: &str = "agent.lock";
pub(super) const IDENTITY: &str = "identity.key";
pub(super) const WIREGUARD: &str = "wireguard.key";
const AUTHORITY: &str = "ca.crt";
pub(super) const CERTIFICATE: &str = "node.crt";
const MEMBER: &str = "member.json";
const SEEDS: &str = "seeds.json";
const REVOCATIONS: &str = "revocations.bin";
const PUBLIC: u32 = 0o644;

/// Lost together with its file, or never there: what each error says to do.
pub const RESTORE: &str = "restore it from a backup, or move the state directory away and join again with a new token";

/// The state directory, taken for this process.
pub struct StateDir {
    pub(super) path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if need be (mode 0700) and takes it: two agents with one identity would throw each other out
    /// of the overlay.
    pub fn open(path: &Path) -> anyhow::Result<StateDir> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("could not make the state directory {}", path.display()))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("could not open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another agent runs on {}; stop it, or give this one a state_dir of its own", path.display())
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("could not lock {}", lock_path.display()))
            }
        }
    }

    /// Our identity, made on first use.
    pub fn identity(&self, rng: &mut StdRng) -> anyhow::Result<IdentityKey> {
        let path = self.path.join(IDENTITY);
        if !exists(&path)? {
            self.must_not_have_joined(&path)?;
            let key = IdentityKey::generate(rng);
            files::write_new_secret(&path, key.to_pkcs8_pem().as_bytes())?;
            return Ok(key);
        }
        IdentityKey::from_pkcs8_pem(&files::read_secret(&path)?)
            .with_context(|| format!("{} cannot be used; {RESTORE}", path.display()))
    }

    /// Our WireGuard key, made on first use.
    pub fn wireguard(&self, rng: &mut StdRng) -> anyhow::Result<WgPrivateKey> {
        let path = self.path.join(WIREGUARD);
        if !exists(&path)? {
            self.must_not_have_joined(&path)?;
            let key = WgPrivateKey::generate(rng);
            files::write_new_secret(&path, key.to_base64().as_bytes())?;
            return Ok(key);
        }
        WgPrivateKey::from_base64(&files::read_secret(&path)?)
            .with_context(|| format!("{} cannot be used; {RESTORE}", path.display()))
    }

    /// Whether this machine has joined.
    pub fn has_joined(&self) -> anyhow::Result<bool> {
        exists(&self.path.join(CERTIFICATE))
    }

    /// The mesh's authorities: those that are believed, and perhaps some that were a moment ago.
    pub fn authorities(&self) -> anyhow::Result<Vec<CaCertificate>> {
        let path = self.path.join(AUTHORITY);
        let text = files::read_text(&path).with_context(|| format!("this machine has joined; {RESTORE}"))?;
        CaCertificate::bundle_from_pem(&text).with_context(|| format!("{} cannot be used; {RESTORE}", path.display()))
    }

    /// Whether this directory is of the mesh that has, or had, this authority; it is of none before the first join.
    pub fn is_of(&self, authority: &Fingerprint) -> anyhow::Result<bool> {
        if !exists(&self.path.join(AUTHORITY))? {
            return Ok(true);
        }
        let known = self.authorities()?.iter().any(|known| known.fingerprint() == *authority);
        Ok(known || self.member()?.is_some_and(|member| member.knows(authority)))
    }

    /// Our chain, unchecked.
    pub fn certificate(&self) -> anyhow::Result<String> {
        Ok(files::read_text(&self.path.join(CERTIFICATE))?)
    }

    /// Who runs the mesh. Without the file only its convenience is lost.
    pub fn member(&self) -> anyhow::Result<Option<MemberFile>> {
        let path = self.path.join(MEMBER);
        match files::read_text(&path) {
            Ok(text) => MemberFile::parse(&text)
                .map(Some)
                .with_context(|| format!("{} cannot be read; remove it, and name the coordinators", path.display())),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The last known seeds. A broken file is as good as none: they come again.
    pub fn seeds(&self) -> SeedsFile {
        let read = files::read_text(&self.path.join(SEEDS));
        match read.map_err(anyhow::Error::from).and_then(|text| Ok(SeedsFile::parse(&text)?)) {
            Ok(seeds) => seeds,
            Err(error) => {
                tracing::debug!(why = format!("{error:#}"), "no seeds from the state directory");
                SeedsFile::default()
            }
        }
    }

    /// The last revocation list. A broken file is an error: passing over it would let the revoked in again.
    pub fn revocations(&self) -> anyhow::Result<Option<SignedRevocations>> {
        let path = self.path.join(REVOCATIONS);
        match files::read_bounded(&path, files::MAX_FILE_BYTES) {
            Ok(bytes) => SignedRevocations::from_bytes(&bytes)
                .map(Some)
                .with_context(|| format!("{} cannot be read; {}", path.display(), Self::REVOCATIONS_COME_AGAIN)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What to do about a broken revocation list, or an old one.
    pub const REVOCATIONS_COME_AGAIN: &str =
        "remove it: the agent then waits for the coordinator to give it again before it takes part";

    /// Keeps whom we believe and the list that says so, in an order that leaves what starts, whenever it is cut off. `own`
    /// is the authority of our certificate, if that is known.
    pub fn keep_trust(
        &self,
        before: Option<&Trust>,
        after: &Trust,
        signed: &SignedRevocations,
        own: Option<&Fingerprint>,
        now: UnixTime,
    ) -> anyhow::Result<()> {
        let around = match before {
            Some(before) => state::authorities_around(before, after, signed, own, now),
            // There is nothing yet that a part of this could contradict.
            None => Some((after.authorities().to_vec(), after.authorities().to_vec())),
        };
        if let Some((both, _)) = &around {
            self.keep_authorities(both)?;
        }
        self.keep_revocations(signed)?;
        if let Some((_, alone)) = &around {
            self.keep_authorities(alone)?;
        }
        self.change_member(after, |member| _ = member.observe(after))
    }

    /// The same for a machine that has just joined, which may have been in the mesh before.
    pub fn keep_joined(
        &self,
        trust: &Trust,
        list: Option<&SignedRevocations>,
        own: &Fingerprint,
        now: UnixTime,
    ) -> anyhow::Result<()> {
        let Some(list) = list else { return self.keep_authorities(trust.authorities()) };
        let before = match exists(&self.path.join(AUTHORITY))? {
            true => state::trust_of(self.authorities()?, self.revocations()?.as_ref(), now).ok(),
            false => None,
        };
        self.keep_trust(before.as_ref(), trust, list, Some(own), now)
    }

    /// Our certificate is by one of those that are believed: whoever else is kept is needed no more, unless to believe the
    /// list itself.
    pub fn settle_authorities(
        &self,
        trust: &Trust,
        list: Option<&SignedRevocations>,
        now: UnixTime,
    ) -> anyhow::Result<()> {
        let alone = trust.authorities();
        let starts = state::trust_of(alone.to_vec(), list, now).is_ok();
        if starts && self.authorities()? != alone { self.keep_authorities(alone) } else { Ok(()) }
    }

    fn keep_authorities(&self, authorities: &[CaCertificate]) -> anyhow::Result<()> {
        let text = CaCertificate::bundle_to_pem(authorities);
        Ok(files::replace(&self.path.join(AUTHORITY), text.as_bytes(), PUBLIC)?)
    }

    /// Keeps our chain.
    pub fn keep_certificate(&self, pem: &str) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(CERTIFICATE), pem.as_bytes(), PUBLIC)?)
    }

    pub(super) fn keep_member(&self, member: &MemberFile) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(MEMBER), member.to_text().as_bytes(), PUBLIC)?)
    }

    /// Changes what is kept of who runs the mesh.
    pub fn change_member(&self, trust: &Trust, change: impl FnOnce(&mut MemberFile)) -> anyhow::Result<()> {
        let before = self.member()?;
        let mut after = before.clone().unwrap_or_else(|| MemberFile::of(trust));
        change(&mut after);
        if before.as_ref() == Some(&after) { Ok(()) } else { self.keep_member(&after) }
    }

    /// Keeps the seeds.
    pub fn keep_seeds(&self, seeds: &SeedsFile) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(SEEDS), seeds.to_text().as_bytes(), PUBLIC)?)
    }

    /// Keeps the revocation list.
    pub fn keep_revocations(&self, signed: &SignedRevocations) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(REVOCATIONS), signed.as_bytes(), PUBLIC)?)
    }

    /// A key that is gone from a directory with a certificate was lost; a new one would fit nothing.
    fn must_not_have_joined(&self, key: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(!self.has_joined()?, "{} is gone, but this machine has joined; {RESTORE}", key.display());
        Ok(())
    }
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    fs::exists(path).with_context(|| format!("could not look for {}", path.display()))
}
