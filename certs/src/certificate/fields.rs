//! The parts of a certificate, read one by one: names, networks, keys, serial numbers, PEM.

use std::net::IpAddr;

use ipnet::IpNet;
use x509_parser::{
    extensions::{ExtendedKeyUsage, GeneralName},
    prelude::X509Certificate,
    x509::{SubjectPublicKeyInfo, X509Name},
};

use super::{BadCertificate, MAX_PEM_BYTES};
use crate::{MeshName, NodeId, NodeName, OverlayIp, Serial};

/// Bit 0 of a key usage and no other.
pub(super) const DIGITAL_SIGNATURE: u16 = 1;

/// TLS servers, perhaps clients, and nothing else that a certificate can be for.
pub(super) fn is_for_server(usage: &ExtendedKeyUsage<'_>) -> bool {
    let other = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    usage.server_auth && !other
}

pub(super) fn for_each_extension<'a>(
    certificate: &'a X509Certificate<'a>,
    mut visit: impl FnMut(&'a x509_parser::prelude::X509Extension<'a>) -> Result<(), BadCertificate>,
) -> Result<(), BadCertificate> {
    // `extensions_map` refuses duplicates.
    certificate.tbs_certificate.extensions_map().map_err(|_| BadCertificate("the same extension twice"))?;
    certificate.extensions().iter().try_for_each(|extension| {
        if extension.parsed_extension().error().is_some() {
            return Err(BadCertificate("an extension that cannot be read"));
        }
        visit(extension)
    })
}

/// The overlay address, DNS name and URI of a node: exactly one each, and of one mind.
pub(super) fn alternative_names(names: &[GeneralName<'_>]) -> Result<(MeshName, NodeName, OverlayIp), BadCertificate> {
    let (mut address, mut dns, mut uri) = (None, None, None);
    for name in names {
        let duplicate = match name {
            GeneralName::IPAddress(bytes) => {
                let ip = match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok(),
                    16 => <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok(),
                    _ => None,
                };
                let ip = ip.ok_or(BadCertificate("an address of neither 4 nor 16 bytes"))?;
                if ip.to_canonical() != ip {
                    return Err(BadCertificate("an IPv4 address written as IPv6: one address would have two forms"));
                }
                address.replace(ip).is_some()
            }
            GeneralName::DNSName(name) => dns.replace(*name).is_some(),
            GeneralName::URI(name) => uri.replace(*name).is_some(),
            _ => return Err(BadCertificate("an alternative name that is no address, DNS name or URI")),
        };
        if duplicate {
            return Err(BadCertificate("two alternative names of one kind"));
        }
    }
    let (Some(address), Some(dns), Some(uri)) = (address, dns, uri) else {
        return Err(BadCertificate("an alternative name is missing: address, DNS name and URI are all needed"));
    };
    let (mesh, name) = uri
        .strip_prefix("wiremesh://")
        .and_then(|rest| rest.split_once('/'))
        .ok_or(BadCertificate("its URI is not wiremesh://MESH/NAME"))?;
    let mesh = MeshName::new(mesh).map_err(|_| BadCertificate("its URI has no good mesh name"))?;
    let name = NodeName::new(name).map_err(|_| BadCertificate("its URI has no good node name"))?;
    if dns != format!("{name}.{mesh}.internal") {
        return Err(BadCertificate("its DNS name and its URI differ"));
    }
    Ok((mesh, name, OverlayIp(address)))
}

/// Whether a node of `network` may have this address: not the network's own, not its broadcast address.
pub(crate) fn is_host_in(address: OverlayIp, network: &IpNet) -> bool {
    let ends_are_hosts = network.max_prefix_len() - network.prefix_len() < 2;
    let is_end = address.0 == network.network() || address.0.is_ipv4() && address.0 == network.broadcast();
    network.contains(&address.0) && (ends_are_hosts || !is_end)
}

pub(super) fn constrained_network(
    constraints: &x509_parser::extensions::NameConstraints<'_>,
    mesh: &MeshName,
) -> Result<Option<IpNet>, BadCertificate> {
    if constraints.excluded_subtrees.is_some() {
        return Err(BadCertificate("excluded subtrees in its name constraints"));
    }
    let (mut network, mut domain) = (None, false);
    for subtree in constraints.permitted_subtrees.iter().flatten() {
        match &subtree.base {
            GeneralName::IPAddress(bytes) if network.is_none() => network = Some(address_and_mask(bytes)?),
            GeneralName::DNSName(name) if *name == format!("{mesh}.internal") => domain = true,
            _ => return Err(BadCertificate("name constraints of another form than one network and MESH.internal")),
        }
    }
    if !domain {
        return Err(BadCertificate("name constraints without MESH.internal"));
    }
    Ok(network)
}

