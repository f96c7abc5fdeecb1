//! Makes what no honest authority makes: certificates of any content, rightly signed.

#![allow(dead_code, clippy::allow_attributes, reason = "each test target uses its own part of this file")]

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use wiremesh_certs::*;

pub const NOW: UnixTime = UnixTime(1_800_000_000);
pub const DAY: Duration = Duration::from_secs(86_400);

/// The private extensions (`certificate::oid`), written out: they are part of what is on the wire.
pub const WIREGUARD_KEY: &[u64] = &[2, 25, 3146792049317540851, 1];
pub const GROUPS: &[u64] = &[2, 25, 3146792049317540851, 2];
pub const SERVICES: &[u64] = &[2, 25, 3146792049317540851, 3];
pub const UNKNOWN: &[u64] = &[2, 25, 3146792049317540851, 99];
pub const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
pub const KEY_USAGE: &[u64] = &[2, 5, 29, 15];

/// Who can sign: a certificate and its key.
pub struct Ca {
    pub der: Vec<u8>,
    pub key: IdentityKey,
}

impl Ca {
    /// As `Authority::create` makes it.
    pub fn root(mesh: &str) -> Ca {
        Ca::root_with(mesh, |_| {})
    }

    pub fn root_with(mesh: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
        let mut params = ca_params(mesh, "10.42.0.0", 16);
        change(&mut params);
        let key = IdentityKey::generate(&mut rand::rng());
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Ca { der, key }
    }

    /// An intermediate, signed by this one.
    pub fn intermediate(&self, mesh: &str, change: impl FnOnce(&mut CertificateParams)) -> Ca {
        let mut params = ca_params(mesh, "10.42.0.0", 16);
        change(&mut params);
        let key = IdentityKey::generate(&mut rand::rng());
        let der = self.sign(&params, &public_key(&key.id().0));
        Ca { der, key }
    }

    /// A node's certificate, changed.
    pub fn node(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let key = IdentityKey::generate(&mut rand::rng());
        self.node_for(&public_key(&key.id().0), change)
    }

    pub fn node_for(&self, subject: &SubjectPublicKeyInfo, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = node_params("lab", "worker-1", "10.42.0.7");
        change(&mut params);
        self.sign(&params, subject)
    }

    fn sign(&self, params: &CertificateParams, subject: &SubjectPublicKeyInfo) -> Vec<u8> {
        let issuer = Issuer::from_ca_cert_der(&self.der.as_slice().into(), &self.key).unwrap();
        params.signed_by(subject, &issuer).unwrap().der().to_vec()
    }

    pub fn certificate(&self) -> CaCertificate {
        CaCertificate::from_der(self.der.clone()).unwrap()
    }

    pub fn authority(&self) -> Authority {
        Authority::from_pem(&self.certificate().pem(), &self.key.to_pkcs8_pem()).unwrap()
    }

    pub fn trust(&self) -> Trust {
        Trust::new(self.certificate())
    }

    /// The certificate with `from` replaced by as many bytes `to` in its signed part, and signed again.
    pub fn resigned(&self, der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut signed_part = signed_part(der).to_vec();
        let at = signed_part.windows(from.len()).position(|window| window == from).expect("it is in there");
        signed_part[at..at + to.len()].copy_from_slice(to);
        wrapped(&signed_part, &self.key.sign(&signed_part))
    }
}

pub fn ca_params(mesh: &str, network: &str, prefix: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "wiremesh");
    subject.push(DnType::CommonName, mesh);
    params.distinguished_name = subject;
    params.serial_number = Some(serial());
    params.not_before = moment(NOW.minus(DAY));
    params.not_after = moment(NOW.plus(365 * DAY));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.name_constraints = Some(constraints(mesh, network, prefix));
    params
}

pub fn constraints(mesh: &str, network: &str, prefix: u8) -> NameConstraints {
    NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(format!("{mesh}.internal")),
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(network.parse().unwrap(), prefix)),
        ],
        excluded_subtrees: Vec::new(),
    }
}

pub fn node_params(mesh: &str, name: &str, address: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name);
    params.serial_number = Some(serial());
    params.not_before = moment(NOW.minus(BACKDATED));
    params.not_after = moment(NOW.plus(7 * DAY));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = names(mesh, name, address);
    params.custom_extensions = vec![extension(WIREGUARD_KEY, wireguard_key().to_vec())];
    params.use_authority_key_identifier_extension = true;
    params
}

pub fn names(mesh: &str, name: &str, address: &str) -> Vec<SanType> {
    vec![
        SanType::IpAddress(address.parse().unwrap()),
        dns(&format!("{name}.{mesh}.internal")),
        uri(&format!("wiremesh://{mesh}/{name}")),
    ]
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

pub fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

pub fn extension(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(oid, content)
}

pub fn critical(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    let mut extension = extension(oid, content);
    extension.set_criticality(true);
    extension
}

/// `SEQUENCE OF UTF8String`.
pub fn list(names: &[&str]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence_of(|writer| names.iter().for_each(|name| writer.next().write_utf8_string(name)));
    })
}

pub fn wireguard_key() -> [u8; 32] {
    WgPrivateKey::generate(&mut rand::rng()).public().0
}

pub fn public_key(key: &[u8; 32]) -> SubjectPublicKeyInfo {
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    SubjectPublicKeyInfo::from_der(&[&PREFIX[..], key].concat()).unwrap()
}

/// 2048 bits of what could be a modulus.
pub fn rsa_key() -> SubjectPublicKeyInfo {
    let key = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_bigint_bytes(&[&[0x00][..], &[0xc5; 256]].concat(), true);
            writer.next().write_u32(65_537);
        });
    });
    let info = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_sequence(|writer| {
                writer.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&[1, 2, 840, 113549, 1, 1, 1]));
                writer.next().write_null();
            });
            writer.next().write_bitvec_bytes(&key, key.len() * 8);
        });
    });
    SubjectPublicKeyInfo::from_der(&info).unwrap()
}

pub fn ecdsa_key() -> SubjectPublicKeyInfo {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    SubjectPublicKeyInfo::from_der(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap()
}

pub fn serial() -> SerialNumber {
    SerialNumber::from_slice(&serial_bytes())
}

pub fn serial_bytes() -> [u8; 16] {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = 0x41;
    bytes
}

pub fn moment(time: UnixTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(time.0 as i64).unwrap()
}

/// What a certificate's signature covers.
pub fn signed_part(der: &[u8]) -> &[u8] {
    // The outer header is four bytes long for all certificates of ours; 74 follow the signed part.
    &der[4..der.len() - 74]
}

/// A certificate of `signed_part` and `signature`.
pub fn wrapped(signed_part: &[u8], signature: &[u8]) -> Vec<u8> {
    const ALGORITHM_AND_BIT_STRING: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
    let body = [signed_part, &ALGORITHM_AND_BIT_STRING, signature].concat();
    [&[0x30, 0x82][..], &(body.len() as u16).to_be_bytes(), &body].concat()
}

/// The same certificate with its outer length written in one byte more than needed: the signature still fits.
pub fn with_long_header(der: &[u8]) -> Vec<u8> {
    assert_eq!(der[..2], [0x30, 0x82]);
    [&[0x30, 0x83, 0x00][..], &der[2..]].concat()
}
