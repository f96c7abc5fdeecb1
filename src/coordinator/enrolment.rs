//! Whether a machine may join: what its token allows and what others already hold.
//!
//! ```text
//! request ─► token known, not revoked, not expired ─► used by this machine before, or uses left
//!         ─► name as the token wants it ─► identity, name and WireGuard key not another's
//!         ─► does the token want an operator's word? ─ no, or it was given ─► Join
//!                                                    └ not yet ─────────────► Wait
//! ```
//!
//! **Invariant:** the facts are read, the decision made and its consequences written in one transaction.
//!
//! **Invariant:** what an operator approves is one identity with one name and one WireGuard key by one token. Whoever
//! asks with anything else waits anew.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;
use wiremesh_certs::{
    COORDINATOR_NAME, CertificateRequest, GroupName, NodeId, NodeName, OverlayIp, ServiceName, UnixTime, WgPublicKey,
};

/// The first address goes to nobody, the second belongs to the coordinator.
pub const FIRST_HOST: u64 = 2;
/// How long a machine waits for an operator, and an operator's yes for the machine. Longer than a long weekend.
pub const WAITING_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Machines that wait at once. At the bound no more are taken in until some are decided about or lapse.
pub const MAX_WAITING: u32 = 1024;
/// Machines that may wait with one token beyond those it was made for: so that a thief who comes first does not keep its
/// owner out, and the operator sees both.
pub const MORE_THAN_USES: u32 = 8;
/// How often a machine that waits may ask to be taken for another than it said.
pub const CHANGES_EVERY: Duration = Duration::from_secs(60);

/// A token as it is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// To name it by.
    pub id: String,
    /// Only this name may join with it.
    pub name: Option<NodeName>,
    /// Groups that it gives.
    pub groups: Vec<GroupName>,
    /// Services that it allows; empty: any.
    pub services: Vec<ServiceName>,
    /// Machines it was made for.
    pub uses: u32,
    /// Machines that joined with it.
    pub used: u32,
    /// Whether an operator must approve of each.
    pub approve: bool,
    /// When it was made.
    pub created_at: UnixTime,
    /// When it ends.
    pub expires_at: UnixTime,
    /// When it was taken back.
    pub revoked_at: Option<UnixTime>,
}

impl Token {
    /// One word for lists.
    pub fn state(&self, now: UnixTime) -> &'static str {
        if self.revoked_at.is_some() {
            "revoked"
        } else if now >= self.expires_at {
            "expired"
        } else if self.used >= self.uses {
            "used"
        } else {
            "usable"
        }
    }
}

/// Somebody who holds a name or address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Who it is.
    pub identity: NodeId,
    /// What it is called.
    pub name: NodeName,
    /// Its place in the network.
    pub host: u64,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// A machine that asked to join and needs an operator's word.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Asked {
    /// What it wants to be called.
    pub name: NodeName,
    /// Its WireGuard key.
    pub wg: WgPublicKey,
    /// The id of the token that it showed.
    pub token: String,
    /// What the operator said.
    pub standing: Standing,
    /// When it asked first.
    pub asked_at: UnixTime,
    /// When it was last heard to ask, to within [`CHANGES_EVERY`].
    pub heard_at: UnixTime,
}

impl Asked {
    /// Whether this is the same question, asked once more.
    pub fn is(&self, request: &CertificateRequest, token: &str) -> bool {
        self.name == request.name && self.wg == request.wg && self.token == token
    }
}

/// What an operator said to a machine that asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Nothing yet.
    Waiting,
    /// Yes.
    Approved,
    /// No.
    Declined,
}

impl Standing {
    /// One stable word.
    pub fn word(self) -> &'static str {
        match self {
            Standing::Waiting => "waiting",
            Standing::Approved => "approved",
            Standing::Declined => "declined",
        }
    }

    /// The standing of this word.
    pub fn parse(word: &str) -> Option<Standing> {
        [Standing::Waiting, Standing::Approved, Standing::Declined].into_iter().find(|standing| standing.word() == word)
    }
}

/// What the database knows that bears on one request.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The token, if there is such a one.
    pub token: Option<Token>,
    /// Whether this identity joined with this token before.
    pub used_before: bool,
    /// What this identity asked of an operator, if that is still open or was answered lately.
    pub asked: Option<Asked>,
    /// The member with this identity.
    pub same_identity: Option<Holder>,
    /// Whether the identity is on the revocation list.
    pub identity_revoked: bool,
    /// The member with this name that is not revoked.
    pub same_name: Option<Holder>,
    /// The identity that this WireGuard key was ever bound to.
    pub key_holder: Option<NodeId>,
}

