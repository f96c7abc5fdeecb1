//! `[policy]` as an operator writes it: for a service, or for all that have no rule of their own, the groups whose members
//! may offer it and the groups whose members may call it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, de};
use wiremesh_certs::{GroupName, MAX_RULE_GROUPS, MAX_RULES, Policy, Rule, ServiceName};

use crate::settings::BadSettings;

/// Stands for all services without a rule of their own.
const OTHERS: &str = "*";
/// All names in it together. It travels in the signed list, which is read whole by every agent, and leaves most of the
/// room there to what is revoked.
pub const MAX_BYTES: usize = 256 * 1024;

/// The section as written.
pub type Section = BTreeMap<Whose, Written>;

/// What a rule is about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Whose {
    /// All services without a rule of their own.
    Others,
    /// One service.
    Service(ServiceName),
}

impl<'de> Deserialize<'de> for Whose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Whose, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            OTHERS => Ok(Whose::Others),
            name => ServiceName::new(name).map(Whose::Service).map_err(de::Error::custom),
        }
    }
}

/// One rule as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Written {
    offer: Option<BTreeSet<GroupName>>,
    call: Option<BTreeSet<GroupName>>,
}

/// The policy that is meant.
pub fn policy(section: Section) -> Result<Policy, BadSettings> {
    let mut policy = Policy::default();
    let mut bytes = 0;
    for (whose, Written { offer, call }) in section {
        let name = match &whose {
            Whose::Others => OTHERS,
            Whose::Service(service) => service.as_str(),
        };
        bytes += name.len();
        for (side, groups) in [("offer", &offer), ("call", &call)] {
            let groups = groups.iter().flatten();
            if groups.clone().count() > MAX_RULE_GROUPS {
                let what = format!("more than {MAX_RULE_GROUPS} groups");
                return Err(BadSettings::about(&format!("policy.{name}.{side}"), what));
            }
            bytes += groups.map(|group| group.as_str().len()).sum::<usize>();
        }
        let rule = Rule { offer, call };
        match whose {
            Whose::Others => policy.otherwise = rule,
            Whose::Service(service) => _ = policy.services.insert(service, rule),
        }
    }
    if policy.services.len() > MAX_RULES {
        return Err(BadSettings::about("policy", format!("more than {MAX_RULES} services")));
    }
    if bytes > MAX_BYTES {
        return Err(BadSettings::about("policy", "its names are longer than 256 KiB together"));
    }
    Ok(policy)
}
