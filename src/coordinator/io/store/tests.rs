mod audit;
mod joins;

use std::net::IpAddr;

use rand::{SeedableRng, rngs::StdRng};
use wiremesh_certs::{
    AllowedServices, Authority, CaParameters, CertificateRequest, Chain, Claims, IdentityKey, MeshName, NodeName,
    Policy, Renewable, RevocationList, Serial, SignedRevocations, Trust, Verified,
};

use super::*;
use crate::{
    api::admin::AuditRow,
    coordinator::{
        audit::Origin,
        enrolment::Token,
        list::{Facts, compose},
    },
};

mod list;

const NOW: UnixTime = UnixTime(1_800_000_000);
const SECRET: [u8; 32] = [7; 32];
/// Where requests come from, unless it matters.
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
/// Who runs the mesh.
const UID: u32 = 1000;

struct Fixture {
    store: Store,
    authority: Authority,
    rng: StdRng,
    _directory: tempfile::TempDir,
}

async fn fixture(network: &str) -> Fixture {
    let rng = StdRng::seed_from_u64(1);
    let authority = authority(network, 1);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("coordinator.db");
    let store = Store::open(&path, &authority, NOW).await.unwrap();
    Fixture { store, authority, rng, _directory: directory }
}

fn authority(network: &str, seed: u64) -> Authority {
    let parameters = CaParameters {
        mesh: MeshName::new("lab").unwrap(),
        network: network.parse().unwrap(),
        lifetime: Duration::from_secs(86_400 * 365),
    };
    Authority::create(&parameters, NOW, &mut StdRng::seed_from_u64(seed)).unwrap()
}

impl Fixture {
    async fn token(&self, uses: u32) {
        self.add_token(token(uses), &SECRET).await;
    }

    async fn add_token(&self, token: Token, hash: &[u8; 32]) {
        self.store.add_token(&token, hash, &Origin::operator(UID)).await.unwrap();
    }

    async fn join(&mut self, number: u8) -> Result<Member, StoreError> {
        let request = request(number, &format!("n{number}"));
        self.enrol(&request, NOW).await
    }

    async fn enrol(&mut self, request: &CertificateRequest, now: UnixTime) -> Result<Member, StoreError> {
        match self.ask(request, &SECRET, HERE, now).await? {
            Enrolled::Joined { member, .. } => Ok(member),
            Enrolled::Refused { refusal, .. } => Err(refusal.into()),
            Enrolled::Waits(_) => panic!("it waits"),
        }
    }

    async fn ask(
        &mut self,
        request: &CertificateRequest,
        secret_hash: &[u8; 32],
        from: IpAddr,
        now: UnixTime,
    ) -> Result<Enrolled, StoreError> {
        let (authority, rng) = (&self.authority, &mut self.rng);
        self.store.enrol(request, secret_hash, from, now, |grant| issue(authority, grant, now, rng)).await
    }

    /// Joins and is verified.
    async fn verified(&mut self, request: &CertificateRequest) -> Verified {
        let Enrolled::Joined { chain, .. } = self.ask(request, &SECRET, HERE, NOW).await.unwrap() else { panic!() };
        Trust::new(self.authority.certificate().clone()).verify(&chain, NOW).unwrap()
    }

    /// Every row of the audit.
    async fn rows(&self) -> Vec<AuditRow> {
        self.store.audited(&Wanted::default(), 1000).await.unwrap()
    }

    /// What was done, in order.
    async fn kinds(&self) -> Vec<String> {
        self.rows().await.into_iter().map(|row| row.kind).collect()
    }

    async fn revoke(&self, target: Target) -> Result<RevocationList, StoreError> {
        let mut made = None;
        let make = |facts: &Facts| {
            let list = compose(facts, &Policy::default(), NOW);
            made = Some(list.clone());
            Ok(Some(self.authority.sign_revocations(&list)?))
        };
        self.store.revoke(&target, &Origin::operator(UID), NOW, make).await?;
        Ok(made.unwrap())
    }
}

fn token(uses: u32) -> Token {
    Token {
        id: "t1".into(),
        name: None,
        groups: vec!["gpu".parse().unwrap()],
        services: Vec::new(),
        uses,
        used: 0,
        approve: false,
        created_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(3600)),
        revoked_at: None,
    }
}

fn issue(
    authority: &Authority,
    grant: &Grant,
    now: UnixTime,
    rng: &mut StdRng,
) -> Result<(Chain, Serial, UnixTime), IssueError> {
    let claims = Claims {
        identity: grant.member.identity,
        wg: grant.member.wg,
        name: grant.member.name.clone(),
        address: grant.member.address,
        groups: grant.groups.clone(),
        services: grant.services.clone(),
        lifetime: Duration::from_secs(86_400),
    };
    let chain = authority.issue(&claims, now, rng)?;
    let verified = Trust::new(authority.certificate().clone()).verify(&chain, now).unwrap();
    Ok((chain, verified.serial(), verified.not_after()))
}

fn request(number: u8, name: &str) -> CertificateRequest {
    CertificateRequest {
        identity: IdentityKey::generate(&mut StdRng::seed_from_u64(u64::from(number))).id(),
        name: NodeName::new(name).unwrap(),
        wg: WgPublicKey([number; 32]),
    }
}

