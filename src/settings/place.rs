//! An address with a port, as people write it: `127.0.0.1:8000`, `[::1]:8000`.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Deserializer, de};

use crate::words;

/// Longer than any address; the rest of what was written instead is not shown.
const MAX_SHOWN_BYTES: usize = 60;

/// An address with a port. Names are not looked up: what they lead to may be another place a moment later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place(pub SocketAddr);

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Place, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

struct Text;

impl de::Visitor<'_> for Text {
    type Value = Place;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address with a port in quotes, such as \"203.0.113.7:51820\" or \"[2001:db8::7]:51820\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Place, E> {
        let said = || words::fewer(format_args!("{text:?}"), MAX_SHOWN_BYTES);
        text.trim().parse().map(Place).map_err(|_| {
            E::custom(format_args!(
                "{} is not an address with a port, such as 203.0.113.7:51820 or [2001:db8::7]:51820; names are not looked up",
                said()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_no_place_is_shown_with_what_one_looks_like() {
        let read = |text: &str| toml::from_str::<BTreeMap<String, Place>>(text);

        assert_eq!(read("a = '[::1]:80'").unwrap()["a"], Place("[::1]:80".parse().unwrap()));
        for (text, said) in [
            ("a = 'gpu1.example.com:51820'", "\"gpu1.example.com:51820\" is not an address with a port"),
            ("a = '8080'", "\"8080\" is not an address"),
            ("a = 8080", "integer `8080`, expected an address with a port in quotes"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let long = read(&format!("a = '{}'", "x".repeat(5000))).unwrap_err();
        assert!(long.message().len() < 300, "{long}");
    }
}
