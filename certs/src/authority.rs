//! The key that says who belongs to a mesh, and what it will sign.

use std::time::Duration;

use ipnet::IpNet;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{
    AllowedServices, CaCertificate, Chain, GroupName, IdentityKey, MeshName, NodeId, NodeName, OverlayIp, Refused,
    Serial, ServiceName, SignError, Signed, Trust, UnixTime, WgPublicKey,
    certificate::{self, BadCertificate, COORDINATOR_NAME, MAX_GROUPS, MAX_SERVICES, oid},
    keys::BadKey,
    revocation::RevocationList,
};

/// Certificates are valid from this long before they were made: clocks differ.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// A node certificate longer than this would leave no room in a record of 1,100 bytes.
pub const MAX_NODE_CERTIFICATE_BYTES: usize = 720;
/// Nobody needs a shorter life, and renewal at half of it could not keep up.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// What a mesh's authority is made from.
#[derive(Clone, Debug)]
pub struct CaParameters {
    /// Its name.
    pub mesh: MeshName,
    /// The overlay network it may give addresses of, and nobody else's.
    pub network: IpNet,
    /// How long the authority lives.
    pub lifetime: Duration,
}

/// What a node is said to be.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Its identity key.
    pub identity: NodeId,
    /// Its WireGuard key.
    pub wg: WgPublicKey,
    /// Its name.
    pub name: NodeName,
    /// Its overlay address.
    pub address: OverlayIp,
    /// Its groups, at most [`MAX_GROUPS`].
    pub groups: Vec<GroupName>,
    /// What it may offer.
    pub services: AllowedServices,
    /// How long the certificate lives; cut to the authority's own end.
    pub lifetime: Duration,
}

/// Why the authority did not sign.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssueError {
    /// The address is not one of this mesh.
    #[error("{address} is not in the network {network} that this authority is limited to")]
    OutsideNetwork {
        /// What was asked for.
        address: OverlayIp,
        /// What is allowed.
        network: IpNet,
    },
    /// The name belongs to the coordinator.
    #[error("a node may not be called \"{COORDINATOR_NAME}\"")]
    ReservedName,
    /// Groups or services beyond their bounds, or so long that a record would not fit a datagram.
    #[error("the certificate would be too large: {0}; use fewer or shorter groups and services")]
    TooLarge(&'static str),
    /// Only a root may sign for other authorities, and only for roots.
    #[error("only a root may sign for another authority")]
    NotARoot,
    /// An authority of another mesh, or for more than this one may.
    #[error(
        "an authority for the mesh {mesh} with {network} is not within {own_mesh} with {own_network}, to which this one is limited"
    )]
    NotWithin {
        /// Of the other.
        mesh: MeshName,
        /// Of the other.
        network: IpNet,
        /// Ours.
        own_mesh: MeshName,
        /// Ours.
        own_network: IpNet,
    },
    /// The authority itself has ended or not begun.
    #[error("this authority is valid from {from} to {until}, and it is {now}")]
    AuthorityNotValid {
        /// Its beginning.
        from: UnixTime,
        /// Its end.
        until: UnixTime,
        /// The time given.
        now: UnixTime,
    },
    /// Too short to be of use.
    #[error("a certificate must live at least {} s", MIN_LIFETIME.as_secs())]
    TooShort,
    /// A network that no mesh can live in.
    #[error("{0} is no network for a mesh: it needs a prefix of at least 8 bits, and room for two nodes")]
    UnfitNetwork(IpNet),
    /// The network's own address, or the one that means all of its nodes.
    #[error("{address} is not an address for a node: it is the first or last of {network}")]
    ReservedAddress {
        /// What was asked for.
        address: OverlayIp,
        /// Of which network.
        network: IpNet,
    },
    /// A key that nobody can have alone.
    #[error("the {0} key is weak: anybody could speak for it")]
    WeakKey(&'static str),
    /// The authority's own certificate is such that nobody would believe what it signs.
    #[error("what this authority signs would be refused: {0}")]
    WouldBeRefused(Box<Refused>),
    /// A key or network the X.509 library will not encode.
    #[error("could not be encoded: {0}")]
    Encoding(String),
}

/// An authority could not be opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadAuthority {
    /// Its certificate is none.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    /// Its key is none.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// They do not belong together.
    #[error("the key is not the one in the certificate")]
    KeyMismatch,
    /// An intermediate's file must go up to the root, each signed by the next.
    #[error("its certificates do not follow from one another: its own first, then each one's issuer")]
    BrokenChain,
}

