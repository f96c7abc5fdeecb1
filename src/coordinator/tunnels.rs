//! Which members' tunnel URLs are to be looked at, and what was found: a URL that does not lead back to the member who
//! names it costs others an attempt each time, and the member never hears of it.
//!
//! ```text
//! a heartbeat names a URL ──new, or due again──► look ──► found ──► with the answer to the next heartbeat
//! ```

use std::{collections::BTreeMap, time::Duration};

use wiremesh_certs::{NodeId, NodeName, TunnelUrl, UnixTime};

use crate::api::TunnelFound;

/// A URL that led back is looked at again after this.
pub const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// One that did not, after this: whoever mends it wants to see it soon.
pub const SOON_AFTER: Duration = Duration::from_secs(60);
/// Members that are watched at once; beyond, URLs are not looked at.
pub const MAX_WATCHED: usize = 65_536;
/// A member not heard for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// What is known of tunnel URLs.
#[derive(Debug, Default)]
pub struct Tunnels {
    watched: BTreeMap<NodeId, Watched>,
}

#[derive(Debug)]
struct Watched {
    url: TunnelUrl,
    heard_at: UnixTime,
    /// None while it is being looked at.
    due_at: Option<UnixTime>,
    found: Option<TunnelFound>,
}

/// What a look at a URL showed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A member of this name answers there.
    Member(NodeName),
    /// Something else answers, with this status.
    Other(u16),
    /// Nobody does, for this reason.
    Nobody(String),
}

impl Tunnels {
    /// A member names this URL, or none. True if it is to be looked at now; then [`Tunnels::on_seen`] must be told, or
    /// [`Tunnels::on_not_looked`].
    pub fn handle_heartbeat(&mut self, member: NodeId, url: Option<&TunnelUrl>, now: UnixTime) -> bool {
        let Some(url) = url else {
            self.watched.remove(&member);
            return false;
        };
        if self.watched.get(&member).is_none_or(|watched| watched.url != *url) {
            if self.watched.len() >= MAX_WATCHED && !self.watched.contains_key(&member) {
                return false;
            }
            let watched = Watched { url: url.clone(), heard_at: now, due_at: Some(now), found: None };
            self.watched.insert(member, watched);
        }
        let Some(watched) = self.watched.get_mut(&member) else { return false };
        watched.heard_at = now;
        // A clock that was set back must not put it off.
        let is_due = watched.due_at.is_some_and(|due| due <= now || due > now.plus(AGAIN_AFTER));
        if is_due {
            watched.due_at = None;
        }
        is_due
    }

    /// There was no room to look: the next heartbeat asks again.
    pub fn on_not_looked(&mut self, member: NodeId, now: UnixTime) {
        if let Some(watched) = self.watched.get_mut(&member) {
            watched.due_at = Some(now);
        }
    }

    /// What a look showed. The finding, if it is other than the one before: worth a word to the operator.
    pub fn on_seen(
        &mut self,
        member: NodeId,
        name: &NodeName,
        url: &TunnelUrl,
        seen: &Seen,
        now: UnixTime,
    ) -> Option<TunnelFound> {
        // It may have named another meanwhile.
        let watched = self.watched.get_mut(&member).filter(|watched| watched.url == *url)?;
        let why = match seen {
            Seen::Member(seen) if seen == name => None,
            Seen::Member(other) => Some(format!("it leads to {other}")),
            Seen::Other(status) => Some(format!("something that is no agent answers there, with status {status}")),
            Seen::Nobody(why) => Some(format!("the coordinator cannot reach it: {why}")),
        };
        let found = TunnelFound { url: url.clone(), leads_back: why.is_none(), why, looked_at: now };
        watched.due_at = Some(now.plus(if found.leads_back { AGAIN_AFTER } else { SOON_AFTER }));
        let is_news = watched.found.as_ref().is_none_or(|before| before.why != found.why);
        watched.found = Some(found.clone());
        is_news.then_some(found)
    }

