//! Looks at where the agent runs: the container, its rights, its port mappings.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::reach::{Container, Found};
use crate::overlay::{self, Lack, NoDevice, Surroundings};

/// Bit of the capability in the kernel's sets (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;
/// The same for all containers of a machine, another after each of its starts. Not a secret.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Looks at everything but the TUN device. `interface` is the overlay's own.
pub async fn look(interface: &str) -> (Found, Surroundings) {
    let container = container(&|name| std::env::var(name).ok(), &|path| Path::new(path).exists());
    let surroundings = Surroundings {
        // In a pod addresses lead to every other pod of the cluster; elsewhere a cable is as good as a network card.
        behind_bridge: matches!(container, Some(Container::Docker | Container::Podman)),
        boot: fs::read_to_string(BOOT_ID).ok().map(|text| text.trim().to_owned()).filter(|boot| !boot.is_empty()),
    };
    let survey = overlay::survey(interface, &surroundings)
        .await
        .inspect_err(|error| tracing::debug!("the network interfaces are not known: {error:#}"))
        .ok();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    (Found { container, survey, net_admin: has_net_admin(&status), no_device: None }, surroundings)
}

/// What a failed [`overlay::check`] says about the machine; none if it is something else.
pub fn lack(error: &anyhow::Error) -> Option<(Lack, String)> {
    Some((error.downcast_ref::<NoDevice>()?.lack()?, format!("{error:#}")))
}

fn container(variable: &dyn Fn(&str) -> Option<String>, exists: &dyn Fn(&str) -> bool) -> Option<Container> {
    if variable("KUBERNETES_SERVICE_HOST").is_some() {
        return Some(Container::Kubernetes);
    }
    // By convention of the engines: https://systemd.io/CONTAINER_INTERFACE
    match variable("container").as_deref() {
        Some("podman") => return Some(Container::Podman),
        Some("docker") => return Some(Container::Docker),
        Some(other) if !other.is_empty() => return Some(Container::Other),
        _ => {}
    }
    if exists("/run/.containerenv") {
        Some(Container::Podman)
    } else if exists("/.dockerenv") {
        Some(Container::Docker)
    } else {
        None
    }
}

fn has_net_admin(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_NET_ADMIN) != 0)
}

/// How a port of this container is reached from outside, where those who rent it out say so in its environment: Vast.ai
/// (TCP and UDP) and RunPod (TCP).
pub fn mapped(protocol: &str, port: u16, variable: &dyn Fn(&str) -> Option<String>) -> Option<SocketAddr> {
    [("PUBLIC_IPADDR", "VAST"), ("RUNPOD_PUBLIC_IP", "RUNPOD")].into_iter().find_map(|(address, prefix)| {
        let address: IpAddr = variable(address)?.trim().parse().ok()?;
        let mapped: u16 = variable(&format!("{prefix}_{protocol}_PORT_{port}"))?.trim().parse().ok()?;
        (mapped != 0).then(|| SocketAddr::new(address, mapped))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(known: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_container_is_known_by_what_its_engine_leaves_in_it() {
        let nothing = |_: &str| false;
        let of = |known| container(&variables(known), &nothing);

        assert_eq!(
            of(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("container", "docker")]),
            Some(Container::Kubernetes)
        );
        assert_eq!(of(&[("container", "podman")]), Some(Container::Podman));
        assert_eq!(of(&[("container", "lxc")]), Some(Container::Other));
        assert_eq!(of(&[]), None);
        assert_eq!(container(&variables(&[]), &|path| path == "/.dockerenv"), Some(Container::Docker));
        assert_eq!(container(&variables(&[]), &|path| path == "/run/.containerenv"), Some(Container::Podman));
    }

    #[test]
    fn a_capability_is_read_from_the_effective_set() {
        assert!(!has_net_admin("CapPrm:\t0000000000001000\nCapEff:\t00000000a80425fb\n"));
        assert!(has_net_admin("CapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("CapBnd:\t0000000000001000\n") && !has_net_admin("CapEff:\tx\n"));
    }

    #[test]
    fn a_port_mapping_is_taken_from_whoever_rents_the_container_out() {
        let vast = variables(&[("PUBLIC_IPADDR", "203.0.113.7"), ("VAST_UDP_PORT_51820", "40123")]);
        let runpod = variables(&[("RUNPOD_PUBLIC_IP", "203.0.113.8"), ("RUNPOD_TCP_PORT_8001", "31000")]);
        let broken = variables(&[("PUBLIC_IPADDR", "here"), ("VAST_UDP_PORT_51820", "40123")]);

        assert_eq!(mapped("UDP", 51820, &vast), Some("203.0.113.7:40123".parse().unwrap()));
        assert_eq!(mapped("TCP", 8001, &vast), None);
        assert_eq!(mapped("TCP", 8001, &runpod), Some("203.0.113.8:31000".parse().unwrap()));
        assert_eq!(mapped("UDP", 51820, &broken), None);
    }
}
