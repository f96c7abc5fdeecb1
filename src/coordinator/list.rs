//! What the list that rules the mesh should say: the one place where such a list is made.
//!
//! ```text
//! revocations that matter still ─┐
//! policy of the configuration ───┼──► list ──differs from the one in force?──► the next number, signed
//! authorities, crosses ──────────┘
//! ```

use std::collections::BTreeSet;

use wiremesh_certs::{CaCertificate, MAX_CROSSES, MAX_TLS_CHAIN, NodeId, Policy, RevocationList, Serial, UnixTime};

use super::rotation::Authorities;

/// What the database knows that bears on the list.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The number that the next list has.
    pub number: u64,
    /// Revoked certificates that have not ended.
    pub serials: BTreeSet<Serial>,
    /// Revoked identities with certificates that have not ended.
    pub identities: BTreeSet<NodeId>,
    /// Who is believed.
    pub authorities: Authorities,
    /// What leads from earlier roots to later ones, the oldest first.
    pub crosses: Vec<CaCertificate>,
}

/// The list that should be in force.
pub fn compose(facts: &Facts, policy: &Policy, now: UnixTime) -> RevocationList {
    let der = |certificate: &CaCertificate| certificate.der().to_vec();
    RevocationList {
        number: facts.number,
        serials: facts.serials.clone(),
        identities: facts.identities.clone(),
        policy: policy.clone(),
        authorities: facts.authorities.believed().iter().map(der).collect(),
        crosses: living(&facts.crosses, now).iter().map(der).collect(),
    }
}

/// Whether two lists differ in nothing but their number.
pub fn say_the_same(one: &RevocationList, other: &RevocationList) -> bool {
    *one == RevocationList { number: one.number, ..other.clone() }
}

/// What the coordinator shows in TLS above `chain`, which is its own certificate and that one's issuers: all that leads to
/// any authority that the mesh has or had, so that it is known also by those who have been away.
pub fn shown(chain: Vec<Vec<u8>>, authorities: &Authorities, crosses: &[CaCertificate], now: UnixTime) -> Vec<Vec<u8>> {
    let mut shown = chain;
    let crosses = living(crosses, now);
    let others = authorities.believed().into_iter().chain(crosses).chain(authorities.roots());
    for certificate in others {
        if shown.len() < MAX_TLS_CHAIN && !shown.iter().any(|der| der == certificate.der()) {
            shown.push(certificate.der().to_vec());
        }
    }
    shown
}

/// Those that have not ended, the newest if there are too many.
fn living(crosses: &[CaCertificate], now: UnixTime) -> Vec<CaCertificate> {
    let living: Vec<_> = crosses.iter().filter(|cross| now < cross.not_after()).cloned().collect();
    living[living.len().saturating_sub(MAX_CROSSES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{Authority, CaParameters, Trust};

    use super::*;
    use crate::coordinator::rotation::Step;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const YEAR: Duration = Duration::from_secs(86_400 * 365);

    fn root(seed: u64) -> Authority {
        let network = "10.42.0.0/16".parse().unwrap();
        let parameters = CaParameters { mesh: "lab".parse().unwrap(), network, lifetime: YEAR };
        Authority::create(&parameters, NOW, &mut StdRng::seed_from_u64(seed)).unwrap()
    }

    fn facts(number: u64, authorities: Authorities, crosses: &[CaCertificate]) -> Facts {
        let (serials, identities) = (BTreeSet::new(), BTreeSet::new());
        Facts { number, serials, identities, authorities, crosses: crosses.to_vec() }
    }

    /// A mesh that changed its root twice: the roots, what leads from each to the next, and its authorities.
    fn twice_rotated() -> ([Authority; 3], [CaCertificate; 2], Authorities) {
        let roots = [root(1), root(2), root(3)];
        let mut rng = StdRng::seed_from_u64(9);
        let mut cross = |n: usize| roots[n].cross_sign(roots[n + 1].certificate(), NOW, &mut rng).unwrap();
        let crosses = [cross(0), cross(1)];
        let mut authorities = Authorities::first(roots[0].certificate().clone(), Vec::new(), NOW);
        for root in &roots[1..] {
            let begun = authorities.begin(root.certificate().clone(), Vec::new(), 2, NOW).unwrap();
            authorities = begun.after(Step::Issue, NOW).unwrap().after(Step::Retire, NOW).unwrap();
        }
        (roots, crosses, authorities)
    }

    #[test]
    fn each_list_of_a_rotation_is_believed_by_those_who_have_the_one_before() {
        let (old, new) = (root(1), root(2));
        let cross = old.cross_sign(new.certificate(), NOW, &mut StdRng::seed_from_u64(9)).unwrap();
        let first = Authorities::first(old.certificate().clone(), Vec::new(), NOW);
        let announced = first.begin(new.certificate().clone(), Vec::new(), 2, NOW).unwrap();
        let replacing = announced.after(Step::Issue, NOW).unwrap();
        let retired = replacing.after(Step::Retire, NOW).unwrap();
        let mut trust = Trust::new(old.certificate().clone());
        let mut late = trust.clone();

        for (number, authorities, signer) in
            [(1, first, &old), (2, announced, &old), (3, replacing, &new), (4, retired, &new)]
        {
            let list = compose(&facts(number, authorities, std::slice::from_ref(&cross)), &Policy::default(), NOW);
            let signed = signer.sign_revocations(&list).unwrap();
            assert_eq!(trust.apply_revocations(&signed, NOW), Ok(true), "{number}");
            assert_eq!(late.clone().apply_revocations(&signed, NOW), Ok(true), "who was away believes {number}");
            if number == 2 {
                late = trust.clone();
            }
        }
        assert_eq!(trust.authorities(), [new.certificate().clone()]);
    }

    #[test]
    fn the_coordinator_is_known_by_whoever_believes_any_root_there_was() {
        let (roots, crosses, authorities) = twice_rotated();
        let (own, _) = roots[2].issue_coordinator_tls(YEAR / 100, NOW, &mut StdRng::seed_from_u64(1)).unwrap();

        let chain = shown(own, &authorities, &crosses, NOW);

        for root in &roots {
            assert_eq!(Trust::new(root.certificate().clone()).verify_coordinator(&chain, NOW), Ok(()));
            assert!(chain.iter().any(|der| der == root.certificate().der()), "a token pins it");
        }
        assert!(chain.len() <= MAX_TLS_CHAIN);
    }

    #[test]
    fn a_list_differs_from_another_by_what_it_says_and_not_by_its_number() {
        let (_, crosses, authorities) = twice_rotated();
        let list = |number, now| compose(&facts(number, authorities.clone(), &crosses), &Policy::default(), now);

        assert!(say_the_same(&list(1, NOW), &list(2, NOW)));
        assert!(!say_the_same(&list(1, NOW), &list(1, NOW.plus(2 * YEAR))), "crosses that ended lead nowhere");
        let revoking = RevocationList { identities: [NodeId([1; 32])].into(), ..list(1, NOW) };
        assert!(!say_the_same(&list(1, NOW), &revoking));
    }
}
