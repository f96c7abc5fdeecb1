//! Which worker a conversation belongs to: rendezvous hashing, so that every agent finds the same one without being told,
//! and only the conversations of a worker that left move.

use wiremesh_certs::NodeId;

/// A conversation, as `x-session-id` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Affinity(u64);

impl Affinity {
    /// Of the header's value. Nothing secret depends on this hash.
    pub fn of(session: &[u8]) -> Affinity {
        // FNV-1a.
        Affinity(
            session.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            }),
        )
    }

    /// How much `worker` attracts this conversation; the highest is its home.
    pub fn pull(self, worker: &NodeId) -> u64 {
        worker.0.chunks(8).fold(self.0, |hash, bytes| {
            let word = bytes.iter().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
            mixed(hash ^ word)
        })
    }
}

/// The finaliser of SplitMix64: every bit of its input changes half of its output's.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_spread_evenly_and_only_those_of_a_worker_that_left_move() {
        let workers: Vec<NodeId> = (0..8).map(|id| NodeId([id; 32])).collect();
        let home = |workers: &[NodeId], session: u32| {
            let affinity = Affinity::of(format!("session-{session}").as_bytes());
            *workers.iter().max_by_key(|worker| affinity.pull(worker)).unwrap()
        };

        let mut counts = [0; 8];
        for session in 0..8000 {
            let at = home(&workers, session);
            counts[usize::from(at.0[0])] += 1;
            if at != workers[3] {
                let without: Vec<NodeId> = workers.iter().copied().filter(|worker| *worker != workers[3]).collect();
                assert_eq!(home(&without, session), at);
            }
        }

        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