    /// What was found of a member's URL, if it was looked at.
    pub fn found(&self, member: &NodeId) -> Option<&TunnelFound> {
        self.watched.get(member)?.found.as_ref()
    }

    /// Forgets members that are gone.
    pub fn sweep(&mut self, now: UnixTime) {
        self.watched.retain(|_, watched| now < watched.heard_at.plus(FORGOTTEN_AFTER));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const MEMBER: NodeId = NodeId([7; 32]);

    fn url(text: &str) -> TunnelUrl {
        text.parse().unwrap()
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    #[test]
    fn a_url_is_looked_at_when_it_is_new_and_again_sooner_if_it_does_not_lead_back() {
        let (mut tunnels, there) = (Tunnels::default(), url("https://a.example"));
        let beat = |tunnels: &mut Tunnels, after| {
            tunnels.handle_heartbeat(MEMBER, Some(&there), NOW.plus(Duration::from_secs(after)))
        };

        assert!(beat(&mut tunnels, 0));
        assert!(!beat(&mut tunnels, 10), "one look at a time");
        tunnels.on_seen(MEMBER, &name("a"), &there, &Seen::Nobody("refused".into()), NOW);
        assert!(!beat(&mut tunnels, 59) && beat(&mut tunnels, 60));
        tunnels.on_seen(MEMBER, &name("a"), &there, &Seen::Member(name("a")), NOW.plus(SOON_AFTER));
        assert!(!beat(&mut tunnels, 659) && beat(&mut tunnels, 660));
        tunnels.on_not_looked(MEMBER, NOW.plus(Duration::from_secs(660)));
        assert!(beat(&mut tunnels, 670));
    }

    #[test]
    fn a_finding_is_news_once_and_is_about_the_url_that_was_looked_at() {
        let (mut tunnels, there, elsewhere) = (Tunnels::default(), url("https://a.example"), url("https://b.example"));
        tunnels.handle_heartbeat(MEMBER, Some(&there), NOW);
        let seen = |tunnels: &mut Tunnels, seen| tunnels.on_seen(MEMBER, &name("a"), &there, &seen, NOW);

        let first = seen(&mut tunnels, Seen::Member(name("b"))).unwrap();
        assert_eq!((first.leads_back, first.why.as_deref()), (false, Some("it leads to b")));
        assert_eq!(seen(&mut tunnels, Seen::Member(name("b"))), None);
        assert!(seen(&mut tunnels, Seen::Other(404)).unwrap().why.unwrap().contains("404"));
        assert!(seen(&mut tunnels, Seen::Member(name("a"))).unwrap().leads_back);

        assert!(tunnels.handle_heartbeat(MEMBER, Some(&elsewhere), NOW), "another is looked at at once");
        assert_eq!(seen(&mut tunnels, Seen::Member(name("a"))), None, "too late");
        assert_eq!(tunnels.found(&MEMBER), None);
    }

    #[test]
    fn who_names_none_or_is_gone_is_forgotten() {
        let mut tunnels = Tunnels::default();
        tunnels.handle_heartbeat(MEMBER, Some(&url("https://a.example")), NOW);
        tunnels.handle_heartbeat(MEMBER, None, NOW);
        assert!(tunnels.watched.is_empty());

        tunnels.handle_heartbeat(MEMBER, Some(&url("https://a.example")), NOW);
        tunnels.sweep(NOW.plus(FORGOTTEN_AFTER));
        assert!(tunnels.watched.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_puts_nothing_off() {
        let (mut tunnels, there) = (Tunnels::default(), url("https://a.example"));
        let ahead = NOW.plus(Duration::from_secs(86_400));
        tunnels.handle_heartbeat(MEMBER, Some(&there), ahead);
        tunnels.on_seen(MEMBER, &name("a"), &there, &Seen::Member(name("a")), ahead);

        assert!(tunnels.handle_heartbeat(MEMBER, Some(&there), NOW));
    }
}
