//! Whether a machine may join: what its token allows and what others already hold.
//!
//! ```text
//! request ─► token known, not revoked, not expired ─► used by this machine before, or uses left
//!         ─► name as the token wants it ─► identity, name and WireGuard key not another's ─► Decision
//! ```
//!
//! **Invariant:** the facts are read, the decision made and its consequences written in one transaction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use wiremesh_certs::{
    COORDINATOR_NAME, CertificateRequest, GroupName, NodeId, NodeName, OverlayIp, Serial, ServiceName, UnixTime, WgPublicKey,
};

/// The first address goes to nobody, the second belongs to the coordinator.
pub const FIRST_HOST: u64 = 2;

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

/// What the database knows that bears on one request.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The token, if there is such a one.
    pub token: Option<Token>,
    /// Whether this identity joined with this token before.
    pub used_before: bool,
    /// The member with this identity.
    pub same_identity: Option<Holder>,
    /// Whether the identity is on the revocation list.
    pub identity_revoked: bool,
    /// The member with this name that is not revoked.
    pub same_name: Option<Holder>,
    /// The identity that this WireGuard key was ever bound to.
    pub key_holder: Option<NodeId>,
}

/// The machine may join.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// With this token.
    pub token: Token,
    /// Whether that takes one of its uses.
    pub charged: bool,
    /// The place it already has; `None`: it needs one.
    pub host: Option<u64>,
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
    /// The certificate was revoked, and not its owner.
    #[error("the certificate {0} was revoked")]
    CertificateRevoked(Serial),
    /// Its certificate is good for a renewal, and there is nothing to renew.
    #[error("this coordinator has no member called {0} with this identity")]
    NotAMember(NodeName),
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
            Refusal::TokenForAnotherName { .. } => "token_for_another_name",
            Refusal::NameReserved => "name_reserved",
            Refusal::NameTaken { .. } => "name_taken",
            Refusal::WireGuardKeyTaken(_) => "wireguard_key_taken",
            Refusal::AddressTaken(_) => "address_taken",
            Refusal::OtherName(_) => "identity_has_another_name",
            Refusal::IdentityRevoked => "identity_revoked",
            Refusal::CertificateRevoked(_) => "certificate_revoked",
            Refusal::NotAMember(_) => "not_a_member",
            Refusal::NetworkFull(_) => "network_full",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::UnknownToken
            | Refusal::TokenRevoked(_)
            | Refusal::TokenExpired { .. }
            | Refusal::TokenUsed { .. } => "make a new one: wiremesh token create",
            Refusal::TokenForAnotherName { .. } => "set that name, or make a token for this one",
            Refusal::NameReserved => "choose another name",
            Refusal::NameTaken { .. } => "choose another name, or revoke its holder: wiremesh cert revoke NAME",
            Refusal::WireGuardKeyTaken(_) => "do not copy state directories: each machine makes its own keys",
            Refusal::AddressTaken(_) => "sign its certificate with a free address",
            Refusal::OtherName(_) => "keep that name, or join with an empty state directory",
            Refusal::CertificateRevoked(_) | Refusal::NotAMember(_) => "join again with a new token: wiremesh token create",
            Refusal::IdentityRevoked => "join with an empty state directory and a new token",
            Refusal::NetworkFull(_) => "revoke members that are gone: wiremesh cert revoke NAME",
        }
    }
}

