//! Signed lists of revocations in files: read as they travel or in base64, and believed only from the authority.

use super::{Console, Failure, Source};
use crate::{CaCertificate, Refused, RevocationList, SignedRevocations, Trust, UnixTime};

/// A signed list, as bytes or as text. Not believed.
pub fn signed_in(bytes: &[u8]) -> Result<SignedRevocations, Refused> {
    let signed = match std::str::from_utf8(bytes) {
        Ok(text) => SignedRevocations::from_base64(text.trim()),
        Err(_) => SignedRevocations::from_bytes(bytes),
    };
    signed.map_err(Refused::from)
}

/// What is in the file, if an authority in `ca_crt` says so.
pub fn believed(
    list: &Source,
    ca_crt: &Source,
    now: UnixTime,
    console: &mut Console<'_>,
) -> Result<RevocationList, Failure> {
    Source::at_most_one_stdin(&[list, ca_crt])?;
    let mut trust = Trust::new(authorities(ca_crt, console)?);
    apply(list, &mut trust, now, console)?;
    Ok(trust.revocations().clone())
}

/// Has `trust` take over the list in the file.
pub fn apply(list: &Source, trust: &mut Trust, now: UnixTime, console: &mut Console<'_>) -> Result<(), Failure> {
    let bytes = list.bytes(console)?;
    signed_in(&bytes)
        .and_then(|signed| trust.apply_revocations(&signed, now))
        .map(drop)
        .map_err(|refused| Failure::refused(format!("{list} is not believed"), &refused))
}

/// The authority in a file.
pub fn authorities(ca_crt: &Source, console: &mut Console<'_>) -> Result<CaCertificate, Failure> {
    CaCertificate::from_pem(&ca_crt.text(console)?).map_err(|bad| {
        Failure::new(format!("reading {ca_crt}"), bad).hint("--ca-crt names the certificate of the mesh's authority")
    })
}
