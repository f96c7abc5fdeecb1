//! Which members' tunnel URLs are to be looked at, and what was found: a URL that does not lead back to the member who
//! names it costs others an attempt each time, and the member never hears of it.
//!
//! ```text
//! a heartbeat names a URL ──new, or due again──► look ──► found ──► with the answer to the next heartbeat
//! ```
//!
//! **Invariant:** looks for one member begin [`SOON_AFTER`] apart at least, whatever it names: the coordinator scans
//! nothing for its members.

use std::{collections::BTreeMap, time::Duration};

use wiremesh_certs::{NodeId, NodeName, TunnelUrl, UnixTime};

use crate::api::TunnelFound;

/// A URL that led back is looked at again after this.
pub const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// One that did not, after this: whoever mends it wants to see it soon. Another URL waits as long.
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
    /// None if it names none any more. When it was looked at is remembered for [`FORGOTTEN_AFTER`].
    url: Option<TunnelUrl>,
    heard_at: UnixTime,
    /// When the last look began, whatever URL it was at.
    looked_at: Option<UnixTime>,
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
    /// It was not looked at: nobody else's machine is there.
    Home,
    /// Nobody does, for this reason.
    Nobody(String),
}

impl Tunnels {
    /// A member names this URL, or none. True if it is to be looked at now; then [`Tunnels::on_seen`] must be told, or
    /// [`Tunnels::on_not_looked`].
    pub fn handle_heartbeat(&mut self, member: NodeId, url: Option<&TunnelUrl>, now: UnixTime) -> bool {
        let Some(url) = url else {
            if let Some(watched) = self.watched.get_mut(&member) {
                (watched.url, watched.due_at, watched.found) = (None, None, None);
            }
            return false;
        };
        if self.watched.len() >= MAX_WATCHED && !self.watched.contains_key(&member) {
            return false;
        }
        let watched = self.watched.entry(member).or_insert(Watched {
            url: None,
            heard_at: now,
            looked_at: None,
            due_at: None,
            found: None,
        });
        watched.heard_at = now;
        if watched.url.as_ref() != Some(url) {
            // A clock that was set back must not put it off, here and below.
            let looked_at = watched.looked_at.filter(|at| *at <= now);
            let due_at = looked_at.map_or(now, |at| at.plus(SOON_AFTER));
            (watched.url, watched.due_at, watched.found) = (Some(url.clone()), Some(due_at), None);
        }
        let is_due = watched.due_at.is_some_and(|due| due <= now || due > now.plus(AGAIN_AFTER));
        if is_due {
            (watched.due_at, watched.looked_at) = (None, Some(now));
        }
        is_due
    }

    /// There was no room to look: the next heartbeat asks again.
    pub fn on_not_looked(&mut self, member: NodeId, now: UnixTime) {
        if let Some(watched) = self.watched.get_mut(&member) {
            (watched.due_at, watched.looked_at) = (Some(now), None);
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
        let watched = self.watched.get_mut(&member).filter(|watched| watched.url.as_ref() == Some(url))?;
        let why = match seen {
            Seen::Member(seen) if seen == name => None,
            Seen::Member(other) => Some(format!("it leads to {other}")),
            Seen::Other(status) => Some(format!("something that is no agent answers there, with status {status}")),
            Seen::Home => Some("it leads to an address that every machine has for itself".to_owned()),
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

        tunnels.handle_heartbeat(MEMBER, Some(&elsewhere), NOW);
        assert_eq!(seen(&mut tunnels, Seen::Member(name("a"))), None, "too late");
        assert_eq!(tunnels.found(&MEMBER), None);
    }

    #[test]
    fn a_member_that_names_another_url_each_time_is_looked_at_no_more_often_than_others() {
        let mut tunnels = Tunnels::default();

        let looks = (0..600).filter(|second| {
            let there = url(&format!("http://192.0.2.1:{}", 1000 + second));
            let named = (second % 3 > 0).then_some(&there);
            tunnels.handle_heartbeat(MEMBER, named, NOW.plus(Duration::from_secs(*second)))
        });

        assert_eq!(looks.count(), 10);
        assert!(
            tunnels.handle_heartbeat(NodeId([8; 32]), Some(&url("https://a.example")), NOW),
            "others are not put off"
        );
    }

    #[test]
    fn who_names_none_or_is_gone_is_forgotten() {
        let mut tunnels = Tunnels::default();
        tunnels.handle_heartbeat(MEMBER, Some(&url("https://a.example")), NOW);
        tunnels.on_seen(MEMBER, &name("a"), &url("https://a.example"), &Seen::Other(404), NOW);
        tunnels.handle_heartbeat(MEMBER, None, NOW);
        assert_eq!(tunnels.found(&MEMBER), None);

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
