//! What this node says about itself, put together from its parts and signed.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use wiremesh_certs::{
    Chain, IdentityKey, Load, MAX_ENDPOINTS, MAX_MODELS, MAX_NEARBY, MAX_SERVICES, ModelOffer, ModelTag, Nearby,
    NodeRecord, RECORD_LIFE, ServiceName, SignError, Signed, Trust, TunnelUrl, UnixTime, Verified,
};

use super::copies::{Copied, OwnRecords};

/// So many endpoints are worth more than models: without one, nobody reaches us to ask.
const KEPT_ENDPOINTS: usize = 2;

/// A clock that is set back by more than this was wrong before: what was dated by it is refused as from the future, and
/// whatever is dated after it would be too.
const SET_BACK: Duration = Duration::from_secs(30);

/// What a record is made of at one moment.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the node may be reached, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Where it may be reached from bridges that it is on.
    pub nearby: Vec<Nearby>,
    /// What it offers.
    pub services: Arc<[ServiceName]>,
    /// Which models its services serve.
    pub models: Arc<[(ServiceName, Arc<[String]>)]>,
    /// How busy it is.
    pub load: Load,
}

/// Signs our records: each newer than the one before, also when the clock was set back.
pub struct Author {
    key: Arc<IdentityKey>,
    tunnel_url: Option<TunnelUrl>,
    overlay: bool,
    /// Asked for with every request: nobody waits while a record is signed.
    own: ArcSwap<Verified>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_sequence: u64,
    said: OwnRecords,
    /// What was left out of the last record, so that it is said once.
    forbidden: Vec<ServiceName>,
}

impl Author {
    /// For the node that `own` describes. What never changes while it runs is given here.
    pub fn new(key: Arc<IdentityKey>, own: Verified, tunnel_url: Option<TunnelUrl>, overlay: bool) -> Author {
        Author { key, tunnel_url, overlay, own: ArcSwap::from_pointee(own), state: Mutex::default() }
    }

    /// A record of these facts. What our certificate or the mesh's policy does not let us offer is left out, with a word
    /// in the log when that begins.
    ///
    /// A record that would not fit a datagram loses endpoints from the third on, then models, then all but one address on
    /// bridges, then the second endpoint: an address too few is better than none, and a model that is not in the record is found in our list of models.
    pub fn sign(&self, facts: Facts, trust: &Trust, now_millis: u64) -> Result<Signed<NodeRecord>, SignError> {
        let own = self.own();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let set_back = Duration::from_millis(state.last_sequence.saturating_sub(now_millis));
        let next = if set_back > SET_BACK { 0 } else { state.last_sequence + 1 };
        state.last_sequence = now_millis.max(next);
        let sequence = state.last_sequence;
        state.said.on_made(sequence);
        let (allowed, refused): (Vec<_>, Vec<_>) =
            facts.services.iter().cloned().partition(|service| trust.may_offer(&own, service));
        for service in refused.iter().filter(|service| !state.forbidden.contains(service)) {
            let why = match own.services().allows(service) {
                true => "the mesh's policy",
                false => "our certificate",
            };
            tracing::warn!(%service, why, "not offered to others: it is not allowed");
        }
        state.forbidden = refused;
        let mut record = NodeRecord {
            sequence: state.last_sequence,
            expires_at: UnixTime(state.last_sequence / 1000).plus(RECORD_LIFE),
            endpoints: facts.endpoints,
            services: allowed,
            load: facts.load,
            tunnel_url: self.tunnel_url.clone(),
            overlay: self.overlay,
            models: Vec::new(),
            revocations: trust.revocation_number(),
            nearby: facts.nearby,
        };
        record.nearby.truncate(MAX_NEARBY);
        record.endpoints.truncate(MAX_ENDPOINTS);
        record.services.truncate(MAX_SERVICES);
        record.models = in_turn(&record.services, &facts.models);
        loop {
            match Signed::sign(&record, &self.key, own.chain()) {
                Err(SignError::TooLarge) if record.endpoints.len() > KEPT_ENDPOINTS => _ = record.endpoints.pop(),
                Err(SignError::TooLarge) if !record.models.is_empty() => _ = record.models.pop(),
                Err(SignError::TooLarge) if record.nearby.len() > 1 => _ = record.nearby.pop(),
                Err(SignError::TooLarge) if record.endpoints.len() > 1 => _ = record.endpoints.pop(),
                signed => return signed,
            }
        }
    }