fn refusal<T>(result: Result<T, StoreError>) -> &'static str {
    match result {
        Err(StoreError::Refused(refusal)) => refusal.kind(),
        Err(other) => panic!("{other}"),
        Ok(_) => "joined",
    }
}

#[tokio::test]
async fn a_token_is_used_as_often_as_it_was_made_for_and_not_once_more() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(2).await;

    let first = fixture.join(1).await.unwrap();
    let second = fixture.join(2).await.unwrap();

    assert_eq!((first.address, second.address), ("10.42.0.2".parse().unwrap(), "10.42.0.3".parse().unwrap()));
    assert_eq!(refusal(fixture.join(3).await), "token_used");
    assert_eq!(fixture.join(2).await.unwrap(), second, "the same machine may repeat its join");
}

#[tokio::test]
async fn a_refused_join_leaves_nothing_behind() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    fixture.join(1).await.unwrap();

    let stolen_name = CertificateRequest { name: NodeName::new("n1").unwrap(), ..request(2, "x") };
    let stolen_key = CertificateRequest { wg: WgPublicKey([1; 32]), ..request(3, "n3") };
    assert_eq!(refusal(fixture.enrol(&stolen_name, NOW).await), "name_taken");
    assert_eq!(refusal(fixture.enrol(&stolen_key, NOW).await), "wireguard_key_taken");
    assert_eq!(refusal(fixture.enrol(&request(1, "other"), NOW).await), "identity_has_another_name");
    let failing = fixture.store.enrol(&request(4, "n4"), &SECRET, HERE, NOW, |_| Err(IssueError::TooShort)).await;
    assert!(matches!(failing, Err(StoreError::Issue(_))));

    assert_eq!(fixture.store.members().await.unwrap().len(), 1);
    assert_eq!(fixture.store.tokens().await.unwrap()[0].used, 1);
    assert_eq!(fixture.kinds().await, ["token_made", "joined"]);
}

#[tokio::test]
async fn groups_and_services_of_a_token_are_in_the_certificate_and_stay_there() {
    let mut fixture = fixture("10.42.0.0/16").await;
    let services = vec!["ocr".parse().unwrap(), "asr".parse().unwrap()];
    fixture.add_token(Token { services: services.clone(), ..token(1) }, &SECRET).await;

    let by = fixture.verified(&request(1, "n1")).await;
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let renewing = Renewable::from(by.clone());
    let renewed =
        fixture.store.renew(&renewing, Newcomers::Refused, HERE, NOW, |grant| issue(authority, grant, NOW, rng));
    let (_, chain) = renewed.await.unwrap();
    let renewed = Trust::new(authority.certificate().clone()).verify(&chain, NOW).unwrap();

    for verified in [by, renewed] {
        assert_eq!(verified.groups(), ["gpu".parse().unwrap()]);
        assert_eq!(*verified.services(), AllowedServices::Only(services.clone()));
    }
}

#[tokio::test]
async fn the_address_stays_with_the_identity_and_old_keys_stay_taken() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let before = fixture.join(1).await.unwrap();

    let rekeyed = CertificateRequest { wg: WgPublicKey([99; 32]), ..request(1, "n1") };
    let after = fixture.enrol(&rekeyed, NOW).await.unwrap();

    assert_eq!(before.address, after.address);
    let thief = CertificateRequest { wg: WgPublicKey([1; 32]), ..request(2, "n2") };
    assert_eq!(refusal(fixture.enrol(&thief, NOW).await), "wireguard_key_taken");
}

#[tokio::test]
async fn a_small_network_is_filled_to_its_last_address_and_gaps_are_found() {
    let mut fixture = fixture("10.42.0.0/29").await;
    fixture.token(100).await;

    for number in 1..=5 {
        fixture.join(number).await.unwrap();
    }
    assert_eq!(refusal(fixture.join(6).await), "network_full");

    fixture.revoke(Target::Name(NodeName::new("n3").unwrap())).await.unwrap();
    assert_eq!(refusal(fixture.join(6).await), "network_full", "somebody still holds a valid certificate for it");
    let later = NOW.plus(Duration::from_secs(3599));
    sqlx::query("UPDATE certificates SET not_after = 0").execute(&fixture.store.pool).await.unwrap();
    let taken_over = fixture.enrol(&request(6, "n6"), later).await.unwrap();
    assert_eq!(taken_over.address, "10.42.0.4".parse().unwrap());
}

