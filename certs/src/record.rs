//! What a node says about itself: where it is, what it offers, how busy it is.
//!
//! CBOR array, in this order (minicbor, definite lengths):
//!
//! | at | type | field | bounds |
//! |----|------|-------|--------|
//! | 0 | uint | sequence | publish time in ms since 1970; newer wins |
//! | 1 | uint | expires_at | seconds since 1970 |
//! | 2 | array of bytes | endpoints | at most 8; 4+2 or 16+2 bytes, port big-endian |
//! | 3 | array of text | services | at most 16 service names |
//! | 4 | uint | load | 0 to 100 |
//! | 5 | text or null | tunnel_url | at most 200 bytes |
//! | 6 | bool | overlay | whether the node carries overlay packets |
//! | 7 | bytes, absent or null if there are none | models | at most 16; each the index of its service in field 3, and a tag of 8 bytes |
//! | 8 | uint, absent or null if 0 | revocations | the number of the revocation list that the node enforces |
//! | 9 | array of bytes, absent or null if there are none | nearby | at most 4; the tag of a bridge (4 bytes) and an endpoint as in field 2 |

mod nearby;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};

pub use nearby::{BridgeTag, MAX_NEARBY, Nearby};

use crate::{
    BadIdentifier, ModelTag, Offer, Payload, ServiceName, Signed, UnixTime, certificate::MAX_SERVICES,
    revocation::is_null,
};

/// So that an introduction, which carries a record, fits one datagram on any path.
pub const MAX_RECORD_BYTES: usize = 1100;
/// Where a node may be reached in the underlay.
pub const MAX_ENDPOINTS: usize = 8;
/// Models by which a node may be found. One that serves more is found by the others through its list of models.
pub const MAX_MODELS: usize = 16;
/// The longest tunnel URL.
pub const MAX_TUNNEL_URL_BYTES: usize = 200;
/// How long a record answers for its node's services. Three times the interval at which a node publishes.
pub const RECORD_LIFE: Duration = Duration::from_secs(90);

/// A [`NodeRecord`] as it travels.
pub type SignedRecord = Signed<NodeRecord>;

/// What a node says about itself. Its name, keys and overlay address are in the certificate that signs it.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct NodeRecord {
    /// When it was published, in milliseconds since 1970. Of two records of one node the higher one counts.
    #[n(0)]
    pub sequence: u64,
    /// From then on the node's services are no longer offered by this record. As a hint to where the node is, a record
    /// is good for as long as its certificate is valid.
    #[n(1)]
    pub expires_at: UnixTime,
    /// Underlay addresses to try, best first.
    #[n(2)]
    #[cbor(with = "endpoints")]
    pub endpoints: Vec<SocketAddr>,
    /// What it offers.
    #[n(3)]
    pub services: Vec<ServiceName>,
    /// How busy it was.
    #[n(4)]
    pub load: Load,
    /// The public URL that leads to its ingress listener.
    #[n(5)]
    pub tunnel_url: Option<TunnelUrl>,
    /// Whether it carries overlay packets; if not, its tunnel URL is the only way.
    #[n(6)]
    pub overlay: bool,
    /// The models that its services serve.
    #[n(7)]
    #[cbor(with = "models", has_nil)]
    pub models: Vec<ModelOffer>,
    /// The number of the revocation list that it enforces: who has an older one may ask it. 0: none yet.
    #[n(8)]
    #[cbor(with = "number", has_nil)]
    pub revocations: u64,
    /// Where it may be reached by those who are on the same bridge, and by nobody else.
    #[n(9)]
    #[cbor(with = "nearby", has_nil)]
    pub nearby: Vec<Nearby>,
}

impl NodeRecord {
    /// Where to try to reach the node from the bridges that we are on: what is near before what is far.
    pub fn endpoints_from(&self, ours: &[BridgeTag]) -> Vec<SocketAddr> {
        let near = self.nearby.iter().filter(|nearby| ours.contains(&nearby.bridge)).map(|nearby| nearby.endpoint);
        near.chain(self.endpoints.iter().copied()).collect()
    }

    /// The services by which the node says to offer it.
    pub fn services_for<'a>(&'a self, offer: &'a Offer) -> impl Iterator<Item = &'a ServiceName> {
        let by_name =
            self.services.iter().filter(move |name| matches!(offer, Offer::Service(wanted) if wanted == *name));
        let serves = move |model: &&ModelOffer| match offer {
            Offer::Service(_) => false,
            Offer::Model(tag) => model.tag == *tag,
            Offer::AnyModel => true,
        };
        let by_model = self.models.iter().filter(serves);
        by_name.chain(by_model.filter_map(|model| self.services.get(usize::from(model.service))))
    }

