//! How this node reaches others and is reached: what was picked, why, and what would give more.
//!
//! ```text
//! a TUN device can be made ──yes──► tun:         packets and requests, over UDP where it passes, by tunnel where not
//!           └ no, or not wanted ──► tunnel_only: requests alone, by tunnel URLs
//! ```

use serde::Serialize;

use crate::overlay::{Lack, Survey};

/// What this node has of the ways to others.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Picked {
    /// The overlay, and tunnel URLs where UDP does not pass.
    Tun,
    /// Tunnel URLs.
    TunnelOnly,
}

impl Picked {
    /// As it is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Picked::Tun => "tun",
            Picked::TunnelOnly => "tunnel_only",
        }
    }
}

/// Where the agent runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Container {
    /// Docker, or an engine that passes for it.
    Docker,
    /// Podman.
    Podman,
    /// A pod of Kubernetes.
    Kubernetes,
    /// A container of another kind: LXC, systemd-nspawn.
    Other,
}

/// What was found out at the start.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The kind of container, if it is one.
    pub container: Option<Container>,
    /// What the network interfaces say; none where the kernel does not let us ask.
    pub survey: Option<Survey>,
    /// Whether we have the capability NET_ADMIN.
    pub net_admin: bool,
    /// Why there is no TUN device, if there is none though it was wanted.
    pub no_device: Option<(Lack, String)>,
}

/// What the operator wants.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// An overlay.
    pub overlay: bool,
    /// Whether there is an endpoint that others should try.
    pub advertised: bool,
    /// Whether there is a tunnel URL.
    pub tunnel: bool,
}

/// What this node has, and what it lacks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reach {
    /// What was picked.
    pub picked: Picked,
    /// Why.
    pub why: String,
    /// The kind of container, if it is one.
    pub container: Option<Container>,
    /// The address families with which something can be reached.
    pub families: Vec<&'static str>,
    /// The largest packet that the underlay takes; null if that is not known.
    pub underlay_mtu: Option<u32>,
    /// What would give more.
    pub gains: Vec<Gain>,
}

/// One thing that is not there, and how to get it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// What is not there.
    pub lacks: &'static str,
    /// What that costs.
    pub costs: &'static str,
    /// The line of a compose file that gives it.
    pub compose: &'static str,
    /// The option of `docker run` and `podman run`.
    pub run: &'static str,
    /// The same where this agent runs, if that is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub here: Option<&'static str>,
}

const WITHOUT_OVERLAY: &str = "no overlay: requests take tunnel URLs, and nothing but requests reaches others";

const DEVICE: Gain = Gain {
    lacks: "/dev/net/tun",
    costs: WITHOUT_OVERLAY,
    compose: "devices: [/dev/net/tun]",
    run: "--device /dev/net/tun",
    here: None,
};
const NET_ADMIN: Gain = Gain {
    lacks: "NET_ADMIN",
    costs: WITHOUT_OVERLAY,
    compose: "cap_add: [NET_ADMIN]",
    run: "--cap-add NET_ADMIN",
    here: None,
};
const KERNEL: Gain = Gain {
    lacks: "a kernel with TUN devices",
    costs: WITHOUT_OVERLAY,
    compose: "runtime: runc",
    run: "--runtime runc",
    here: Some("a kernel with CONFIG_TUN; sandboxes that imitate one (gVisor) have none"),
};
const PUBLISHED_PORT: Gain = Gain {
    lacks: "an address outside of this machine's bridges",
    costs: "agents on other machines reach this one over UDP only after it has called them; until then their requests take \
            its tunnel URL",
    compose: "ports: [\"51820:51820/udp\"] and environment: [\"WIREMESH_OVERLAY__ADVERTISE=HOST:51820\"]; or network_mode: host",
    run: "-p 51820:51820/udp -e WIREMESH_OVERLAY__ADVERTISE=HOST:51820, or --network host",
    here: None,
};
const TUNNEL: Gain = Gain {
    lacks: "a tunnel URL",
    costs: "nobody reaches this node's services: it can only call others",
    compose: "environment: [\"WIREMESH_API__INGRESS=0.0.0.0:8001\", \"WIREMESH_API__TUNNEL_URL=https://…\"]",
    run: "-e WIREMESH_API__INGRESS=0.0.0.0:8001 -e WIREMESH_API__TUNNEL_URL=https://…",
    here: Some("api.ingress and api.tunnel_url in the configuration"),
};

impl Reach {
    /// What follows from what was found.
    pub fn of(wants: Wants, found: Found) -> Reach {
        let survey = found.survey.clone().unwrap_or_default();
        let (picked, why) = match &found.no_device {
            _ if !wants.overlay => (Picked::TunnelOnly, "overlay.enabled = false".to_owned()),
            Some((_, why)) => (Picked::TunnelOnly, why.clone()),
            None => (Picked::Tun, "a TUN device can be made".to_owned()),
        };
        let families = [("ipv4", survey.ipv4), ("ipv6", survey.ipv6)];
        Reach {
            picked,
            why,
            container: found.container,
            families: families.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect(),
            underlay_mtu: survey.mtu,
            gains: gains(wants, &found, picked),
        }
    }

    /// Whether it is less than the operator wants.
    pub fn is_less_than_wanted(&self, wants_overlay: bool) -> bool {
        wants_overlay && self.picked == Picked::TunnelOnly
    }

