//! Private keys under a passphrase: PKCS#8 `ENCRYPTED PRIVATE KEY` (RFC 5958) with PBES2 (RFC 8018), as OpenSSL reads
//! and writes them.
//!
//! | | written here | read here |
//! |---|---|---|
//! | passphrase to key | scrypt, N = 2^14, r = 8, p = 5 | scrypt or PBKDF2 with HMAC-SHA-2, up to the bounds below |
//! | key to ciphertext | AES-256-CBC | AES-128, -192 or -256 in CBC mode, AES-128 or -256 in GCM mode |

use ed25519_dalek::SigningKey;
use pkcs8::{
    EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument,
    der::{
        asn1::OctetStringRef,
        pem::{PemLabel, decode_label},
    },
    pkcs5::{
        self, EncryptionScheme,
        pbes2::{Kdf, Parameters},
        scrypt,
    },
};
use rand::RngCore;
use zeroize::Zeroizing;

use super::{BadKey, IdentityKey};

const OTHER_SCHEME: &str = "its scheme is not PBES2 (RFC 8018)";

/// OpenSSL's programs read no longer one.
pub const MAX_PASSPHRASE_BYTES: usize = 1000;

/// 16 MiB: OpenSSL refuses to read a key that takes 32 MiB.
const LOG_N: u8 = 14;
const BLOCK_SIZE: u32 = 8;
/// Five times that work, as OWASP's "Password Storage Cheat Sheet" has it for this much memory: half a second.
const PARALLEL: u32 = 5;

/// A key that takes more memory than this to open is refused: twice the most that others recommend (N = 2^17, r = 8).
const MAX_SCRYPT_BYTES: u64 = 256 * 1024 * 1024;
/// The same for its work, in blocks of 128 bytes mixed (N × r × p): some seconds.
const MAX_SCRYPT_BLOCKS: u64 = 1 << 23;
/// The most that RFC 8018, section 4.2, thinks of: some seconds.
const MAX_PBKDF2_ITERATIONS: u32 = 10_000_000;

impl IdentityKey {
    /// Reads a PKCS#8 PEM that is encrypted with `passphrase`, also one that OpenSSL made. What it costs is bounded,
    /// whoever made the file, and still some seconds: it belongs on no thread that others wait for.
    pub fn from_encrypted_pkcs8_pem(pem: &str, passphrase: &str) -> Result<IdentityKey, BadKey> {
        let (label, document) = SecretDocument::from_pem(pem.trim()).map_err(|_| BadKey::Identity)?;
        EncryptedPrivateKeyInfoRef::validate_pem_label(label).map_err(|_| BadKey::Identity)?;
        let encrypted =
            EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| BadKey::Encryption(OTHER_SCHEME))?;
        let EncryptionScheme::Pbes2(parameters) = &encrypted.encryption_algorithm else {
            return Err(BadKey::Encryption(OTHER_SCHEME));
        };
        check_cost(&parameters.kdf)?;
        let mut buffer = Zeroizing::new(encrypted.encrypted_data.as_bytes().to_vec());
        let plain = parameters.decrypt_in_place(passphrase, &mut buffer).map_err(|error| match error {
            pkcs5::Error::DecryptFailed => BadKey::WrongPassphrase,
            _ => BadKey::Encryption("its algorithms are not SHA-2 and AES"),
        })?;
        // One wrong passphrase in 256 happens upon good padding, and then finds noise.
        let plain = PrivateKeyInfoRef::try_from(plain).map_err(|_| BadKey::WrongPassphrase)?;
        SigningKey::try_from(plain).map(IdentityKey).map_err(|_| BadKey::Identity)
    }

    /// PKCS#8 PEM, encrypted with `passphrase`, which OpenSSL 3 reads. `rng` must be a cryptographic one. Takes half a
    /// second, as it must.
    pub fn to_encrypted_pkcs8_pem(&self, passphrase: &str, rng: &mut impl RngCore) -> Result<String, BadKey> {
        if passphrase.is_empty() || passphrase.len() > MAX_PASSPHRASE_BYTES {
            return Err(BadKey::Passphrase);
        }
        let (mut salt, mut iv) = ([0; 16], [0; 16]);
        rng.fill_bytes(&mut salt);
        rng.fill_bytes(&mut iv);
        let cost = scrypt::Params::new(LOG_N, BLOCK_SIZE, PARALLEL).expect("constants within its limits");
        let parameters =
            Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).expect("a salt of 16 bytes is within its limits");
        let encrypted =
            parameters.encrypt(passphrase, &self.to_pkcs8_der()).expect("AES-256-CBC takes any length of text");
        let document = SecretDocument::try_from(EncryptedPrivateKeyInfoRef {
            encryption_algorithm: parameters.into(),
            encrypted_data: OctetStringRef::new(&encrypted).expect("a few dozen bytes are within its limits"),
        });
        let pem = document
            .and_then(|document| Ok(document.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)?))
            .expect("a few hundred bytes always encode");
        Ok(pem.as_str().to_owned())
    }
}