/// What becomes of a request that is not refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// The machine may join.
    Join {
        /// With this token.
        token: Token,
        /// Whether that takes one of its uses.
        charged: bool,
        /// The place it already has; `None`: it needs one.
        host: Option<u64>,
    },
    /// An operator must say so first.
    Wait {
        /// It came with this token.
        token: Token,
    },
}

/// The machine may not join. Final: trying again changes nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The secret belongs to no token.
    #[error("this coordinator knows no such join token")]
    UnknownToken,
    /// Taken back by the operator.
    #[error("join token {0} was revoked")]
    TokenRevoked(String),
    /// Its time is over.
    #[error("join token {id} ended at {expires_at}")]
    TokenExpired {
        /// Which one.
        id: String,
        /// Its end.
        expires_at: UnixTime,
    },
    /// As many machines joined as it was made for.
    #[error("join token {id} was made for {uses} join(s) and has been used")]
    TokenUsed {
        /// Which one.
        id: String,
        /// How many it was made for.
        uses: u32,
    },
    /// An operator said no.
    #[error("an operator refused to let this machine join")]
    Declined,
    /// It is bound to another name.
    #[error("this join token is for a node called {wanted}, not {given}")]
    TokenForAnotherName {
        /// The name in the token.
        wanted: NodeName,
        /// The name asked for.
        given: NodeName,
    },
    /// No node may pass for the coordinator.
    #[error("the name {COORDINATOR_NAME} is reserved")]
    NameReserved,
    /// Somebody else is called so.
    #[error("the name {name} belongs to another member, at {address}")]
    NameTaken {
        /// The name.
        name: NodeName,
        /// Where its holder is.
        address: OverlayIp,
    },
    /// Somebody else has this WireGuard key.
    #[error("the WireGuard key {0} belongs to another member")]
    WireGuardKeyTaken(WgPublicKey),
    /// Somebody else has this address.
    #[error("the overlay address {0} belongs to another member")]
    AddressTaken(OverlayIp),
    /// The identity is a member under another name.
    #[error("this machine's identity is already a member, called {0}")]
    OtherName(NodeName),
    /// The identity was revoked.
    #[error("this machine's identity was revoked")]
    IdentityRevoked,
    /// Every address is taken.
    #[error("the network {0} has no free address")]
    NetworkFull(IpNet),
}

impl Refusal {
    /// One stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Refusal::UnknownToken => "token_unknown",
            Refusal::TokenRevoked(_) => "token_revoked",
            Refusal::TokenExpired { .. } => "token_expired",
            Refusal::TokenUsed { .. } => "token_used",
            Refusal::Declined => "join_declined",
            Refusal::TokenForAnotherName { .. } => "token_for_another_name",
            Refusal::NameReserved => "name_reserved",
            Refusal::NameTaken { .. } => "name_taken",
            Refusal::WireGuardKeyTaken(_) => "wireguard_key_taken",
            Refusal::AddressTaken(_) => "address_taken",
            Refusal::OtherName(_) => "identity_has_another_name",
            Refusal::IdentityRevoked => "identity_revoked",
            Refusal::NetworkFull(_) => "network_full",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::UnknownToken | Refusal::TokenRevoked(_) | Refusal::TokenExpired { .. } => {
                "make a new one: wiremesh token create"
            }
            Refusal::TokenUsed { .. } => {
                "make a new one: wiremesh token create; if no other machine of yours has used it, see who did: \
                 wiremesh audit"
            }
            Refusal::Declined => "ask whoever runs the mesh; with a new token this machine may ask again",
            Refusal::TokenForAnotherName { .. } => "set that name, or make a token for this one",
            Refusal::NameReserved => "choose another name",
            Refusal::NameTaken { .. } => "choose another name, or revoke its holder: wiremesh cert revoke NAME",
            Refusal::WireGuardKeyTaken(_) => "do not copy state directories: each machine makes its own keys",
            Refusal::AddressTaken(_) => "sign its certificate with a free address",
            Refusal::OtherName(_) => "keep that name, or join with an empty state directory",
            Refusal::IdentityRevoked => "join with an empty state directory and a new token",
            Refusal::NetworkFull(_) => "revoke members that are gone: wiremesh cert revoke NAME",
        }
    }
}

