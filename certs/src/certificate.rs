//! X.509 certificates as wiremesh uses them: read strictly, into types, before anybody believes them.
//!
//! A certificate that does not look exactly like one we issue is refused, whatever its signature: what cannot be
//! expressed cannot be abused. The profile (RFC 5280):
//!
//! | | authority, cross | intermediate | node | coordinator's TLS |
//! |---|---|---|---|---|
//! | subject | O=wiremesh, CN=mesh | O=wiremesh, CN=mesh | CN=name | CN=coordinator |
//! | SAN | none | none | overlay IP, `name.mesh.internal`, `wiremesh://mesh/name` | `coordinator.mesh.internal` |
//! | basic constraints | CA | CA, path length 0 | none | none |
//! | key usage | certSign, cRLSign, digitalSignature | the same | digitalSignature | digitalSignature |
//! | extended key usage | none | none | server and client | server |
//! | name constraints | network, `mesh.internal` | the same | none | none |
//! | private extensions | none | none | [`oid::WIREGUARD_KEY`], [`oid::GROUPS`], [`oid::SERVICES`] | none |

mod fields;

use std::{fmt, sync::Arc};

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

use fields::{
    DIGITAL_SIGNATURE, alternative_names, certificates_in, constrained_network, for_each_extension, is_ed25519,
    is_for_server, name_list, serial, to_pem,
};
pub(crate) use fields::{common_name, ed25519_key, ed25519_signature, encode_name_list, is, is_host_in};

use crate::{
    Fingerprint, GroupName, MeshName, NodeId, NodeName, OverlayIp, Serial, ServiceName, UnixTime, WgPublicKey, keys,
};

/// Larger than any certificate of the profile.
pub const MAX_CERTIFICATE_BYTES: usize = 2048;
/// Node certificate and intermediates, without the root.
pub const MAX_CHAIN: usize = 3;
/// Authorities in one file: those of a mesh, and what leads to them.
pub const MAX_BUNDLE: usize = 8;
/// A chain in PEM, with room for comments around it.
pub const MAX_PEM_BYTES: usize = 64 * 1024;
/// Of one node.
pub const MAX_GROUPS: usize = 8;
/// Of one node.
pub const MAX_SERVICES: usize = 16;
/// A node may not be called so: its certificate would pass for the coordinator's.
pub const COORDINATOR_NAME: &str = "coordinator";

/// Object identifiers of the private extensions, in an arc derived from random bits (ITU-T X.667, `2.25`).
pub mod oid {
    /// The node's WireGuard public key, 32 bytes.
    pub const WIREGUARD_KEY: &[u64] = &[2, 25, 3146792049317540851, 1];
    /// `SEQUENCE OF UTF8String`: the node's groups.
    pub const GROUPS: &[u64] = &[2, 25, 3146792049317540851, 2];
    /// `SEQUENCE OF UTF8String`: the services the node may offer. Absent: any.
    pub const SERVICES: &[u64] = &[2, 25, 3146792049317540851, 3];
}

/// Not a certificate of the profile. Says which rule it breaks.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a certificate of this kind: {0}")]
pub struct BadCertificate(pub(crate) &'static str);

/// Which services a node may offer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AllowedServices {
    /// Every one.
    Any,
    /// These alone.
    Only(Vec<ServiceName>),
}

impl AllowedServices {
    /// Whether `service` is among them.
    pub fn allows(&self, service: &ServiceName) -> bool {
        match self {
            AllowedServices::Any => true,
            AllowedServices::Only(services) => services.contains(service),
        }
    }
}

/// A node's certificate and the intermediates above it, leaf first, without the root. Not believed: see
/// [`Trust`](crate::Trust). Cheap to clone.
#[derive(Clone, Eq, PartialEq)]
pub struct Chain(Arc<[Vec<u8>]>);

impl Chain {
    /// From DER, leaf first.
    pub fn from_ders(certificates: Vec<Vec<u8>>) -> Result<Chain, BadCertificate> {
        if certificates.is_empty() || certificates.len() > MAX_CHAIN {
            return Err(BadCertificate("a chain has one to three certificates"));
        }
        if certificates.iter().any(|der| der.len() > MAX_CERTIFICATE_BYTES) {
            return Err(BadCertificate("longer than 2048 bytes"));
        }
        Ok(Chain(certificates.into()))
    }

    /// From one or more `CERTIFICATE` blocks, leaf first.
    pub fn from_pem(text: &str) -> Result<Chain, BadCertificate> {
        Chain::from_ders(certificates_in(text)?)
    }