/// The passphrase in a text that may come from a file: its first line. Zeroed when dropped.
pub fn passphrase_in(text: &str) -> Result<Zeroizing<String>, BadKey> {
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() || line.len() > MAX_PASSPHRASE_BYTES {
        return Err(BadKey::Passphrase);
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// Whether a text is a private key that [`IdentityKey::from_encrypted_pkcs8_pem`] may open with its passphrase.
pub fn is_encrypted_key(pem: &str) -> bool {
    decode_label(pem.trim().as_bytes()).is_ok_and(|label| label == EncryptedPrivateKeyInfoRef::PEM_LABEL)
}

/// The file says itself what it costs to open it.
fn check_cost(kdf: &Kdf) -> Result<(), BadKey> {
    let affordable = match kdf {
        Kdf::Pbkdf2(params) => params.iteration_count <= MAX_PBKDF2_ITERATIONS,
        Kdf::Scrypt(params) => {
            // RFC 7914, section 2: the library takes this for granted.
            if params.cost_parameter < 2 || !params.cost_parameter.is_power_of_two() {
                return Err(BadKey::Encryption("the cost parameter of its scrypt is no power of two"));
            }
            let (n, r, p) = (params.cost_parameter, params.block_size.into(), params.parallelization.into());
            let bytes = n.checked_add(p).and_then(|rows| rows.checked_mul(r)?.checked_mul(128));
            let blocks = n.checked_mul(r).and_then(|once| once.checked_mul(p));
            bytes.is_some_and(|bytes| bytes <= MAX_SCRYPT_BYTES)
                && blocks.is_some_and(|blocks| blocks <= MAX_SCRYPT_BLOCKS)
        }
        _ => return Err(BadKey::Encryption("its passphrase is used in an unknown way")),
    };
    if affordable { Ok(()) } else { Err(BadKey::TooCostly) }
}

#[cfg(test)]
mod tests {
    use pkcs8::pkcs5::pbes2::{EncryptionScheme as Cipher, Pbkdf2Params, ScryptParams};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const PASSPHRASE: &str = "correct horse battery staple";

    #[test]
    fn what_is_encrypted_is_opened_with_its_passphrase_alone() {
        let key = IdentityKey::generate(&mut StdRng::seed_from_u64(1));

        let pem = key.to_encrypted_pkcs8_pem(PASSPHRASE, &mut StdRng::seed_from_u64(2)).unwrap();

        assert!(is_encrypted_key(&pem) && !is_encrypted_key(&key.to_pkcs8_pem()));
        assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&pem, PASSPHRASE).unwrap().id(), key.id());
        for wrong in ["", "correct horse battery stapl", "correct horse battery staple\n"] {
            assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&pem, wrong).unwrap_err(), BadKey::WrongPassphrase);
        }
        assert_eq!(IdentityKey::from_pkcs8_pem(&pem).unwrap_err(), BadKey::Encrypted);
        assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&key.to_pkcs8_pem(), "x").unwrap_err(), BadKey::Identity);
    }

    #[test]
    fn no_two_files_of_one_key_and_passphrase_are_alike() {
        let key = IdentityKey::generate(&mut StdRng::seed_from_u64(1));
        let mut rng = StdRng::seed_from_u64(2);

        let [first, second] = [(); 2].map(|()| key.to_encrypted_pkcs8_pem(PASSPHRASE, &mut rng).unwrap());

        assert_ne!(first, second);
    }

    #[test]
    fn a_passphrase_that_no_program_takes_is_refused() {
        let key = IdentityKey::generate(&mut StdRng::seed_from_u64(1));

        for bad in [String::new(), "x".repeat(MAX_PASSPHRASE_BYTES + 1)] {
            let refused = key.to_encrypted_pkcs8_pem(&bad, &mut StdRng::seed_from_u64(2)).unwrap_err();
            assert_eq!(refused, BadKey::Passphrase);
        }
    }

    #[test]
    fn a_passphrase_is_the_first_line_of_its_file() {
        assert_eq!(passphrase_in("two words\r\nanother line\n").unwrap().as_str(), "two words");
        for bad in ["", "\n", "\nsecond", &"x".repeat(MAX_PASSPHRASE_BYTES + 1)] {
            assert_eq!(passphrase_in(bad).unwrap_err(), BadKey::Passphrase);
        }
    }

    #[test]
    fn no_file_makes_its_reader_pay_more_than_the_bounds() {
        let scrypt = |cost_parameter, block_size, parallelization| {
            let salt = b"salt salt salt s"[..].try_into().unwrap();
            Kdf::Scrypt(ScryptParams { salt, cost_parameter, block_size, parallelization, key_length: None })
        };
        let pbkdf2 = |rounds| Kdf::Pbkdf2(Pbkdf2Params::hmac_sha256(rounds, b"salt salt").unwrap());

        for (kdf, refused) in [
            (scrypt(1 << 40, 8, 1), BadKey::TooCostly),
            (scrypt(1 << 18, 16, 1), BadKey::TooCostly),
            (scrypt(1 << 17, 8, 9), BadKey::TooCostly),
            (scrypt(2, u16::MAX, u16::MAX), BadKey::TooCostly),
            (scrypt(1 << 63, u16::MAX, u16::MAX), BadKey::TooCostly),
            (pbkdf2(10_000_001), BadKey::TooCostly),
            (scrypt(0, 8, 1), BadKey::Encryption("the cost parameter of its scrypt is no power of two")),
            (scrypt(1, 8, 1), BadKey::Encryption("the cost parameter of its scrypt is no power of two")),
            (scrypt(12_345, 8, 1), BadKey::Encryption("the cost parameter of its scrypt is no power of two")),
        ] {
            let pem = encrypted(Parameters { kdf, encryption: Cipher::Aes256Cbc { iv: [0; 16] } });
            assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&pem, PASSPHRASE).unwrap_err(), refused);
        }
        for (kdf, refused) in [
            (scrypt(2, 0, 1), BadKey::Encryption("its algorithms are not SHA-2 and AES")),
            (scrypt(2, 8, 0), BadKey::Encryption("its algorithms are not SHA-2 and AES")),
            (pbkdf2(0), BadKey::WrongPassphrase),
            (scrypt(1 << 15, 8, 1), BadKey::WrongPassphrase),
        ] {
            let pem = encrypted(Parameters { kdf, encryption: Cipher::Aes256Gcm { nonce: [0; 12] } });
            assert_eq!(IdentityKey::from_encrypted_pkcs8_pem(&pem, PASSPHRASE).unwrap_err(), refused);
        }
    }

    #[test]
    fn ways_of_encryption_that_are_too_old_are_named() {
        // By OpenSSL: -v1 PBE-SHA1-3DES, and -v2 aes-256-cbc -v2prf hmacWithSHA1.
        let pbes1 = "MFgwHAYKKoZIhvcNAQwBAzAOBAhs3RD/c2DWzgICCAAEOKtWnCHDgt0Bxu6XSEpO\n\
            /qXsRv/ApppeCBHbgJhErrSwRwOjLhxQH5y0tAKUcRMz+MYMrLZ319R4\n";
        let sha1 = "MIGNMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAjC4j14i9vsqAICCAAw\n\
            HQYJYIZIAWUDBAEqBBAs4A160Qg6ED1u9NkimiI3BEAgSQnwSAOOkVty8T85w5sW\n\
            vXKyhZDZ6dF/6roDb/doksoDBwO5nB7q9bbc06modScKEoJvQirZO8CQRhdivXkt\n";

        for (body, why) in [(pbes1, OTHER_SCHEME), (sha1, "its algorithms are not SHA-2 and AES")] {
            let pem = format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{body}-----END ENCRYPTED PRIVATE KEY-----\n");
            let refused = IdentityKey::from_encrypted_pkcs8_pem(&pem, PASSPHRASE).unwrap_err();
            assert_eq!(refused, BadKey::Encryption(why));
        }
    }

    #[test]
    fn another_thing_under_the_right_passphrase_is_no_key() {
        let parameters = Parameters::generate_pbkdf2_sha256_aes256cbc(1, b"salt salt", [0; 16]).unwrap();
        // A PKCS#8 key of no known algorithm (1.2.3).
        let other = [0x30, 0x0d, 2, 1, 0, 0x30, 4, 6, 2, 0x2a, 3, 4, 2, 5, 0];
        let sealed = parameters.encrypt(PASSPHRASE, &other).unwrap();

        let refused = IdentityKey::from_encrypted_pkcs8_pem(&pem(parameters, &sealed), PASSPHRASE).unwrap_err();

        assert_eq!(refused, BadKey::Identity);
    }

    fn encrypted(parameters: Parameters) -> String {
        pem(parameters, &[7; 64])
    }

    fn pem(parameters: Parameters, sealed: &[u8]) -> String {
        let encrypted = EncryptedPrivateKeyInfoRef {
            encryption_algorithm: parameters.into(),
            encrypted_data: OctetStringRef::new(sealed).unwrap(),
        };
        let document = SecretDocument::try_from(encrypted).unwrap();
        document.to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF).unwrap().to_string()
    }
}
