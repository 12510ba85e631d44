//! What must hold for any path whatever, as a function that panics where it does not.
//!
//! It is built for tests and fuzzers alone. `make fuzz` looks for inputs that break it; an ordinary test runs it on the
//! inputs that are kept in `fuzz/corpus`, among them all that ever broke it.

use crate::path::{Ambiguous, Sent};
use envforge_api::link::Family;

type Declared = Vec<(String, Family)>;

/// The input is lines: prefixes that a service declares, each after the digit of its family, then the path.
pub fn paths(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (lines, path) = text.rsplit_once('\n').unwrap_or(("", &text));
    let mut declared: Declared = vec![("/api".into(), Family::Api), ("/api/files".into(), Family::Assets)];
    for line in lines.split('\n').take(6) {
        let Some((family, prefix)) = line.split_at_checked(1) else { continue };
        let family = Family::ALL[family.as_bytes()[0] as usize % Family::ALL.len()];
        if may_be_declared(prefix) && declared.iter().all(|(known, _)| known != prefix) {
            declared.push((prefix.to_owned(), family));
        }
    }
    let decided = family(path, &declared);
    match Sent::new(path).plain() {
        Ok(octets) => {
            is_plain(&octets);
            assert_eq!(decided, model(&octets, &declared), "{path:?}");
            let again = encode(&octets, |_| false);
            assert_eq!(Sent::new(&again).plain().as_deref(), Ok(&*octets), "{path:?} and {again:?}");
        }
        Err(Ambiguous) => assert_eq!(decided, Err(Ambiguous), "{path:?}"),
    }
    let reserved = Sent::new(path).is_reserved();
    for spelling in spellings(path) {
        assert_eq!(family(&spelling, &declared), decided, "{path:?} and {spelling:?}");
        assert_eq!(Sent::new(&spelling).is_reserved(), reserved, "{path:?} and {spelling:?}");
    }
    if let Some(at) = path.rfind('/').filter(|at| *at > 0) {
        let hidden = format!("{}%2{}{}", &path[..at], if at % 2 == 0 { 'f' } else { 'F' }, &path[at + 1..]);
        assert_eq!(family(&hidden, &declared), Err(Ambiguous), "{hidden:?}");
    }
    let begins = |with: &str| path.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    assert!(reserved || !(begins("/.envforge/") || path.eq_ignore_ascii_case("/.envforge")), "{path:?}");
}

fn family(path: &str, declared: &Declared) -> Result<Family, Ambiguous> {
    Sent::new(path).family(&[declared])
}

/// What an envforge.yml may declare.
fn may_be_declared(prefix: &str) -> bool {
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '%' | '?' | '#' | '*');
    prefix.starts_with('/')
        && !prefix.contains(odd)
        && !prefix.contains("//")
        && !prefix.split('/').any(|part| part == "." || part == "..")
        && (prefix.len() == 1 || !prefix.ends_with('/'))
}

/// Nothing is left in it that one reader takes differently from another.
fn is_plain(octets: &[u8]) {
    assert_eq!(octets.first(), Some(&b'/'));
    assert!(!octets.iter().any(|octet| *octet == b'\\' || octet.is_ascii_control()));
    let parts = bare_segments(octets);
    let (last, before) = parts.split_last().expect("a segment");
    assert!(before.iter().all(|part| !part.is_empty()), "a doubled slash, perhaps with parameters between");
    assert!(before.iter().chain([last]).all(|part| *part != b"." && *part != b".."), "a dot segment");
    // Who undoes the encoding twice finds nothing to undo.
    let undone = octets.windows(3).any(|w| w[0] == b'%' && w[1].is_ascii_hexdigit() && w[2].is_ascii_hexdigit());
    assert!(!undone, "an encoding in the encoding");
}