    /// Whether the node says to offer it.
    pub fn claims(&self, offer: &Offer) -> bool {
        self.services_for(offer).next().is_some()
    }

    /// Everything the node says to offer, each once.
    pub fn claimed(&self) -> Vec<Offer> {
        let mut offers: Vec<Offer> = self.services.iter().cloned().map(Offer::Service).collect();
        offers.extend(self.models.iter().map(|model| Offer::Model(model.tag)));
        if !self.models.is_empty() {
            offers.push(Offer::AnyModel);
        }
        offers.sort();
        offers.dedup();
        offers
    }

    /// Whether the record answers for its node's services: not yet over, and not from a future in which it would
    /// outlive its node by as much as that node's clock is ahead.
    pub fn is_fresh_at(&self, now: UnixTime) -> bool {
        now < self.expires_at && self.expires_at <= now.plus(MAX_RECORD_LIFE)
    }
}

impl Payload for NodeRecord {
    const DOMAIN: &'static str = "record";
    const MAX_BYTES: usize = MAX_RECORD_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        if self.endpoints.len() > MAX_ENDPOINTS {
            return Err("more than 8 endpoints");
        }
        if self.nearby.len() > MAX_NEARBY {
            return Err("more than 4 addresses on bridges");
        }
        if self.services.len() > MAX_SERVICES {
            return Err("more than 16 services");
        }
        if self.models.len() > MAX_MODELS {
            return Err("more than 16 models");
        }
        if self.models.iter().any(|model| usize::from(model.service) >= self.services.len()) {
            return Err("a model of no service");
        }
        let life = self.expires_at.0.saturating_sub(self.sequence / 1000);
        if life > MAX_RECORD_LIFE.as_secs() {
            return Err("a life of more than ten minutes");
        }
        Ok(())
    }
}

/// No record may ask to be believed for longer than this after it was published.
const MAX_RECORD_LIFE: Duration = Duration::from_secs(600);

/// One model that a service of the node serves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ModelOffer {
    /// Which service, among those of the record.
    pub service: u8,
    /// Which model.
    pub tag: ModelTag,
}

/// How busy a node is, in percent of what it can take.
#[derive(Clone, Copy, Debug, Default, Deserialize, Encode, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Load(#[n(0)] u8);

impl Load {
    /// From a share between 0 and 1; beyond is cut, what is no number counts as full.
    pub fn from_share(share: f64) -> Load {
        if share.is_nan() {
            return Load(100);
        }
        // Between 0 and 100 after the clamp.
        Load((share.clamp(0.0, 1.0) * 100.0).round() as u8)
    }

    /// 0 to 100.
    pub fn percent(self) -> u8 {
        self.0
    }

    /// 0 to 1.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl<'b, C> Decode<'b, C> for Load {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Load, decode::Error> {
        match decoder.u8()? {
            percent @ 0..=100 => Ok(Load(percent)),
            _ => Err(decode::Error::message("a load above 100 percent")),
        }
    }
}

/// A public URL that leads to a node's ingress listener: http or https, a host, maybe a path, nothing else.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct TunnelUrl(String);

impl TunnelUrl {
    /// Without a `/` at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TunnelUrl {
    type Err = BadIdentifier;

    fn from_str(text: &str) -> Result<TunnelUrl, BadIdentifier> {
        let bad =
            || BadIdentifier::new(text, "an http or https URL of at most 200 bytes without user, query or fragment");
        if text.len() > MAX_TUNNEL_URL_BYTES {
            return Err(bad());
        }
        let url = url::Url::parse(text).map_err(|_| bad())?;
        let plain = matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let normal = url.as_str().trim_end_matches('/');
        if !plain || normal.len() > MAX_TUNNEL_URL_BYTES {
            return Err(bad());
        }
        Ok(TunnelUrl(normal.to_owned()))
    }
}

impl fmt::Display for TunnelUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TunnelUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<TunnelUrl, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for TunnelUrl {
    fn encode<W: encode::Write>(&self, encoder: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        encoder.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for TunnelUrl {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<TunnelUrl, decode::Error> {
        let text = decoder.str()?;
        let url: TunnelUrl = text.parse().map_err(|_| decode::Error::message("a tunnel URL that is none"))?;
        if url.0 != text {
            return Err(decode::Error::message("a tunnel URL in another than its normal form"));
        }
        Ok(url)
    }
}

/// 6 bytes for IPv4, 18 for IPv6.
fn endpoint_bytes(endpoint: SocketAddr) -> Vec<u8> {
    let port = endpoint.port().to_be_bytes();
    match endpoint {
        SocketAddr::V4(v4) => [&v4.ip().octets()[..], &port].concat(),
        SocketAddr::V6(v6) => [&v6.ip().octets()[..], &port].concat(),
    }
}

fn endpoint_of(bytes: &[u8]) -> Option<SocketAddr> {
    let (address, port) = bytes.split_last_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let v4 = || Some(SocketAddr::from((Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?), port)));
    let v6 = || Some(SocketAddr::from((Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?), port)));
    v4().or_else(v6)
}

