//! What a name in a tunnel URL means, less what no tunnel leads to: a name is as easily pointed at this machine as an
//! address written out.

use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll},
    vec,
};

use futures::{FutureExt, future::BoxFuture};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

use crate::tunnel;

/// Asks the system.
#[derive(Clone)]
pub(super) struct Resolver {
    system: GaiResolver,
    elsewhere_only: bool,
}

impl Resolver {
    /// For our own upstreams, wherever they are.
    pub fn anywhere() -> Resolver {
        Resolver { system: GaiResolver::new(), elsewhere_only: false }
    }

    /// For tunnels.
    pub fn elsewhere() -> Resolver {
        Resolver { system: GaiResolver::new(), elsewhere_only: true }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<vec::IntoIter<SocketAddr>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (asking, elsewhere_only) = (self.system.call(name), self.elsewhere_only);
        async move {
            let mut addresses: Vec<SocketAddr> = asking.await?.collect();
            addresses.retain(|address| !elsewhere_only || tunnel::is_elsewhere(address.ip()));
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name leads to no other machine"));
            }
            Ok(addresses.into_iter())
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_back_to_this_machine_is_no_tunnel() {
        let name: Name = "localhost".parse().unwrap();

        assert!(Resolver::anywhere().call(name.clone()).await.is_ok());
        assert!(Resolver::elsewhere().call(name).await.is_err());
    }
}
