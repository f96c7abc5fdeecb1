//! What a file holds, said without believing it: certificates, requests, keys, join tokens and signed messages.

use std::collections::BTreeSet;

use pem::Pem;
use serde_json::{Map, Value, json};

use super::{
    found::Kind,
    life::Life,
    sheet::{Sheet, tame},
};
use crate::{
    AllowedServices, CaCertificate, CertificateRequest, Chain, Fingerprint, GroupName, IdentityKey, JoinToken,
    NodeRecord, Payload, Policy, RequestProof, RevocationList, Rule, Signed, UnixTime, WgPublicKey,
    certificate::{self, NodeClaims, Outline},
    keys, proof,
    request::MAX_REQUEST_BYTES,
    signed::TakenApart,
    token::MAX_TOKEN_BYTES,
};

/// Says what `bytes` are. The error is why nothing known could be seen in them.
pub fn describe(bytes: &[u8], now: UnixTime) -> Result<Sheet, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return binary(bytes, now) };
    let text = text.trim();
    if text.starts_with("wm1.") {
        let token = text.get(..MAX_TOKEN_BYTES + 1).unwrap_or(text).parse::<JoinToken>();
        return token.map(|token| join_token(&token)).map_err(|bad| bad.to_string());
    }
    if text.contains("-----BEGIN ") {
        return pem_blocks(text, now);
    }
    if let Ok(keys) = PublicKeys::parse(text) {
        return Ok(keys.sheet());
    }
    if text.parse::<WgPublicKey>().is_ok() {
        let title = "WireGuard key (not shown: a private one looks the same; \"wg pubkey\" gives its public half)";
        return Ok(Sheet::new("wireguard_key", title));
    }
    signed_text(text, now).ok_or_else(unknown)
}

/// A node's certificate.
pub fn node(der: &[u8], now: UnixTime) -> Result<Sheet, String> {
    let outline = Outline::parse(der).map_err(|bad| bad.to_string())?;
    let claims = NodeClaims::of(&outline).map_err(|bad| bad.to_string())?;
    let head = Sheet::new("node", "node certificate")
        .fact("name", "name", &claims.name)
        .fact("mesh", "mesh", &claims.mesh)
        .fact("address", "address", claims.address)
        .fact("identity", "identity", outline.key.to_hex())
        .fact("wireguard", "wireguard", claims.wg)
        .list("groups", "groups", &claims.groups, "none");
    let head = match &claims.services {
        AllowedServices::Any => head.with("services", "any", "services", serde_json::Value::Null),
        AllowedServices::Only(only) => head.list("services", "services", only, "none"),
    };
    Ok(head
        .fact("serial", "serial", outline.serial)
        .fact("fingerprint", "fingerprint", Fingerprint::of(der))
        .fact("issued by", "issuer", tame(outline.issuer_name().unwrap_or("?")))
        .validity(life(&outline), now))
}

/// An authority's certificate.
pub fn authority(ca: &CaCertificate, now: UnixTime) -> Sheet {
    let kind = Kind::of_authority(ca);
    let title = match kind {
        Kind::Cross => "authority (cross: a root's key, signed by another root)",
        Kind::Intermediate => "authority (intermediate)",
        Kind::Root | Kind::Node | Kind::Coordinator => "authority (root)",
    };
    let sheet = Sheet::new(kind.name(), title)
        .fact("mesh", "mesh", ca.mesh())
        .fact("network", "network", ca.network())
        .fact("identity", "identity", ca.key().to_hex())
        .fact("serial", "serial", ca.serial())
        .fact("fingerprint", "fingerprint", ca.fingerprint());
    let sheet = match ca.path_length() {
        Some(0) => sheet.with("may sign", "nodes, and no further authorities", "path_length", 0),
        Some(length) => {
            sheet.with("may sign", format!("{length} authorities in a row below it"), "path_length", length)
        }
        None => sheet.field("path_length", serde_json::Value::Null),
    };
    sheet.validity(Life { from: ca.not_before(), until: ca.not_after() }, now)
}