/// Endpoints as byte strings.
mod endpoints {
    use super::*;

    pub fn encode<C, W: encode::Write>(
        endpoints: &[SocketAddr],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.array(endpoints.len() as u64)?;
        for endpoint in endpoints {
            encoder.bytes(&endpoint_bytes(*endpoint))?;
        }
        Ok(())
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<SocketAddr>, decode::Error> {
        let bad = || decode::Error::message("not a list of endpoints");
        let count = decoder.array()?.filter(|count| *count <= MAX_ENDPOINTS as u64).ok_or_else(bad)?;
        (0..count).map(|_| endpoint_of(decoder.bytes()?).ok_or_else(bad)).collect()
    }
}

/// Models as one byte string, nine bytes each. No models are no field: a record without them reads as it did before
/// there were any.
mod models {
    use super::*;

    const BYTES: usize = 9;

    pub fn encode<C, W: encode::Write>(
        models: &[ModelOffer],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        if models.is_empty() {
            return encoder.null()?.ok();
        }
        let bytes: Vec<u8> = models.iter().flat_map(|model| [&[model.service], &model.tag.0[..]].concat()).collect();
        encoder.bytes(&bytes)?.ok()
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<ModelOffer>, decode::Error> {
        if is_null(decoder)? {
            return Ok(Vec::new());
        }
        let (models, rest) = decoder.bytes()?.as_chunks::<BYTES>();
        if models.is_empty() || models.len() > MAX_MODELS || !rest.is_empty() {
            return Err(decode::Error::message("not a list of models"));
        }
        let offer = |[service, tag @ ..]: &[u8; BYTES]| ModelOffer { service: *service, tag: ModelTag(*tag) };
        Ok(models.iter().map(offer).collect())
    }

    pub fn nil() -> Option<Vec<ModelOffer>> {
        Some(Vec::new())
    }

    pub fn is_nil(models: &[ModelOffer]) -> bool {
        models.is_empty()
    }
}

/// A number that is absent, or null, if it is 0.
mod number {
    use super::*;