/// Decides about one request.
pub fn decide(request: &CertificateRequest, facts: &Facts, network: IpNet, now: UnixTime) -> Result<Decision, Refusal> {
    let token = usable(request, facts, now)?;
    if request.name.as_str() == COORDINATOR_NAME {
        return Err(Refusal::NameReserved);
    }
    if let Some(wanted) = token.name.as_ref().filter(|wanted| **wanted != request.name) {
        return Err(Refusal::TokenForAnotherName { wanted: wanted.clone(), given: request.name.clone() });
    }
    let host = unclaimed(request.identity, &request.name, request.wg, facts, network)?;
    if token.approve && !is_approved(request, token, facts)? {
        return Ok(Decision::Wait { token: token.clone() });
    }
    Ok(Decision::Join { token: token.clone(), charged: !facts.used_before, host })
}

/// Whether an operator said yes to this very machine.
fn is_approved(request: &CertificateRequest, token: &Token, facts: &Facts) -> Result<bool, Refusal> {
    // It was let in with this token and this key once: the answer did not reach it, or it begins again.
    if facts.used_before && facts.key_holder == Some(request.identity) {
        return Ok(true);
    }
    match &facts.asked {
        Some(asked) if asked.token == token.id && asked.standing == Standing::Declined => Err(Refusal::Declined),
        Some(asked) => Ok(asked.standing == Standing::Approved && asked.is(request, &token.id)),
        None => Ok(false),
    }
}

/// Whether identity, name and key are free or this identity's own; its place, if it has one.
pub fn unclaimed(
    identity: NodeId,
    name: &NodeName,
    wg: WgPublicKey,
    facts: &Facts,
    network: IpNet,
) -> Result<Option<u64>, Refusal> {
    if facts.identity_revoked || facts.same_identity.as_ref().is_some_and(|member| member.revoked) {
        return Err(Refusal::IdentityRevoked);
    }
    if let Some(member) = facts.same_identity.as_ref().filter(|member| member.name != *name) {
        return Err(Refusal::OtherName(member.name.clone()));
    }
    if let Some(holder) = facts.same_name.as_ref().filter(|holder| holder.identity != identity) {
        let address = address_of(network, holder.host).unwrap_or(OverlayIp(network.network()));
        return Err(Refusal::NameTaken { name: name.clone(), address });
    }
    if facts.key_holder.is_some_and(|holder| holder != identity) {
        return Err(Refusal::WireGuardKeyTaken(wg));
    }
    Ok(facts.same_identity.as_ref().map(|member| member.host))
}

fn usable<'a>(request: &CertificateRequest, facts: &'a Facts, now: UnixTime) -> Result<&'a Token, Refusal> {
    let token = facts.token.as_ref().ok_or(Refusal::UnknownToken)?;
    if token.revoked_at.is_some() {
        return Err(Refusal::TokenRevoked(token.id.clone()));
    }
    // Who asked in time is not turned away because the operator took until after the token's end.
    let asked_in_time = facts.asked.as_ref().is_some_and(|asked| asked.is(request, &token.id));
    if now >= token.expires_at && !asked_in_time {
        return Err(Refusal::TokenExpired { id: token.id.clone(), expires_at: token.expires_at });
    }
    if !facts.used_before && token.used >= token.uses {
        return Err(Refusal::TokenUsed { id: token.id.clone(), uses: token.uses });
    }
    Ok(token)
}

/// The last place that may be given away: not the broadcast address, and within what a database integer holds.
pub fn last_host(network: IpNet) -> u64 {
    let bits = u32::from(network.max_prefix_len() - network.prefix_len()).min(62);
    match network {
        IpNet::V4(_) => (1u64 << bits) - 2,
        IpNet::V6(_) => (1u64 << bits) - 1,
    }
}

/// The address at a place in the network.
pub fn address_of(network: IpNet, host: u64) -> Option<OverlayIp> {
    let address = match network.network() {
        IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base).checked_add(u32::try_from(host).ok()?)?)),
        IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base).checked_add(u128::from(host))?)),
    };
    network.contains(&address).then_some(OverlayIp(address))
}

/// The place of an address in the network.
pub fn host_of(network: IpNet, address: OverlayIp) -> Option<u64> {
    if !network.contains(&address.0) {
        return None;
    }
    match (network.network(), address.0) {
        (IpAddr::V4(base), IpAddr::V4(address)) => Some(u64::from(u32::from(address) - u32::from(base))),
        (IpAddr::V6(base), IpAddr::V6(address)) => u64::try_from(u128::from(address) - u128::from(base)).ok(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

#[cfg(test)]
mod tests;
