//! Who may offer a service and who may call it: by the groups in certificates, as the mesh's operator wrote it down.
//!
//! CBOR array, part of the signed list (see [`RevocationList`](crate::RevocationList)):
//!
//! | at | type | field | bounds |
//! |----|------|-------|--------|
//! | 0 | rule | the rule of all services without one of their own | |
//! | 1 | map of text to rule | rules of single services | at most 1,024 |
//!
//! A rule is an array of two: who may offer, who may call. Each is null for everybody, or an array of at most 32 groups.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};

use crate::{GroupName, ServiceName};

/// Services with a rule of their own.
pub const MAX_RULES: usize = 1024;
/// Groups named on one side of a rule.
pub const MAX_RULE_GROUPS: usize = 32;

/// The mesh's policy. Without a rule everything is open to every member.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct Policy {
    /// For services that have no rule of their own.
    #[n(0)]
    pub otherwise: Rule,
    /// By service.
    #[n(1)]
    pub services: BTreeMap<ServiceName, Rule>,
}

/// Who may do what with one service.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct Rule {
    /// Groups whose members may offer it; `None`: whoever's certificate allows it.
    #[n(0)]
    pub offer: Option<BTreeSet<GroupName>>,
    /// Groups whose members may call it; `None`: every member.
    #[n(1)]
    pub call: Option<BTreeSet<GroupName>>,
}

impl Policy {
    /// Whether a member of these groups may offer it, as far as policy goes.
    pub fn may_offer(&self, service: &ServiceName, groups: &[GroupName]) -> bool {
        is_among(self.rule(service).offer.as_ref(), groups)
    }

    /// Whether a member of these groups may call it.
    pub fn may_call(&self, service: &ServiceName, groups: &[GroupName]) -> bool {
        is_among(self.rule(service).call.as_ref(), groups)
    }

    /// Whether it forbids nothing.
    pub fn is_open(&self) -> bool {
        *self == Policy::default()
    }

    /// Says which bound is broken.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.services.len() > MAX_RULES {
            return Err("a policy of more than 1,024 rules");
        }
        let rules = self.services.values().chain([&self.otherwise]);
        let sides = rules.flat_map(|rule| [&rule.offer, &rule.call]);
        match sides.flatten().any(|groups| groups.len() > MAX_RULE_GROUPS) {
            true => Err("a rule of more than 32 groups"),
            false => Ok(()),
        }
    }

    fn rule(&self, service: &ServiceName) -> &Rule {
        self.services.get(service).unwrap_or(&self.otherwise)
    }
}

fn is_among(wanted: Option<&BTreeSet<GroupName>>, groups: &[GroupName]) -> bool {
    wanted.is_none_or(|wanted| groups.iter().any(|group| wanted.contains(group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(names: &[&str]) -> Vec<GroupName> {
        names.iter().map(|name| GroupName::new(name).unwrap()).collect()
    }

    fn only(names: &[&str]) -> Option<BTreeSet<GroupName>> {
        Some(groups(names).into_iter().collect())
    }

    #[test]
    fn without_a_rule_every_member_may_do_everything() {
        let llm = ServiceName::new("llm").unwrap();

        assert!(Policy::default().may_offer(&llm, &[]) && Policy::default().may_call(&llm, &[]));
        assert!(Policy::default().is_open());
    }

    #[test]
    fn a_rule_of_its_own_replaces_the_general_one_whole() {
        let (llm, ocr) = (ServiceName::new("llm").unwrap(), ServiceName::new("ocr").unwrap());
        let policy = Policy {
            otherwise: Rule { offer: only(&["gpu"]), call: only(&["staff"]) },
            services: [(llm.clone(), Rule { offer: None, call: only(&["apps", "staff"]) })].into(),
        };

        assert!(policy.may_offer(&llm, &[]), "its own rule says nothing of who may offer it");
        assert!(policy.may_call(&llm, &groups(&["x", "apps"])) && !policy.may_call(&llm, &groups(&["gpu"])));
        assert!(policy.may_offer(&ocr, &groups(&["gpu"])) && !policy.may_offer(&ocr, &groups(&["apps"])));
        assert!(!policy.may_call(&ocr, &[]));
    }

    #[test]
    fn a_rule_without_groups_is_for_nobody() {
        let llm = ServiceName::new("llm").unwrap();
        let policy = Policy { otherwise: Rule { offer: only(&[]), call: None }, ..Policy::default() };

        assert!(!policy.may_offer(&llm, &groups(&["gpu"])));
    }

    #[test]
    fn the_bounds_hold() {
        let rule = |n: usize| (ServiceName::new(&format!("s{n}")).unwrap(), Rule::default());
        let many = Policy { services: (0..=MAX_RULES).map(rule).collect(), ..Policy::default() };
        let names: BTreeSet<_> = (0..=MAX_RULE_GROUPS).map(|n| GroupName::new(&format!("g{n}")).unwrap()).collect();
        let wide = Policy { otherwise: Rule { offer: None, call: Some(names) }, ..Policy::default() };

        assert!(many.check().is_err() && wide.check().is_err());
        assert!(Policy::default().check().is_ok());
    }
}
