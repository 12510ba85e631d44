//! Masks secret values in everything a workspace's processes print.
//!
//! A secret has several forms: as it is, URL-encoded (in the ways of URLs, of forms and of JavaScript), escaped as in JSON,
//! and in base64 wherever in the encoded text it begins. Each is masked wherever it stands. Output comes line by line, and a form may be cut by the end of a line: a piece of one that
//! touches the edge of its line is masked as well, whatever the other lines say. Fewer than [`SHORTEST`] characters on
//! one side of a cut stay: they are any word's beginning or end.

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD, Encoding};
use envforge_api::secret::Secret;
use std::fmt::Write;

/// What stands where a secret was.
pub const MASK: &str = "***";
/// Shorter values are words of ordinary text: masking them would hide the text and protect nothing.
const SHORTEST: usize = 6;

/// Knows what must not be shown.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Longest first.
    needles: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} values)", self.needles.len())
    }
}

impl Redactor {
    /// Masks each secret as it is, in base64 (both alphabets, with or without padding, also as a part of what was
    /// encoded) and URL-encoded.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut needles = Vec::new();
        for secret in secrets {
            let plain = secret.expose();
            if plain.len() < SHORTEST {
                continue;
            }
            needles.push(plain.to_owned());
            // A secret of several lines arrives line by line.
            needles.extend(plain.lines().filter(|l| l.len() >= SHORTEST && *l != plain).map(ToOwned::to_owned));
            for encoding in [BASE64_NOPAD, BASE64URL_NOPAD] {
                needles.push(encoding.encode(plain.as_bytes()));
                needles.extend((0..3).map(|offset| encoded_within(&encoding, plain.as_bytes(), offset)));
            }
            for kept in ["-._~", "-._~!'()*"] {
                for upper in [true, false] {
                    let encoded = url_encoded(plain, upper, kept);
                    needles.push(encoded.replace("%20", "+"));
                    needles.push(encoded);
                }
            }
            needles.push(json_escaped(plain));
        }
        needles.retain(|needle| needle.len() >= SHORTEST);
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles }
    }

    /// The text with every secret masked, and every piece of one at the edge of the text.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for needle in &self.needles {
            if clean.contains(needle.as_str()) {
                clean = clean.replace(needle.as_str(), MASK);
            }
        }
        self.clean_edges(&clean).unwrap_or(clean)
    }

    /// `None` when no edge has a piece of a secret.
    fn clean_edges(&self, text: &str) -> Option<String> {
        let inner = text.trim_matches(around);
        if inner.len() < SHORTEST {
            return None;
        }
        let start = text.len() - text.trim_start_matches(around).len();
        let (mut from, mut to) = (start, start + inner.len());
        for needle in &self.needles {
            if needle.contains(inner) {
                // The middle of one that goes over three lines or more.
                return Some(format!("{}{MASK}{}", &text[..start], &text[start + inner.len()..]));
            }
            from = from.max(start + longest(needle, inner, Edge::First));
            to = to.min(start + inner.len() - longest(needle, inner, Edge::Last));
        }
        if (from, to) == (start, start + inner.len()) {
            return None;
        }
        let (head, tail) = (if from > start { MASK } else { "" }, if to < start + inner.len() { MASK } else { "" });
        let rest = text.get(from..to).unwrap_or_default();
        Some(format!("{}{head}{rest}{tail}{}", &text[..start], &text[start + inner.len()..]))
    }
}

/// What may stand between a piece of a secret and the edge of its line: a language's way to write a long text.
fn around(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '\\' | ',' | ';')
}

/// Which edge of its line a piece touches.
#[derive(Clone, Copy)]
enum Edge {
    /// It is the end of a secret.
    First,
    /// It is the beginning of one.
    Last,
}

/// Length of the longest piece of a needle at the edge of a line, in octets; 0 for one that is too short to mean anything.
fn longest(needle: &str, line: &str, edge: Edge) -> usize {
    // A piece is no longer than its line, however long the secret is.
    let lengths = (SHORTEST..needle.len().min(line.len() + 1)).rev();
    let is_there = |length: &usize| match edge {
        Edge::First => needle.get(needle.len() - length..).is_some_and(|piece| line.starts_with(piece)),
        Edge::Last => needle.get(..*length).is_some_and(|piece| line.ends_with(piece)),
    };
    lengths.into_iter().find(is_there).unwrap_or_default()
}

/// What base64 of any text that holds `plain`, `offset` octets past a multiple of three, holds for certain: without the
/// characters that depend on what stands before and after.
fn encoded_within(encoding: &Encoding, plain: &[u8], offset: usize) -> String {
    let mut all = vec![0; offset];
    all.extend_from_slice(plain);
    let text = encoding.encode(&all);
    let before = if offset == 0 { 0 } else { offset + 1 };
    let after = usize::from(!all.len().is_multiple_of(3));
    text.get(before..text.len() - after).unwrap_or_default().to_owned()
}

fn json_escaped(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default().to_owned()
}

/// Percent-encoded but for letters, digits and these.
fn url_encoded(text: &str, upper: bool, kept: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = if upper { write!(out, "%{byte:02X}") } else { write!(out, "%{byte:02x}") };
        }
    }
    out
}

