//! The state directory: keys that are made once, the rest written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rand::rngs::StdRng;
use wiremesh_certs::{CaCertificate, IdentityKey, SignedRevocations, WgPrivateKey, files};

use crate::membership::state::{MemberFile, SeedsFile};

const LOCK: &str = "agent.lock";
pub(super) const IDENTITY: &str = "identity.key";
pub(super) const WIREGUARD: &str = "wireguard.key";
const AUTHORITY: &str = "ca.crt";
pub(super) const CERTIFICATE: &str = "node.crt";
const MEMBER: &str = "member.json";
const SEEDS: &str = "seeds.json";
const REVOCATIONS: &str = "revocations.bin";
const PUBLIC: u32 = 0o644;

/// Lost together with its file, or never there: what each error says to do.
const RESTORE: &str = "restore it from a backup, or move the state directory away and join again with a new token";

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

    /// The mesh's authority.
    pub fn authority(&self) -> anyhow::Result<CaCertificate> {
        let path = self.path.join(AUTHORITY);
        let text = files::read_text(&path).with_context(|| format!("this machine has joined; {RESTORE}"))?;
        CaCertificate::from_pem(&text).with_context(|| format!("{} cannot be used; {RESTORE}", path.display()))
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

    /// What to do about a broken revocation list.
    pub const REVOCATIONS_COME_AGAIN: &str = "remove it: the coordinator gives it again";

    /// Keeps the authority. Once only: another authority is another mesh.
    pub fn keep_authority(&self, authority: &CaCertificate) -> anyhow::Result<()> {
        let path = self.path.join(AUTHORITY);
        if exists(&path)? {
            anyhow::ensure!(
                self.authority()?.fingerprint() == authority.fingerprint(),
                "{} is of another mesh; move the state directory away to join this one",
                path.display()
            );
            return Ok(());
        }
        Ok(files::write_new(&path, authority.pem().as_bytes())?)
    }

    /// Keeps our chain.
    pub fn keep_certificate(&self, pem: &str) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(CERTIFICATE), pem.as_bytes(), PUBLIC)?)
    }

    /// Keeps who runs the mesh.
    pub fn keep_member(&self, member: &MemberFile) -> anyhow::Result<()> {
        Ok(files::replace(&self.path.join(MEMBER), member.to_text().as_bytes(), PUBLIC)?)
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