/// Decides about one request.
pub fn decide(request: &CertificateRequest, facts: &Facts, network: IpNet, now: UnixTime) -> Result<Decision, Refusal> {
    let token = usable(facts, now)?;
    if request.name.as_str() == COORDINATOR_NAME {
        return Err(Refusal::NameReserved);
    }
    if let Some(wanted) = token.name.as_ref().filter(|wanted| **wanted != request.name) {
        return Err(Refusal::TokenForAnotherName { wanted: wanted.clone(), given: request.name.clone() });
    }
    let host = unclaimed(request.identity, &request.name, request.wg, facts, network)?;
    Ok(Decision { token: token.clone(), charged: !facts.used_before, host })
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

fn usable(facts: &Facts, now: UnixTime) -> Result<&Token, Refusal> {
    let token = facts.token.as_ref().ok_or(Refusal::UnknownToken)?;
    if token.revoked_at.is_some() {
        return Err(Refusal::TokenRevoked(token.id.clone()));
    }
    if now >= token.expires_at {
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
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_000_000);

    fn network() -> IpNet {
        "10.42.0.0/16".parse().unwrap()
    }

    fn name(text: &str) -> NodeName {
        NodeName::new(text).unwrap()
    }

    fn request() -> CertificateRequest {
        CertificateRequest { identity: NodeId([1; 32]), name: name("a"), wg: WgPublicKey([1; 32]) }
    }

    fn token() -> Token {
        Token {
            id: "t1".into(),
            name: None,
            groups: Vec::new(),
            services: Vec::new(),
            uses: 1,
            used: 0,
            created_at: NOW,
            expires_at: UnixTime(NOW.0 + 10),
            revoked_at: None,
        }
    }

    fn holder(byte: u8, called: &str) -> Holder {
        Holder { identity: NodeId([byte; 32]), name: name(called), host: 7, revoked: false }
    }

    fn facts() -> Facts {
        Facts { token: Some(token()), ..Facts::default() }
    }

    #[test]
    fn each_hostile_case_is_refused_with_its_own_reason() {
        let cases: Vec<(&str, Facts)> = vec![
            ("token_unknown", Facts { token: None, ..facts() }),
            ("token_revoked", Facts { token: Some(Token { revoked_at: Some(NOW), ..token() }), ..facts() }),
            ("token_expired", Facts { token: Some(Token { expires_at: NOW, ..token() }), ..facts() }),
            ("token_used", Facts { token: Some(Token { used: 1, ..token() }), ..facts() }),
            ("token_for_another_name", Facts { token: Some(Token { name: Some(name("b")), ..token() }), ..facts() }),
            ("name_taken", Facts { same_name: Some(holder(2, "a")), ..facts() }),
            ("wireguard_key_taken", Facts { key_holder: Some(NodeId([2; 32])), ..facts() }),
            ("identity_has_another_name", Facts { same_identity: Some(holder(1, "b")), ..facts() }),
            ("identity_revoked", Facts { same_identity: Some(Holder { revoked: true, ..holder(1, "a") }), ..facts() }),
        ];

        for (expected, facts) in cases {
            let refusal = decide(&request(), &facts, network(), NOW).unwrap_err();
            assert_eq!(refusal.kind(), expected);
        }
        assert_eq!(
            decide(&request(), &Facts { identity_revoked: true, ..facts() }, network(), NOW),
            Err(Refusal::IdentityRevoked)
        );
        let reserved = CertificateRequest { name: name("coordinator"), ..request() };
        assert_eq!(decide(&reserved, &facts(), network(), NOW).unwrap_err(), Refusal::NameReserved);
    }

    #[test]
    fn the_same_machine_may_repeat_a_join_whose_answer_it_never_got() {
        let facts = Facts {
            token: Some(Token { used: 1, ..token() }),
            used_before: true,
            identity_revoked: false,
            same_identity: Some(holder(1, "a")),
            same_name: Some(holder(1, "a")),
            key_holder: Some(NodeId([1; 32])),
        };

        let decision = decide(&request(), &facts, network(), NOW).unwrap();

        assert_eq!((decision.charged, decision.host), (false, Some(7)));
    }

    #[test]
    fn addresses_and_places_are_each_others_inverse() {
        for text in ["10.42.0.0/16", "192.168.7.0/29", "fd00:1234::/64"] {
            let network: IpNet = text.parse().unwrap();
            for host in [FIRST_HOST, 5, last_host(network)] {
                let address = address_of(network, host).unwrap();
                assert_eq!(host_of(network, address), Some(host), "{text} {host}");
            }
        }
        assert_eq!(address_of(network(), 70_000), None);
        assert_eq!(address_of("10.0.0.0/30".parse().unwrap(), 2), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(last_host("10.0.0.0/30".parse().unwrap()), 2);
    }
}
