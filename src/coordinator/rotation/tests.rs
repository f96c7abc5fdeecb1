use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use wiremesh_certs::{Authority, CaParameters};

use super::*;

const NOW: UnixTime = UnixTime(1_800_000_000);
const YEAR: Duration = Duration::from_secs(86_400 * 365);

fn root(seed: u64) -> Authority {
    root_of("lab", "10.42.0.0/16", seed)
}

fn root_of(mesh: &str, network: &str, seed: u64) -> Authority {
    let parameters = CaParameters { mesh: mesh.parse().unwrap(), network: network.parse().unwrap(), lifetime: YEAR };
    Authority::create(&parameters, NOW, &mut StdRng::seed_from_u64(seed)).unwrap()
}

fn below(root: &Authority, seed: u64) -> Authority {
    let certificate = root.certificate();
    let parameters =
        CaParameters { mesh: certificate.mesh().clone(), network: certificate.network(), lifetime: YEAR / 2 };
    root.create_intermediate(&parameters, NOW, &mut StdRng::seed_from_u64(seed)).unwrap()
}

fn first(authority: &Authority) -> Authorities {
    Authorities::first(authority.certificate().clone(), authority.above().to_vec(), NOW)
}

fn begun(from: &Authorities, with: &Authority, number: u64) -> Authorities {
    from.begin(with.certificate().clone(), with.above().to_vec(), number, NOW).unwrap()
}

fn step(from: &Authorities, step: Step) -> Authorities {
    from.after(step, NOW).unwrap()
}

fn member(name: &str, enforces: u64, of: &Authority) -> Living {
    let authority = Some(of.certificate().fingerprint());
    Living { name: name.parse().unwrap(), heard_at: NOW, enforces, authority }
}

fn fleet(living: &[Living]) -> Fleet {
    Fleet { living: living.to_vec(), is_complete: true }
}

fn certificates(authorities: &[&Authority]) -> Vec<CaCertificate> {
    authorities.iter().map(|one| one.certificate().clone()).collect()
}

#[test]
fn the_next_authority_issues_when_every_living_member_believes_it() {
    let (old, new) = (root(1), root(2));
    let announced = begun(&first(&old), &new, 7);

    assert_eq!(announced.believed(), certificates(&[&old, &new]), "the one that issues signs, and stands first");
    assert_eq!(announced.next_step(&fleet(&[member("a", 7, &old), member("b", 6, &old)])), None);
    assert_eq!(announced.next_step(&fleet(&[member("a", 7, &old), member("b", 9, &old)])), Some(Step::Issue));
    assert_eq!(announced.next_step(&fleet(&[])), Some(Step::Issue), "a mesh without members waits for nobody");

    let replacing = step(&announced, Step::Issue);
    assert_eq!(replacing.believed(), certificates(&[&new, &old]));
}

#[test]
fn an_authority_is_not_retired_while_a_living_member_depends_on_it() {
    let (old, new) = (root(1), root(2));
    let replacing = step(&begun(&first(&old), &new, 7), Step::Issue);
    let unshown = Living { authority: None, ..member("c", 8, &new) };

    assert_eq!(replacing.next_step(&fleet(&[member("a", 8, &new), member("b", 8, &old)])), None);
    assert_eq!(replacing.next_step(&fleet(&[member("a", 8, &new), unshown])), None, "what is not known is not taken");
    assert_eq!(replacing.next_step(&fleet(&[member("a", 8, &new), member("b", 8, &new)])), Some(Step::Retire));

    let retired = step(&replacing, Step::Retire);
    assert_eq!(retired.believed(), certificates(&[&new]));
    assert_eq!(retired.former(), certificates(&[&old]), "its members may still renew");
    assert_eq!(retired.roots(), certificates(&[&new, &old]), "tokens that pin it still know us");
    assert_eq!(retired.next_step(&fleet(&[member("a", 8, &new)])), None);
}

#[test]
fn a_coordinator_that_has_not_heard_everybody_yet_takes_no_step() {
    let (old, new) = (root(1), root(2));
    let announced = begun(&first(&old), &new, 7);
    let unheard = Fleet { living: vec![member("a", 7, &new)], is_complete: false };

    for authorities in [announced.clone(), step(&announced, Step::Issue)] {
        assert_eq!(authorities.next_step(&unheard), None);
        assert!(authorities.next_step(&Fleet { is_complete: true, ..unheard.clone() }).is_some());
    }
}

#[test]
fn from_every_state_as_it_was_kept_it_goes_on_to_the_end() {
    let (old, new) = (root(1), root(2));
    let idle = first(&old);
    let announced = begun(&idle, &new, 7);
    let replacing = step(&announced, Step::Issue);
    let retired = step(&replacing, Step::Retire);
    let renewed = fleet(&[member("a", 9, &new)]);

    for (kept, steps) in [(idle, 0), (announced, 2), (replacing, 1), (retired.clone(), 0)] {
        let mut authorities = Authorities::of(kept.all().to_vec()).unwrap();
        let mut taken = 0;
        while let Some(next) = authorities.next_step(&renewed) {
            authorities = Authorities::of(step(&authorities, next).all().to_vec()).unwrap();
            taken += 1;
        }
        assert_eq!(taken, steps);
        assert!(steps == 0 || authorities == retired);
    }
}

