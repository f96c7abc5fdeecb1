//! What strangers wrote, as it may stand in an error: as much as one line holds, and nothing that a terminal would obey.

use std::fmt;

/// Longer words are cut. Whoever sees them wants to know what is wrong with them, and has the rest.
pub const MAX_WORDS_BYTES: usize = 300;

/// The beginning of `words`, fit to be shown.
pub fn few(words: impl fmt::Display) -> String {
    fewer(words, MAX_WORDS_BYTES)
}

/// The same of words that share their line with others: at most `bytes` of them.
pub fn fewer(words: impl fmt::Display, bytes: usize) -> String {
    let text = words.to_string();
    let mut shown = String::with_capacity(text.len().min(bytes + 8));
    for c in text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }) {
        if shown.len() + c.len_utf8() > bytes {
            shown.push('…');
            break;
        }
        shown.push(c);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_and_plain_stays_as_it_is() {
        assert_eq!(few("expected a string at line 1"), "expected a string at line 1");
    }

    #[test]
    fn a_megabyte_is_cut_and_nothing_moves_the_cursor() {
        assert_eq!(few("ü".repeat(1 << 20)).chars().count(), MAX_WORDS_BYTES / 2 + 1);
        assert_eq!(few("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert!(few("\0".repeat(MAX_WORDS_BYTES)).len() <= MAX_WORDS_BYTES + '…'.len_utf8());
    }
}