/// A request for a certificate.
pub fn request(request: &CertificateRequest) -> Sheet {
    Sheet::new("request", "certificate request (signed by its identity key)")
        .fact("name", "name", &request.name)
        .fact("identity", "identity", request.identity.to_hex())
        .fact("wireguard", "wireguard", request.wg)
}

/// A node's two public keys, in the file that `keygen --out-pub` writes and `sign --in-pub` reads.
#[derive(Debug, Eq, PartialEq)]
pub struct PublicKeys {
    /// Of its identity.
    pub identity: crate::NodeId,
    /// Of its WireGuard interface.
    pub wg: WgPublicKey,
}

impl PublicKeys {
    /// Two lines of `name = value`, in any order; lines that begin with `#` are comments.
    pub fn parse(text: &str) -> Result<PublicKeys, String> {
        let (mut identity, mut wg) = (None, None);
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let expected =
                || "expected the two lines \"identity = …\" and \"wireguard = …\" of keygen's --out-pub".to_owned();
            let (name, value) = line.split_once('=').ok_or_else(expected)?;
            let value = value.trim();
            let twice = match name.trim() {
                "identity" => identity.replace(value.parse().map_err(|bad| format!("{bad}"))?).is_some(),
                "wireguard" => wg.replace(value.parse().map_err(|bad| format!("{bad}"))?).is_some(),
                _ => return Err(expected()),
            };
            if twice {
                return Err(format!("{} is in it twice", name.trim()));
            }
        }
        match (identity, wg) {
            (Some(identity), Some(wg)) => Ok(PublicKeys { identity, wg }),
            (None, _) => Err("no identity key in it".to_owned()),
            (_, None) => Err("no WireGuard key in it".to_owned()),
        }
    }

    /// The inverse of [`PublicKeys::parse`].
    pub fn to_text(&self) -> String {
        format!("identity = {}\nwireguard = {}\n", self.identity.to_hex(), self.wg)
    }

    /// To be shown.
    pub fn sheet(&self) -> Sheet {
        Sheet::new("public_keys", "public keys of a node").fact("identity", "identity", self.identity.to_hex()).fact(
            "wireguard",
            "wireguard",
            self.wg,
        )
    }
}

fn life(outline: &Outline<'_>) -> Life {
    Life { from: outline.not_before, until: outline.not_after }
}

fn unknown() -> String {
    "neither a certificate, a request, a key, a join token nor a signed message".to_owned()
}

fn join_token(token: &JoinToken) -> Sheet {
    Sheet::new("join_token", "join token (its secret is not shown)")
        .fact("mesh", "mesh", &token.mesh)
        .list("coordinators", "urls", &token.urls, "none")
        .fact("authority", "ca_fingerprint", token.ca)
}

fn pem_blocks(text: &str, now: UnixTime) -> Result<Sheet, String> {
    if keys::is_encrypted_key(text) {
        return Ok(Sheet::new("encrypted_key", "private key under a passphrase (not shown)"));
    }
    if text.contains("PRIVATE KEY-----") {
        let key = IdentityKey::from_pkcs8_pem(text).map_err(|bad| bad.to_string())?;
        return Ok(Sheet::new("identity_key", "identity key (private, not shown)").fact(
            "identity",
            "identity",
            key.id().to_hex(),
        ));
    }
    if text.len() > certificate::MAX_PEM_BYTES {
        return Err("more PEM than a chain can have".to_owned());
    }
    let blocks = pem::parse_many(text).map_err(|_| "broken PEM".to_owned())?;
    let sheets = blocks.iter().map(|block| pem_block(block, now)).collect::<Result<Vec<Sheet>, String>>()?;
    match <[Sheet; 1]>::try_from(sheets) {
        Ok([single]) => Ok(single),
        Err(sheets) if sheets.is_empty() => Err("broken PEM".to_owned()),
        Err(sheets) => {
            let several = if CaCertificate::bundle_from_pem(text).is_ok() {
                Sheet::new("bundle", format!("{} certificates of authorities", sheets.len()))
            } else {
                Sheet::new("chain", format!("chain of {} certificates, lowest first", sheets.len()))
            };
            Ok(sheets.into_iter().fold(several, |several, sheet| several.part("certificates", sheet)))
        }
    }
}

