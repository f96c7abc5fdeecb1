//! The trust of a running program, shared by its parts and replaced as a whole.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Refused, Trust};
use crate::{SignedRevocations, UnixTime};

/// What is believed at this moment.
#[derive(Debug)]
pub struct TrustStore(RwLock<Arc<Trust>>);

impl TrustStore {
    /// Begins with `trust`.
    pub fn new(trust: Trust) -> TrustStore {
        TrustStore(RwLock::new(Arc::new(trust)))
    }

    /// What is believed at this moment.
    pub fn current(&self) -> Arc<Trust> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over a newer revocation list for all who share this. False if it is the one in force.
    pub fn apply_revocations(&self, signed: &SignedRevocations, now: UnixTime) -> Result<bool, Refused> {
        // Checked outside of the lock that everybody reads through; whoever was faster with a newer one wins.
        loop {
            let before = self.current();
            let mut trust = Trust::clone(&before);
            if !trust.apply_revocations(signed, now)? {
                return Ok(false);
            }
            let mut slot = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if Arc::ptr_eq(&slot, &before) {
                *slot = Arc::new(trust);
                return Ok(true);
            }
        }
    }
}