    /// The public URL that leads here, as we tell it.
    pub fn tunnel_url(&self) -> Option<&TunnelUrl> {
        self.tunnel_url.as_ref()
    }

    /// This was heard in our name. True if it is how another machine with our keys is found out.
    pub fn on_heard(&self, record: &NodeRecord, now: UnixTime) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).said.on_heard(record, now)
    }

    /// Whether a record was heard in our name that may be another machine's.
    pub fn is_suspicious(&self, now: UnixTime) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).said.is_suspicious(now)
    }

    /// Another machine with our keys, if records in our name tell of one.
    pub fn copied(&self, now: UnixTime) -> Option<Copied> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).said.copied(now)
    }

    /// Our certificate was renewed.
    pub fn set_own(&self, own: Verified) {
        self.own.store(Arc::new(own));
    }

    /// Our certificate at this moment.
    pub fn own(&self) -> Verified {
        Verified::clone(&self.own.load())
    }

    /// Our certificates at this moment.
    pub fn chain(&self) -> Chain {
        self.own().chain().clone()
    }
}

/// The models by which we are found, of each service in turn: a record has room for few.
fn in_turn(services: &[ServiceName], models: &[(ServiceName, Arc<[String]>)]) -> Vec<ModelOffer> {
    let served: Vec<(u8, &[String])> = models
        .iter()
        .filter_map(|(service, names)| {
            let index = services.iter().position(|offered| offered == service)?;
            Some((u8::try_from(index).ok()?, names.as_ref()))
        })
        .collect();
    let longest = served.iter().map(|(_, names)| names.len()).max().unwrap_or_default();
    let nth_of_each = |nth: usize| {
        let named = move |(service, names): &(u8, &[String])| {
            Some(ModelOffer { service: *service, tag: ModelTag::of(names.get(nth)?) })
        };
        served.iter().filter_map(named)
    };
    (0..longest).flat_map(nth_of_each).take(MAX_MODELS).collect()
}