/// RFC 5280, section 4.2.1.10: address and mask, 8 or 32 bytes.
fn address_and_mask(bytes: &[u8]) -> Result<IpNet, BadCertificate> {
    let bad = BadCertificate("a network in its name constraints that is none");
    let (address, mask): (IpAddr, IpAddr) = match bytes.len() {
        8 => {
            let (address, mask) = bytes.split_at(4);
            match (<[u8; 4]>::try_from(address), <[u8; 4]>::try_from(mask)) {
                (Ok(address), Ok(mask)) => (address.into(), mask.into()),
                _ => return Err(bad),
            }
        }
        32 => {
            let (address, mask) = bytes.split_at(16);
            match (<[u8; 16]>::try_from(address), <[u8; 16]>::try_from(mask)) {
                (Ok(address), Ok(mask)) => (address.into(), mask.into()),
                _ => return Err(bad),
            }
        }
        _ => return Err(bad),
    };
    IpNet::with_netmask(address, mask).map(|network| network.trunc()).map_err(|_| bad)
}

pub(super) fn name_list<T: std::str::FromStr>(der: &[u8], limit: usize) -> Result<Vec<T>, BadCertificate> {
    let bad = || BadCertificate("a private extension that is no list of names");
    let texts: Vec<String> =
        yasna::parse_der(der, |reader| reader.collect_sequence_of(|name| name.read_utf8string())).map_err(|_| bad())?;
    if texts.len() > limit {
        return Err(BadCertificate("too many groups or services"));
    }
    texts.iter().map(|text| text.parse().map_err(|_| bad())).collect()
}

pub(crate) fn encode_name_list<T: AsRef<str>>(names: &[T]) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence_of(|writer| {
            for name in names {
                writer.next().write_utf8_string(name.as_ref());
            }
        });
    })
}

pub(crate) fn common_name<'a>(name: &'a X509Name<'_>) -> Result<&'a str, BadCertificate> {
    let mut names = name.iter_common_name();
    let first = names.next().and_then(|attribute| attribute.as_str().ok());
    match (first, names.next()) {
        (Some(name), None) => Ok(name),
        _ => Err(BadCertificate("its subject has not exactly one common name")),
    }
}

pub(crate) fn ed25519_key(key: &SubjectPublicKeyInfo<'_>) -> Result<NodeId, BadCertificate> {
    if !is_ed25519(&key.algorithm.algorithm) {
        return Err(BadCertificate("its key is not Ed25519"));
    }
    let bytes = key.subject_public_key.data.as_ref();
    bytes.try_into().map(NodeId).map_err(|_| BadCertificate("its key is not 32 bytes"))
}

/// The signature of a certificate or request, if all around its signed part is exactly what DER has there: a shortest
/// header, an Ed25519 algorithm identifier and a bit string of 64 bytes. Those bytes are not themselves signed: only one
/// form of them is accepted, or the same certificate could be shown under many fingerprints.
pub(crate) fn ed25519_signature<'a>(der: &'a [u8], signed_part: &[u8]) -> Option<&'a [u8]> {
    const ALGORITHM_AND_BIT_STRING: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];
    let (rest, signature) = der.split_last_chunk::<64>()?;
    let rest = rest.strip_suffix(&ALGORITHM_AND_BIT_STRING)?;
    let header = rest.strip_suffix(signed_part)?;
    (header == sequence_header(der.len() - header.len())?).then_some(signature)
}

/// X.690, section 10.1: the header of a sequence of so many bytes, its length in the fewest bytes.
fn sequence_header(length: usize) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(length).ok()?.to_be_bytes();
    Some(match (high, low) {
        (0, 0..=0x7f) => vec![0x30, low],
        (0, _) => vec![0x30, 0x81, low],
        _ => vec![0x30, 0x82, high, low],
    })
}

pub(crate) fn is_ed25519(oid: &x509_parser::der_parser::oid::Oid<'_>) -> bool {
    is(oid, &[1, 3, 101, 112])
}

pub(crate) fn is(oid: &x509_parser::der_parser::oid::Oid<'_>, arcs: &[u64]) -> bool {
    oid.iter().is_some_and(|found| found.eq(arcs.iter().copied()))
}

/// RFC 5280, section 4.1.2.2: positive, and in the fewest bytes, so that a revoked one has no second form.
pub(super) fn serial(raw: &[u8]) -> Result<Serial, BadCertificate> {
    let digits = match raw {
        [0, rest @ ..] if rest.first().is_some_and(|byte| *byte >= 0x80) => rest,
        [0x01..=0x7f, ..] => raw,
        _ => return Err(BadCertificate("a serial number that is not positive or not in its shortest form")),
    };
    if digits.len() > 16 {
        return Err(BadCertificate("a serial number of more than 128 bits"));
    }
    let mut bytes = [0; 16];
    bytes[16 - digits.len()..].copy_from_slice(digits);
    Ok(Serial(bytes))
}

pub(super) fn certificates_in(text: &str) -> Result<Vec<Vec<u8>>, BadCertificate> {
    if text.len() > MAX_PEM_BYTES {
        return Err(BadCertificate("more text than a chain can have"));
    }
    let blocks = pem::parse_many(text).map_err(|_| BadCertificate("not PEM"))?;
    if blocks.is_empty() {
        return Err(BadCertificate("no CERTIFICATE block in it"));
    }
    blocks
        .into_iter()
        .map(|block| match block.tag() {
            "CERTIFICATE" => Ok(block.into_contents()),
            _ => Err(BadCertificate("a PEM block that is no CERTIFICATE")),
        })
        .collect()
}

pub(super) fn to_pem(der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