#[tokio::test]
async fn revoking_frees_the_name_but_not_the_identity() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let first = fixture.join(1).await.unwrap();

    let list = fixture.revoke(Target::Name(first.name.clone())).await.unwrap();

    assert_eq!((list.number, list.identities.contains(&first.identity)), (1, true));
    assert_eq!(refusal(fixture.join(1).await), "identity_revoked");
    let successor = fixture.enrol(&request(2, "n1"), NOW).await.unwrap();
    assert_ne!(successor.address, first.address);
    let again = fixture.revoke(Target::Name(first.name)).await.unwrap();
    assert_eq!((again.number, again.identities.len()), (2, 2));
    let unknown = fixture.revoke(Target::Serial(Serial([1; 16]))).await;
    assert!(matches!(unknown, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn the_signed_list_survives_and_opens() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let member = fixture.join(1).await.unwrap();
    fixture.revoke(Target::Identity(member.identity)).await.unwrap();

    let signed: SignedRevocations = fixture.store.revocations().await.unwrap().unwrap();

    let mut trust = Trust::new(fixture.authority.certificate().clone());
    assert_eq!(trust.apply_revocations(&signed, NOW), Ok(true));
    assert_eq!(trust.revocation_number(), 1);
}

#[tokio::test]
async fn a_member_signed_offline_is_taken_in_unless_it_holds_what_is_anothers() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(5).await;
    let member = fixture.join(1).await.unwrap();
    let trust = Trust::new(fixture.authority.certificate().clone());
    let mut offline = |number: u8, name: &str, address: &str| {
        let request = request(number, name);
        let claims = Claims {
            identity: request.identity,
            wg: request.wg,
            name: request.name,
            address: address.parse().unwrap(),
            groups: Vec::new(),
            services: AllowedServices::Any,
            lifetime: Duration::from_secs(86_400),
        };
        trust.verify(&fixture.authority.issue(&claims, NOW, &mut fixture.rng).unwrap(), NOW).unwrap()
    };
    let good = offline(2, "n2", "10.42.7.7");
    let same_address = offline(3, "n3", &member.address.to_string());
    let same_name = offline(4, "n1", "10.42.7.8");

    let adopted = fixture.store.adopt(&good, HERE, NOW).await.unwrap();

    assert_eq!(adopted.address, good.address());
    assert_eq!(fixture.store.adopt(&good, HERE, NOW).await.unwrap(), adopted);
    assert_eq!(refusal(fixture.store.adopt(&same_address, HERE, NOW).await), "address_taken");
    assert_eq!(refusal(fixture.store.adopt(&same_name, HERE, NOW).await), "name_taken");
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let by = Renewable::from(good.clone());
    let renewed = fixture.store.renew(&by, Newcomers::Welcome, HERE, NOW, |grant| issue(authority, grant, NOW, rng));
    let renewed = renewed.await.unwrap();
    assert_eq!(renewed.0.address, good.address());
}

#[tokio::test]
async fn a_member_cannot_fill_the_database_with_renewals() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;
    let request = request(1, "n1");
    let by = fixture.verified(&request).await;
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let by = Renewable::from(by);

    let mut renewed = 0;
    let refused = loop {
        let renewing =
            fixture.store.renew(&by, Newcomers::Welcome, HERE, NOW, |grant| issue(authority, grant, NOW, rng));
        match renewing.await {
            Ok(_) => renewed += 1,
            Err(error) => break error,
        }
    };

    assert!(matches!(refused, StoreError::Full(_)), "{refused}");
    assert_eq!(renewed, 63);
    let again = fixture.enrol(&request, NOW).await;
    assert!(matches!(again, Err(StoreError::Full(_))), "nor by joining again with its token");
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let later = NOW.plus(Duration::from_secs(86_400));
    let renewed =
        fixture.store.renew(&by, Newcomers::Refused, HERE, later, |grant| issue(authority, grant, later, rng));
    assert!(renewed.await.is_ok());
}

#[tokio::test]
async fn a_member_cannot_push_out_the_audit_by_asking_for_the_same_next_keys_again_and_again() {
    let mut fixture = fixture("10.42.0.0/16").await;
    fixture.token(1).await;
    let present = fixture.join(1).await.unwrap().identity;
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let next = request(2, "n1");

    let mut certified = 0;
    let refused = loop {
        let asking = fixture.store.rekey(present, &next, HERE, NOW, |grant| issue(authority, grant, NOW, rng));
        match asking.await {
            Ok(_) => certified += 1,
            Err(error) => break error,
        }
        assert!(certified < 100, "it goes on for ever");
    };

    assert!(matches!(refused, StoreError::Full(_)), "{refused}");
    assert_eq!(certified, 64);
    assert_eq!(fixture.kinds().await.iter().filter(|kind| *kind == "next_keys_certified").count(), 64);
    let settled = fixture.store.settle(next.identity, HERE, NOW).await.unwrap().unwrap();
    assert_eq!(settled.former, present, "the keys it has are as good as before");
    let (authority, rng) = (&fixture.authority, &mut fixture.rng);
    let after = request(3, "n1");
    let asking = fixture.store.rekey(next.identity, &after, HERE, NOW, |grant| issue(authority, grant, NOW, rng));
    assert!(asking.await.is_ok(), "and others may be asked for");
}

#[tokio::test]
async fn the_database_of_another_authority_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let (ours, theirs) = (authority("10.42.0.0/16", 1), authority("10.42.0.0/16", 2));

    Store::open(&path, &ours, NOW).await.unwrap().close().await;

    assert!(Store::open(&path, &theirs, NOW).await.is_err());
    assert!(Store::open(&path, &ours, NOW).await.is_ok());
}