    pub fn encode<C, W: encode::Write>(
        number: &u64,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        if *number == 0 { encoder.null()?.ok() } else { encoder.u64(*number)?.ok() }
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<u64, decode::Error> {
        if is_null(decoder)? {
            return Ok(0);
        }
        match decoder.u64()? {
            0 => Err(decode::Error::message("a number of 0 that is written out")),
            number => Ok(number),
        }
    }

    pub fn nil() -> Option<u64> {
        Some(0)
    }

    pub fn is_nil(number: &u64) -> bool {
        *number == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_load_is_a_percentage() {
        assert_eq!(Load::from_share(0.126).percent(), 13);
        assert_eq!(Load::from_share(-1.0).percent(), 0);
        assert_eq!(Load::from_share(7.0).percent(), 100);
        assert_eq!(Load::from_share(f64::NAN).percent(), 100);
    }

    #[test]
    fn a_record_from_the_future_is_as_little_fresh_as_one_of_the_past() {
        let now = UnixTime(1_800_000_000);
        let made_at = |at: UnixTime| NodeRecord {
            sequence: at.0 * 1000,
            expires_at: at.plus(RECORD_LIFE),
            endpoints: Vec::new(),
            services: Vec::new(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        };

        assert!(made_at(now).is_fresh_at(now));
        assert!(made_at(now.plus(Duration::from_secs(300))).is_fresh_at(now));
        assert!(!made_at(now.minus(RECORD_LIFE)).is_fresh_at(now));
        assert!(!made_at(now.plus(Duration::from_secs(3600))).is_fresh_at(now));
        assert!(!made_at(UnixTime(u64::MAX / 1000 - 1)).is_fresh_at(now));
    }

    #[test]
    fn a_record_without_models_is_written_without_them_and_read_so() {
        let record = NodeRecord {
            sequence: 1,
            expires_at: UnixTime(1),
            endpoints: Vec::new(),
            services: vec![ServiceName::new("llm").unwrap()],
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: Vec::new(),
        };
        let with = NodeRecord { models: vec![ModelOffer { service: 0, tag: ModelTag::of("m") }], ..record.clone() };

        let (bytes, with_bytes) = (minicbor::to_vec(&record).unwrap(), minicbor::to_vec(&with).unwrap());

        assert_eq!((bytes[0], with_bytes[0]), (0x87, 0x88), "arrays of seven and of eight");
        assert_eq!(minicbor::decode::<NodeRecord>(&bytes).unwrap(), record);
        assert_eq!(with_bytes.len(), bytes.len() + 1 + 9);
    }

    #[test]
    fn a_record_says_which_list_its_node_enforces_if_any() {
        let record = NodeRecord {
            sequence: 1,
            expires_at: UnixTime(1),
            endpoints: Vec::new(),
            services: vec![ServiceName::new("llm").unwrap()],
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 300,
            nearby: Vec::new(),
        };
        let served = NodeRecord { models: vec![ModelOffer { service: 0, tag: ModelTag::of("m") }], ..record.clone() };

        for record in [record, served] {
            let bytes = minicbor::to_vec(&record).unwrap();
            assert_eq!(bytes[0], 0x89, "an array of nine");
            assert_eq!(minicbor::decode::<NodeRecord>(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn a_model_is_offered_by_the_service_that_serves_it() {
        let record = NodeRecord {
            sequence: 1,
            expires_at: UnixTime(1),
            endpoints: Vec::new(),
            services: ["llm", "asr"].map(|name| ServiceName::new(name).unwrap()).to_vec(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: vec![ModelOffer { service: 1, tag: ModelTag::of("whisper") }],
            revocations: 0,
            nearby: Vec::new(),
        };
        let whisper = Offer::Model(ModelTag::of("whisper"));

        for offer in [&whisper, &Offer::AnyModel] {
            assert_eq!(record.services_for(offer).collect::<Vec<_>>(), [&record.services[1]]);
            assert!(record.claims(offer));
        }
        assert!(!record.claims(&Offer::Model(ModelTag::of("llama"))));
        assert_eq!(record.claimed().len(), 4);
        assert!(NodeRecord { services: Vec::new(), ..record }.check().is_err(), "a model of no service");
    }

    #[test]
    fn an_address_on_a_bridge_is_for_those_on_it_and_the_first_they_try() {
        let tag = |network: &str| BridgeTag::of(b"boot", network.parse().unwrap());
        let (near, far) = ("172.18.0.3:51820".parse().unwrap(), "203.0.113.7:51820".parse().unwrap());
        let record = NodeRecord {
            sequence: 1,
            expires_at: UnixTime(1),
            endpoints: vec![far],
            services: Vec::new(),
            load: Load::default(),
            tunnel_url: None,
            overlay: true,
            models: Vec::new(),
            revocations: 0,
            nearby: vec![Nearby { bridge: tag("172.18.0.0/16"), endpoint: near }],
        };

        assert_eq!(record.endpoints_from(&[tag("172.17.0.0/16"), tag("172.18.0.0/16")]), [near, far]);
        assert_eq!(record.endpoints_from(&[tag("172.17.0.0/16")]), [far]);
        assert_eq!(record.endpoints_from(&[]), [far]);
    }

    #[test]
    fn a_tunnel_url_is_plain() {
        for good in ["https://x.example", "http://127.0.0.1:8001/", "https://x.example/agents/1"] {
            assert!(good.parse::<TunnelUrl>().is_ok(), "{good}");
        }
        for bad in ["", "ftp://x", "https://", "https://user@x", "https://x/?q", "https://x/#f", "file:///etc/passwd"] {
            assert!(bad.parse::<TunnelUrl>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_encodes_decodes_to_the_same(
            sequence: u64, port: u16, v4: [u8; 4], v6: [u8; 16], percent in 0..=100u8, overlay: bool,
            tags in proptest::collection::vec(any::<[u8; 8]>(), 0..=MAX_MODELS),
            revocations in prop_oneof![Just(0), any::<u64>()], bridges in 0..=MAX_NEARBY,
        ) {
            let bridge = BridgeTag::of(b"boot", "172.18.0.0/16".parse().unwrap());
            let near = Nearby { bridge, endpoint: (Ipv4Addr::from(v4), port).into() };
            let record = NodeRecord {
                sequence,
                expires_at: UnixTime(sequence / 1000),
                endpoints: vec![(Ipv4Addr::from(v4), port).into(), (Ipv6Addr::from(v6), port).into()],
                services: vec![ServiceName::new("ocr").unwrap()],
                load: Load(percent),
                tunnel_url: Some("https://x.example/a".parse().unwrap()),
                overlay,
                models: tags.into_iter().map(|tag| ModelOffer { service: 0, tag: ModelTag(tag) }).collect(),
                revocations,
                nearby: vec![near; bridges],
            };

            let bytes = minicbor::to_vec(&record).unwrap();

            prop_assert_eq!(minicbor::decode::<NodeRecord>(&bytes).unwrap(), record);
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = minicbor::decode::<NodeRecord>(&bytes);
        }
    }
}
