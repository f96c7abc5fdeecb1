//! Where others can try to reach this node, and how large the overlay's packets may be: both follow from the machine's
//! network interfaces.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use wiremesh_certs::{BridgeTag, MAX_NEARBY, Nearby};

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
    /// What it is.
    pub kind: Kind,
    /// The largest packet it takes.
    pub mtu: u32,
    /// Its addresses, with the networks that it leads to.
    pub addresses: Vec<IpNet>,
}

/// What an interface is, as far as it matters who can reach its addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One end of a cable whose other end is in another network namespace.
    Cable,
    /// A bridge.
    Bridge,
    /// Anything else.
    #[default]
    Other,
}

/// What is known of where the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether it is in a container that an engine gave its network: then a cable leads to a bridge of the engine's.
    pub behind_bridge: bool,
    /// What all containers of a machine have in common and no other machine has: how it was booted. Without it nobody can
    /// tell who is on the same bridge.
    pub boot: Option<String>,
}

/// Where others can try to reach us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Whoever they are.
    pub anywhere: Vec<SocketAddr>,
    /// If they are on the same bridge.
    pub nearby: Vec<Nearby>,
}

impl Endpoints {
    /// The bridges that we are on.
    pub fn bridges(&self) -> Vec<BridgeTag> {
        self.nearby.iter().map(|nearby| nearby.bridge).collect()
    }
}

/// Which address families the UDP socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 only: the machine has no IPv6.
    V4,
}

/// What [`choose`] is told by the operator and by the rest of the overlay.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// What others should try first.
    pub advertise: &'a [SocketAddr],
    /// The overlay's own interface.
    pub own: &'a str,
    /// Our UDP port.
    pub port: u16,
    /// What our socket speaks.
    pub families: Families,
    /// The overlay's network.
    pub overlay: &'a IpNet,
}

/// The endpoints to publish: what the operator advertises, then the interfaces with a default route, then the others;
/// IPv4 before IPv6, because it is more often reachable. Addresses on the bridges of a container engine are for those who
/// are on the same bridge: elsewhere others have them.
pub fn choose(wanted: &Wanted<'_>, interfaces: &[Interface], surroundings: &Surroundings) -> Endpoints {
    let mut found: Vec<(bool, bool, IpAddr)> = Vec::new();
    let mut nearby = Vec::new();
    for interface in underlay(interfaces, wanted.own) {
        for network in &interface.addresses {
            let address = network.addr();
            let speaks = address.is_ipv4() || wanted.families == Families::Both;
            if !is_reachable(address) || wanted.overlay.contains(&address) || !speaks {
                continue;
            }
            match (&surroundings.boot, is_engines(interface, surroundings) && is_private(address)) {
                (Some(boot), true) => nearby.push(Nearby {
                    bridge: BridgeTag::of(boot.as_bytes(), *network),
                    endpoint: SocketAddr::new(address, wanted.port),
                }),
                _ => found.push((!interface.default_route, address.is_ipv6(), address)),
            }
        }
    }
    found.sort();
    let mut anywhere = wanted.advertise.to_vec();
    for (_, _, address) in found {
        let endpoint = SocketAddr::new(address, wanted.port);
        if !anywhere.contains(&endpoint) {
            anywhere.push(endpoint);
        }
    }
    anywhere.truncate(MAX_ENDPOINTS);
    nearby.truncate(MAX_NEARBY);
    Endpoints { anywhere, nearby }
}

/// What the machine's network is like, for those who want to know why things are as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Whether there is an address of IPv4 that others may reach.
    pub ipv4: bool,
    /// The same for IPv6.
    pub ipv6: bool,
    /// The largest packet that every interface takes which leads out.
    pub mtu: Option<u32>,
    /// Whether all addresses are on bridges of a container engine: nobody reaches them from elsewhere.
    pub bridges_only: bool,
}

/// What `interfaces` say; `own` is the overlay's own.
pub fn survey(interfaces: &[Interface], own: &str, surroundings: &Surroundings) -> Survey {
    let leads_out = |interface: &&Interface| !(interface.kind == Kind::Bridge && is_engines(interface, surroundings));
    let mut survey = Survey { mtu: underlay_mtu(interfaces, own), bridges_only: true, ..Survey::default() };
    for interface in underlay(interfaces, own).filter(leads_out) {
        for address in interface.addresses.iter().map(IpNet::addr).filter(|address| is_reachable(*address)) {
            *(if address.is_ipv4() { &mut survey.ipv4 } else { &mut survey.ipv6 }) = true;
            survey.bridges_only &= is_engines(interface, surroundings) && is_private(address);
        }
    }
    survey.bridges_only &= survey.ipv4 || survey.ipv6;
    survey
}

/// Whether an interface leads to a bridge that a container engine made, or is one. Bridges that people make have other
/// names, and may lead to the whole of a site.
fn is_engines(interface: &Interface, surroundings: &Surroundings) -> bool {
    match interface.kind {
        Kind::Cable => surroundings.behind_bridge,
        Kind::Bridge => is_engines_name(&interface.name),
        Kind::Other => false,
    }
}

/// As Docker, Podman and nerdctl call their bridges.
fn is_engines_name(name: &str) -> bool {
    let is_hex = |rest: &str| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_number = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    name == "docker0"
        || name == "docker_gwbridge"
        || name.strip_prefix("br-").is_some_and(is_hex)
        || ["podman", "cni-podman", "nerdctl"].iter().any(|engine| name.strip_prefix(engine).is_some_and(is_number))
}

