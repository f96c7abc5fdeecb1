//! Joining and renewing: what is known is read, the decision made, and everything written, in one transaction.

use std::net::IpAddr;

use sqlx::{Row, Sqlite, Transaction};
use wiremesh_certs::{
    AllowedServices, CertificateRequest, Chain, GroupName, IssueError, NodeId, NodeName, OverlayIp, Renewable, Serial,
    ServiceName, UnixTime, Verified, WgPublicKey, allowed_services,
};

use super::{
    Store, StoreError, audit,
    facts::facts,
    from_json, integer,
    joins::{self, Waits},
    to_json, tokens, unsigned,
};
use crate::coordinator::{
    audit::{Event, Kind, Origin, TokenUse},
    enrolment::{self, Decision, Facts, Refusal},
    registry::Member,
};

/// Of one member, not yet ended. An honest one has two or three; at the bound it gets none until some end.
const MAX_LIVE_CERTIFICATES: i64 = 64;

/// What a certificate is to say.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Whom it is for.
    pub member: Member,
    /// Its groups.
    pub groups: Vec<GroupName>,
    /// What it may offer.
    pub services: AllowedServices,
}

/// Whether somebody that is not known here may be taken in by its certificate alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Newcomers {
    /// It was signed offline, by an authority that is believed.
    Welcome,
    /// It has ended, or its authority is one that was.
    Refused,
}

/// Signs a grant; also says serial number and end of what it signed.
pub trait Issue: FnOnce(&Grant) -> Result<(Chain, Serial, UnixTime), IssueError> + Send {}

impl<F: FnOnce(&Grant) -> Result<(Chain, Serial, UnixTime), IssueError> + Send> Issue for F {}

/// What became of a request to join.
pub enum Enrolled {
    /// The machine is a member.
    Joined {
        /// Which one.
        member: Member,
        /// Its certificate.
        chain: Chain,
    },
    /// It waits for an operator.
    Waits(Waits),
    /// It may not join.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The token that it showed, if that is one of ours.
        token: Option<String>,
        /// Who joined with that token first, if it was another machine.
        first_use: Option<TokenUse>,
    },
}

impl Store {
    /// Lets a machine join, has it wait for an operator, or says why not. The latter is told by the caller, who knows
    /// whether there is room for it; everything else is told here.
    pub async fn enrol(
        &self,
        request: &CertificateRequest,
        secret_hash: &[u8; 32],
        from: IpAddr,
        now: UnixTime,
        issue: impl Issue,
    ) -> Result<Enrolled, StoreError> {
        let mut tx = self.begin().await?;
        let mut facts = facts(&mut tx, request.identity, &request.name, request.wg).await?;
        facts.token = tokens::by_hash(&mut tx, secret_hash).await?;
        if let Some(token) = &facts.token {
            facts.used_before = tokens::was_used_by(&mut tx, &token.id, request.identity).await?;
            facts.asked = joins::asked(&mut tx, request.identity, now).await?;
        }
        match self.enrol_in(&mut tx, request, &facts, from, now, issue).await {
            Err(StoreError::Refused(refusal)) => {
                let token = facts.token.map(|token| token.id);
                let first_use = match &token {
                    Some(token) => tokens::first_use(&mut tx, token, request.identity).await?,
                    None => None,
                };
                Ok(Enrolled::Refused { refusal, token, first_use })
            }
            Err(error) => Err(error),
            Ok(enrolled) => {
                tx.commit().await?;
                Ok(enrolled)
            }
        }
    }

    async fn enrol_in(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        request: &CertificateRequest,
        facts: &Facts,
        from: IpAddr,
        now: UnixTime,
        issue: impl Issue,
    ) -> Result<Enrolled, StoreError> {
        let (token, charged, host) = match enrolment::decide(request, facts, self.network, now)? {
            Decision::Join { token, charged, host } => (token, charged, host),
            Decision::Wait { token } => {
                let waits = joins::wait(tx, request, &token, facts.asked.as_ref(), from, now).await?;
                return Ok(Enrolled::Waits(waits));
            }
        };
        // Who joins again and again with its token costs as much as who renews so.
        has_room(tx, request.identity, now).await?;
        let host = match host {
            Some(host) => host,
            None => self.free_host(tx, now).await?,
        };
        let member = self.member_at(host, request.identity, &request.name, request.wg)?;
        let grant = Grant { member, groups: token.groups.clone(), services: allowed_services(token.services.clone()) };
        if charged {
            tokens::charge(tx, &token.id, request, from, now).await?;
        }
        write_member(tx, host, &grant, now).await?;
        let (chain, serial, not_after) = issue(&grant)?;
        write_certificate(tx, &serial, request.identity, now, not_after).await?;
        joins::forget(tx, request.identity).await?;
        let first_use = tokens::first_use(tx, &token.id, request.identity).await?;
        let event = Event::new(Kind::Joined, &Origin::named(&request.name, request.identity, from))
            .about(&request.name, request.identity)
            .with_token(&token.id)
            .with("address", grant.member.address)
            .with("groups", &grant.groups)
            .with("services", &token.services)
            .with("serial", serial)
            .with("until", not_after)
            .with("again", !charged)
            .with_if("first_use", first_use);
        audit::write(tx, &event, now).await?;
        Ok(Enrolled::Joined { member: grant.member, chain })
    }

