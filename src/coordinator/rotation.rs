//! Replacing the mesh's authority while everything goes on.
//!
//! ```text
//!        next ──every living member enforces the list that names it──► issuing
//!          └─withdrawn─► retired
//!     issuing ──the next one issues──► leaving ──no living member's certificate is from it──► retired
//! ```
//!
//! Each step is one list: who is believed is written there and nowhere else, so whoever reads the stored list and this
//! state after a crash finds both before the step, or both after it.
//!
//! Members that are not heard hold nothing up. They find back by the crosses, which lead from every earlier root to the
//! present one, and by proving their key.
//!
//! **Invariant:** an authority is retired while a living member depends on it only if an operator insists.

use ipnet::IpNet;
use wiremesh_certs::{CaCertificate, Fingerprint, MAX_AUTHORITIES, MAX_CROSSES, MeshName, NodeName, UnixTime};

/// Authorities that are no longer believed and yet remembered, for those that were away. Beyond it the oldest are
/// forgotten: the crosses that lead from them are as many.
pub const MAX_FORMER: usize = MAX_CROSSES;

/// What an authority does for the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It is believed, and will issue.
    Next,
    /// It issues, and signs the list.
    Issuing,
    /// It is believed, and issues no more.
    Leaving,
    /// It is believed no more.
    Retired,
}

impl Standing {
    /// One stable word.
    pub fn word(self) -> &'static str {
        match self {
            Standing::Next => "next",
            Standing::Issuing => "issuing",
            Standing::Leaving => "leaving",
            Standing::Retired => "retired",
        }
    }

    /// The standing of this word.
    pub fn parse(word: &str) -> Option<Standing> {
        let all = [Standing::Next, Standing::Issuing, Standing::Leaving, Standing::Retired];
        all.into_iter().find(|standing| standing.word() == word)
    }
}

/// An authority that the mesh has, will have or had.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// Its certificate.
    pub certificate: CaCertificate,
    /// Those above it, the root last; none above a root.
    pub above: Vec<CaCertificate>,
    /// What it does.
    pub standing: Standing,
    /// Since when.
    pub since: UnixTime,
    /// The first list that named it.
    pub published: u64,
}

impl Known {
    /// How it is told from the others.
    pub fn fingerprint(&self) -> Fingerprint {
        self.certificate.fingerprint()
    }

    /// What join tokens pin.
    pub fn root(&self) -> &CaCertificate {
        self.above.last().unwrap_or(&self.certificate)
    }

    fn chain(&self) -> impl Iterator<Item = &CaCertificate> {
        std::iter::once(&self.certificate).chain(&self.above)
    }
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// The next authority issues.
    Issue,
    /// The one that leaves is believed no more.
    Retire,
    /// The next authority is not wanted after all.
    Withdraw,
}

/// Why a rotation does not begin, go on or end.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CannotRotate {
    /// One at a time.
    #[error("a rotation is under way, to the authority {0}")]
    UnderWay(Fingerprint),
    /// There is nothing to cancel, wait for or force.
    #[error("no rotation is under way")]
    NotUnderWay,
    /// It went too far to go back.
    #[error("the new authority issues already: certificates depend on it")]
    IssuesAlready,
    /// It has not gone far enough to retire anything.
    #[error("the new authority does not issue yet: there is nothing to retire")]
    NothingLeaves,
    /// It is or was the mesh's.
    #[error("the authority {0} is or was this mesh's")]
    KnownAlready(Fingerprint),
    /// Another mesh's authority.
    #[error("it is an authority for the mesh {given} with {given_network}, and this is {mesh} with {network}")]
    AnotherMesh {
        /// Its mesh.
        given: MeshName,
        /// Its network.
        given_network: IpNet,
        /// Ours.
        mesh: MeshName,
        /// Ours.
        network: IpNet,
    },
    /// It has ended, or not begun.
    #[error("it is valid from {from} to {until}, and it is {now}")]
    NotValid {
        /// Its beginning.
        from: UnixTime,
        /// Its end.
        until: UnixTime,
        /// The time given.
        now: UnixTime,
    },
    /// The list has no room.
    #[error("a mesh believes at most {MAX_AUTHORITIES} authorities at once")]
    TooMany,
    /// Nothing leads from the present root to the new one.
    #[error("the root {ours} is offline, and nothing signed by it leads to the root {theirs}")]
    NoCross {
        /// The present root.
        ours: Fingerprint,
        /// The new one.
        theirs: Fingerprint,
    },
    /// Only the root can make another intermediate, and it is not here.
    #[error("this coordinator has an intermediate, and the key of its root {0} is elsewhere")]
    OfflineRoot(Fingerprint),
    /// What was brought as a cross is none.
    #[error("that is no certificate of the new root's key, signed by a root that this mesh believes")]
    WrongCross,
}

