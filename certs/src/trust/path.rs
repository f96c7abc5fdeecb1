//! From a certificate up to an authority that is believed, and what must hold on the way.
//!
//! ```text
//! leaf ──issued by──► (intermediate or cross) ──issued by──► one of the authorities
//!   form · issuer · limits · time · network · revocation
//! ```

use std::time::Duration;

use crate::{
    CaCertificate, MAX_CHAIN, OverlayIp, Refused, RevocationList, UnixTime,
    certificate::{self, BadCertificate, Outline},
};

/// Certificates taken apart, lowest first, up to and without the authority that vouches for them.
pub(super) struct Path<'a> {
    ders: Vec<&'a [u8]>,
    pub outlines: Vec<Outline<'a>>,
    anchor: Option<CaCertificate>,
}

impl<'a> Path<'a> {
    /// As the certificates are given, each below the next. Authorities that are sent along are left out.
    pub fn given(ders: &'a [Vec<u8>], authorities: &[CaCertificate]) -> Result<Path<'a>, BadCertificate> {
        let is_authority = |der: &Vec<u8>| authorities.iter().any(|authority| authority.der() == *der);
        let sent_along = ders.iter().skip(1).rev().take_while(|der| is_authority(der)).count();
        Path::of(ders[..ders.len() - sent_along].iter().map(Vec::as_slice).collect(), authorities)
    }

    /// From `lowest` up through any of `pool`, in whatever order they are given. The shortest way is not looked for: there
    /// are few certificates, and none is worse than another.
    pub fn searched(
        lowest: &'a [u8],
        pool: &[&'a [u8]],
        authorities: &[CaCertificate],
    ) -> Result<Path<'a>, BadCertificate> {
        let mut ders = vec![lowest];
        climb(&mut ders, pool, authorities);
        Path::of(ders, authorities)
    }

    fn of(ders: Vec<&'a [u8]>, authorities: &[CaCertificate]) -> Result<Path<'a>, BadCertificate> {
        let outlines = ders.iter().map(|der| Outline::parse(der)).collect::<Result<Vec<_>, _>>()?;
        let anchor = outlines.last().and_then(|last| vouching(last, authorities)).cloned();
        Ok(Path { ders, outlines, anchor })
    }

    /// The certificates, lowest first.
    pub fn ders(&self) -> &[&'a [u8]] {
        &self.ders
    }

    /// The authority at the upper end.
    pub fn anchor(&self) -> Option<&CaCertificate> {
        self.anchor.as_ref()
    }

    /// Each certificate is signed by the next, the last by an authority that is believed. `ours` is named to those who
    /// have another one.
    pub fn check_issuers(&self, ours: &CaCertificate) -> Result<(), Refused> {
        let pairs = self.outlines.windows(2);
        let joined = pairs.into_iter().all(|pair| pair[0].is_issued_by(&pair[1]));
        if joined && self.anchor.is_some() {
            return Ok(());
        }
        Err(Refused::AnotherAuthority { ours: ours.fingerprint().to_string()[..16].to_owned() })
    }

    /// Those from the `from`-th on are authorities, and none for more than the one above it.
    pub fn check_limits(&self, from: usize) -> Result<(), Refused> {
        let mut limits = Vec::with_capacity(self.ders.len() + 1);
        for der in &self.ders[from..] {
            limits.push(CaCertificate::from_der(der.to_vec())?);
        }
        limits.extend(self.anchor.clone());
        for (below, pair) in limits.windows(2).enumerate() {
            let [lower, upper] = pair else { continue };
            if lower.mesh() != upper.mesh() {
                return Err(Refused::AnotherMesh(lower.mesh().clone()));
            }
            if !upper.network().contains(&lower.network()) {
                return Err(Refused::AuthorityExceeded("its network is not within that of the one above it"));
            }
            // Under `upper` stand `lower` and the `below` ones under that.
            if upper.path_length().is_some_and(|length| below as u64 + 1 > u64::from(length)) {
                return Err(Refused::AuthorityExceeded("more authorities below it than its path length"));
            }
        }
        Ok(())
    }

    /// All are valid, or ended at most `grace` ago.
    pub fn check_time(&self, grace: Duration, now: UnixTime) -> Result<(), Refused> {
        let above = self.anchor.iter().map(|anchor| (anchor.not_before(), anchor.not_after()));
        let below = self.outlines.iter().map(|outline| (outline.not_before, outline.not_after));
        for (not_before, not_after) in below.chain(above) {
            if now < not_before {
                return Err(Refused::NotYetValid { not_before, now });
            }
            if now >= not_after.plus(grace) {
                return Err(Refused::Expired { not_after, now });
            }
        }
        Ok(())
    }

    /// The address is one that every authority above may give.
    pub fn check_network(&self, address: OverlayIp) -> Result<(), Refused> {
        let mut networks: Vec<_> = self.anchor.iter().map(CaCertificate::network).collect();
        for der in &self.ders[1..] {
            networks.push(CaCertificate::from_der(der.to_vec())?.network());
        }
        match networks.into_iter().find(|network| !certificate::is_host_in(address, network)) {
            Some(network) => Err(Refused::OutsideNetwork { address, network }),
            None => Ok(()),
        }
    }

    /// Neither a certificate or key on the way nor the authority itself was taken back.
    pub fn check_revocation(&self, revocations: &RevocationList) -> Result<(), Refused> {
        let anchor = self.anchor.iter().map(|anchor| (anchor.serial(), anchor.key()));
        let mut all = self.outlines.iter().map(|outline| (outline.serial, outline.key)).chain(anchor);
        match all.find(|(serial, key)| revocations.revokes(serial, key)) {
            Some((serial, _)) => Err(Refused::Revoked { serial }),
            None => Ok(()),
        }
    }
}

/// The believed authority that signed it.
fn vouching<'c>(outline: &Outline<'_>, authorities: &'c [CaCertificate]) -> Option<&'c CaCertificate> {
    authorities.iter().find(|authority| outline.is_issued_by_ca(authority))
}

/// Adds certificates of `pool` until an authority signed the last. False, and nothing added, if that leads nowhere.
fn climb<'a>(ders: &mut Vec<&'a [u8]>, pool: &[&'a [u8]], authorities: &[CaCertificate]) -> bool {
    let Some(last) = ders.last().and_then(|der| Outline::parse(der).ok()) else { return false };
    if vouching(&last, authorities).is_some() {
        return true;
    }
    if ders.len() >= MAX_CHAIN {
        return false;
    }
    for der in pool {
        let issues = !ders.contains(der) && Outline::parse(der).is_ok_and(|above| last.is_issued_by(&above));
        if issues {
            ders.push(der);
            if climb(ders, pool, authorities) {
                return true;
            }
            ders.pop();
        }
    }
    false
}