    /// A fresh certificate for a member: the same name and address, groups and services. Its certificate may have ended,
    /// or be from an authority that is no longer believed; then it must be a member that is known here, since whoever has
    /// such an authority's key could vouch for anybody else.
    pub async fn renew(
        &self,
        by: &Renewable,
        newcomers: Newcomers,
        from: IpAddr,
        now: UnixTime,
        issue: impl Issue,
    ) -> Result<(Member, Chain), StoreError> {
        let mut tx = self.begin().await?;
        let revoked: Option<i64> = sqlx::query_scalar("SELECT 1 FROM revocations WHERE kind = 'serial' AND value = ?")
            .bind(by.serial().0.as_slice())
            .fetch_optional(&mut *tx)
            .await?;
        if revoked.is_some() {
            return Err(Refusal::CertificateRevoked(by.serial()).into());
        }
        let known: Option<i64> = sqlx::query_scalar("SELECT 1 FROM members WHERE identity = ?")
            .bind(by.id().0.as_slice())
            .fetch_optional(&mut *tx)
            .await?;
        if known.is_none() && newcomers == Newcomers::Refused {
            return Err(Refusal::NotAMember(by.name().clone()).into());
        }
        let member = self.adopt_in(&mut tx, by, from, now).await?;
        has_room(&mut tx, by.id(), now).await?;
        let row = sqlx::query("SELECT groups, services FROM members WHERE identity = ?")
            .bind(by.id().0.as_slice())
            .fetch_one(&mut *tx)
            .await?;
        let groups: Vec<GroupName> = from_json(row.try_get("groups")?)?;
        let services: Option<Vec<ServiceName>> =
            row.try_get::<Option<&str>, _>("services")?.map(from_json).transpose()?;
        let services = services.map_or(AllowedServices::Any, AllowedServices::Only);
        let grant = Grant { member, groups, services };
        let (chain, serial, not_after) = issue(&grant)?;
        write_certificate(&mut tx, &serial, by.id(), now, not_after).await?;
        let event = Event::new(Kind::Renewed, &Origin::named(by.name(), by.id(), from))
            .about(by.name(), by.id())
            .with("serial", serial)
            .with("until", not_after);
        audit::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok((grant.member, chain))
    }

    /// Takes in a member whose certificate our authority signed but that the registry does not know: it was signed
    /// offline, or its enrolment was cut off. Refused if anything it holds is another's.
    pub async fn adopt(&self, by: &Verified, from: IpAddr, now: UnixTime) -> Result<Member, StoreError> {
        let mut tx = self.begin().await?;
        let member = self.adopt_in(&mut tx, &Renewable::from(by.clone()), from, now).await?;
        tx.commit().await?;
        Ok(member)
    }

    async fn adopt_in(
        &self,
        tx: &mut Transaction<'_, Sqlite>,
        by: &Renewable,
        from: IpAddr,
        now: UnixTime,
    ) -> Result<Member, StoreError> {
        let facts = facts(tx, by.id(), by.name(), by.wg()).await?;
        if let Some(host) = enrolment::unclaimed(by.id(), by.name(), by.wg(), &facts, self.network)? {
            let row = sqlx::query("SELECT * FROM members WHERE identity = ? AND host = ?")
                .bind(by.id().0.as_slice())
                .bind(integer(host))
                .fetch_one(&mut **tx)
                .await?;
            let member = self.member(&row)?;
            return if member.address == by.address() {
                Ok(member)
            } else {
                Err(Refusal::AddressTaken(by.address()).into())
            };
        }
        let host = enrolment::host_of(self.network, by.address()).ok_or(StoreError::Corrupt("place in the network"))?;
        let holder: Option<Vec<u8>> = sqlx::query_scalar("SELECT identity FROM members WHERE host = ?")
            .bind(integer(host))
            .fetch_optional(&mut **tx)
            .await?;
        if holder.is_some() {
            return Err(Refusal::AddressTaken(by.address()).into());
        }
        let member = self.member_at(host, by.id(), by.name(), by.wg())?;
        let grant = Grant { member, groups: by.groups().to_vec(), services: by.services().clone() };
        write_member(tx, host, &grant, now).await?;
        write_certificate(tx, &by.serial(), by.id(), by.not_before(), by.not_after()).await?;
        let event = Event::new(Kind::Adopted, &Origin::named(by.name(), by.id(), from))
            .about(by.name(), by.id())
            .with("address", grant.member.address)
            .with("groups", &grant.groups)
            .with("serial", by.serial())
            .with("until", by.not_after());
        audit::write(tx, &event, now).await?;
        Ok(grant.member)
    }

