//! What a path is: to whom it leads, and to which route family it belongs. Pure.
//!
//! A service may read a path in more ways than one: `/%61pi`, `/API`, `/api;x` and `/x/../api` are `/api` to some. What
//! a link does not carry must not be reached by another spelling, so a path that can be read in several ways is refused
//! unless the link carries everything.

use envforge_api::{
    dev_host::RESERVED_PATH,
    gateway::{Route, Target},
    link::Family,
};
use std::borrow::Cow;

/// A path as it was sent, without its query.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent<'a>(&'a str);

/// A path that can be read in more ways than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ambiguous;

impl<'a> Sent<'a> {
    pub(crate) fn new(path: &'a str) -> Self {
        Self(path)
    }

    /// Octets with percent-encoding undone once; `None` where it is broken.
    fn decoded(self) -> Option<Cow<'a, [u8]>> {
        let raw = self.0.as_bytes();
        if !raw.contains(&b'%') {
            return Some(Cow::Borrowed(raw));
        }
        let mut octets = Vec::with_capacity(raw.len());
        let mut rest = raw.iter().copied();
        while let Some(octet) = rest.next() {
            if octet == b'%' {
                let digit = |d: Option<u8>| char::from(d?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                octets.push(u8::try_from(high * 16 + low).ok()?);
            } else {
                octets.push(octet);
            }
        }
        Some(Cow::Owned(octets))
    }

    /// Whether it belongs to the gateway, in whatever spelling.
    pub(crate) fn is_reserved(self) -> bool {
        let reserved = RESERVED_PATH.trim_matches('/').as_bytes();
        let Some(octets) = self.decoded() else { return false };
        let mut segments = segments(&octets).filter(|segment| !segment.is_empty() && *segment != b".");
        segments.next().is_some_and(|first| first.eq_ignore_ascii_case(reserved))
    }

    /// Whether everyone reads it the same way.
    fn plain(self) -> Result<Cow<'a, [u8]>, Ambiguous> {
        let octets = self.decoded().ok_or(Ambiguous)?;
        let slashes = |octets: &[u8]| octets.iter().filter(|octet| **octet == b'/').count();
        let hidden = slashes(&octets) != slashes(self.0.as_bytes());
        let odd = octets.iter().any(|octet| *octet == b'\\' || *octet < b' ' || *octet == 0x7f);
        let count = segments(&octets).count();
        let dots_or_empty = segments(&octets)
            .enumerate()
            .any(|(at, part)| matches!(bare(part), b"." | b"..") || (part.is_empty() && at + 1 < count));
        if hidden || odd || dots_or_empty || !octets.starts_with(b"/") { Err(Ambiguous) } else { Ok(octets) }
    }

    /// The family by the longest declared prefix, else `web`; of several readings, `None`.
    pub(crate) fn family(self, declared: &[&[(String, Family)]]) -> Result<Family, Ambiguous> {
        let octets = self.plain()?;
        let all = declared.iter().flat_map(|some| some.iter());
        let longest = all.filter(|(prefix, _)| has_prefix(&octets, prefix, Case::Ignored)).max_by_key(|(p, _)| p.len());
        Ok(longest.map_or(Family::Web, |(_, family)| *family))
    }

    /// What the path leads to, and the families that were declared for it.
    pub(crate) fn target(self, route: &Route) -> &Target {
        if route.bindings.is_empty() {
            return &route.target;
        }
        let octets = self.decoded().unwrap_or(Cow::Borrowed(self.0.as_bytes()));
        let bound = route.bindings.iter().find(|binding| has_prefix(&octets, &binding.path, Case::Kept));
        bound.map_or(&route.target, |binding| &binding.target)
    }
}

/// What stands between slashes; the first, empty one aside.
fn segments(octets: &[u8]) -> impl Iterator<Item = &[u8]> {
    octets.split(|octet| *octet == b'/').skip(1)
}

/// A segment without its parameters (`api;x=1`).
fn bare(segment: &[u8]) -> &[u8] {
    segment.split(|octet| *octet == b';').next().unwrap_or_default()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// Some services do not tell `/API` from `/api`.
    Ignored,
    Kept,
}

/// Whether `prefix` is one on whole segments.
fn has_prefix(octets: &[u8], prefix: &str, case: Case) -> bool {
    let mut given = segments(octets);
    let wanted = segments(prefix.as_bytes()).filter(|segment| !segment.is_empty());
    wanted.into_iter().all(|wanted| {
        given.next().is_some_and(|given| match case {
            Case::Ignored => bare(given).eq_ignore_ascii_case(wanted),
            Case::Kept => given == wanted,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn family(path: &str) -> Result<Family, Ambiguous> {
        let declared = [("/api".to_owned(), Family::Api), ("/api/files".to_owned(), Family::Assets)];
        Sent::new(path).family(&[&declared, &[("/ws/".to_owned(), Family::Websockets)]])
    }

    #[test]
    fn the_longest_declared_prefix_on_whole_segments_decides_else_web() {
        for (path, expected) in [
            ("/", Family::Web),
            ("/apiary", Family::Web),
            ("/x/api", Family::Web),
            ("/api", Family::Api),
            ("/api/", Family::Api),
            ("/api/x", Family::Api),
            ("/api/files/a.png", Family::Assets),
            ("/api/filesystem", Family::Api),
            ("/ws", Family::Websockets),
            ("/ws/room/1", Family::Websockets),
            ("/a%20b/%C3%A9", Family::Web),
        ] {
            assert_eq!(family(path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn another_spelling_is_the_same_or_refused() {
        for path in ["/%61pi", "/API/x", "/Api", "/api;v=1/x", "/%61%70%69/x"] {
            assert_eq!(family(path), Ok(Family::Api), "{path}");
        }
        for path in [
            "//api",
            "/x//y",
            "/x/../api",
            "/./api",
            "/x/%2e%2e/api",
            "/x%2Fapi",
            "/x%2f..%2fapi",
            "/x\\api",
            "/x%5capi",
            "/..;/api",
            "/%zz",
            "/%",
            "/a%00b",
            "*",
            "",
        ] {
            assert_eq!(family(path), Err(Ambiguous), "{path}");
        }
    }

    #[test]
    fn the_gateways_own_paths_are_its_own_in_every_spelling() {
        for path in
            ["/.envforge", "/.envforge/enter", "/%2eenvforge/x", "//.envforge/", "/.ENVFORGE/", "/./.envforge/x"]
        {
            assert!(Sent::new(path).is_reserved(), "{path}");
        }
        for path in ["/", "/x/.envforge", "/.envforgery", "/envforge"] {
            assert!(!Sent::new(path).is_reserved(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics_and_encoding_letters_changes_nothing(path in "/[a-zA-Z/._;%0-9-]{0,30}") {
            let encode = |c: char| if c.is_ascii_alphabetic() { format!("%{:02x}", c as u32) } else { c.to_string() };
            if !path.contains('%') {
                let encoded: String = path.chars().map(encode).collect();
                prop_assert_eq!(family(&path), family(&encoded));
            }
            let _ = (family(&path), Sent::new(&path).is_reserved());
        }
    }
}
