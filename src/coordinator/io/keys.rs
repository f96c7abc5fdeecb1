//! The files of the authorities: made when they are needed, never overwritten, refused when they do not fit together.
//!
//! | file | |
//! |---|---|
//! | `ca.crt`, `ca.key` | the first authority: a root, or an intermediate with its root below it in the same file |
//! | `authorities/F.crt`, `authorities/F.key` | each later one; F are the first 16 digits of its fingerprint |

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use rand::{RngCore, rngs::StdRng};
use wiremesh_certs::{
    Authority, CaCertificate, CaParameters, Fingerprint, IdentityKey, UnixTime, files, is_encrypted_key, passphrase_in,
};
use zeroize::Zeroizing;

use super::rotation::NotBegun;
use crate::coordinator::{
    Config,
    rotation::{Authorities, CannotRotate, Standing},
};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const LATER: &str = "authorities";
/// Says the passphrase of the authorities' keys.
pub const PASSPHRASE_VARIABLE: &str = "WIREMESH_CA_PASSPHRASE";
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

/// Opens the first authority, or makes it if there is none yet.
pub fn authority(config: &Config, now: UnixTime, rng: &mut StdRng) -> anyhow::Result<Authority> {
    let (certificate, key) = (config.data_dir.join(CERTIFICATE), config.data_dir.join(KEY));
    let authority = match (exists(&certificate)?, exists(&key)?) {
        (true, true) => open(config, &certificate, &key)?,
        (false, false) => {
            let parameters = CaParameters {
                mesh: config.mesh.clone(),
                network: config.network,
                lifetime: config.authority_lifetime,
            };
            let authority = Authority::create(&parameters, now, rng)?;
            keep(&authority, &key_text(config, &authority, rng)?, &certificate, &key)?;
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
    Ok(authority)
}

/// The keys of all that are next, issuing or leaving. The one that issues must be there and valid; the others are missed.
pub fn keys(
    config: &Config,
    first: Authority,
    authorities: &Authorities,
    now: UnixTime,
) -> anyhow::Result<Vec<Authority>> {
    let issuing = authorities.issuing();
    let until = issuing.certificate.not_after();
    ensure!(now < until, "the authority {} in {} ended at {until}", issuing.fingerprint(), config.data_dir.display());
    let mut keys = Vec::new();
    for known in authorities.all() {
        let fingerprint = known.fingerprint();
        if known.standing == Standing::Retired || fingerprint == first.certificate().fingerprint() {
            continue;
        }
        let (certificate, key) = later(config, &fingerprint);
        match open(config, &certificate, &key) {
            Ok(authority) if authority.certificate().fingerprint() == fingerprint => keys.push(authority),
            Ok(_) => bail!("{} is another authority than its name says", certificate.display()),
            // It signs nothing any more.
            Err(error) if known.standing == Standing::Leaving => {
                tracing::warn!(%fingerprint, "the key of an authority that leaves is not there: {error:#}");
            }
            Err(error) => return Err(error.context("restore it from its backup")),
        }
    }
    keys.push(first);
    warn_of_strangers(config, authorities);
    Ok(keys)
}

/// Makes another root for the same mesh and keeps it.
pub fn make_successor(config: &Config, now: UnixTime, rng: &mut StdRng) -> anyhow::Result<Authority> {
    let parameters =
        CaParameters { mesh: config.mesh.clone(), network: config.network, lifetime: config.authority_lifetime };
    let authority = Authority::create(&parameters, now, rng)?;
    keep_successor(config, &authority, &key_text(config, &authority, rng)?)?;
    Ok(authority)
}

/// Opens an authority that was made elsewhere and, if `check` finds it good, keeps it, its key as it came: encrypted, if
/// it was.
pub fn bring_successor(
    config: &Config,
    certificate: &Path,
    key: &Path,
    check: impl FnOnce(&Authority) -> Result<(), CannotRotate>,
) -> Result<Authority, NotBegun> {
    let authority = open(config, certificate, key).map_err(NotBegun::Files)?;
    check(&authority)?;
    let text = files::read_secret(key).map_err(|error| NotBegun::Files(error.into()))?;
    keep_successor(config, &authority, &text).map_err(NotBegun::Files)?;
    Ok(authority)
}

/// Which of several files is meant.
fn later(config: &Config, fingerprint: &Fingerprint) -> (PathBuf, PathBuf) {
    let name = &fingerprint.to_string()[..16];
    let folder = config.data_dir.join(LATER);
    (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")))
}

fn keep_successor(config: &Config, authority: &Authority, key_text: &str) -> anyhow::Result<()> {
    let (certificate, key) = later(config, &authority.certificate().fingerprint());
    DirBuilder::new().recursive(true).mode(0o700).create(config.data_dir.join(LATER))?;
    // A rotation that was cut off here is begun once more with the same files.
    match keep(authority, key_text, &certificate, &key) {
        Err(_) if open(config, &certificate, &key).is_ok() => Ok(()),
        kept => kept,
    }
}

/// The key first: a certificate without its key would be of no use, and nothing was signed yet.
fn keep(authority: &Authority, key_text: &str, certificate: &Path, key: &Path) -> anyhow::Result<()> {
    let certificates: Vec<_> = [authority.certificate()].into_iter().chain(authority.above()).cloned().collect();
    files::write_new_secret(key, key_text.as_bytes())?;
    files::write_new(certificate, CaCertificate::bundle_to_pem(&certificates).as_bytes())?;
    Ok(())
}

fn open(config: &Config, certificate: &Path, key: &Path) -> anyhow::Result<Authority> {
    let cannot = || format!("{} and {} cannot be used", certificate.display(), key.display());
    let certificates = CaCertificate::bundle_from_pem(&files::read_text(certificate)?).with_context(cannot)?;
    let text = files::read_secret(key)?;
    let identity = if is_encrypted_key(&text) {
        let passphrase = passphrase(config)?.with_context(|| {
            format!(
                "{} is encrypted: name the file of its passphrase in ca_passphrase_file, or set {PASSPHRASE_VARIABLE}",
                key.display()
            )
        })?;
        IdentityKey::from_encrypted_pkcs8_pem(&text, &passphrase)
    } else {
        IdentityKey::from_pkcs8_pem(&text)
    };
    Authority::with_key(certificates, identity.with_context(cannot)?).with_context(cannot)
}

/// As it is written into its file: encrypted, if there is a passphrase.
fn key_text(config: &Config, authority: &Authority, rng: &mut StdRng) -> anyhow::Result<Zeroizing<String>> {
    let plain = authority.key_pem();
    match passphrase(config)? {
        Some(passphrase) => {
            Ok(Zeroizing::new(IdentityKey::from_pkcs8_pem(&plain)?.to_encrypted_pkcs8_pem(&passphrase, rng)?))
        }
        None => Ok(plain),
    }
}

fn passphrase(config: &Config) -> anyhow::Result<Option<Zeroizing<String>>> {
    if let Some(path) = &config.ca_passphrase_file {
        let read = passphrase_in(&files::read_secret(path)?);
        return read.map(Some).with_context(|| format!("{} holds no passphrase", path.display()));
    }
    match std::env::var(PASSPHRASE_VARIABLE).map(Zeroizing::new) {
        Ok(text) if !text.is_empty() => {
            passphrase_in(&text).map(Some).with_context(|| format!("{PASSPHRASE_VARIABLE} holds no passphrase"))
        }
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Files of authorities that the database does not know: it was restored from a backup, or a rotation was cut off.
fn warn_of_strangers(config: &Config, authorities: &Authorities) {
    let known = |name: &str| authorities.all().iter().any(|known| known.fingerprint().to_string()[..16] == *name);
    for entry in fs::read_dir(config.data_dir.join(LATER)).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "key") && !known(name) {
            tracing::warn!(
                file = %path.display(),
                "the database does not know this authority: it was restored from a backup, or a rotation was cut off"
            );
        }
    }
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
