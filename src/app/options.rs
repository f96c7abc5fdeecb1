//! What the operator's configuration means to each part.

use std::net::SocketAddr;

use wiremesh_certs::{JoinToken, OverlayIp, files};

use crate::{
    cli::failure::Failure,
    config::{Config, JoinTokenSource, MIN_OVERLAY_MTU, OffloadConfig},
    directory, membership, overlay, services,
};

/// Joining; reads the token's file if there is one.
pub fn membership(config: &Config) -> Result<membership::io::Settings, Failure> {
    let text = match &config.join_token {
        Some(JoinTokenSource::Text(text)) => Some(text.clone()),
        Some(JoinTokenSource::File(path)) => match files::read_secret(path) {
            Ok(text) => Some(text),
            // Once joined the token is not needed, and a secret that is used up may be gone.
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(Failure::usage(anyhow::Error::new(error).context("reading the join token"))),
        },
        None => None,
    };
    let token = text
        .map(|text| text.parse::<JoinToken>())
        .transpose()
        .map_err(|bad| Failure::usage(bad).hint("make one with: wiremesh token create, on the coordinator"))?;
    let token_file = match &config.join_token {
        Some(JoinTokenSource::File(path)) => Some(path.clone()),
        Some(JoinTokenSource::Text(_)) | None => None,
    };
    Ok(membership::io::Settings {
        token_file,
        state_dir: config.state_dir.clone(),
        name: config.name.clone(),
        token,
        coordinators: config.coordinators.clone(),
        rotate_keys_every: config.rotate_keys_every,
    })
}

/// Packets. `mapped` is how our UDP port is reached from outside, where that is known without being told.
pub fn overlay(
    config: &Config,
    member: &membership::io::Member,
    surroundings: overlay::Surroundings,
    mapped: Option<SocketAddr>,
) -> overlay::Settings {
    let advertised = &config.overlay.advertise;
    overlay::Settings {
        interface: config.overlay.interface.clone(),
        listen_port: config.overlay.listen_port,
        mtu: config.overlay.mtu,
        advertise: advertised.iter().copied().chain(mapped.filter(|mapped| !advertised.contains(mapped))).collect(),
        surroundings,
        peers: config
            .overlay
            .peers
            .iter()
            .map(|peer| overlay::ConfiguredPeer {
                public_key: peer.public_key,
                allowed: peer.allowed.clone(),
                endpoint: peer.endpoint,
                keepalive_secs: peer.keepalive_secs,
            })
            .collect(),
        rekey_after: config.overlay.rekey_after,
        offloads: offloads(config),
        key: member.wg.clone(),
        address: member.verified.address(),
        network: member.trust.current().network(),
        trust: member.trust.clone(),
    }
}

/// What the kernel may do with many packets at once.
pub fn offloads(config: &Config) -> overlay::Offloads {
    let OffloadConfig { tun, udp_send, udp_receive } = config.overlay.offload;
    overlay::Offloads { tun, udp_send, udp_receive }
}

/// What this node offers.
pub fn services(config: &Config) -> Result<services::Config, Failure> {
    let service = |service: &crate::config::ServiceConfig| {
        Ok(services::ServiceConfig {
            name: service.name.clone(),
            upstream: service.upstream.parse().map_err(Failure::usage)?,
            health: service.health.clone(),
            expected: service.health_status.clone(),
            kind: service.kind,
            metrics_port: service.metrics_port,
            command: service.command.clone(),
            stop_grace: service.stop_grace,
            max_concurrency: service.max_concurrency.map(|most| most as usize),
            queue: service.queue as usize,
        })
    };
    Ok(services::Config {
        services: config.services.iter().map(service).collect::<Result<_, Failure>>()?,
        worker_type: None,
    })
}

/// Who offers what. Without overlay there is nothing for the table to run on.
pub fn directory(config: &Config, address: OverlayIp, overlay: Option<&overlay::Handle>) -> directory::Settings {
    directory::Settings {
        table: config.dht.enabled && overlay.is_some(),
        port: config.dht.port,
        device: overlay.map(|_| config.overlay.interface.clone()),
        mtu: overlay.map_or(MIN_OVERLAY_MTU, overlay::Handle::mtu),
        ..directory::Settings::at(address)
    }
}
