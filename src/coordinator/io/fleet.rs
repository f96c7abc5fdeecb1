//! The fleet as the operator sees it: whose certificate ends when, and who is up to date.

use wiremesh_certs::UnixTime;

use super::{http::described, shared::Shared, store::StoreError};
use crate::{
    api::authority::{Care, Member, Members},
    coordinator::care,
};

/// Every member, the one whose certificate ends first is first.
pub async fn members(shared: &Shared, now: UnixTime) -> Result<Members, StoreError> {
    let issued = shared.store.last_certificates().await?;
    let in_force = shared.ruling.in_force();
    let mut members: Vec<Member> = shared
        .registry()
        .seen(now)
        .map(|seen| {
            let issued = issued.get(&seen.member.identity);
            let shown = seen.shown.map(|shown| (shown.serial, shown.ends_at));
            let certificate = shown.or(issued.copied());
            Member {
                name: seen.member.name.clone(),
                address: seen.member.address,
                identity: seen.member.identity,
                serial: certificate.map(|(serial, _)| serial),
                ends_at: certificate.map(|(_, ends_at)| ends_at),
                authority: seen.shown.map(|shown| shown.authority),
                enforces: seen.shown.map(|shown| shown.enforces),
                heard_at: seen.heard_at,
                living: seen.lives,
            }
        })
        .collect();
    members.sort_by(|one, other| (one.ends_at, &one.name).cmp(&(other.ends_at, &other.name)));
    let care = care::of(&in_force.authorities, now);
    Ok(Members {
        number: shared.trust.current().revocation_number(),
        authority: described(in_force.authorities.issuing()),
        care: care.into_iter().map(|care::Care { what, hint }| Care { what, hint: hint.to_owned() }).collect(),
        members,
    })
}