    /// How to get more, in one line for this place; none if nothing is lacking.
    pub fn advice(&self) -> Option<String> {
        let line = |gain: &Gain| match (self.container, gain.here) {
            (Some(Container::Docker | Container::Podman), _) | (_, None) => gain.run,
            (_, Some(here)) => here,
        };
        let lines: Vec<&str> = self.gains.iter().map(line).collect();
        (!lines.is_empty()).then(|| lines.join(" "))
    }
}

fn gains(wants: Wants, found: &Found, picked: Picked) -> Vec<Gain> {
    let mut gains = Vec::new();
    if let Some((lack, _)) = &found.no_device {
        match lack {
            Lack::Device | Lack::DeviceRight => gains.push(at(DEVICE, found.container)),
            Lack::NetAdmin => {}
            Lack::Kernel => gains.push(KERNEL),
        }
        if *lack == Lack::NetAdmin || (*lack != Lack::Kernel && !found.net_admin) {
            gains.push(at(NET_ADMIN, found.container));
        }
    }
    match picked {
        Picked::Tun if found.survey.as_ref().is_some_and(|survey| survey.bridges_only) && !wants.advertised => {
            gains.push(PUBLISHED_PORT);
        }
        Picked::TunnelOnly if !wants.tunnel => gains.push(TUNNEL),
        _ => {}
    }
    gains
}

/// With what helps in this kind of container.
fn at(gain: Gain, container: Option<Container>) -> Gain {
    let here = match (container, gain.lacks) {
        (Some(Container::Docker | Container::Podman), _) => return gain,
        (Some(Container::Kubernetes), "NET_ADMIN") => "securityContext: {capabilities: {add: [NET_ADMIN]}}",
        (Some(Container::Kubernetes), _) => "volumes: [{name: tun, hostPath: {path: /dev/net/tun, type: CharDevice}}]",
        (Some(Container::Other), "NET_ADMIN") => "the capability NET_ADMIN in the container's configuration",
        (Some(Container::Other), _) => "the device /dev/net/tun in the container's configuration",
        (None, "NET_ADMIN") => "run it as root, or: setcap cap_net_admin+ep /usr/local/bin/wiremesh",
        (None, _) => "modprobe tun, and a /dev/net/tun that this user may open",
    };
    Gain { here: Some(here), ..gain }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTS: Wants = Wants { overlay: true, advertised: false, tunnel: true };

    fn in_docker() -> Found {
        let survey = Survey { ipv4: true, ipv6: false, mtu: Some(1500), bridges_only: true };
        Found { container: Some(Container::Docker), survey: Some(survey), net_admin: true, no_device: None }
    }

    fn without(lack: Lack, net_admin: bool) -> Found {
        Found { no_device: Some((lack, "opening /dev/net/tun: not there".into())), net_admin, ..in_docker() }
    }

    fn lacks(reach: &Reach) -> Vec<&str> {
        reach.gains.iter().map(|gain| gain.lacks).collect()
    }

    #[test]
    fn what_is_picked_and_what_would_give_more_follow_from_what_is_lacking() {
        let reach = |found| Reach::of(WANTS, found);
        for (found, picked, advice) in [
            (without(Lack::NetAdmin, false), Picked::TunnelOnly, Some("--cap-add NET_ADMIN")),
            (without(Lack::Device, true), Picked::TunnelOnly, Some("--device /dev/net/tun")),
            (without(Lack::DeviceRight, true), Picked::TunnelOnly, Some("--device /dev/net/tun")),
            (without(Lack::Device, false), Picked::TunnelOnly, Some("--device /dev/net/tun --cap-add NET_ADMIN")),
            (in_docker(), Picked::Tun, Some(PUBLISHED_PORT.run)),
        ] {
            let reach = reach(found);
            assert_eq!((reach.picked, reach.advice().as_deref()), (picked, advice));
        }
        assert_eq!(lacks(&reach(without(Lack::Kernel, false))), ["a kernel with TUN devices"]);
    }

    #[test]
    fn an_operator_who_wants_no_overlay_is_told_of_no_privilege() {
        let reach = Reach::of(Wants { overlay: false, ..WANTS }, Found { net_admin: false, ..in_docker() });

        assert_eq!((reach.picked, lacks(&reach)), (Picked::TunnelOnly, vec![]));
        assert!(!reach.is_less_than_wanted(false));
    }

    #[test]
    fn a_node_that_nobody_can_reach_is_told_so() {
        let reach = Reach::of(Wants { tunnel: false, ..WANTS }, without(Lack::NetAdmin, false));

        assert_eq!(lacks(&reach), ["NET_ADMIN", "a tunnel URL"]);
        assert!(reach.is_less_than_wanted(true));
    }

    #[test]
    fn a_published_port_that_is_told_of_is_all_that_a_container_needs() {
        let reach = Reach::of(Wants { advertised: true, ..WANTS }, in_docker());

        assert_eq!((reach.picked, reach.advice()), (Picked::Tun, None));
        assert_eq!((reach.families.as_slice(), reach.underlay_mtu), (&["ipv4"][..], Some(1500)));
    }

    #[test]
    fn what_helps_is_said_in_the_words_of_the_place() {
        let advice =
            |container| Reach::of(WANTS, Found { container, ..without(Lack::NetAdmin, false) }).advice().unwrap();

        assert!(advice(None).contains("setcap"));
        assert!(advice(Some(Container::Kubernetes)).contains("securityContext"));
        assert_eq!(advice(Some(Container::Podman)), "--cap-add NET_ADMIN");
    }
}
