//! Last words in a stream of server-sent events whose worker died.
//!
//! The words must never complete a half-received event as if it were good: an event cut off in the middle becomes part of
//! the error event.

use http::{HeaderMap, header};

/// Follows a stream of events as far as to know whether it stands between two events.
#[derive(Debug, Default)]
pub struct Events {
    /// Line ends at the very end of what was seen; 2 is a blank line.
    line_ends: u8,
    begun: bool,
    after_return: bool,
}

impl Events {
    /// A follower for an answer with these headers, if it is a stream of events we can add to.
    pub fn in_answer(headers: &HeaderMap) -> Option<Events> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let is_events = kind.split(';').next()?.trim().eq_ignore_ascii_case("text/event-stream");
        // Nothing can be added to compressed bytes, or beyond a promised length.
        let plain = !headers.contains_key(header::CONTENT_ENCODING) && !headers.contains_key(header::CONTENT_LENGTH);
        (is_events && plain).then(Events::default)
    }

    /// Bytes passed.
    pub fn on_bytes(&mut self, bytes: &[u8]) {
        // Only the last few bytes say anything about where the stream stands.
        for &byte in &bytes[bytes.len().saturating_sub(4)..] {
            self.line_ends = match byte {
                b'\n' if self.after_return => self.line_ends,
                b'\n' | b'\r' => self.line_ends.saturating_add(1),
                _ => 0,
            };
            self.after_return = byte == b'\r';
            self.begun = true;
        }
    }

    /// The event that says how the stream ended. `json` has no line ends in it.
    pub fn last_words(&self, json: &str) -> String {
        let closing = if !self.begun || self.line_ends >= 1 { "" } else { "\n" };
        format!("{closing}event: error\ndata: {json}\n\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(chunks: &[&str]) -> String {
        let mut events = Events::default();
        chunks.iter().for_each(|chunk| events.on_bytes(chunk.as_bytes()));
        events.last_words("{}")
    }

    #[test]
    fn between_two_events_the_error_is_an_event_of_its_own() {
        for chunks in [&[][..], &["data: 1\n\n"], &["data: 1\r\n\r\n"], &["data: 1\n", "\n"]] {
            assert_eq!(after(chunks), "event: error\ndata: {}\n\n");
        }
    }

    #[test]
    fn in_the_middle_of_a_line_the_line_ends_and_the_event_becomes_the_error() {
        assert_eq!(after(&["data: {\"tok"]), "\nevent: error\ndata: {}\n\n");
    }

    #[test]
    fn after_a_line_of_an_unfinished_event_no_blank_line_finishes_it() {
        assert_eq!(after(&["data: 1\n"]), "event: error\ndata: {}\n\n");
    }

    #[test]
    fn only_plain_event_streams_get_last_words() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            pairs.collect::<HeaderMap>()
        };

        assert!(Events::in_answer(&headers(&[("content-type", "text/event-stream; charset=utf-8")])).is_some());
        assert!(Events::in_answer(&headers(&[("content-type", "application/x-ndjson")])).is_none());
        let compressed = [("content-type", "text/event-stream"), ("content-encoding", "gzip")];
        assert!(Events::in_answer(&headers(&compressed)).is_none());
    }
}