/// An address that others elsewhere may have too (RFC 1918, RFC 6598, RFC 4193).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            address.is_private() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// The largest packet that every interface takes which leads out: those with a default route, or else all.
pub fn underlay_mtu(interfaces: &[Interface], own: &str) -> Option<u32> {
    let smallest = |with_default_route: bool| {
        underlay(interfaces, own)
            .filter(|interface| interface.default_route || !with_default_route)
            .filter(|interface| interface.addresses.iter().any(|network| is_reachable(network.addr())))
            .map(|interface| interface.mtu)
            .min()
    };
    smallest(true).or_else(|| smallest(false))
}

/// The overlay's MTU from that of the interfaces it runs over.
pub fn overlay_mtu(interfaces: &[Interface], own: &str, families: Families) -> u16 {
    let underlay_mtu = underlay_mtu(interfaces, own).unwrap_or(USUAL_MTU);
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
        let network = |text: &&str| text.parse().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
        let addresses = addresses.iter().map(network).collect();
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
        let here = Surroundings::default();
        chosen_in(&here, &advertise, &machine(), families).anywhere.iter().map(SocketAddr::to_string).collect()
    }

    fn chosen_in(
        surroundings: &Surroundings,
        advertise: &[SocketAddr],
        interfaces: &[Interface],
        families: Families,
    ) -> Endpoints {
        let overlay = "10.42.0.0/16".parse().unwrap();
        let wanted = Wanted { advertise, own: "wiremesh0", port: 51820, families, overlay: &overlay };
        choose(&wanted, interfaces, surroundings)
    }

    fn booted(behind_bridge: bool) -> Surroundings {
        Surroundings { behind_bridge, boot: Some("0f9c".into()) }
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
    fn a_container_and_its_machine_meet_on_the_bridge_and_tell_nobody_else_of_it() {
        let bridge = Interface { kind: Kind::Bridge, ..interface("br-0123456789ab", 1500, &["172.18.0.1/16"]) };
        let on_machine = [&machine()[..], &[bridge]].concat();
        let cable = Interface { kind: Kind::Cable, default_route: true, ..interface("eth0", 1500, &["172.18.0.3/16"]) };

        let machine = chosen_in(&booted(false), &[], &on_machine, Families::V4);
        let container = chosen_in(&booted(true), &[], &[cable], Families::V4);

        assert_eq!(container.anywhere, []);
        assert_eq!(container.nearby[0].endpoint, "172.18.0.3:51820".parse().unwrap());
        assert_eq!(machine.nearby[0].endpoint, "172.18.0.1:51820".parse().unwrap());
        assert_eq!(container.bridges(), machine.bridges());
        assert!(!machine.anywhere.contains(&machine.nearby[0].endpoint));
    }

    #[test]
    fn an_address_that_may_be_reached_from_elsewhere_is_for_everybody() {
        let cable = |address| Interface { kind: Kind::Cable, ..interface("eth0", 1500, &[address]) };
        let everybody = |surroundings: &Surroundings, interface: Interface| {
            let endpoints = chosen_in(surroundings, &[], &[interface], Families::Both);
            endpoints.anywhere.len() == 1 && endpoints.nearby.is_empty()
        };

        assert!(everybody(&booted(true), cable("203.0.113.7/24")), "a public address");
        assert!(everybody(&booted(false), cable("192.168.1.7/24")), "a container that is a machine of its site");
        assert!(everybody(&booted(true), interface("eth0", 1500, &["192.168.1.7/24"])), "macvlan, or the host's own");
        let site = Interface { kind: Kind::Bridge, ..interface("br-lan", 1500, &["192.168.1.7/24"]) };
        assert!(everybody(&booted(false), site), "a bridge that somebody made");
        let unknown = Surroundings { behind_bridge: true, boot: None };
        assert!(everybody(&unknown, cable("172.18.0.3/16")), "nobody can tell who is near");
        assert!(!everybody(&booted(true), cable("fd00::3/64")) && !everybody(&booted(true), cable("100.64.0.3/24")));
    }

    #[test]
    fn a_survey_says_what_a_container_can_and_cannot_do() {
        let cable = Interface {
            kind: Kind::Cable,
            default_route: true,
            ..interface("eth0", 1450, &["172.18.0.3/16", "fe80::3/64"])
        };

        let container = survey(std::slice::from_ref(&cable), "wiremesh0", &booted(true));
        let host = survey(&machine(), "wiremesh0", &booted(false));

        assert_eq!(container, Survey { ipv4: true, ipv6: false, mtu: Some(1450), bridges_only: true });
        assert_eq!((host.ipv6, host.mtu, host.bridges_only), (true, Some(1500), false));
        assert_eq!(survey(&[], "wiremesh0", &booted(true)), Survey::default());
        let published = Interface { addresses: vec!["203.0.113.7/24".parse().unwrap()], ..cable };
        assert!(!survey(&[published], "wiremesh0", &booted(true)).bridges_only);
    }

    #[test]
    fn bridges_are_known_by_the_names_that_engines_give_them() {
        for name in ["docker0", "docker_gwbridge", "br-0123456789ab", "podman0", "cni-podman12", "nerdctl0"] {
            assert!(is_engines_name(name), "{name}");
        }
        for name in ["br0", "br-lan", "br-0123456789a", "podman", "virbr0", "vmbr0", "eth0", "docker1"] {
            assert!(!is_engines_name(name), "{name}");
        }
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
