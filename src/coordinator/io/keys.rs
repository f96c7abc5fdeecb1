//! The files of the authority: made on first start, never overwritten, refused when they do not fit together.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use anyhow::{Context, bail, ensure};
use rand::{RngCore, rngs::StdRng};
use wiremesh_certs::{Authority, CaParameters, UnixTime, files};
use zeroize::Zeroizing;

use crate::coordinator::Config;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const ADMIN_KEY: &str = "admin.key";
const LOCK: &str = "coordinator.lock";

/// Held while this coordinator runs: two of them on one database would give an address twice.
pub struct DataDirLock(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

/// Makes the data directory if need be (mode 0700) and takes it for this process.
pub fn lock(data_dir: &Path) -> anyhow::Result<DataDirLock> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("could not make the data directory {}", data_dir.display()))?;
    let path = data_dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(DataDirLock(file)),
        Err(TryLockError::WouldBlock) => bail!("another coordinator runs on {}", data_dir.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

/// Opens the authority, or makes it if there is none yet.
pub fn authority(config: &Config, now: UnixTime, rng: &mut StdRng) -> anyhow::Result<Authority> {
    let (certificate, key) = (config.data_dir.join(CERTIFICATE), config.data_dir.join(KEY));
    let authority = match (exists(&certificate)?, exists(&key)?) {
        (true, true) => {
            let authority = Authority::from_pem(&files::read_text(&certificate)?, &files::read_secret(&key)?);
            authority.with_context(|| format!("{} and {} cannot be used", certificate.display(), key.display()))?
        }
        (false, false) => {
            let parameters = CaParameters {
                mesh: config.mesh.clone(),
                network: config.network,
                lifetime: config.authority_lifetime,
            };
            let authority = Authority::create(&parameters, now, rng)?;
            // The key first: a certificate without its key would be of no use, and nothing was signed yet.
            files::write_new_secret(&key, authority.key_pem().as_bytes())?;
            files::write_new(&certificate, authority.certificate().pem().as_bytes())?;
            tracing::info!(
                mesh = %config.mesh, network = %config.network, fingerprint = %authority.certificate().fingerprint(),
                "made the mesh's authority; back up its key"
            );
            authority
        }
        (true, false) => {
            bail!("{} is there but {} is not: restore it from its backup", certificate.display(), key.display())
        }
        (false, true) => bail!(
            "{} is there but {} is not: restore it, or remove the key if this coordinator has never run",
            key.display(),
            certificate.display()
        ),
    };
    let ca = authority.certificate();
    ensure!(
        *ca.mesh() == config.mesh && ca.network() == config.network,
        "the configuration says mesh {} with {}, but the authority in {} was made for {} with {}",
        config.mesh,
        config.network,
        config.data_dir.display(),
        ca.mesh(),
        ca.network()
    );
    ensure!(now < ca.not_after(), "the authority in {} ended at {}", config.data_dir.display(), ca.not_after());
    Ok(authority)
}

/// Opens the admin key, or makes it if there is none yet.
pub fn admin_key(config: &Config, rng: &mut StdRng) -> anyhow::Result<Zeroizing<String>> {
    let path = config.data_dir.join(ADMIN_KEY);
    if !exists(&path)? {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        let text = Zeroizing::new(hex::encode(*bytes));
        files::write_new_secret(&path, text.as_bytes())?;
        tracing::info!(path = %path.display(), "made the admin key");
        return Ok(text);
    }
    let key = files::read_secret(&path)?;
    ensure!(key.trim().len() >= 32, "{} is shorter than 32 characters", path.display());
    Ok(key)
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    fs::exists(path).with_context(|| format!("could not look for {}", path.display()))
}