    fn member_at(&self, host: u64, identity: NodeId, name: &NodeName, wg: WgPublicKey) -> Result<Member, StoreError> {
        let address = enrolment::address_of(self.network, host).ok_or(Refusal::NetworkFull(self.network))?;
        Ok(Member { identity, name: name.clone(), address, wg })
    }

    /// The place after the highest, so that addresses are not given again soon; when the end is reached, the lowest
    /// free one.
    async fn free_host(&self, tx: &mut Transaction<'_, Sqlite>, now: UnixTime) -> Result<u64, StoreError> {
        let last = enrolment::last_host(self.network);
        let highest: Option<i64> = sqlx::query_scalar("SELECT MAX(host) FROM members").fetch_one(&mut **tx).await?;
        let next = match highest {
            Some(highest) => (unsigned(highest, "place in the network")? + 1).max(enrolment::FIRST_HOST),
            None => enrolment::FIRST_HOST,
        };
        if next <= last {
            return Ok(next);
        }
        sqlx::query(
            "DELETE FROM members WHERE revoked_at IS NOT NULL AND NOT EXISTS
             (SELECT 1 FROM certificates c WHERE c.identity = members.identity AND c.not_after > ?)",
        )
        .bind(integer(now.0))
        .execute(&mut **tx)
        .await?;
        let gap: Option<i64> = sqlx::query_scalar(
            "SELECT MIN(m.host) + 1 FROM (SELECT ?1 AS host UNION SELECT host FROM members) m
             WHERE m.host + 1 BETWEEN ?1 + 1 AND ?2
             AND NOT EXISTS (SELECT 1 FROM members n WHERE n.host = m.host + 1)",
        )
        .bind(integer(enrolment::FIRST_HOST - 1))
        .bind(integer(last))
        .fetch_one(&mut **tx)
        .await?;
        let gap = gap.ok_or(Refusal::NetworkFull(self.network))?;
        unsigned(gap, "place in the network")
    }
}

/// Whether one more certificate may be issued to this identity.
pub(super) async fn has_room(
    tx: &mut Transaction<'_, Sqlite>,
    identity: NodeId,
    now: UnixTime,
) -> Result<(), StoreError> {
    let live: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM certificates WHERE identity = ? AND not_after > ?")
        .bind(identity.0.as_slice())
        .bind(integer(now.0))
        .fetch_one(&mut **tx)
        .await?;
    if live >= MAX_LIVE_CERTIFICATES {
        return Err(StoreError::Full(
            "this member has 64 certificates that have not ended; it renews, joins or changes its keys too often",
        ));
    }
    Ok(())
}

async fn write_member(
    tx: &mut Transaction<'_, Sqlite>,
    host: u64,
    grant: &Grant,
    now: UnixTime,
) -> Result<(), StoreError> {
    let services = match &grant.services {
        AllowedServices::Any => None,
        AllowedServices::Only(services) => Some(to_json(services)),
    };
    let Member { identity, name, wg, address: OverlayIp(_) } = &grant.member;
    sqlx::query(
        "INSERT INTO members (identity, name, host, wireguard_key, groups, services, joined_at)
         VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (identity) DO UPDATE SET
             wireguard_key = excluded.wireguard_key, groups = excluded.groups, services = excluded.services",
    )
    .bind(identity.0.as_slice())
    .bind(name.as_str())
    .bind(integer(host))
    .bind(wg.0.as_slice())
    .bind(to_json(&grant.groups))
    .bind(services)
    .bind(integer(now.0))
    .execute(&mut **tx)
    .await?;
    sqlx::query("INSERT INTO wireguard_keys (wireguard_key, identity) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(wg.0.as_slice())
        .bind(identity.0.as_slice())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

pub(super) async fn write_certificate(
    tx: &mut Transaction<'_, Sqlite>,
    serial: &Serial,
    identity: NodeId,
    issued_at: UnixTime,
    not_after: UnixTime,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO certificates (serial, identity, issued_at, not_after) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(serial.0.as_slice())
    .bind(identity.0.as_slice())
    .bind(integer(issued_at.0))
    .bind(integer(not_after.0))
    .execute(&mut **tx)
    .await?;
    Ok(())
}
