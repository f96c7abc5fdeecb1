//! Over how many buckets the workers of a service or model are spread, as one reader or writer has learnt it.
//!
//! A service starts with one bucket (no bits). Whoever finds a bucket nearly full goes one bit further, whoever finds
//! one nearly empty comes one bit back. Every writer also keeps trying the first bucket, which therefore stays a full
//! sample of a large service: a reader who has learnt nothing yet always finds workers there.

use std::collections::BTreeMap;

use wiremesh_certs::Offer;

use super::{fingers::MAX_OFFERS, key::MAX_BITS};

/// A bucket with so many live entries is about to be full: its service is spread over twice as many.
pub const SPLIT_AT: usize = 40;
/// A bucket with fewer is joined with its neighbour. Well under half of [`SPLIT_AT`], so that a split is not undone.
pub const JOIN_BELOW: usize = 10;

/// Bits by what is offered; what is not here has none.
#[derive(Debug, Default)]
pub struct Spread {
    bits: BTreeMap<Offer, u8>,
}

impl Spread {
    /// Bits to read or write `offer` with.
    pub fn bits(&self, offer: &Offer) -> u8 {
        self.bits.get(offer).copied().unwrap_or(0)
    }

    /// A bucket of `offer` at `bits` was seen to hold `count` live entries. True if that changed what is to be used.
    pub fn on_count(&mut self, offer: &Offer, bits: u8, count: usize) -> bool {
        if bits != self.bits(offer) {
            return false;
        }
        let learnt = match count {
            SPLIT_AT.. => (bits + 1).min(MAX_BITS),
            ..JOIN_BELOW => bits.saturating_sub(1),
            _ => bits,
        };
        if learnt == 0 {
            self.bits.remove(offer);
        } else if self.bits.len() < MAX_OFFERS || self.bits.contains_key(offer) {
            self.bits.insert(offer.clone(), learnt);
        }
        self.bits(offer) != bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_service_has_one_bucket() {
        let mut spread = Spread::default();

        for count in [0, 1, JOIN_BELOW, SPLIT_AT - 1] {
            assert!(!spread.on_count(&ocr(), 0, count));
        }

        assert_eq!(spread.bits(&ocr()), 0);
    }

    #[test]
    fn a_full_bucket_splits_and_an_empty_one_joins() {
        let mut spread = Spread::default();

        let bits = [(0, 48), (1, 48), (1, 48), (2, 20), (2, 3)].map(|(bits, count)| {
            spread.on_count(&ocr(), bits, count);
            spread.bits(&ocr())
        });

        assert_eq!(bits, [1, 2, 2, 2, 1]);
    }

    #[test]
    fn bits_end_somewhere() {
        let mut spread = Spread::default();

        for bits in 0..40 {
            spread.on_count(&ocr(), bits, 48);
        }

        assert_eq!(spread.bits(&ocr()), MAX_BITS);
    }

    fn ocr() -> Offer {
        Offer::Service("ocr".parse().unwrap())
    }
}
