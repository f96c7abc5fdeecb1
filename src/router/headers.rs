//! Which headers belong to one hop, which are ours, and which go on.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use crate::api;

/// All headers of a request, names and values together. Beyond: 431.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// What our own headers and a proof may add on the way to another agent.
pub const ADDED_BY_US_BYTES: usize = 8 * 1024;

/// Who answered.
pub const WORKER: HeaderName = HeaderName::from_static(api::WORKER);
/// By which path the answer came.
pub const PATH: HeaderName = HeaderName::from_static("x-wiremesh-path");
/// How we knew who answers.
pub const SOURCE: HeaderName = HeaderName::from_static("x-wiremesh-source");
/// What a worker says about its service, between agents.
pub const LOAD: HeaderName = HeaderName::from_static("x-wiremesh-load");
/// The client's name for a conversation, which had better stay with its worker.
pub const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
/// Asks for [`ROUTE`]; heeded if it comes from a local client.
pub const EXPLAIN: HeaderName = HeaderName::from_static("x-wiremesh-explain");
/// Why the request went where it went.
pub const ROUTE: HeaderName = HeaderName::from_static("x-wiremesh-route");
/// Whether a request that was not answered was executed.
pub const EXECUTED: HeaderName = HeaderName::from_static("x-wiremesh-executed");
/// The `type` of the error that refused a request, between agents.
pub const REFUSED: HeaderName = HeaderName::from_static("x-wiremesh-refused");
/// Which call this is and who sent it into the mesh.
pub const VIA: HeaderName = HeaderName::from_static("x-wiremesh-via");
/// The model that a request is for, between agents: the first has read it from the body.
pub const MODEL: HeaderName = HeaderName::from_static("x-wiremesh-model");
/// The client's own `authorization`, while a proof stands in its place.
pub const AUTHORIZATION: HeaderName = HeaderName::from_static("x-wiremesh-authorization");
/// Names a request across machines and logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// How long each hop took.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

const OURS: &str = "x-wiremesh-";
/// A request id from a client that is longer than this is replaced.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Takes out what concerns one connection only (RFC 9110, 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut listed = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.to_str().unwrap_or_default().split(',');
        listed.extend(names.filter_map(|name| HeaderName::try_from(name.trim()).ok()));
    }
    for name in &listed {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        // Between the client and us.
        header::EXPECT,
    ] {
        headers.remove(name);
    }
}

/// Takes out every header whose name begins as ours do, but `keep`.
pub fn strip_ours(headers: &mut HeaderMap, keep: Option<&HeaderName>) {
    let is_ours = |name: &&HeaderName| name.as_str().starts_with(OURS) && Some(*name) != keep;
    let ours: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// What the request asks its connection to become, if anything.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|text| text.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
    });
    // Within HTTP/2 requests would reach the service past us: unread paths, and whatever they say in our headers.
    let is_http = |value: &&HeaderValue| {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        text.split(',').any(|protocol| protocol.trim() == "h2c" || protocol.trim().starts_with("http/"))
    };
    if asked { headers.get(header::UPGRADE).filter(|value| !is_http(value)).cloned() } else { None }
}

/// Whether the client sends its body only once it is told to go on (RFC 9110, 10.1.1).
pub fn expects(headers: &HeaderMap) -> Expects {
    let asked = headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if asked { Expects::Continue } else { Expects::Nothing }
}

/// What a client waits for before it sends its body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expects {
    /// To be told to go on, which our server does when the body is first asked for.
    Continue,
    /// Nothing.
    Nothing,
}

/// The next hop gets a `host` of its own; the client's stands in `x-forwarded-host`.
pub fn move_host(headers: &mut HeaderMap, uri: &Uri) {
    let from_header = headers.remove(header::HOST);
    let original = || HeaderValue::try_from(uri.authority()?.as_str()).ok();
    if let Some(host) = from_header.or_else(original)
        && !headers.contains_key(FORWARDED_HOST)
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// The client's name for the request, if it is one.
pub fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID)?;
    let good = (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    good.then(|| id.clone())
}

/// Bytes of all names and values, and of the request line.
pub fn size(uri: &Uri, headers: &HeaderMap) -> usize {
    let line = uri.path().len() + uri.query().map_or(0, str::len);
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() + line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_go_and_those_that_connection_names_and_no_others() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("content-type", "text/plain"),
            ("x-custom", "kept"),
        ]);

        strip_hop_by_hop(&mut headers);

        assert_eq!(headers, map(&[("content-type", "text/plain"), ("x-custom", "kept")]));
    }

    #[test]
    fn nobody_else_speaks_in_our_headers() {
        let mut headers = map(&[("x-wiremesh-worker", "fake"), ("x-wiremesh-via", "v"), ("x-request-id", "1")]);

        strip_ours(&mut headers, Some(&VIA));
        assert_eq!(headers, map(&[("x-wiremesh-via", "v"), ("x-request-id", "1")]));

        strip_ours(&mut headers, None);
        assert_eq!(headers, map(&[("x-request-id", "1")]));
    }

    #[test]
    fn an_upgrade_needs_both_of_its_headers() {
        assert!(upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&map(&[("connection", "upgrade")])).is_none());
        for http in ["h2c", "HTTP/2.0", "websocket, H2C"] {
            assert!(upgrade(&map(&[("connection", "upgrade, http2-settings"), ("upgrade", http)])).is_none(), "{http}");
        }
    }

    #[test]
    fn a_request_id_that_is_none_is_replaced() {
        assert!(request_id(&map(&[("x-request-id", "abc-1")])).is_some());
        assert!(request_id(&map(&[("x-request-id", "a b")])).is_none());
        assert!(request_id(&map(&[("x-request-id", &"x".repeat(129))])).is_none());
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }
}