/// A mesh's authority: its certificate and the key behind it.
#[derive(Debug)]
pub struct Authority {
    certificate: CaCertificate,
    /// Those above it, the root last; none above a root.
    above: Vec<CaCertificate>,
    key: IdentityKey,
}

impl Authority {
    /// A new authority, self-signed. `rng` must be a cryptographic one.
    pub fn create(parameters: &CaParameters, now: UnixTime, rng: &mut impl RngCore) -> Result<Authority, IssueError> {
        let network = parameters.network.trunc();
        let host_bits = network.max_prefix_len() - network.prefix_len();
        if network.prefix_len() < 8 || host_bits < 2 {
            return Err(IssueError::UnfitNetwork(network));
        }
        let key = IdentityKey::generate(rng);
        let params = ca_params(parameters, BasicConstraints::Unconstrained, now, rng)?;
        let der = params.self_signed(&key).map_err(encoding)?.der().to_vec();
        let certificate = CaCertificate::from_der(der).map_err(|bad| IssueError::Encoding(bad.to_string()))?;
        Ok(Authority { certificate, above: Vec::new(), key })
    }

    /// A new authority below this one, for a machine that is online: it may sign nodes and no further authorities, and
    /// only within `parameters`, which must be within this one's. Cut to this one's end.
    pub fn create_intermediate(
        &self,
        parameters: &CaParameters,
        now: UnixTime,
        rng: &mut impl RngCore,
    ) -> Result<Authority, IssueError> {
        self.check_validity(now)?;
        if !self.certificate.is_root() {
            return Err(IssueError::NotARoot);
        }
        let key = IdentityKey::generate(rng);
        let certificate = self.sign_ca(parameters, &key.id(), BasicConstraints::Constrained(0), now, rng)?;
        Ok(Authority { certificate, above: vec![self.certificate.clone()], key })
    }

    /// A certificate for the key of `successor`, another root of the same mesh: who believes this authority believes that
    /// one through it. Cut to this one's end and to that one's.
    pub fn cross_sign(
        &self,
        successor: &CaCertificate,
        now: UnixTime,
        rng: &mut impl RngCore,
    ) -> Result<CaCertificate, IssueError> {
        self.check_validity(now)?;
        if !self.certificate.is_root() || !successor.is_root() {
            return Err(IssueError::NotARoot);
        }
        let parameters = CaParameters {
            mesh: successor.mesh().clone(),
            network: successor.network(),
            lifetime: successor.not_after().saturating_since(now),
        };
        self.sign_ca(&parameters, &successor.key(), BasicConstraints::Unconstrained, now, rng)
    }

