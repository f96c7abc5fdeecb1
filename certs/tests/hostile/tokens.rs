//! Join tokens that were cut, changed, or lead somewhere else.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use wiremesh_certs::*;
use zeroize::Zeroizing;

use crate::{
    case::{Case, hold},
    world::cbor,
};

#[test]
fn each_is_refused_in_its_own_words() {
    hold(cases());
}

#[test]
fn a_token_is_taken_as_it_is_pasted() {
    let good = token(&["https://10.0.0.1:8080"]).unwrap().to_text();

    assert!(format!(" {}\n", *good).parse::<JoinToken>().is_ok());
}

#[test]
fn no_refusal_repeats_the_token() {
    let good = token(&["https://10.0.0.1:8080"]).unwrap().to_text();

    for (name, text, _) in changed(&good) {
        let bad = text.parse::<JoinToken>().expect_err(name);
        assert!(!bad.to_string().contains(&good[20..40]), "{name}");
    }
}

pub fn cases() -> Vec<Case> {
    let good = token(&["https://10.0.0.1:8080"]).unwrap().to_text();
    let texts = changed(&good).into_iter().map(|(name, text, why)| (name, text.parse::<JoinToken>(), why));
    let made = URLS.iter().map(|(name, urls, why)| (*name, token(urls), *why));
    let long = format!("https://x.example/{}", "a".repeat(256));
    texts
        .chain(made)
        .chain([("a token that names a long URL", token(&[&long]), NOT_HTTPS)])
        .map(|(name, read, why)| Case::new(name, read, "bad_token", format!("not a join token: {why}")))
        .collect()
}

fn changed(good: &Zeroizing<String>) -> Vec<(&'static str, String, &'static str)> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(good.strip_prefix("wm1.").unwrap()).unwrap();
    assert_eq!(bytes[0], 0x84);
    let text = |bytes: &[u8]| format!("wm1.{}", BASE64_URL_SAFE_NO_PAD.encode(bytes));
    let of = |url: &str, mesh: &str, secret: &[u8]| {
        text(&cbor(|e| {
            e.array(4).unwrap().array(1).unwrap().str(url).unwrap().str(mesh).unwrap();
            e.bytes(&[3; 32]).unwrap().bytes(secret).unwrap();
        }))
    };
    vec![
        ("no token", String::new(), "it does not begin with \"wm1.\""),
        ("a token of another version", good.replace("wm1.", "wm2."), "it does not begin with \"wm1.\""),
        ("a token cut in half", good[..good.len() / 2 / 4 * 4].to_owned(), CUT),
        ("a token without its last letters", good[..good.len() / 4 * 4 - 4].to_owned(), CUT),
        ("a token with padding", format!("{}=", **good), "not base64url; was it copied whole?"),
        (
            "a token with a line end in it",
            format!("{}\n{}", &good[..40], &good[40..]),
            "not base64url; was it copied whole?",
        ),
        ("a megabyte of token", format!("wm1.{}", "A".repeat(1 << 20)), "too long"),
        ("bytes after a token", text(&[&bytes[..], &[0]].concat()), SECOND),
        ("a token of five parts", text(&[&[0x85][..], &bytes[1..], &[0xf6]].concat()), SECOND),
        ("a token in a longer form", text(&[&[0x98, 4][..], &bytes[1..]].concat()), SECOND),
        ("a token of indefinite length", text(&[&[0x9f][..], &bytes[1..], &[0xff]].concat()), SECOND),
        ("a token with a short secret", of("https://x.example", "lab", &[7; 31]), CUT),
        ("a token of a mesh that is none", of("https://x.example", "L A B", &[7; 32]), CUT),
        ("a token read from plain http", of("http://x.example", "lab", &[7; 32]), NOT_HTTPS),
    ]
}

const CUT: &str = "cut or changed; was it copied whole?";
const SECOND: &str = "another than its one form; was something added to it?";
const NOT_HTTPS: &str = "it names a coordinator by something else than an https URL";
const TOO_MANY: &str = "it must name one to eight coordinators";

const URLS: &[(&str, &[&str], &str)] = &[
    ("a token that names nobody", &[], TOO_MANY),
    ("a token that names nine", &["https://x.example"; 9], TOO_MANY),
    ("a token that names plain http", &["http://x.example"], NOT_HTTPS),
    ("a token that names a file", &["file:///etc/passwd"], NOT_HTTPS),
    ("a token that names no host", &["https://"], NOT_HTTPS),
    ("a token that names a host without slashes", &["https:x.example"], NOT_HTTPS),
    ("a token that names a host behind the wrong slashes", &["https:\\\\x.example"], NOT_HTTPS),
    ("a token that names its scheme in capitals", &["HTTPS://x.example"], NOT_HTTPS),
    ("a token that moves the cursor", &["https://x.example\u{1b}[2J"], NOT_HTTPS),
    ("a token with a line end in a URL", &["https://x\n.example"], NOT_HTTPS),
    ("a token with a good URL and a bad one", &["https://x.example", "ftp://x.example"], NOT_HTTPS),
];

fn token(urls: &[&str]) -> Result<JoinToken, BadToken> {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    JoinToken::generate(urls, MeshName::new("lab").unwrap(), Fingerprint([3; 32]), &mut rand::rng())
}
