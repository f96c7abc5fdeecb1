//! Signed lists of revocations in files: read as they travel or in base64, and believed only from the authority.

use super::{Console, Failure, Source};
use crate::{Authority, CaCertificate, Refused, RevocationList, SignedRevocations, Trust, UnixTime};

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
    let mut trust = trust_in(ca_crt, console)?;
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

/// Whom somebody believes who has the authorities in a file.
pub fn trust_in(ca_crt: &Source, console: &mut Console<'_>) -> Result<Trust, Failure> {
    Trust::of(authorities(ca_crt, console)?).map_err(|refused| Failure::new(format!("reading {ca_crt}"), refused))
}

/// Whom somebody believes who knows an authority, those above it, and the earlier ones in a file.
pub fn trust_of(
    authority: &Authority,
    former: Option<&Source>,
    console: &mut Console<'_>,
) -> Result<(Trust, Vec<CaCertificate>), Failure> {
    let former = former.map(|source| authorities(source, console)).transpose()?.unwrap_or_default();
    let mut all: Vec<CaCertificate> = [authority.certificate()].into_iter().chain(authority.above()).cloned().collect();
    all.extend(former.iter().filter(|earlier| !all.contains(earlier)).cloned().collect::<Vec<_>>());
    let trust = Trust::of(all).map_err(|refused| Failure::new("believing --ca-crt and --old-ca-crt", refused))?;
    Ok((trust, former))
}

/// Fails if the list in force has put this authority out.
pub fn check_believed(authority: &Authority, trust: &Trust, doing: &str) -> Result<(), Failure> {
    if trust.believes(&authority.certificate().fingerprint()) {
        return Ok(());
    }
    Err(Failure::new(doing, "the list of revocations names other authorities than --ca-crt")
        .hint("take the authority that issues now: \"wiremesh-cert print\" shows those that the list names"))
}

/// The authorities in a file.
fn authorities(ca_crt: &Source, console: &mut Console<'_>) -> Result<Vec<CaCertificate>, Failure> {
    CaCertificate::bundle_from_pem(&ca_crt.text(console)?).map_err(|bad| {
        Failure::new(format!("reading {ca_crt}"), bad).hint("it is to hold the certificates of the mesh's authorities")
    })
}
