//! Where a tunnel URL may lead: to another machine.
//!
//! A record says what its signer wants. One whose tunnel URL leads to `127.0.0.1` or to a cloud's metadata address would
//! have everybody else's agents, and the coordinator that looks at it, send requests to services of their own machines
//! that trust whoever reaches them.

use std::net::IpAddr;

use http::Uri;
use wiremesh_certs::TunnelUrl;

/// Whether a request may be sent there: not to this machine, its link, or many at once.
pub fn is_elsewhere(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The same of a URL, as far as it can be told without asking what a name means.
pub fn leads_elsewhere(url: &TunnelUrl) -> bool {
    let Ok(uri) = url.as_str().parse::<Uri>() else { return false };
    let Some(host) = uri.host() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match host.parse() {
        Ok(address) => is_elsewhere(address),
        Err(_) => host != "localhost" && !host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_leads_to_another_machine() {
        for (url, elsewhere) in [
            ("https://worker.example.com", true),
            ("http://10.1.2.3:8001", true),
            ("http://[2001:db8::1]:8001/base", true),
            ("http://127.0.0.1:9200", false),
            ("http://2130706433:9200", false),
            ("http://0x7f.1", false),
            ("http://localhost:2375", false),
            ("http://LOCALHOST.", false),
            ("http://a.localhost", false),
            ("http://169.254.169.254/latest", false),
            ("http://0.0.0.0:80", false),
            ("http://[::1]:80", false),
            ("http://[::ffff:127.0.0.1]", false),
            ("http://[fe80::1]", false),
            ("http://[ff02::1]", false),
            ("http://239.1.1.1", false),
        ] {
            assert_eq!(leads_elsewhere(&url.parse().unwrap()), elsewhere, "{url}");
        }
    }
}