fn pem_block(block: &Pem, now: UnixTime) -> Result<Sheet, String> {
    match block.tag() {
        "CERTIFICATE" => any_certificate(block.contents(), now),
        "CERTIFICATE REQUEST" => {
            let text = pem::encode(block);
            CertificateRequest::parse(&text).map(|found| request(&found)).map_err(|bad| bad.to_string())
        }
        other => Err(format!("a PEM block of another kind, \"{}\"", tame(other))),
    }
}

fn any_certificate(der: &[u8], now: UnixTime) -> Result<Sheet, String> {
    if let Ok(ca) = CaCertificate::from_der(der.to_vec()) {
        return Ok(authority(&ca, now));
    }
    let outline = Outline::parse(der).map_err(|bad| bad.to_string())?;
    if let Some(mesh) = certificate::coordinator_mesh(&outline) {
        return Ok(Sheet::new("coordinator", "TLS certificate of a coordinator")
            .fact("mesh", "mesh", mesh)
            .fact("identity", "identity", outline.key.to_hex())
            .fact("serial", "serial", outline.serial)
            .fact("fingerprint", "fingerprint", Fingerprint::of(der))
            .fact("issued by", "issuer", tame(outline.issuer_name().unwrap_or("?")))
            .validity(life(&outline), now));
    }
    node(der, now)
}

