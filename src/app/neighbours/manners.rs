//! Whom to ask for a list, whom to tell of one, and whom not to listen to for a while.
//!
//! ```text
//! a record claims a higher number ──► asked, one question at a time ──► shown: it counts again at once
//!                                                          └─ not shown, or not believed: avoided
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use rand::{Rng, seq::SliceRandom};
use wiremesh_certs::OverlayIp;

/// How many neighbours are told of a list that was taken over. Each of them tells as many: in a mesh of any size all but a
/// few in thousands hear of it so, and these by the numbers in records.
pub const MAX_TOLD: usize = 8;
/// Nodes asked at a time. Beyond it a claim waits until its node publishes again.
pub const MAX_ASKED: usize = 4;
/// Whoever claimed a number and could not show the list, or offered one that is not believed, is not listened to for so
/// long: it costs us one question, or one look at a signature, in this time.
pub const AVOIDED_FOR: Duration = Duration::from_secs(60);
/// Nodes avoided; beyond it whoever was first is forgotten.
pub const MAX_AVOIDED: usize = 1024;

/// What is remembered of neighbours.
#[derive(Debug, Default)]
pub struct Manners {
    asked: BTreeSet<OverlayIp>,
    avoided: BTreeMap<OverlayIp, Instant>,
}

impl Manners {
    /// `node` says that it enforces list `claimed`; ours is `ours`. True: ask it, and tell how that ended.
    pub fn handle_claim(&mut self, node: OverlayIp, claimed: u64, ours: u64, now: Instant) -> bool {
        let asks = claimed > ours && self.asked.len() < MAX_ASKED && !self.is_avoided(&node, now);
        asks && self.asked.insert(node)
    }

    /// The question to `node` has ended. `shown`: it had what it claims, or what we have by now.
    pub fn on_answer(&mut self, node: OverlayIp, shown: bool, now: Instant) {
        self.asked.remove(&node);
        if !shown {
            self.avoid(node, now);
        }
    }

    /// It is not listened to for a while.
    pub fn avoid(&mut self, node: OverlayIp, now: Instant) {
        self.avoided.retain(|_, until| now < *until);
        if self.avoided.len() >= MAX_AVOIDED {
            let first = self.avoided.iter().min_by_key(|(_, until)| **until).map(|(node, _)| *node);
            first.map(|node| self.avoided.remove(&node));
        }
        self.avoided.insert(node, now + AVOIDED_FOR);
    }

    /// Whether it is not listened to.
    pub fn is_avoided(&self, node: &OverlayIp, now: Instant) -> bool {
        self.avoided.get(node).is_some_and(|until| now < *until)
    }
}

/// Whom to tell, by chance, of those who were heard lately or may be reached.
pub fn some_of(known: impl IntoIterator<Item = OverlayIp>, me: OverlayIp, rng: &mut impl Rng) -> Vec<OverlayIp> {
    let once: BTreeSet<OverlayIp> = known.into_iter().filter(|node| *node != me).collect();
    let mut nodes: Vec<OverlayIp> = once.into_iter().collect();
    nodes.shuffle(rng);
    nodes.truncate(MAX_TOLD);
    nodes
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn node(n: u8) -> OverlayIp {
        OverlayIp([10, 42, 0, n].into())
    }

    #[test]
    fn only_a_higher_number_is_asked_for_and_once_at_a_time() {
        let (mut manners, now) = (Manners::default(), crate::clock::now());

        assert!(!manners.handle_claim(node(1), 3, 3, now) && !manners.handle_claim(node(1), 2, 3, now));
        assert!(manners.handle_claim(node(1), 4, 3, now));
        assert!(!manners.handle_claim(node(1), 5, 3, now), "it is being asked");
        manners.on_answer(node(1), true, now);
        assert!(manners.handle_claim(node(1), 5, 4, now));
    }

    #[test]
    fn who_claims_what_it_cannot_show_is_left_alone_for_a_while() {
        let (mut manners, now) = (Manners::default(), crate::clock::now());

        assert!(manners.handle_claim(node(1), u64::MAX, 3, now));
        manners.on_answer(node(1), false, now);

        assert!(!manners.handle_claim(node(1), u64::MAX, 3, now + AVOIDED_FOR / 2));
        assert!(manners.handle_claim(node(1), u64::MAX, 3, now + AVOIDED_FOR));
    }

    #[test]
    fn a_mesh_full_of_liars_is_asked_a_few_at_a_time_and_remembered_within_bounds() {
        let (mut manners, now) = (Manners::default(), crate::clock::now());

        let asked = (0..100).filter(|n| manners.handle_claim(node(*n), 9, 3, now)).count();
        for n in 0..MAX_AVOIDED + 10 {
            manners
                .avoid(OverlayIp(std::net::Ipv4Addr::from_bits(n as u32).into()), now + Duration::from_nanos(n as u64));
        }

        assert_eq!((asked, manners.avoided.len()), (MAX_ASKED, MAX_AVOIDED));
        manners.avoid(node(1), now + 2 * AVOIDED_FOR);
        assert_eq!(manners.avoided.len(), 1, "those whose time is over are forgotten");
    }

    #[test]
    fn a_few_are_told_each_once_and_never_ourselves() {
        let mut rng = SmallRng::seed_from_u64(1);
        let all = || (1..=50).chain(1..=50).map(node);

        let told = some_of(all(), node(7), &mut rng);
        let others = some_of(all(), node(7), &mut rng);

        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), MAX_TOLD);
        assert!(!told.contains(&node(7)));
        assert_ne!(told, others, "by chance");
        assert_eq!(some_of([node(1), node(7), node(1)], node(7), &mut rng), [node(1)]);
    }

    #[test]
    fn told_so_a_list_reaches_a_mesh_of_a_thousand() {
        let mut rng = SmallRng::seed_from_u64(1);
        let all: Vec<OverlayIp> = (0..1000u32).map(|n| OverlayIp(std::net::Ipv4Addr::from_bits(n).into())).collect();
        let mut knows = BTreeSet::from([all[0]]);
        let mut tells = vec![all[0]];
        while let Some(node) = tells.pop() {
            tells.extend(some_of(all.iter().copied(), node, &mut rng).into_iter().filter(|told| knows.insert(*told)));
        }

        assert!(knows.len() >= 995, "{} of 1000", knows.len());
    }
}