    /// `CERTIFICATE` blocks, leaf first.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|der| to_pem(der)).collect()
    }

    /// DER, leaf first.
    pub fn ders(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The node's own certificate.
    pub fn leaf(&self) -> &[u8] {
        &self.0[0]
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({} × {})", self.0.len(), Fingerprint::of(self.leaf()))
    }
}

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(der: &[u8]) -> Fingerprint {
        Fingerprint(Sha256::digest(der).into())
    }
}

/// What any certificate of the profile says about itself and its issuer.
pub(crate) struct Outline<'a> {
    parsed: X509Certificate<'a>,
    signature: &'a [u8],
    pub key: NodeId,
    pub serial: Serial,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
}

impl<'a> Outline<'a> {
    pub fn parse(der: &'a [u8]) -> Result<Outline<'a>, BadCertificate> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(BadCertificate("longer than 2048 bytes"));
        }
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| BadCertificate("not X.509 in DER"))?;
        if !rest.is_empty() {
            return Err(BadCertificate("bytes after its end"));
        }
        if parsed.version().0 != 2 {
            return Err(BadCertificate("not X.509 version 3"));
        }
        if parsed.tbs_certificate.issuer_uid.is_some() || parsed.tbs_certificate.subject_uid.is_some() {
            return Err(BadCertificate("a unique identifier, which no certificate of ours has"));
        }
        if parsed.signature_algorithm != parsed.tbs_certificate.signature {
            return Err(BadCertificate("two different signature algorithms"));
        }
        if !is_ed25519(&parsed.signature_algorithm.algorithm) {
            return Err(BadCertificate("its signature is not Ed25519"));
        }
        let time =
            |seconds: i64| u64::try_from(seconds).map(UnixTime).map_err(|_| BadCertificate("a time before 1970"));
        Ok(Outline {
            signature: ed25519_signature(der, parsed.tbs_certificate.as_ref())
                .ok_or(BadCertificate("its signature is not Ed25519"))?,
            key: ed25519_key(&parsed.tbs_certificate.subject_pki)?,
            serial: serial(parsed.tbs_certificate.raw_serial())?,
            not_before: time(parsed.validity().not_before.timestamp())?,
            not_after: time(parsed.validity().not_after.timestamp())?,
            parsed,
        })
    }

    /// Whether `issuer` signed this certificate.
    pub fn is_issued_by(&self, issuer: &Outline<'_>) -> bool {
        self.parsed.issuer().as_raw() == issuer.parsed.subject().as_raw()
            && keys::is_signed_by(&issuer.key, self.parsed.tbs_certificate.as_ref(), self.signature)
    }
}

impl<'a> Outline<'a> {
    /// Whether this authority signed it. What does not name its key is not tried with it: of several authorities of one
    /// mesh all have the same name.
    pub fn is_issued_by_ca(&self, authority: &CaCertificate) -> bool {
        let facts = &authority.0;
        let names_another = match (self.authority_key_id(), &facts.key_id) {
            (Some(named), Some(id)) => named != id.as_slice(),
            (None, _) | (_, None) => false,
        };
        !names_another
            && self.parsed.issuer().as_raw() == facts.subject
            && keys::is_signed_by(&facts.key, self.parsed.tbs_certificate.as_ref(), self.signature)
    }

    /// The common name of whoever signed it, as it claims.
    pub fn issuer_name(&self) -> Option<&str> {
        common_name(self.parsed.issuer()).ok()
    }

    fn authority_key_id(&self) -> Option<&[u8]> {
        self.parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref().map(|id| id.0),
            _ => None,
        })
    }
}

/// What a node's certificate claims.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct NodeClaims {
    pub mesh: MeshName,
    pub name: NodeName,
    pub address: OverlayIp,
    pub wg: WgPublicKey,
    pub groups: Vec<GroupName>,
    pub services: AllowedServices,
}

