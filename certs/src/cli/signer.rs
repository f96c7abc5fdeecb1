//! Whose key signs: the two files of an authority, and the passphrase if its key is encrypted.

use rand::RngCore;
use zeroize::Zeroizing;

use super::{Console, Failure, Source, passphrase};
use crate::{Authority, BadKey, CaCertificate, IdentityKey, is_encrypted_key};

/// The options of every command that signs.
#[derive(Debug, clap::Args)]
pub struct Signer {
    /// The authority's certificate; that of an intermediate with those above it behind
    #[arg(long, value_name = "FILE", default_value = "ca.crt")]
    pub ca_crt: Source,
    /// The authority's private key
    #[arg(long, value_name = "FILE", default_value = "ca.key")]
    pub ca_key: Source,
    /// The passphrase of --ca-key if that is encrypted, the first line of this file [default:
    /// $WIREMESH_CA_PASSPHRASE, or it is asked for at the terminal]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<Source>,
}

impl Signer {
    /// What it reads, for [`Source::at_most_one_stdin`].
    pub fn sources(&self) -> Vec<&Source> {
        [Some(&self.ca_crt), Some(&self.ca_key), self.passphrase_file.as_ref()].into_iter().flatten().collect()
    }

    /// Opens it.
    pub fn open(&self, console: &mut Console<'_>) -> Result<Authority, Failure> {
        self.open_with_passphrase(console).map(|(authority, _)| authority)
    }

    /// Opens it, and gives the passphrase too if its key is encrypted.
    pub fn open_with_passphrase(
        &self,
        console: &mut Console<'_>,
    ) -> Result<(Authority, Option<Zeroizing<String>>), Failure> {
        let opening = "opening the authority";
        let certificates = CaCertificate::bundle_from_pem(&self.ca_crt.text(console)?)
            .map_err(|bad| Failure::authority(opening, &bad.into()))?;
        let key = self.ca_key.secret(console)?;
        let (key, passphrase) = if is_encrypted_key(&key) {
            let passphrase = passphrase::of_key(&self.ca_key, self.passphrase_file.as_ref(), console)?;
            let opened = IdentityKey::from_encrypted_pkcs8_pem(&key, &passphrase).map_err(|bad| self.failure(&bad))?;
            (opened, Some(passphrase))
        } else {
            (IdentityKey::from_pkcs8_pem(&key).map_err(|bad| self.failure(&bad))?, None)
        };
        let authority = Authority::with_key(certificates, key).map_err(|error| Failure::authority(opening, &error))?;
        Ok((authority, passphrase))
    }

    fn failure(&self, bad: &BadKey) -> Failure {
        let failure = Failure::new(format!("reading {}", self.ca_key), bad);
        match bad {
            BadKey::WrongPassphrase => failure.hint(format!(
                "--passphrase-file, else ${}, else the terminal give the passphrase",
                passphrase::VARIABLE
            )),
            BadKey::Encryption(_) => {
                failure.hint("encrypt it anew: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW")
            }
            BadKey::TooCostly => failure.hint("if the file is yours: openssl pkcs8 -topk8 -scrypt -in OLD -out NEW"),
            BadKey::Identity | BadKey::Encrypted | BadKey::Passphrase | BadKey::WireGuard => failure,
        }
    }
}

/// The key of a new authority as its file holds it, encrypted if there is a passphrase.
pub fn key_text(
    authority: &Authority,
    passphrase: Option<&str>,
    rng: &mut impl RngCore,
) -> Result<Zeroizing<String>, BadKey> {
    let plain = authority.key_pem();
    match passphrase {
        None => Ok(plain),
        Some(passphrase) => {
            IdentityKey::from_pkcs8_pem(&plain)?.to_encrypted_pkcs8_pem(passphrase, rng).map(Zeroizing::new)
        }
    }
}
