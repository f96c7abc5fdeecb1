//! Where a service's requests go: a base URL to which the request's path is appended.

use std::{fmt, str::FromStr};

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Why a text is no upstream.
#[derive(Clone, Debug, thiserror::Error, Eq, PartialEq)]
pub enum BadUpstream {
    /// Not a URL at all.
    #[error("not a URL: {0}")]
    NotAUrl(String),
    /// Neither http nor https.
    #[error("must begin with http:// or https://")]
    Scheme,
    /// A query or fragment cannot be appended to.
    #[error("must not have a query")]
    Query,
}

/// A base URL, `http://127.0.0.1:11434` or with a path, `http://127.0.0.1:8000/api`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    scheme: Scheme,
    authority: Authority,
    /// Without the slash at its end; empty for the root.
    base: String,
}

impl Upstream {
    /// The whole URL for a request to `path_and_query`, which begins with a slash. `None` if the result is too long to
    /// be a URL.
    pub fn uri(&self, path_and_query: &PathAndQuery) -> Option<Uri> {
        let path = self.path(path_and_query)?;
        Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path).build().ok()
    }

    /// What is asked for on a connection to it. `None` as above.
    pub fn path(&self, path_and_query: &PathAndQuery) -> Option<PathAndQuery> {
        if self.base.is_empty() {
            return Some(path_and_query.clone());
        }
        PathAndQuery::try_from(format!("{}{}", self.base, path_and_query)).ok()
    }

    /// The URL of what the same server has besides its service: beside `/v1`, at another port if one is given.
    pub fn beside(&self, path: &str, port: Option<u16>) -> Option<Uri> {
        let base = self.base.strip_suffix("/v1").unwrap_or(&self.base);
        let authority = match port {
            Some(port) => Authority::try_from(format!("{}:{port}", self.authority.host())).ok()?,
            None => self.authority.clone(),
        };
        let path = PathAndQuery::try_from(format!("{base}{path}")).ok()?;
        Uri::builder().scheme(self.scheme.clone()).authority(authority).path_and_query(path).build().ok()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        let unless_said = if self.scheme == Scheme::HTTPS { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(unless_said)
    }

    /// Host and port.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

impl FromStr for Upstream {
    type Err = BadUpstream;

    fn from_str(text: &str) -> Result<Upstream, BadUpstream> {
        let parts = text.parse::<Uri>().map_err(|error| BadUpstream::NotAUrl(error.to_string()))?.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else { return Err(BadUpstream::Scheme) };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(BadUpstream::Scheme);
        }
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(BadUpstream::Query);
        }
        Ok(Upstream { scheme, authority, base: path.path().trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_appended_to_the_base() {
        for (base, path, whole) in [
            ("http://127.0.0.1:11434", "/v1?x=1", "http://127.0.0.1:11434/v1?x=1"),
            ("http://127.0.0.1:11434/", "/", "http://127.0.0.1:11434/"),
            ("https://gpu.example/api/", "/v1", "https://gpu.example/api/v1"),
        ] {
            let upstream: Upstream = base.parse().unwrap();

            assert_eq!(upstream.uri(&path.parse().unwrap()).unwrap().to_string(), whole);
        }
    }

    #[test]
    fn what_a_server_has_besides_its_service_is_found() {
        for (base, port, whole) in [
            ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000/metrics"),
            ("http://127.0.0.1:8000/v1/", None, "http://127.0.0.1:8000/metrics"),
            ("http://[::1]:8000", Some(8002), "http://[::1]:8002/metrics"),
            ("http://gpu/api/v1", Some(9), "http://gpu:9/api/metrics"),
        ] {
            let upstream: Upstream = base.parse().unwrap();

            assert_eq!(upstream.beside("/metrics", port).unwrap().to_string(), whole);
        }
        assert_eq!("http://gpu".parse::<Upstream>().unwrap().port(), 80);
    }

    #[test]
    fn what_is_no_base_url_is_refused_with_its_reason() {
        assert_eq!("ftp://x/".parse::<Upstream>(), Err(BadUpstream::Scheme));
        assert_eq!("127.0.0.1:80".parse::<Upstream>(), Err(BadUpstream::Scheme));
        assert_eq!("http://x/?a=b".parse::<Upstream>(), Err(BadUpstream::Query));
        assert!(matches!("http://a b".parse::<Upstream>(), Err(BadUpstream::NotAUrl(_))));
    }
}