impl NodeClaims {
    /// Reads the claims of a node certificate.
    pub fn of(outline: &Outline<'_>) -> Result<NodeClaims, BadCertificate> {
        let mut names = None;
        let mut usage = false;
        let mut extended_usage = false;
        let mut wg = None;
        let mut groups = None;
        let mut services = None;
        for_each_extension(&outline.parsed, |extension| {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => names = Some(alternative_names(&san.general_names)?),
                ParsedExtension::KeyUsage(key_usage) => usage = key_usage.flags == DIGITAL_SIGNATURE,
                ParsedExtension::ExtendedKeyUsage(found) => {
                    extended_usage = is_for_server(found) && found.client_auth;
                }
                ParsedExtension::AuthorityKeyIdentifier(_) => {}
                ParsedExtension::UnsupportedExtension { .. } => {
                    if is(&extension.oid, oid::WIREGUARD_KEY) {
                        let bytes: [u8; 32] = extension
                            .value
                            .try_into()
                            .map_err(|_| BadCertificate("its WireGuard key is not 32 bytes"))?;
                        if !WgPublicKey(bytes).is_sound() {
                            return Err(BadCertificate("its WireGuard key is weak: anybody could speak for it"));
                        }
                        wg = Some(WgPublicKey(bytes));
                    } else if is(&extension.oid, oid::GROUPS) {
                        groups = Some(name_list(extension.value, MAX_GROUPS)?);
                    } else if is(&extension.oid, oid::SERVICES) {
                        services = Some(name_list(extension.value, MAX_SERVICES)?);
                    } else if extension.critical {
                        return Err(BadCertificate("an unknown critical extension"));
                    }
                }
                _ => return Err(BadCertificate("an extension that a node certificate does not have")),
            }
            Ok(())
        })?;
        if !usage {
            return Err(BadCertificate("its key usage does not fit a node"));
        }
        if !extended_usage {
            return Err(BadCertificate("its extended key usage does not fit a node"));
        }
        let (mesh, name, address) = names.ok_or(BadCertificate("no subject alternative name"))?;
        if common_name(outline.parsed.subject())? != name.as_str() {
            return Err(BadCertificate("its subject and its alternative name differ"));
        }
        if name.as_str() == COORDINATOR_NAME {
            return Err(BadCertificate("a node may not be called coordinator"));
        }
        Ok(NodeClaims {
            mesh,
            name,
            address,
            wg: wg.ok_or(BadCertificate("no WireGuard key"))?,
            groups: groups.unwrap_or_default(),
            services: services.map_or(AllowedServices::Any, AllowedServices::Only),
        })
    }
}

/// Whether this is a coordinator's TLS certificate of `mesh`.
pub(crate) fn is_coordinator_tls(outline: &Outline<'_>, mesh: &MeshName) -> Result<(), BadCertificate> {
    let expected = coordinator_dns_name(mesh);
    let mut named = false;
    let mut server = false;
    for_each_extension(&outline.parsed, |extension| {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(san) => {
                named = matches!(san.general_names.as_slice(), [GeneralName::DNSName(name)] if *name == expected);
            }
            ParsedExtension::ExtendedKeyUsage(found) => server = is_for_server(found) && !found.client_auth,
            ParsedExtension::KeyUsage(usage) if usage.flags == DIGITAL_SIGNATURE => {}
            ParsedExtension::KeyUsage(_) => return Err(BadCertificate("its key usage does not fit a server")),
            ParsedExtension::AuthorityKeyIdentifier(_) => {}
            _ => return Err(BadCertificate("an extension that a coordinator's certificate does not have")),
        }
        Ok(())
    })?;
    if !named || !server {
        return Err(BadCertificate("not a coordinator's"));
    }
    Ok(())
}

/// Of which mesh's coordinator this is the TLS certificate, if it is one.
pub(crate) fn coordinator_mesh(outline: &Outline<'_>) -> Option<MeshName> {
    let names = outline.parsed.subject_alternative_name().ok()??;
    let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else { return None };
    let mesh = name.strip_prefix(COORDINATOR_NAME)?.strip_prefix('.')?.strip_suffix(".internal")?;
    let mesh = MeshName::new(mesh).ok()?;
    is_coordinator_tls(outline, &mesh).is_ok().then_some(mesh)
}

/// The name in a coordinator's TLS certificate, whatever address it is reached at.
pub fn coordinator_dns_name(mesh: &MeshName) -> String {
    format!("{COORDINATOR_NAME}.{mesh}.internal")
}

/// The certificate of a mesh's authority, root or intermediate. Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaCertificate(Arc<CaFacts>);

#[derive(Debug, Eq, PartialEq)]
struct CaFacts {
    der: Vec<u8>,
    mesh: MeshName,
    network: IpNet,
    fingerprint: Fingerprint,
    key: NodeId,
    serial: Serial,
    not_before: UnixTime,
    not_after: UnixTime,
    path_length: Option<u32>,
    is_root: bool,
    /// Its name as in its certificate (DER), which is in what it signs.
    subject: Vec<u8>,
    /// What stands for its key in what it signs.
    key_id: Option<Vec<u8>>,
}