fn binary(bytes: &[u8], now: UnixTime) -> Result<Sheet, String> {
    // A SEQUENCE in DER, or an array of four in CBOR.
    match bytes.first() {
        Some(0x30) if bytes.len() <= MAX_REQUEST_BYTES => any_certificate(bytes, now).or_else(|why| {
            let text = pem::encode(&Pem::new("CERTIFICATE REQUEST", bytes));
            CertificateRequest::parse(&text).map(|found| request(&found)).map_err(|_| why)
        }),
        Some(0x84) => signed_bytes(bytes, now).ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

/// The three signed kinds in base64url; a proof may stand behind its scheme, as in a header.
fn signed_text(text: &str, now: UnixTime) -> Option<Sheet> {
    let text = match text.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(proof::SCHEME) => rest,
        _ => text,
    };
    // The largest of the three; each kind has its own bound again.
    signed_bytes(Signed::<RevocationList>::from_base64(text).ok()?.as_bytes(), now)
}

fn signed_bytes(bytes: &[u8], now: UnixTime) -> Option<Sheet> {
    if let Some(found) = taken_apart::<NodeRecord>(bytes) {
        return Some(record(&found, now));
    }
    if let Some(found) = taken_apart::<RequestProof>(bytes) {
        return Some(request_proof(&found, now));
    }
    taken_apart::<RevocationList>(bytes).map(|found| revocations(&found, now))
}

fn taken_apart<T: Payload>(bytes: &[u8]) -> Option<TakenApart<T>> {
    Signed::<T>::from_bytes(bytes).ok()?.take_apart().ok()
}

fn record(found: &TakenApart<NodeRecord>, now: UnixTime) -> Sheet {
    let record = &found.payload;
    let published = UnixTime(record.sequence / 1000);
    let tunnel = record.tunnel_url.as_ref().map(ToString::to_string);
    let freshness = if record.is_fresh_at(now) { "fresh" } else { "not fresh" };
    signed_sheet("record", "signed record of a node", found)
        .with("published", published.to_string(), "sequence", record.sequence)
        .with(
            "answers till",
            format!("{} ({freshness})", record.expires_at),
            "expires_at",
            record.expires_at.to_string(),
        )
        .field("fresh", record.is_fresh_at(now))
        .list("endpoints", "endpoints", &record.endpoints, "none")
        .list("services", "services", &record.services, "none")
        .with("load", format!("{} %", record.load.percent()), "load_percent", record.load.percent())
        .with("tunnel URL", tunnel.clone().unwrap_or_else(|| "none".to_owned()), "tunnel_url", tunnel)
        .with("overlay", if record.overlay { "yes" } else { "no" }, "overlay", record.overlay)
        .part("signed_by", signer(&found.chain, now))
}

fn request_proof(found: &TakenApart<RequestProof>, now: UnixTime) -> Sheet {
    let proof = &found.payload;
    signed_sheet("proof", "signed proof of who sends a request", found)
        .fact("audience", "audience", tame(&proof.audience))
        .fact("request", "request", tame(&format!("{} {}", proof.method, proof.path)))
        .fact("made at", "issued_at", proof.issued_at)
        .part("signed_by", signer(&found.chain, now))
}

fn revocations(found: &TakenApart<RevocationList>, now: UnixTime) -> Sheet {
    let sheet = signed_sheet("revocations", "signed list of revocations", found);
    rulings(sheet, &found.payload, now).part("signed_by", signer(&found.chain, now))
}

/// What a list says.
pub fn rulings(sheet: Sheet, list: &RevocationList, now: UnixTime) -> Sheet {
    let identities: Vec<String> = list.identities.iter().map(crate::NodeId::to_hex).collect();
    let serials: Vec<String> = list.serials.iter().map(ToString::to_string).collect();
    let mut sheet = sheet
        .with("number", list.number.to_string(), "number", list.number)
        .list("certificates", "serials", &serials, "none")
        .list("identities", "identities", &identities, "none")
        .with("policy", policy_text(&list.policy), "policy", policy_json(&list.policy))
        .field("authorities", json!([]))
        .field("crosses", json!([]));
    for (field, ders) in [("authorities", &list.authorities), ("crosses", &list.crosses)] {
        for der in ders {
            sheet = sheet.part(field, any_certificate(der, now).unwrap_or_else(unreadable));
        }
    }
    sheet
}

fn policy_text(policy: &Policy) -> String {
    if policy.is_open() {
        return "open: every member may offer and call everything".to_owned();
    }
    let side = |groups: &Option<BTreeSet<GroupName>>| match groups {
        None => "everybody".to_owned(),
        Some(groups) if groups.is_empty() => "nobody".to_owned(),
        Some(groups) => groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(", "),
    };
    let rule =
        |what: &str, rule: &Rule| format!("{what}: offered by {}, called by {}", side(&rule.offer), side(&rule.call));
    let services = policy.services.iter().map(|(service, found)| rule(service.as_str(), found));
    services.chain([rule("all else", &policy.otherwise)]).collect::<Vec<_>>().join("; ")
}

/// Null if it is open.
fn policy_json(policy: &Policy) -> Value {
    let rule = |rule: &Rule| json!({"offer": rule.offer, "call": rule.call});
    let services: Map<String, Value> =
        policy.services.iter().map(|(service, found)| (service.to_string(), rule(found))).collect();
    if policy.is_open() { Value::Null } else { json!({"otherwise": rule(&policy.otherwise), "services": services}) }
}

fn signed_sheet<T>(kind: &str, title: &str, found: &TakenApart<T>) -> Sheet {
    let fits = Outline::parse(found.chain.leaf())
        .is_ok_and(|outline| keys::is_signed_by(&outline.key, &found.message, &found.signature));
    let text = if fits { "that of the certificate below" } else { "WRONG: it was changed, or signed by another key" };
    Sheet::new(kind, title).with("signature", text, "signature_fits", fits)
}

fn signer(chain: &Chain, now: UnixTime) -> Sheet {
    any_certificate(chain.leaf(), now).unwrap_or_else(unreadable)
}

fn unreadable(why: String) -> Sheet {
    Sheet::new("unknown", format!("a certificate that cannot be read: {why}"))
}