    /// Opens an authority from its two files. That of an intermediate holds the certificates above it too, the root last.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, BadAuthority> {
        Authority::with_key(CaCertificate::bundle_from_pem(certificate)?, IdentityKey::from_pkcs8_pem(key)?)
    }

    /// From its certificate, those above it, and its key, which may have been kept encrypted.
    pub fn with_key(certificates: Vec<CaCertificate>, key: IdentityKey) -> Result<Authority, BadAuthority> {
        let mut certificates = certificates.into_iter();
        let certificate = certificates.next().ok_or(BadCertificate("no certificate in the file"))?;
        let above: Vec<CaCertificate> = certificates.collect();
        if key.id() != certificate.key() {
            return Err(BadAuthority::KeyMismatch);
        }
        let mut below = &certificate;
        for upper in &above {
            if !below.is_issued_by(upper) {
                return Err(BadAuthority::BrokenChain);
            }
            below = upper;
        }
        Ok(Authority { certificate, above, key })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// The certificates above it, the root last; none above a root.
    pub fn above(&self) -> &[CaCertificate] {
        &self.above
    }

    /// The root: what join tokens pin. An intermediate that was opened without its root stands in for it.
    pub fn root(&self) -> &CaCertificate {
        self.above.last().unwrap_or(&self.certificate)
    }

    /// Its key, for the file it is kept in.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pkcs8_pem()
    }

    /// A certificate for a node, with this authority's own above it if it is an intermediate. The claims are the
    /// caller's to believe; the authority's own limits are checked here.
    ///
    /// **Invariant:** what is issued, [`Trust::verify`] believes.
    pub fn issue(&self, claims: &Claims, now: UnixTime, rng: &mut impl RngCore) -> Result<Chain, IssueError> {
        self.check(claims, now)?;
        let mesh = self.certificate.mesh();
        let mut extensions = vec![private_extension(oid::WIREGUARD_KEY, claims.wg.0.to_vec())];
        if !claims.groups.is_empty() {
            extensions.push(private_extension(oid::GROUPS, certificate::encode_name_list(&claims.groups)));
        }
        if let AllowedServices::Only(services) = &claims.services {
            extensions.push(private_extension(oid::SERVICES, certificate::encode_name_list(services)));
        }
        let mut params = CertificateParams::default();
        params.serial_number = Some(random_serial(rng));
        params.not_before = moment(now.minus(BACKDATED))?;
        params.not_after = moment(now.plus(claims.lifetime).min(self.certificate.not_after()))?;
        params.distinguished_name = subject(claims.name.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![
            SanType::IpAddress(claims.address.0),
            SanType::DnsName(ia5(format!("{}.{mesh}.internal", claims.name))?),
            SanType::URI(ia5(format!("wiremesh://{mesh}/{}", claims.name))?),
        ];
        params.custom_extensions = extensions;
        params.use_authority_key_identifier_extension = true;
        let der = self.sign_for(&params, &claims.identity)?;
        if der.len() > MAX_NODE_CERTIFICATE_BYTES {
            return Err(IssueError::TooLarge("more than 720 bytes"));
        }
        let mut ders = vec![der];
        if !self.certificate.is_root() {
            ders.push(self.certificate.der().to_vec());
        }
        let chain = Chain::from_ders(ders).map_err(|bad| IssueError::Encoding(bad.to_string()))?;
        let believed = Trust::new(self.certificate.clone()).verify(&chain, now);
        believed.map(|_| chain).map_err(|refused| IssueError::WouldBeRefused(Box::new(refused)))
    }

    /// A TLS certificate for the coordinator itself: its chain (up to the root, so that a client that knows only the
    /// root's fingerprint can check it) and its key.
    pub fn issue_coordinator_tls(
        &self,
        lifetime: Duration,
        now: UnixTime,
        rng: &mut impl RngCore,
    ) -> Result<(Vec<Vec<u8>>, IdentityKey), IssueError> {
        self.check_validity(now)?;
        let key = IdentityKey::generate(rng);
        let mut params = CertificateParams::default();
        params.serial_number = Some(random_serial(rng));
        params.not_before = moment(now.minus(BACKDATED))?;
        params.not_after = moment(now.plus(lifetime).min(self.certificate.not_after()))?;
        params.distinguished_name = subject(COORDINATOR_NAME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names =
            vec![SanType::DnsName(ia5(certificate::coordinator_dns_name(self.certificate.mesh()))?)];
        params.use_authority_key_identifier_extension = true;
        let der = self.sign_for(&params, &key.id())?;
        let authorities = [&self.certificate].into_iter().chain(&self.above);
        Ok(([der].into_iter().chain(authorities.map(|ca| ca.der().to_vec())).collect(), key))
    }

    /// Signs the list of what is no longer to be believed.
    pub fn sign_revocations(&self, list: &RevocationList) -> Result<Signed<RevocationList>, SignError> {
        let chain = Chain::from_ders(vec![self.certificate.der().to_vec()]).map_err(|_| SignError::TooLarge)?;
        Signed::sign(list, &self.key, &chain)
    }

    fn check(&self, claims: &Claims, now: UnixTime) -> Result<(), IssueError> {
        self.check_validity(now)?;
        let network = self.certificate.network();
        if !network.contains(&claims.address.0) {
            return Err(IssueError::OutsideNetwork { address: claims.address, network });
        }
        if !certificate::is_host_in(claims.address, &network) {
            return Err(IssueError::ReservedAddress { address: claims.address, network });
        }
        if !claims.identity.is_sound() {
            return Err(IssueError::WeakKey("identity"));
        }
        if !claims.wg.is_sound() {
            return Err(IssueError::WeakKey("WireGuard"));
        }
        if claims.name.as_str() == COORDINATOR_NAME {
            return Err(IssueError::ReservedName);
        }
        if claims.groups.len() > MAX_GROUPS {
            return Err(IssueError::TooLarge("more than 8 groups"));
        }
        if matches!(&claims.services, AllowedServices::Only(services) if services.len() > MAX_SERVICES) {
            return Err(IssueError::TooLarge("more than 16 services"));
        }
        if claims.lifetime < MIN_LIFETIME {
            return Err(IssueError::TooShort);
        }
        Ok(())
    }

    fn check_validity(&self, now: UnixTime) -> Result<(), IssueError> {
        let (from, until) = (self.certificate.not_before(), self.certificate.not_after());
        if now < from || now >= until {
            return Err(IssueError::AuthorityNotValid { from, until, now });
        }
        Ok(())
    }

    /// A certificate for another authority's key.
    fn sign_ca(
        &self,
        parameters: &CaParameters,
        key: &NodeId,
        constraints: BasicConstraints,
        now: UnixTime,
        rng: &mut impl RngCore,
    ) -> Result<CaCertificate, IssueError> {
        let own = &self.certificate;
        let network = parameters.network.trunc();
        if parameters.mesh != *own.mesh() || !own.network().contains(&network) {
            let (mesh, own_mesh) = (parameters.mesh.clone(), own.mesh().clone());
            return Err(IssueError::NotWithin { mesh, network, own_mesh, own_network: own.network() });
        }
        let lifetime = parameters.lifetime.min(own.not_after().saturating_since(now));
        let parameters = CaParameters { lifetime, ..parameters.clone() };
        let mut params = ca_params(&parameters, constraints, now, rng)?;
        params.use_authority_key_identifier_extension = true;
        let der = self.sign_for(&params, key)?;
        CaCertificate::from_der(der).map_err(|bad| IssueError::Encoding(bad.to_string()))
    }

    fn sign_for(&self, params: &CertificateParams, subject: &NodeId) -> Result<Vec<u8>, IssueError> {
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der().into(), &self.key).map_err(encoding)?;
        Ok(params.signed_by(&public_key_info(subject)?, &issuer).map_err(encoding)?.der().to_vec())
    }
}

