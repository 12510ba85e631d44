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

    /// Octets with percent-encoding undone once, and whether there was nothing else behind a `%`; what was stays as it is.
    fn decoded(self) -> (Cow<'a, [u8]>, bool) {
        let raw = self.0.as_bytes();
        if !raw.contains(&b'%') {
            return (Cow::Borrowed(raw), true);
        }
        let mut octets = Vec::with_capacity(raw.len());
        let (mut rest, mut sound) = (raw, true);
        while let Some((octet, after)) = rest.split_first() {
            rest = after;
            if *octet == b'%' {
                if let Some(meant) = escaped(after) {
                    octets.push(meant);
                    rest = &after[2..];
                    continue;
                }
                sound = false;
            }
            octets.push(*octet);
        }
        (Cow::Owned(octets), sound)
    }

    /// Whether it belongs to the gateway, in whatever spelling.
    pub(crate) fn is_reserved(self) -> bool {
        let reserved = RESERVED_PATH.trim_matches('/').as_bytes();
        let (octets, _) = self.decoded();
        let mut segments = segments(&octets).map(bare).filter(|segment| !segment.is_empty() && *segment != b".");
        segments.next().is_some_and(|first| first.eq_ignore_ascii_case(reserved))
    }

    /// Octets that everyone reads the same way.
    pub(crate) fn plain(self) -> Result<Cow<'a, [u8]>, Ambiguous> {
        let (octets, sound) = self.decoded();
        let slashes = |octets: &[u8]| octets.iter().filter(|octet| **octet == b'/').count();
        let hidden = slashes(&octets) != slashes(self.0.as_bytes());
        // Some undo the encoding twice.
        let twice = octets.iter().enumerate().any(|(at, octet)| *octet == b'%' && escaped(&octets[at + 1..]).is_some());
        let odd = octets.iter().any(|octet| *octet == b'\\' || octet.is_ascii_control());
        let count = segments(&octets).count();
        // Some drop parameters before they look for what is doubled: `/;x/api`.
        let dots_or_empty = segments(&octets)
            .map(bare)
            .enumerate()
            .any(|(at, part)| matches!(part, b"." | b"..") || (part.is_empty() && at + 1 < count));
        let many = !sound || hidden || twice || odd || dots_or_empty || !octets.starts_with(b"/");
        if many { Err(Ambiguous) } else { Ok(octets) }
    }

    /// The family by the longest declared prefix, else `web`; of several readings, none.
    ///
    /// Some services do not tell `/API` from `/api`. Where both are declared, the one that is spelt like the path counts,
    /// and where neither is, they have to agree. Of two services that declare the same, the later one counts.
    pub(crate) fn family(self, declared: &[&[(String, Family)]]) -> Result<Family, Ambiguous> {
        let octets = self.plain()?;
        let fitting = || {
            let all = declared.iter().flat_map(|some| some.iter());
            all.filter_map(|(prefix, family)| Some((fit(&octets, prefix)?, prefix, *family)))
        };
        let Some((best, prefix, family)) = fitting().max_by_key(|(fit, ..)| *fit) else { return Ok(Family::Web) };
        let disputed = fitting().any(|(fit, other, says)| fit == best && other != prefix && says != family);
        if disputed { Err(Ambiguous) } else { Ok(family) }
    }

    /// What the path leads to, and the families that were declared for it.
    pub(crate) fn target(self, route: &Route) -> &Target {
        if route.bindings.is_empty() {
            return &route.target;
        }
        let (octets, _) = self.decoded();
        let bound = route.bindings.iter().find(|binding| has_prefix(&octets, &binding.path));
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

/// The segments of a prefix that was declared.
fn wanted(prefix: &str) -> impl Iterator<Item = &[u8]> {
    segments(prefix.as_bytes()).filter(|segment| !segment.is_empty())
}

/// Whether `prefix` is one on whole segments, octet for octet.
fn has_prefix(octets: &[u8], prefix: &str) -> bool {
    let mut given = segments(octets);
    wanted(prefix).all(|wanted| given.next() == Some(wanted))
}

/// How many segments of `prefix` begin the path, and whether they are spelt alike; `None` where not all do.
fn fit(octets: &[u8], prefix: &str) -> Option<(usize, bool)> {
    let mut given = segments(octets).map(bare);
    wanted(prefix).map(bare).try_fold((0, true), |(count, alike), wanted| {
        let given = given.next()?;
        given.eq_ignore_ascii_case(wanted).then_some((count + 1, alike && given == wanted))
    })
}

/// What the two digits behind a `%` mean.
fn escaped(after: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
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
    fn of_prefixes_that_differ_in_case_the_one_spelt_like_the_path_counts() {
        let declared = [("/api".to_owned(), Family::Api), ("/API".to_owned(), Family::Web)];
        let family = |path| Sent::new(path).family(&[&declared]);
        assert_eq!(family("/api/x"), Ok(Family::Api));
        assert_eq!(family("/API/x"), Ok(Family::Web));
        assert_eq!(family("/Api/x"), Err(Ambiguous));
        let parameters = [("/a;b".to_owned(), Family::Api)];
        assert_eq!(Sent::new("/a;b/x").family(&[&parameters]), Ok(Family::Api));
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
            "/%2561pi",
            "/x%252fapi",
            "/;x/api",
            "*",
            "",
        ] {
            assert_eq!(family(path), Err(Ambiguous), "{path}");
        }
    }

    #[test]
    fn the_gateways_own_paths_are_its_own_in_every_spelling() {
        for path in [
            "/.envforge",
            "/.envforge/enter",
            "/%2eenvforge/x",
            "//.envforge/",
            "/.ENVFORGE/",
            "/./.envforge/x",
            "/.envforge/%zz",
            "/;x/.envforge;y",
        ] {
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