#[test]
fn a_state_that_never_was_is_not_taken_for_one() {
    let (old, new) = (root(1), root(2));
    let known = |of: &Authority, standing| Known { standing, ..first(of).all()[0].clone() };

    for impossible in [
        vec![],
        vec![known(&old, Standing::Retired)],
        vec![known(&old, Standing::Issuing), known(&new, Standing::Issuing)],
        vec![known(&old, Standing::Next), known(&new, Standing::Issuing), known(&root(3), Standing::Leaving)],
    ] {
        assert_eq!(Authorities::of(impossible), None);
    }
}

#[test]
fn one_rotation_at_a_time_and_back_only_while_nothing_hangs_on_the_new_one() {
    let (old, new) = (root(1), root(2));
    let idle = first(&old);
    let announced = begun(&idle, &new, 7);
    let replacing = step(&announced, Step::Issue);
    let under_way = Err(CannotRotate::UnderWay(new.certificate().fingerprint()));

    let third = root(3);
    let begin = |from: &Authorities| from.begin(third.certificate().clone(), Vec::new(), 9, NOW);
    assert_eq!((begin(&announced), begin(&replacing)), (under_way.clone(), under_way));
    let withdrawn = step(&announced, Step::Withdraw);
    assert_eq!(announced.revoked_by(Step::Withdraw), Some(new.certificate()), "it was led to, and must be disowned");
    assert_eq!((announced.revoked_by(Step::Issue), replacing.revoked_by(Step::Retire)), (None, None));
    assert_eq!((withdrawn.believed(), withdrawn.stage()), (certificates(&[&old]), Stage::Idle));
    assert_eq!(replacing.after(Step::Withdraw, NOW), Err(CannotRotate::IssuesAlready));
    assert_eq!(announced.after(Step::Retire, NOW), Err(CannotRotate::NothingLeaves));
    for step in [Step::Issue, Step::Retire, Step::Withdraw] {
        assert_eq!(idle.after(step, NOW), Err(CannotRotate::NotUnderWay));
    }
}

#[test]
fn an_authority_that_does_not_fit_is_refused_with_the_reason() {
    let old = root(1);
    let idle = first(&old);
    let begin = |with: &Authority, now| idle.begin(with.certificate().clone(), Vec::new(), 7, now).unwrap_err();

    assert!(matches!(begin(&old, NOW), CannotRotate::KnownAlready(_)));
    assert!(matches!(begin(&root_of("other", "10.42.0.0/16", 2), NOW), CannotRotate::AnotherMesh { .. }));
    assert!(matches!(begin(&root_of("lab", "10.43.0.0/16", 2), NOW), CannotRotate::AnotherMesh { .. }));
    assert!(matches!(begin(&root(2), NOW.plus(2 * YEAR)), CannotRotate::NotValid { .. }));
    assert!(matches!(begin(&root(2), NOW.minus(YEAR)), CannotRotate::NotValid { .. }));
}

#[test]
fn an_intermediate_is_replaced_below_its_root_which_stays() {
    let root = root(1);
    let (old, new) = (below(&root, 2), below(&root, 3));
    let announced = begun(&first(&old), &new, 7);

    assert_eq!(announced.believed(), certificates(&[&old, &root, &new]));
    let replacing = step(&announced, Step::Issue);
    assert_eq!(replacing.believed(), certificates(&[&new, &root, &old]));
    assert_eq!(replacing.revoked_by(Step::Retire), Some(old.certificate()), "else its root would still vouch for it");
    let retired = step(&replacing, Step::Retire);
    assert_eq!(retired.believed(), certificates(&[&new, &root]));
    assert_eq!((retired.former(), retired.roots()), (certificates(&[&old]), certificates(&[&root])));
}

#[test]
fn while_an_intermediate_issues_no_root_is_put_out() {
    let (old_root, new_root) = (root(1), root(2));
    let (old, new) = (below(&old_root, 3), below(&new_root, 4));
    let replaced = step(&step(&begun(&first(&old), &new, 7), Step::Issue), Step::Retire);

    assert_eq!(replaced.believed(), certificates(&[&new, &new_root, &old_root]));
    let third = root(5);
    let many = below(&third, 6);
    let refused = replaced.begin(many.certificate().clone(), many.above().to_vec(), 9, NOW);
    assert_eq!(refused, Err(CannotRotate::TooMany));
    let by_a_root = step(&step(&begun(&replaced, &third, 9), Step::Issue), Step::Retire);
    assert_eq!(by_a_root.believed(), certificates(&[&third]), "a root may");
}

#[test]
fn of_former_authorities_the_oldest_are_forgotten() {
    let mut authorities = first(&root(0));
    for seed in 1..20 {
        authorities = step(&step(&begun(&authorities, &root(seed), seed + 1), Step::Issue), Step::Retire);
    }

    assert_eq!(authorities.former().len(), MAX_FORMER + 1);
    assert_eq!(authorities.former().last(), Some(root(18).certificate()));
}