impl CannotRotate {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            CannotRotate::UnderWay(_) => "see how far it is: wiremesh cert rotate --status",
            CannotRotate::NotUnderWay => "begin one: wiremesh cert rotate",
            CannotRotate::IssuesAlready => "let it end, and rotate once more",
            CannotRotate::NothingLeaves => "wait for it, or take it back: wiremesh cert rotate --cancel",
            CannotRotate::KnownAlready(_) | CannotRotate::NotValid { .. } => "bring a new one",
            CannotRotate::AnotherMesh { .. } => "make it for the same mesh and network",
            CannotRotate::TooMany => "sign a list without those that are not needed, with the offline root",
            CannotRotate::NoCross { .. } | CannotRotate::OfflineRoot(_) | CannotRotate::WrongCross => {
                "where the root's key is, run wiremesh-cert rotate, and bring what it makes with \
                 --ca-crt, --ca-key and --cross; or a new intermediate below the same root, which needs no --cross"
            }
        }
    }
}

/// A member that is heard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Living {
    /// What it is called.
    pub name: NodeName,
    /// When it was last heard.
    pub heard_at: UnixTime,
    /// The number of the list that it enforces.
    pub enforces: u64,
    /// Which authority its certificate is from; `None`: it has not shown it yet.
    pub authority: Option<Fingerprint>,
}

/// All members that are heard.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// Them.
    pub living: Vec<Living>,
    /// False while the coordinator has not been up for long enough to have heard everybody.
    pub is_complete: bool,
}

/// How far a rotation is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stage<'a> {
    /// None is under way.
    Idle,
    /// Members learn of the next authority.
    Announced(&'a Known),
    /// Members get certificates of the new one in place of those of this.
    Replacing(&'a Known),
}

impl Stage<'_> {
    /// One stable word.
    pub fn word(&self) -> &'static str {
        match self {
            Stage::Idle => "idle",
            Stage::Announced(_) => "announced",
            Stage::Replacing(_) => "replacing",
        }
    }

    /// Whether a member must do something before the next step.
    pub fn waits_for(&self, member: &Living) -> bool {
        match self {
            Stage::Idle => false,
            Stage::Announced(next) => member.enforces < next.published,
            Stage::Replacing(leaving) => member.authority.is_none_or(|authority| authority == leaving.fingerprint()),
        }
    }
}

/// The mesh's authorities, in the order in which they came.
///
/// **Invariant:** one issues, and at most one other is next or leaving.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorities(Vec<Known>);

impl Authorities {
    /// A mesh with one authority.
    pub fn first(certificate: CaCertificate, above: Vec<CaCertificate>, now: UnixTime) -> Authorities {
        Authorities(vec![Known { certificate, above, standing: Standing::Issuing, since: now, published: 1 }])
    }

    /// As they were kept. `None`: such a state there never was.
    pub fn of(known: Vec<Known>) -> Option<Authorities> {
        let count = |wanted: &[Standing]| known.iter().filter(|one| wanted.contains(&one.standing)).count();
        let is_sound = count(&[Standing::Issuing]) == 1 && count(&[Standing::Next, Standing::Leaving]) <= 1;
        is_sound.then_some(Authorities(known))
    }

    /// Announces another, in list `number`. `cross` leads to its root from one that is believed.
    pub fn begin(
        &self,
        certificate: CaCertificate,
        above: Vec<CaCertificate>,
        number: u64,
        now: UnixTime,
    ) -> Result<Authorities, CannotRotate> {
        self.check_idle()?;
        let ours = &self.issuing().certificate;
        if self.0.iter().any(|one| one.fingerprint() == certificate.fingerprint()) {
            return Err(CannotRotate::KnownAlready(certificate.fingerprint()));
        }
        if certificate.mesh() != ours.mesh() || certificate.network() != ours.network() {
            return Err(CannotRotate::AnotherMesh {
                given: certificate.mesh().clone(),
                given_network: certificate.network(),
                mesh: ours.mesh().clone(),
                network: ours.network(),
            });
        }
        for one in std::iter::once(&certificate).chain(&above) {
            let (from, until) = (one.not_before(), one.not_after());
            if now < from || now >= until {
                return Err(CannotRotate::NotValid { from, until, now });
            }
        }
        let next = Known { certificate, above, standing: Standing::Next, since: now, published: number };
        let mut known = self.0.clone();
        known.push(next);
        let former = known.iter().filter(|one| one.standing == Standing::Retired).count();
        let mut forgotten = former.saturating_sub(MAX_FORMER);
        known.retain(|one| {
            let forget = one.standing == Standing::Retired && forgotten > 0;
            forgotten -= usize::from(forget);
            !forget
        });
        let after = Authorities(known);
        if after.believed().len() > MAX_AUTHORITIES {
            return Err(CannotRotate::TooMany);
        }
        Ok(after)
    }