#[cfg(test)]
mod tests {
    use wiremesh_certs::{
        AllowedServices, Authority, CaParameters, Claims, OverlayIp, Policy, RevocationList, Rule, generate_keys,
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn each_record_is_newer_than_the_one_before_also_when_the_clock_was_set_back() {
        let (author, trust) = author(AllowedServices::Any);

        let first = author.sign(facts(&["ocr"], 1), &trust, 5_000).unwrap();
        let second = author.sign(facts(&["ocr"], 1), &trust, 4_000).unwrap();

        let sequence = |signed: &wiremesh_certs::SignedRecord| trust.open(signed, NOW).unwrap().payload.sequence;
        assert!(sequence(&second) > sequence(&first));
    }

    #[test]
    fn after_a_clock_was_an_hour_ahead_records_are_dated_by_the_right_one() {
        let (author, trust) = author(AllowedServices::Any);
        let now = NOW.0 * 1000;

        author.sign(facts(&["ocr"], 1), &trust, now + 3_600_000).unwrap();
        let right = author.sign(facts(&["ocr"], 1), &trust, now).unwrap();

        assert_eq!(trust.open(&right, NOW).unwrap().payload.sequence, now);
    }

    #[test]
    fn a_service_that_the_certificate_does_not_allow_is_left_out() {
        let (author, trust) = author(AllowedServices::Only(vec!["ocr".parse().unwrap()]));

        let signed = author.sign(facts(&["ocr", "llm-inference"], 1), &trust, 5_000).unwrap();

        let record = trust.open(&signed, NOW).unwrap().payload;
        assert_eq!(record.services, ["ocr".parse().unwrap()]);
    }

    #[test]
    fn a_service_that_the_mesh_s_policy_forbids_is_left_out_with_its_models_until_it_is_allowed() {
        let (author, mut trust, authority) = author_of(AllowedServices::Any);
        let policy = Policy {
            services: [("llm".parse().unwrap(), Rule { offer: Some([].into()), call: None })].into(),
            ..Policy::default()
        };
        let mut apply = |number, policy| {
            let list = RevocationList { number, policy, ..RevocationList::default() };
            trust.apply_revocations(&authority.sign_revocations(&list).unwrap(), NOW).unwrap();
            let models = ("llm".parse().unwrap(), Arc::from(["llama".to_owned()]));
            let all = Facts { models: [models].into(), ..facts(&["llm", "ocr"], 1) };
            let record = trust.open(&author.sign(all, &trust, 5_000).unwrap(), NOW).unwrap().payload;
            (record.services.len(), record.models.len(), record.revocations)
        };

        assert_eq!(apply(1, policy), (1, 0, 1));
        assert_eq!(apply(2, Policy::default()), (2, 1, 2));
    }

    #[test]
    fn a_record_too_large_for_a_datagram_loses_its_last_endpoints() {
        let (author, trust) = author(AllowedServices::Any);
        let long: Vec<String> = (0..12).map(|n| format!("a-service-with-a-rather-long-name-{n}")).collect();
        let names: Vec<&str> = long.iter().map(String::as_str).collect();

        let signed = author.sign(facts(&names, 8), &trust, 5_000).unwrap();

        let record = trust.open(&signed, NOW).unwrap().payload;
        assert_eq!(record.services.len(), 12);
        assert!((1..8).contains(&record.endpoints.len()), "{}", record.endpoints.len());
    }

    #[test]
    fn services_share_the_room_for_models_and_what_is_not_offered_has_none() {
        let (author, trust) = author(AllowedServices::Only(vec!["llm".parse().unwrap(), "asr".parse().unwrap()]));
        let many: Arc<[String]> = (0..40).map(|n| format!("llm-{n}")).collect();
        let models = [("llm", many), ("asr", ["whisper".to_owned()].into()), ("down", ["other".to_owned()].into())];
        let models = models.map(|(service, names)| (service.parse().unwrap(), names));

        let signed = author.sign(Facts { models: models.into(), ..facts(&["llm", "asr"], 1) }, &trust, 5_000).unwrap();

        let record = trust.open(&signed, NOW).unwrap().payload;
        let tags: Vec<_> = record.models.iter().map(|model| (model.service, model.tag)).collect();
        assert_eq!(tags[..3], [(0, "llm-0"), (1, "whisper"), (0, "llm-1")].map(|(s, name)| (s, ModelTag::of(name))));
        assert_eq!(tags.len(), MAX_MODELS);
    }

    #[test]
    fn models_go_before_the_last_two_endpoints() {
        let (author, trust) = author(AllowedServices::Any);
        let long: Vec<String> = (0..14).map(|n| format!("a-service-with-a-rather-long-name-{n}")).collect();
        let names: Vec<&str> = long.iter().map(String::as_str).collect();
        let models: Arc<[String]> = (0..16).map(|n| format!("model-{n}")).collect();
        let all = Facts { models: [(long[0].parse().unwrap(), models)].into(), ..facts(&names, 8) };

        let record = trust.open(&author.sign(all, &trust, 5_000).unwrap(), NOW).unwrap().payload;

        assert_eq!((record.services.len(), record.endpoints.len()), (14, KEPT_ENDPOINTS));
        assert!(record.models.len() < MAX_MODELS, "{}", record.models.len());
    }

    fn facts(services: &[&str], endpoints: u16) -> Facts {
        Facts {
            nearby: Vec::new(),
            endpoints: (0..endpoints).map(|port| (std::net::Ipv6Addr::LOCALHOST, port + 1).into()).collect(),
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
            models: Arc::from([]),
            load: Load::default(),
        }
    }

    fn author(services: AllowedServices) -> (Author, Trust) {
        let (author, trust, _) = author_of(services);
        (author, trust)
    }

    fn author_of(services: AllowedServices) -> (Author, Trust, Authority) {
        let parameters = CaParameters {
            mesh: "lab".parse().unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: Duration::from_secs(86_400),
        };
        let authority = Authority::create(&parameters, NOW, &mut rand::rng()).unwrap();
        let (key, wg) = generate_keys(&mut rand::rng());
        let claims = Claims {
            identity: key.id(),
            wg: wg.public(),
            name: "worker-1".parse().unwrap(),
            address: OverlayIp("10.42.0.7".parse().unwrap()),
            groups: Vec::new(),
            services,
            lifetime: Duration::from_secs(3600),
        };
        let chain = authority.issue(&claims, NOW, &mut rand::rng()).unwrap();
        let trust = Trust::new(authority.certificate().clone());
        let own = trust.verify(&chain, NOW).unwrap();
        (Author::new(Arc::new(key), own, None, true), trust, authority)
    }
}
