//! Where others can try to reach this node, and how large the overlay's packets may be: both follow from the machine's
//! network interfaces.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// As many as a record carries.
pub const MAX_ENDPOINTS: usize = wiremesh_certs::MAX_ENDPOINTS;
/// IPv6 wants it, and QUIC's first datagrams need it.
pub const MIN_MTU: u16 = 1280;
/// Beyond it nothing is gained; a loopback's 65,536 is no measure of a network.
pub const MAX_MTU: u16 = 9000;
/// Taken where no interface says otherwise.
const USUAL_MTU: u32 = 1500;
/// Headers of IP, UDP and WireGuard around a packet.
const OVERHEAD_V4: u32 = 60;
const OVERHEAD_V6: u32 = 80;

/// A network interface of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether a default route leads out there.
    pub default_route: bool,
    /// The largest packet it takes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Which address families the UDP socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 only: the machine has no IPv6.
    V4,
}

/// The endpoints to publish: what the operator advertises, then the interfaces with a default route, then the others;
/// IPv4 before IPv6, because it is more often reachable. `own` is the overlay's own interface.
pub fn choose(
    advertise: &[SocketAddr],
    interfaces: &[Interface],
    own: &str,
    port: u16,
    families: Families,
    overlay: &IpNet,
) -> Vec<SocketAddr> {
    let mut found: Vec<(bool, bool, IpAddr)> = Vec::new();
    for interface in underlay(interfaces, own) {
        for address in &interface.addresses {
            if is_reachable(*address) && !overlay.contains(address) && (address.is_ipv4() || families == Families::Both)
            {
                found.push((!interface.default_route, address.is_ipv6(), *address));
            }
        }
    }
    found.sort();
    let mut endpoints = advertise.to_vec();
    for (_, _, address) in found {
        let endpoint = SocketAddr::new(address, port);
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints.truncate(MAX_ENDPOINTS);
    endpoints
}

/// The overlay's MTU from that of the interfaces it runs over: those with a default route, or else all.
pub fn overlay_mtu(interfaces: &[Interface], own: &str, families: Families) -> u16 {
    let smallest = |with_default_route: bool| {
        underlay(interfaces, own)
            .filter(|interface| interface.default_route || !with_default_route)
            .filter(|interface| interface.addresses.iter().any(|address| is_reachable(*address)))
            .map(|interface| interface.mtu)
            .min()
    };
    let underlay_mtu = smallest(true).or_else(|| smallest(false)).unwrap_or(USUAL_MTU);
    let overhead = match families {
        Families::Both => OVERHEAD_V6,
        Families::V4 => OVERHEAD_V4,
    };
    let mtu = u16::try_from(underlay_mtu.saturating_sub(overhead)).unwrap_or(u16::MAX);
    mtu.clamp(MIN_MTU, MAX_MTU)
}

fn underlay<'a>(interfaces: &'a [Interface], own: &'a str) -> impl Iterator<Item = &'a Interface> {
    interfaces.iter().filter(move |interface| interface.up && !interface.loopback && interface.name != own)
}

/// Not of this machine or link alone.
fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !link_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, mtu: u32, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Interface { name: name.into(), up: true, mtu, addresses, ..Interface::default() }
    }

    fn machine() -> Vec<Interface> {
        let lo = Interface { loopback: true, ..interface("lo", 65536, &["127.0.0.1", "::1"]) };
        let eth =
            Interface { default_route: true, ..interface("eth0", 1500, &["fe80::1", "2001:db8::7", "192.0.2.7"]) };
        vec![lo, interface("docker0", 1400, &["172.17.0.1"]), eth, interface("wiremesh0", 1420, &["10.42.0.7"])]
    }

    fn chosen(advertise: &[&str], families: Families) -> Vec<String> {
        let advertise: Vec<_> = advertise.iter().map(|text| text.parse().unwrap()).collect();
        choose(&advertise, &machine(), "wiremesh0", 51820, families, &"10.42.0.0/16".parse().unwrap())
            .iter()
            .map(SocketAddr::to_string)
            .collect()
    }

    #[test]
    fn what_the_operator_advertises_comes_first_and_the_way_out_before_the_rest() {
        assert_eq!(
            chosen(&["203.0.113.7:4000"], Families::Both),
            ["203.0.113.7:4000", "192.0.2.7:51820", "[2001:db8::7]:51820", "172.17.0.1:51820"]
        );
        assert_eq!(chosen(&[], Families::V4), ["192.0.2.7:51820", "172.17.0.1:51820"]);
    }

    #[test]
    fn a_record_never_gets_more_endpoints_than_it_carries() {
        let many: Vec<_> = (0..20).map(|i| format!("203.0.113.{i}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();

        assert_eq!(chosen(&many, Families::Both).len(), MAX_ENDPOINTS);
    }

    #[test]
    fn the_mtu_leaves_room_for_the_headers_around_a_packet_and_stays_within_bounds() {
        let mtu = |underlay: u32, families| {
            let eth = Interface { default_route: true, ..interface("eth0", underlay, &["192.0.2.7"]) };
            overlay_mtu(&[eth, interface("docker0", 1300, &["172.17.0.1"])], "wiremesh0", families)
        };

        assert_eq!(mtu(1500, Families::Both), 1420);
        assert_eq!(mtu(1500, Families::V4), 1440);
        assert_eq!(mtu(1300, Families::Both), 1280);
        assert_eq!(mtu(9000, Families::Both), 8920);
        assert_eq!(mtu(65536, Families::Both), MAX_MTU);
        assert_eq!(overlay_mtu(&[], "wiremesh0", Families::Both), 1420);
        assert_eq!(overlay_mtu(&machine()[1..2], "wiremesh0", Families::V4), 1340);
    }
}