impl CaCertificate {
    /// Reads an authority's certificate. Its own signature is not checked: a root is trusted because it was chosen.
    pub fn from_der(der: Vec<u8>) -> Result<CaCertificate, BadCertificate> {
        let outline = Outline::parse(&der)?;
        let mesh = MeshName::new(common_name(outline.parsed.subject())?)
            .map_err(|_| BadCertificate("its common name is not a mesh name"))?;
        let mut path_length = None;
        let mut is_ca = false;
        let mut signs_certificates = false;
        let mut network = None;
        let mut key_id = None;
        for_each_extension(&outline.parsed, |extension| {
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(basic) => {
                    is_ca = basic.ca;
                    path_length = basic.path_len_constraint;
                }
                ParsedExtension::KeyUsage(usage) => signs_certificates = usage.key_cert_sign(),
                ParsedExtension::NameConstraints(constraints) => {
                    network = constrained_network(constraints, &mesh)?;
                }
                ParsedExtension::SubjectKeyIdentifier(id) => key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(_) => {}
                _ => return Err(BadCertificate("an extension that an authority's certificate does not have")),
            }
            Ok(())
        })?;
        if !is_ca || !signs_certificates {
            return Err(BadCertificate("not an authority's: it may not sign certificates"));
        }
        let network = network.ok_or(BadCertificate("no name constraints: it could speak for any network"))?;
        let (key, serial, not_before, not_after) = (outline.key, outline.serial, outline.not_before, outline.not_after);
        let (is_root, subject) = (outline.is_issued_by(&outline), outline.parsed.subject().as_raw().to_vec());
        Ok(CaCertificate(Arc::new(CaFacts {
            fingerprint: Fingerprint::of(&der),
            der,
            mesh,
            network,
            key,
            serial,
            not_before,
            not_after,
            path_length,
            is_root,
            subject,
            key_id,
        })))
    }

    /// From one `CERTIFICATE` block.
    pub fn from_pem(text: &str) -> Result<CaCertificate, BadCertificate> {
        match certificates_in(text)?.as_slice() {
            [der] => CaCertificate::from_der(der.clone()),
            _ => Err(BadCertificate("more than one certificate in the file")),
        }
    }

    /// From a file of several `CERTIFICATE` blocks, at most [`MAX_BUNDLE`].
    pub fn bundle_from_pem(text: &str) -> Result<Vec<CaCertificate>, BadCertificate> {
        let ders = certificates_in(text)?;
        if ders.len() > MAX_BUNDLE {
            return Err(BadCertificate("more than 8 certificates in the file"));
        }
        ders.into_iter().map(CaCertificate::from_der).collect()
    }

    /// The inverse of [`CaCertificate::bundle_from_pem`].
    pub fn bundle_to_pem(authorities: &[CaCertificate]) -> String {
        authorities.iter().map(CaCertificate::pem).collect()
    }

    /// A `CERTIFICATE` block.
    pub fn pem(&self) -> String {
        to_pem(&self.0.der)
    }

    /// DER bytes.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }

    /// The mesh it speaks for.
    pub fn mesh(&self) -> &MeshName {
        &self.0.mesh
    }

    /// The overlay network it is limited to.
    pub fn network(&self) -> IpNet {
        self.0.network
    }

    /// SHA-256 of its DER form: what join tokens pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// Its public key.
    pub fn key(&self) -> NodeId {
        self.0.key
    }

    /// Its serial number.
    pub fn serial(&self) -> Serial {
        self.0.serial
    }

    /// Valid from.
    pub fn not_before(&self) -> UnixTime {
        self.0.not_before
    }

    /// Valid until.
    pub fn not_after(&self) -> UnixTime {
        self.0.not_after
    }

    /// Whether it signed itself: a root. An intermediate is believed only through one.
    pub fn is_root(&self) -> bool {
        self.0.is_root
    }

    /// Whether `upper` signed it.
    pub fn is_issued_by(&self, upper: &CaCertificate) -> bool {
        Outline::parse(&self.0.der).is_ok_and(|outline| outline.is_issued_by_ca(upper))
    }

    /// How many authorities may stand between this one and a node; `None`: any number.
    pub(crate) fn path_length(&self) -> Option<u32> {
        self.0.path_length
    }
}
