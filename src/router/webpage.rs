//! Whether a web page may be behind a request that shows no key.
//!
//! A page from anywhere, open in a browser of this machine, can send requests to it. By a name that it lets lead here
//! (DNS rebinding) it could also read the answers. Programs send none of what gives a page away:
//!
//! | header                            | let in                                                                   |
//! |-----------------------------------|--------------------------------------------------------------------------|
//! | `host`, at a loopback listener    | none, any IP address, `localhost`, `*.localhost`                         |
//! | `origin`                          | none, `localhost` and loopback, the same as `host`, what is no web page's |
//! | `sec-fetch-site` without `origin` | all but `cross-site`                                                     |

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, Uri, header,
    uri::{Authority, Scheme},
};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// By which names programs come to a listener.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Names {
    /// By those of this machine for itself: nobody else has the address.
    OfThisMachine,
    /// By whatever leads there.
    Any,
}

/// A web page may be behind the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MaybePage {
    /// It came by a name that somebody lets lead here.
    #[error(
        "the host that is asked is not this machine's own name for itself, as when a web page asks; ask \
         http://127.0.0.1 or http://localhost, or name a key_file under [api]"
    )]
    Host,
    /// A browser says so.
    #[error("a web page of another site asks; serve it from localhost, or name a key_file under [api]")]
    Origin,
}

/// Refuses what a web page of another site may have sent.
pub fn check(uri: &Uri, headers: &HeaderMap, names: Names) -> Result<(), MaybePage> {
    let asked = headers.get_all(header::HOST).iter().map(|host| host.as_bytes());
    let asked = asked.chain(uri.authority().map(|authority| authority.as_str().as_bytes()));
    // `None`: it does not parse.
    let asked: Vec<Option<Authority>> = asked.map(|host| Authority::try_from(host).ok()).collect();
    let is_ours = |host: &Option<Authority>| host.as_ref().is_some_and(|host| is_here(host.host(), |_| true));
    if names == Names::OfThisMachine && !asked.iter().all(is_ours) {
        return Err(MaybePage::Host);
    }
    let mut origins = headers.get_all(header::ORIGIN).iter().peekable();
    if origins.peek().is_none() {
        let is_from_elsewhere = headers.get_all(SEC_FETCH_SITE).iter().any(|site| site == "cross-site");
        return if is_from_elsewhere { Err(MaybePage::Origin) } else { Ok(()) };
    }
    let is_near = |origin: &[u8]| {
        let Some((scheme, site)) = std::str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let is_web = [Scheme::HTTP, Scheme::HTTPS].iter().any(|web| web.as_str().eq_ignore_ascii_case(scheme));
        // Extensions and programs with a browser inside have schemes of their own, which no page can claim.
        !is_web
            || Authority::try_from(site).is_ok_and(|site| {
                is_here(site.host(), IpAddr::is_loopback) || asked.iter().flatten().any(|asked| *asked == site)
            })
    };
    if origins.all(|origin| is_near(origin.as_bytes())) { Ok(()) } else { Err(MaybePage::Origin) }
}

/// Whether a host is `localhost`, below it, or an address of that sort: nobody else can let those names lead anywhere.
fn is_here(host: &str, sort: impl Fn(&IpAddr) -> bool) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
    host == "localhost"
        || host.ends_with(".localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| sort(&address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Names = Names::OfThisMachine;

    #[test]
    fn programs_of_this_machine_are_let_in_by_all_its_names_for_itself() {
        for host in
            ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000", "api.localhost:1", "10.0.0.5"]
        {
            assert_eq!(asks(HERE, &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(asks(HERE, &[]), Ok(()), "HTTP/1.0");
        let by_http2 = Uri::from_static("http://localhost:8000/health");
        assert_eq!(check(&by_http2, &HeaderMap::new(), HERE), Ok(()));
    }

    #[test]
    fn a_name_that_somebody_lets_lead_here_is_not_ours() {
        for host in ["evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "notlocalhost", "", "a b"] {
            assert_eq!(asks(HERE, &[("host", host)]), Err(MaybePage::Host), "{host}");
        }
        assert_eq!(asks(HERE, &[("host", "localhost"), ("host", "evil.example")]), Err(MaybePage::Host));
        let by_http2 = Uri::from_static("http://evil.example:8000/health");
        assert_eq!(check(&by_http2, &HeaderMap::new(), HERE), Err(MaybePage::Host));
        // Beyond loopback programs come by whatever name the machine has.
        assert_eq!(asks(Names::Any, &[("host", "worker-1.lan:8000")]), Ok(()));
    }

    #[test]
    fn a_page_of_this_machine_is_let_in_and_one_of_another_site_is_not() {
        let host = ("host", "127.0.0.1:8000");
        for origin in [
            "http://localhost:3000",
            "https://chat.localhost",
            "http://127.0.0.1:8000",
            "http://[::1]:3000",
            "vscode-webview://1a2b",
            "app://obsidian.md",
        ] {
            // By another of its names the browser calls it another site.
            assert_eq!(asks(HERE, &[host, ("origin", origin), ("sec-fetch-site", "cross-site")]), Ok(()), "{origin}");
        }
        for origin in ["https://evil.example", "null", "http://203.0.113.7", "http://localhost.evil.example", ""] {
            let refused = Err(MaybePage::Origin);
            assert_eq!(asks(HERE, &[host, ("origin", origin)]), refused, "{origin}");
            assert_eq!(asks(Names::Any, &[("host", "worker-1.lan"), ("origin", origin)]), refused, "{origin}");
        }
        let both = [host, ("origin", "http://localhost"), ("origin", "https://evil.example")];
        assert_eq!(asks(HERE, &both), Err(MaybePage::Origin));
    }

    #[test]
    fn a_page_that_the_listener_itself_serves_is_let_in() {
        let own = [("host", "worker-1.lan:8000"), ("origin", "https://worker-1.lan:8000")];

        assert_eq!(asks(Names::Any, &own), Ok(()));
        assert_eq!(asks(HERE, &own), Err(MaybePage::Host));
    }

    #[test]
    fn what_a_page_of_another_site_embeds_or_leads_to_is_not_let_in() {
        for (site, expected) in
            [("cross-site", Err(MaybePage::Origin)), ("same-site", Ok(())), ("same-origin", Ok(())), ("none", Ok(()))]
        {
            assert_eq!(asks(HERE, &[("host", "localhost:8000"), ("sec-fetch-site", site)]), expected, "{site}");
        }
    }

    fn asks(names: Names, headers: &[(&'static str, &str)]) -> Result<(), MaybePage> {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| _ = map.append(name, value));
        check(&Uri::from_static("/service/ocr"), &map, names)
    }
}
