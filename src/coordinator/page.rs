//! The web page: who is in the mesh and what is offered, with the age of each fact. No script, no secrets.

use std::fmt::Write;

use wiremesh_certs::{ServiceName, UnixTime};

use super::{
    Config,
    care::{Care, coarse},
    copies::Copies,
    registry::{Registry, Seen},
    rotation::Authorities,
};
use crate::{api::ServiceSummary, settings::Span};

/// Rows of the member table. A page of more would serve nobody; the API has them all.
pub const MAX_ROWS: usize = 500;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;\
color:#222;background:#fff}table{border-collapse:collapse;width:100%;margin:0 0 2rem}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;vertical-align:top}\
.care{color:#a40;font-weight:600}th{font-weight:600}.silent,.none{color:#999}.healthy{color:#076}caption{text-align:left;color:#666;padding:.3rem .6rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th,td{border-color:#333}}";

/// Renders the page as of `now`.
pub fn render(
    config: &Config,
    registry: &Registry,
    copies: &Copies,
    authorities: &Authorities,
    care: &[Care],
    now: UnixTime,
) -> String {
    let counts = registry.counts(now);
    let mut page = String::with_capacity(16 * 1024);
    let mesh = escaped(config.mesh.as_str());
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{mesh} · wiremesh</title><style>{STYLE}</style><h1>{mesh}</h1>\
         <p>{} of {} members heard from within the last {}. Network {}. CA {}. As of {now}.</p>",
        counts.healthy,
        counts.enrolled,
        Span(config.heartbeat_interval * super::registry::MISSED_INTERVALS),
        config.network,
        ends(authorities.issuing().certificate.not_after(), now),
    );
    for Care { what, hint } in care {
        let _ = write!(page, "<p class=care>{}: <code>{}</code></p>", escaped(what), escaped(hint));
    }
    members(&mut page, registry, copies, counts.enrolled, now);
    services(&mut page, registry.services(&config.catalog, now));
    let _ = write!(page, "<p class=none>wiremesh {}</p></html>", env!("CARGO_PKG_VERSION"));
    page
}

fn members(page: &mut String, registry: &Registry, copies: &Copies, enrolled: usize, now: UnixTime) {
    page.push_str("<h2>Members</h2><table>");
    if enrolled > MAX_ROWS {
        let _ = write!(page, "<caption>The first {MAX_ROWS} of {enrolled}, by name.</caption>");
    }
    page.push_str("<tr><th>Name<th>Address<th>State<th>Last heard<th>Certificate<th>Load<th>Services<th>Tunnel");
    for Seen { member, shown, .. } in registry.seen(now).take(MAX_ROWS) {
        let presence = registry.said(&member.identity);
        let certificate = shown.map(|shown| ends(shown.ends_at, now)).unwrap_or_default();
        let (name, address) = (escaped(member.name.as_str()), member.address);
        let Some(presence) = presence else {
            let _ = write!(
                page,
                "<tr><td>{name}<td>{address}<td class=none>not registered<td><td>{certificate}<td><td><td>"
            );
            continue;
        };
        let state = if registry.is_healthy(presence, now) { "healthy" } else { "silent" };
        let age = Span(now.saturating_since(presence.last_heartbeat));
        let copied = copies.of(&member.identity, now);
        let copied = copied.map(|copied| format!(", its keys are used twice, also from {}", copied.seen_from));
        let copied = copied.unwrap_or_default();
        let services: Vec<_> = presence.record.services.iter().map(ServiceName::as_str).collect();
        let tunnel = presence.record.tunnel_url.as_ref().map(|url| escaped(url.as_str())).unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td>{name}<td>{address}<td class={state}>{state}{copied}<td>{age} ago<td>{certificate}<td>{}&nbsp;%<td>{}<td>{tunnel}",
            presence.record.load.percent(),
            escaped(&services.join(", ")),
        );
    }
    page.push_str("</table>");
}

fn services(page: &mut String, services: std::collections::BTreeMap<ServiceName, ServiceSummary>) {
    page.push_str("<h2>Services</h2><table><tr><th>Service<th>Healthy workers<th>Tier<th>Requires");
    for (name, summary) in services {
        let tier = match &summary.tier {
            Some(serde_json::Value::String(word)) => word.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}",
            escaped(name.as_str()),
            summary.healthy_workers,
            escaped(&tier),
            escaped(&summary.requires.join(", ")),
        );
    }
    page.push_str("</table>");
}

/// When a certificate ends.
fn ends(at: UnixTime, now: UnixTime) -> String {
    match at.saturating_since(now) {
        left if left.is_zero() => format!("<span class=care>ended at {at}</span>"),
        left => format!("ends in {}", coarse(left)),
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use wiremesh_certs::{Authority, CaParameters};

    use super::*;
    use crate::settings::Layers;

    #[test]
    fn what_others_say_is_text_and_never_markup() {
        let layers = Layers::new().file("x", "[catalog.ocr]\ntier = '<script>alert(1)</script>'").unwrap();
        let config = Config::from_layers(layers).unwrap();

        let (registry, copies) = (Registry::new(config.heartbeat_interval), Copies::new(config.heartbeat_interval));
        let care = Care { what: "<b>the CA</b> ends in 40d".to_owned(), hint: "wiremesh cert rotate" };
        let page = render(&config, &registry, &copies, &authorities(), &[care], UnixTime(0));

        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
        assert!(page.contains("&lt;b&gt;the CA&lt;/b&gt; ends in 40d: <code>wiremesh cert rotate</code>"));
        assert!(page.contains("0 of 0 members heard from within the last 30s"));
    }

    fn authorities() -> Authorities {
        let parameters = CaParameters {
            mesh: "lab".parse().unwrap(),
            network: "10.42.0.0/16".parse().unwrap(),
            lifetime: std::time::Duration::from_secs(86_400),
        };
        let now = UnixTime(1_800_000_000);
        let authority = Authority::create(&parameters, now, &mut StdRng::seed_from_u64(1)).unwrap();
        Authorities::first(authority.certificate().clone(), Vec::new(), now)
    }
}
