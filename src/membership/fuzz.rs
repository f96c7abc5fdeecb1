//! What an agent makes of the coordinator's answers and of its own files: see [`wiremesh_certs::fuzz`].

use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    joining::{Expected, accept, accept_renewed},
    state::{MAX_KEPT_SEEDS, MemberFile, SeedsFile},
};
use crate::{
    api::{
        self, BootstrapResponse, DiscoverModelResponse, DiscoverResponse, EnrollResponse, ErrorResponse,
        HeartbeatResponse, JoinWaiting, MAX_COORDINATORS, NodeResponse, RekeyResponse, RenewResponse,
        RevocationsResponse, ServicesResponse,
    },
    fuzz::{NOW, Verdict, World, told, verified},
};

/// Any of the answers that an agent reads.
pub fn answers(bytes: &[u8]) -> Verdict {
    let World { trust, member, .. } = World::get();
    let ourselves = verified(member);
    if let Some(answer) = read::<EnrollResponse>(bytes)
        && let Some(accepted) = told(accept(&answer, &expected(), NOW))
    {
        assert_eq!(accepted.verified, ourselves, "somebody else's certificate");
        assert_eq!(accepted.trust.authority(), trust.authority(), "another authority");
    }
    if let Some(answer) = read::<RenewResponse>(bytes)
        && let Some(renewed) = told(accept_renewed(trust, &answer.certificate, &(&ourselves).into(), NOW))
    {
        assert_eq!((renewed.id(), renewed.address()), (ourselves.id(), ourselves.address()));
    }
    if let Some(answer) = read::<HeartbeatResponse>(bytes) {
        answer.introductions.iter().for_each(|record| _ = told(trust.open(record, NOW)));
        answer.revocations.iter().for_each(|list| _ = told(trust.clone().apply_revocations(list, NOW)));
    }
    if let Some(answer) = read::<BootstrapResponse>(bytes) {
        check_seeds(SeedsFile { seeds: answer.seeds });
    }
    let others = [
        read::<DiscoverResponse>(bytes).is_some(),
        read::<DiscoverModelResponse>(bytes).is_some(),
        read::<ServicesResponse>(bytes).is_some(),
        read::<NodeResponse>(bytes).is_some(),
        read::<RevocationsResponse>(bytes).is_some(),
        read::<ErrorResponse>(bytes).is_some(),
        read::<JoinWaiting>(bytes).is_some(),
        read::<RekeyResponse>(bytes).is_some(),
        read::<EnrollResponse>(bytes).is_some(),
        read::<RenewResponse>(bytes).is_some(),
        read::<HeartbeatResponse>(bytes).is_some(),
        read::<BootstrapResponse>(bytes).is_some(),
    ];
    Verdict::taken_if(others.contains(&true))
}

/// What lies in the state directory.
pub fn state_files(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let member = told(MemberFile::parse(text));
    if let Some(member) = &member {
        assert!(member.coordinators.len() <= MAX_COORDINATORS);
        assert_eq!(MemberFile::parse(&member.to_text()).as_ref(), Ok(member));
    }
    let seeds = told(SeedsFile::parse(text));
    if let Some(seeds) = &seeds {
        check_seeds(seeds.clone());
        let written = seeds.to_text();
        let again = told(SeedsFile::parse(&written)).expect("it was just written");
        assert_eq!(again.to_text(), written);
    }
    Verdict::taken_if(member.is_some() || seeds.is_some())
}

/// However many are given, so many are kept, of each node one, and all of them are believed.
fn check_seeds(given: SeedsFile) {
    let World { trust, .. } = World::get();
    let mut kept = SeedsFile::default();
    kept.merge(given.seeds);
    let believed = kept.believed(trust, NOW);
    assert!(believed.seeds.len() <= MAX_KEPT_SEEDS);
    for seed in &believed.seeds {
        let opened = trust.open(&seed.record, NOW).expect("only what is believed is kept");
        assert_eq!((opened.by.name(), opened.by.address()), (&seed.worker_id, seed.vpn_ip));
    }
    let names: BTreeSet<_> = believed.seeds.iter().map(|seed| &seed.worker_id).collect();
    assert_eq!(names.len(), believed.seeds.len(), "a node twice");
}

fn read<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<T> {
    let body: T = told(api::read(bytes))?;
    let written = serde_json::to_vec(&body).expect("what was JSON is JSON again");
    assert!(api::read::<T>(&written).is_ok(), "what is written is not read again");
    Some(body)
}

fn expected() -> Expected {
    let World { authority, member, .. } = World::get();
    Expected {
        identity: member.key.id(),
        wg: member.wg.public(),
        name: verified(member).name().clone(),
        mesh: authority.certificate().mesh().clone(),
        authority: authority.certificate().fingerprint(),
    }
}