/// The text without the user's part of every address in it (`https://user:token@host`): programs repeat addresses that
/// they cannot reach.
#[must_use]
pub fn without_users(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(|c: char| c == '/' || c.is_whitespace() || matches!(c, '\'' | '"' | '?' | '#'));
        let host = &after[..end.unwrap_or(after.len())];
        clean.push_str(before);
        clean.push_str("://");
        rest = match host.rfind('@') {
            Some(at) => {
                clean.push_str(MASK);
                &after[at..]
            }
            None => after,
        };
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_plain_in_base64_and_url_encoded() {
        let redactor = Redactor::new(&[Secret::new("p@ss w0rd!".into())]);
        let text = "a p@ss w0rd! b cEBzcyB3MHJkIQ== c p%40ss%20w0rd%21 d p%40ss%20w0rd%21 e";
        assert_eq!(redactor.clean(text), "a *** b ***== c *** d *** e");
        assert_eq!(Redactor::new(&[Secret::new("abc".into())]).clean("abc"), "abc");
    }

    #[test]
    fn a_secret_is_masked_as_forms_javascript_and_json_write_it() {
        let redactor = Redactor::new(&[Secret::new("it's \"q\" (a+b)\\*".into())]);
        for written in [
            "it%27s+%22q%22+%28a%2Bb%29%5C%2A",
            "it%27s%20%22q%22%20%28a%2bb%29%5c%2a",
            "it's%20%22q%22%20(a%2Bb)%5C*",
            r#"it's \"q\" (a+b)\\*"#,
        ] {
            assert_eq!(redactor.clean(&format!("a {written} b")), "a *** b", "{written}");
        }
    }

    #[test]
    fn a_secret_of_several_lines_is_masked_on_each_and_where_it_is_written_as_one() {
        let lines = ["-----BEGIN KEY-----", "MIIEvQIBADANBgkqhkiG", "9w0BAQEFAASCBKcwggSj", "-----END KEY-----"];
        let redactor = Redactor::new(&[Secret::new(lines.join("\n"))]);
        for line in lines {
            assert_eq!(redactor.clean(line), "***");
        }
        assert_eq!(redactor.clean(&format!("{{\"key\":\"{}\"}}", lines.join("\\n"))), "{\"key\":\"***\"}");
    }

    #[test]
    fn a_secret_within_what_was_encoded_is_masked_wherever_it_begins() {
        let secret = Secret::random(20);
        let redactor = Redactor::new([&secret]);
        for before in ["", "a", "ab", "abc", "postgres://app:"] {
            for after in ["", "@", "@localhost:5432/app"] {
                for encoding in [BASE64_NOPAD, BASE64URL_NOPAD] {
                    let encoded = encoding.encode(format!("{before}{}{after}", secret.expose()).as_bytes());
                    let clean = redactor.clean(&encoded);
                    // What is left, decoded at any offset, is no more than a few characters of it.
                    let longest = clean.split(MASK).map(str::len).max().unwrap_or(0);
                    assert!(clean.contains(MASK) && longest <= 4 * (before.len().max(after.len()) / 3 + 1), "{clean}");
                }
            }
        }
    }

    #[test]
    fn a_secret_that_is_cut_by_the_ends_of_lines_is_masked_on_each() {
        let secret = Secret::new("abcdefghijklmnopqrstuvwxyz234567".into());
        let redactor = Redactor::new([&secret]);
        let url = format!("postgres://app:{}@localhost:5432/app", secret.expose());
        let encoded = BASE64_NOPAD.encode(url.as_bytes());
        for text in [url.as_str(), encoded.as_str()] {
            let needle = redactor.needles.iter().find(|needle| text.contains(needle.as_str())).expect("a form");
            let begin = text.find(needle.as_str()).expect("there");
            for cut in begin + SHORTEST..begin + needle.len() - SHORTEST {
                let (first, second) = (redactor.clean(&text[..cut]), redactor.clean(&text[cut..]));
                assert_eq!(first, format!("{}***", &text[..begin]));
                assert_eq!(second, format!("***{}", &text[begin + needle.len()..]));
            }
        }
        assert_eq!(redactor.clean("  'abcdefgh' \\"), "  '***' \\");
        assert_eq!(redactor.clean("\"ijklmnopqr\","), "\"***\",", "the middle of one that goes over several lines");
        assert_eq!(redactor.clean("url = abcdefghij"), "url = ***");
    }

    #[test]
    fn what_is_no_secret_stays() {
        let redactor =
            Redactor::new(&[Secret::new("abcdefghijklmnopqrstuvwxyz234567".into()), Secret::new("größer".into())]);
        for text in ["", "abc", "the alphabet: abcdefghijkl and so on", "grö", "listening on 3000", "é", "\u{1f600}"]
        {
            assert_eq!(redactor.clean(text), text);
        }
        assert_eq!(redactor.clean("größer als"), "*** als");
    }

    #[test]
    fn the_users_part_of_an_address_is_masked() {
        let text = "unable to access 'https://ada:t0ken@git.example/a@b.git/': ssh://git@h/x http://h:80/p?u=a@b x@y";
        let clean = "unable to access 'https://***@git.example/a@b.git/': ssh://***@h/x http://h:80/p?u=a@b x@y";
        assert_eq!(without_users(text), clean);
    }
}
