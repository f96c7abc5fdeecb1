//! Who a wiremesh node is, and who says so.
//!
//! ```text
//! Claims ──Authority::issue──► Chain, Signed<T> ──Trust::verify, Trust::open──► Verified, Opened<T>
//!  said                         said and signed                                  believed
//! ```
//!
//! Needs no network and reads no clock: it also runs on an offline machine, as `wiremesh-cert`.

mod authority;
mod certificate;
pub mod cli;
pub mod files;
#[doc(hidden)]
pub mod fuzz;
mod ids;
mod keys;
mod offer;
mod policy;
mod proof;
mod record;
mod request;
mod revocation;
mod secrecy;
mod signed;
mod time;
mod token;
mod trust;

pub use authority::{
    Authority, BACKDATED, BadAuthority, CaParameters, Claims, IssueError, MAX_NODE_CERTIFICATE_BYTES, MIN_LIFETIME,
    allowed_services,
};
pub use certificate::{
    AllowedServices, BadCertificate, COORDINATOR_NAME, CaCertificate, Chain, MAX_BUNDLE, MAX_CERTIFICATE_BYTES,
    MAX_CHAIN, MAX_GROUPS, MAX_SERVICES, coordinator_dns_name,
};
pub use ids::{
    BadIdentifier, Fingerprint, GroupName, MeshName, NodeId, NodeName, OverlayIp, Serial, ServiceName, WgPublicKey,
};
pub use keys::{BadKey, IdentityKey, MAX_PASSPHRASE_BYTES, WgPrivateKey, is_encrypted_key, passphrase_in};
pub use offer::{ModelTag, Offer};
pub use policy::{MAX_RULE_GROUPS, MAX_RULES, Policy, Rule};
pub use proof::{MAX_REMEMBERED_PROOFS, PROOF_LIFE, ProofChecker, RequestProof, SCHEME, proof_header};
pub use record::{
    BridgeTag, Load, MAX_ENDPOINTS, MAX_MODELS, MAX_NEARBY, MAX_RECORD_BYTES, MAX_TUNNEL_URL_BYTES, ModelOffer, Nearby,
    NodeRecord, RECORD_LIFE, SignedRecord, TunnelUrl,
};
pub use request::{BadRequest, CertificateRequest, MAX_REQUEST_BYTES, generate_keys};
pub use revocation::{MAX_AUTHORITIES, MAX_CROSSES, MAX_REVOCATIONS, RevocationList, SignedRevocations};
pub use secrecy::no_core_dumps;
pub use signed::{BadEnvelope, Payload, SignError, Signed};
pub use time::UnixTime;
pub use token::{BadToken, JoinToken, MAX_TOKEN_BYTES, MAX_URLS, hash_of_secret};
pub use trust::{Check, MAX_TLS_CHAIN, Opened, Refused, Renewable, Trust, TrustStore, Verified};
