//! Keeps the overlay true to the machine's network interfaces: endpoints, MTU, and its own address and route.

use std::net::SocketAddr;

use ipnet::IpNet;
use tokio::sync::watch;
use wiremesh_certs::OverlayIp;

use super::links::Links;
use crate::{
    overlay::{
        endpoints::{self, Endpoints, Families, Interface, Surroundings, Wanted},
        status::Place,
    },
    task::CancellationToken,
};

/// What it knows of this node.
pub struct Watching {
    pub interface: String,
    pub listen_port: u16,
    pub advertise: Vec<SocketAddr>,
    pub families: Families,
    pub fixed_mtu: Option<u16>,
    pub network: IpNet,
    pub address: OverlayIp,
    pub surroundings: Surroundings,
}

impl Watching {
    /// At the end the interface goes and `close` is called: the threads that wait for packets notice.
    pub async fn run(
        self,
        mut links: Links,
        place: watch::Sender<Place>,
        stop: CancellationToken,
        close: impl FnOnce(),
    ) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = links.changed() => {}
            }
            match links.interfaces().await {
                Ok(interfaces) => self.follow(&interfaces, &links, &place).await,
                Err(error) if stop.is_cancelled() => tracing::debug!("{error:#}"),
                Err(error) => tracing::warn!("listing network interfaces failed: {error:#}"),
            }
        }
        close();
        if let Err(error) = links.remove(&self.interface).await {
            tracing::debug!("removing {}: {error:#}", self.interface);
        }
        Ok(())
    }

    async fn follow(&self, interfaces: &[Interface], links: &Links, place: &watch::Sender<Place>) {
        self.restore(interfaces, links).await;
        let endpoints = self.endpoints(interfaces);
        let mtu = self.fixed_mtu.unwrap_or_else(|| endpoints::overlay_mtu(interfaces, &self.interface, self.families));
        if mtu != place.borrow().mtu {
            match links.set_mtu(&self.interface, mtu).await {
                Ok(()) => tracing::info!(mtu, "the underlay's MTU changed"),
                Err(error) => tracing::warn!(mtu, "changing the MTU failed: {error:#}"),
            }
        }
        place.send_if_modified(|place| {
            let modified = place.mtu != mtu || place.endpoints != endpoints;
            (place.mtu, place.endpoints) = (mtu, endpoints);
            modified
        });
    }

    /// An interface that was down has lost its routes, and its addresses of IPv6.
    async fn restore(&self, interfaces: &[Interface], links: &Links) {
        if !interfaces.iter().any(|interface| interface.name == self.interface && interface.up) {
            return;
        }
        match links.restore(&self.interface, self.address, &self.network).await {
            Ok(false) => {}
            Ok(true) => tracing::info!("the overlay's address and route were missing and are back"),
            Err(error) => tracing::warn!("putting the overlay's address and route back: {error:#}"),
        }
    }

    /// Where others can try to reach us, given our interfaces.
    pub fn endpoints(&self, interfaces: &[Interface]) -> Endpoints {
        let wanted = Wanted {
            advertise: &self.advertise,
            own: &self.interface,
            port: self.listen_port,
            families: self.families,
            overlay: &self.network,
        };
        endpoints::choose(&wanted, interfaces, &self.surroundings)
    }
}