/// The first, empty one aside, and without parameters.
fn bare_segments(octets: &[u8]) -> Vec<&[u8]> {
    let parts = octets.split(|octet| *octet == b'/').skip(1);
    parts.map(|part| part.split(|octet| *octet == b';').next().unwrap_or_default()).collect()
}

/// PRODUCT: the longest declared prefix on whole segments, else `web`. Of two that differ in case alone the one that is
/// spelt like the path; where neither is, only what both say.
fn model(octets: &[u8], declared: &Declared) -> Result<Family, Ambiguous> {
    let given = bare_segments(octets);
    let mut best: Vec<(usize, bool, Family)> = Vec::new();
    for (prefix, family) in declared {
        let wanted: Vec<&[u8]> = if prefix == "/" { vec![] } else { bare_segments(prefix.as_bytes()) };
        let begin = &given[..wanted.len().min(given.len())];
        let same = begin.len() == wanted.len() && begin.iter().zip(&wanted).all(|(a, b)| a.eq_ignore_ascii_case(b));
        if same {
            best.push((wanted.len(), begin == wanted, *family));
        }
    }
    let Some((length, exact, family)) = best.iter().max_by_key(|(length, exact, _)| (*length, *exact)) else {
        return Ok(Family::Web);
    };
    let mut tied = best.iter().filter(|(l, e, _)| l == length && e == exact);
    if tied.all(|(.., other)| other == family) { Ok(*family) } else { Err(Ambiguous) }
}

/// Other spellings that every reader takes for the same: what stands between slashes encoded or not, digits in either case.
fn spellings(path: &str) -> [String; 3] {
    let is_escape = |at: usize| {
        let digits = path.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let (mut all, mut lower, mut fewest) = (String::new(), String::new(), String::new());
    let mut at = 0;
    while let Some(octet) = path.as_bytes().get(at).copied() {
        if octet == b'%' && is_escape(at) {
            let code = &path[at..at + 3];
            all.push_str(&code.to_ascii_uppercase());
            lower.push_str(&code.to_ascii_lowercase());
            let meant = u8::from_str_radix(&code[1..], 16).expect("two digits");
            // Behind a broken escape it would mend that.
            let mends = fewest.bytes().rev().take(2).any(|before| before == b'%');
            if !mends && (meant.is_ascii_alphanumeric() || b"-._~".contains(&meant)) {
                fewest.push(char::from(meant));
            } else {
                fewest.push_str(code);
            }
            at += 3;
            continue;
        }
        let kept = octet == b'/' || octet == b'%';
        let encoded = encode(&[octet], |_| !kept);
        all.push_str(if kept { &path[at..=at] } else { &encoded });
        lower.push_str(&if kept { path[at..=at].to_owned() } else { encoded.to_ascii_lowercase() });
        if octet.is_ascii() {
            fewest.push(char::from(octet));
        } else {
            fewest.push_str(&encode(&[octet], |_| true));
        }
        at += 1;
    }
    [all, lower, fewest]
}

/// Percent-encodes what has to be, and what else is wanted.
fn encode(octets: &[u8], wanted: impl Fn(u8) -> bool) -> String {
    let mut text = String::new();
    for octet in octets {
        let has_to = !(octet.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(octet));
        if has_to || wanted(*octet) {
            text.push_str(&format!("%{octet:02X}"));
        } else {
            text.push(char::from(*octet));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, panic, path::Path};

    #[test]
    fn paths_hold_for_what_is_kept() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/paths");
        let mut kept = 0;
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let input = fs::read(&path).expect("an input");
            assert!(panic::catch_unwind(|| paths(&input)).is_ok(), "it does not hold for {}", path.display());
            kept += 1;
        }
        assert!(kept > 0, "{} is empty", folder.display());
    }

    proptest! {
        #[test]
        fn paths_hold_for_any_text(input in "([0-3]/[aApPiI;/]{0,8}\n){0,2}/([aApPiI/.;%\\\\]|%2[5ef]|%61|api){0,12}") {
            paths(input.as_bytes());
        }
    }
}