    /// What there is after a step, if it can be taken from here.
    pub fn after(&self, step: Step, now: UnixTime) -> Result<Authorities, CannotRotate> {
        let becomes = |standing: Standing| match (step, standing) {
            (Step::Issue, Standing::Next) => Standing::Issuing,
            (Step::Issue, Standing::Issuing) => Standing::Leaving,
            (Step::Retire, Standing::Leaving) | (Step::Withdraw, Standing::Next) => Standing::Retired,
            (_, standing) => standing,
        };
        match (step, self.stage()) {
            (Step::Issue | Step::Withdraw, Stage::Announced(_)) | (Step::Retire, Stage::Replacing(_)) => {}
            (Step::Withdraw, Stage::Replacing(_)) => return Err(CannotRotate::IssuesAlready),
            (Step::Retire, Stage::Announced(_)) => return Err(CannotRotate::NothingLeaves),
            (Step::Issue, Stage::Replacing(_)) | (_, Stage::Idle) => return Err(CannotRotate::NotUnderWay),
        }
        let moved = self.0.iter().map(|one| match becomes(one.standing) {
            standing if standing == one.standing => one.clone(),
            standing => Known { standing, since: now, ..one.clone() },
        });
        Ok(Authorities(moved.collect()))
    }

    /// The authority whose key a step must revoke, since leaving it out of the list is not enough: what led members to
    /// believe one that is withdrawn is out in the world, and an intermediate is believed through its root as well. (An
    /// intermediate may not revoke a root, which then stays believed.)
    pub fn revoked_by(&self, step: Step) -> Option<&CaCertificate> {
        match (step, self.stage()) {
            (Step::Withdraw, Stage::Announced(next)) => {
                let may = self.issuing().certificate.is_root() || !next.certificate.is_root();
                may.then_some(&next.certificate)
            }
            (Step::Retire, Stage::Replacing(leaving)) => {
                Some(&leaving.certificate).filter(|certificate| !certificate.is_root())
            }
            (Step::Issue | Step::Retire | Step::Withdraw, _) => None,
        }
    }

    /// Whether another rotation may begin.
    pub fn check_idle(&self) -> Result<(), CannotRotate> {
        match self.stage() {
            Stage::Idle => Ok(()),
            Stage::Announced(next) => Err(CannotRotate::UnderWay(next.fingerprint())),
            Stage::Replacing(_) => Err(CannotRotate::UnderWay(self.issuing().fingerprint())),
        }
    }

    /// What to do by itself, if the time for it has come.
    pub fn next_step(&self, fleet: &Fleet) -> Option<Step> {
        let stage = self.stage();
        if !fleet.is_complete || fleet.living.iter().any(|member| stage.waits_for(member)) {
            return None;
        }
        match stage {
            Stage::Idle => None,
            Stage::Announced(_) => Some(Step::Issue),
            Stage::Replacing(_) => Some(Step::Retire),
        }
    }

    /// How far the rotation is.
    pub fn stage(&self) -> Stage<'_> {
        let found = self.0.iter().find_map(|one| match one.standing {
            Standing::Next => Some(Stage::Announced(one)),
            Standing::Leaving => Some(Stage::Replacing(one)),
            Standing::Issuing | Standing::Retired => None,
        });
        found.unwrap_or(Stage::Idle)
    }

    /// The one that issues.
    pub fn issuing(&self) -> &Known {
        self.0.iter().find(|one| one.standing == Standing::Issuing).expect("one issues: it is checked at the door")
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> &[Known] {
        &self.0
    }

    /// Those that are to be believed: the one that issues first, then whatever it hangs on, then the others.
    ///
    /// An intermediate may not put out a root, so while one issues, every root stays.
    pub fn believed(&self) -> Vec<CaCertificate> {
        let issuing = self.issuing();
        let others = self.0.iter().filter(|one| matches!(one.standing, Standing::Next | Standing::Leaving));
        let kept = self.0.iter().filter(|one| one.standing == Standing::Retired && !issuing.certificate.is_root());
        let all = issuing.chain().chain(others.flat_map(Known::chain)).chain(kept.map(Known::root));
        distinct(all)
    }

    /// Every root that there is or was, the present ones first, then the newest.
    pub fn roots(&self) -> Vec<CaCertificate> {
        let present = self.believed();
        let former = self.0.iter().rev().map(Known::root);
        distinct(present.iter().filter(|one| one.is_root()).chain(former))
    }

    /// Those whose certificates are good for a renewal and for nothing else.
    pub fn former(&self) -> Vec<CaCertificate> {
        self.0.iter().filter(|one| one.standing == Standing::Retired).map(|one| one.certificate.clone()).collect()
    }
}

fn distinct<'a>(certificates: impl Iterator<Item = &'a CaCertificate>) -> Vec<CaCertificate> {
    let mut distinct: Vec<CaCertificate> = Vec::new();
    for certificate in certificates {
        if !distinct.contains(certificate) {
            distinct.push(certificate.clone());
        }
    }
    distinct
}

#[cfg(test)]
mod tests;
