//! Masks secret values in everything a workspace's processes print.

use envforge_api::secret::Secret;
use std::fmt::Write;

/// What stands where a secret was.
pub const MASK: &str = "***";
/// Shorter values are words of ordinary text: masking them would hide the text and protect nothing.
const SHORTEST: usize = 6;

/// Knows what must not be shown.
#[derive(Clone, Default)]
pub struct Redactor {
    needles: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} values)", self.needles.len())
    }
}

impl Redactor {
    /// Masks each secret as it is, in base64 (both alphabets, with or without padding) and URL-encoded.
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
            needles.push(data_encoding::BASE64_NOPAD.encode(plain.as_bytes()));
            needles.push(data_encoding::BASE64URL_NOPAD.encode(plain.as_bytes()));
            needles.push(url_encoded(plain));
        }
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Self { needles }
    }

    /// The text with every secret masked.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        let mut clean = text.to_owned();
        for needle in &self.needles {
            if clean.contains(needle.as_str()) {
                clean = clean.replace(needle.as_str(), MASK);
            }
        }
        clean
    }
}

fn url_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_plain_in_base64_and_url_encoded() {
        let redactor = Redactor::new(&[Secret::new("p@ss w0rd!".into())]);
        let text = "a p@ss w0rd! b cEBzcyB3MHJkIQ== c p%40ss%20w0rd%21 d";
        assert_eq!(redactor.clean(text), "a *** b ***== c *** d");
        assert_eq!(Redactor::new(&[Secret::new("abc".into())]).clean("abc"), "abc");
    }
}