/// What the certificate of any authority says.
fn ca_params(
    parameters: &CaParameters,
    constraints: BasicConstraints,
    now: UnixTime,
    rng: &mut impl RngCore,
) -> Result<CertificateParams, IssueError> {
    if parameters.lifetime < MIN_LIFETIME {
        return Err(IssueError::TooShort);
    }
    let network = parameters.network.trunc();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "wiremesh");
    subject.push(DnType::CommonName, parameters.mesh.as_str());
    let mut params = CertificateParams::default();
    params.serial_number = Some(random_serial(rng));
    params.not_before = moment(now.minus(BACKDATED))?;
    params.not_after = moment(now.plus(parameters.lifetime))?;
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(format!("{}.internal", parameters.mesh)),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(network.addr(), network.prefix_len())),
        ],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

/// A subject of one common name.
pub(crate) fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

pub(crate) fn private_extension(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(oid, content)
}

/// RFC 8410, section 4: the SubjectPublicKeyInfo of an Ed25519 key is a fixed prefix and the key.
fn public_key_info(key: &NodeId) -> Result<SubjectPublicKeyInfo, IssueError> {
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    SubjectPublicKeyInfo::from_der(&[&PREFIX[..], &key.0].concat()).map_err(encoding)
}

/// 126 random bits below a fixed `01`: always 16 bytes, always positive (RFC 5280, section 4.1.2.2).
fn random_serial(rng: &mut impl RngCore) -> SerialNumber {
    let mut bytes = Serial([0; 16]);
    rng.fill_bytes(&mut bytes.0);
    bytes.0[0] = (bytes.0[0] & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes.0)
}

fn moment(time: UnixTime) -> Result<OffsetDateTime, IssueError> {
    i64::try_from(time.0)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| IssueError::Encoding(format!("{time} is beyond the year 9999")))
}

fn ia5(text: String) -> Result<rcgen::string::Ia5String, IssueError> {
    text.try_into().map_err(encoding)
}

fn encoding(error: rcgen::Error) -> IssueError {
    IssueError::Encoding(error.to_string())
}

/// What a token or an operator allows a node to offer, as an option on the command line gives it: none named, any.
pub fn allowed_services(named: Vec<ServiceName>) -> AllowedServices {
    if named.is_empty() { AllowedServices::Any } else { AllowedServices::Only(named) }
}
