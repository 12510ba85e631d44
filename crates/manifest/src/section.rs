//! Reads typed values out of the tree. Each reader gives the value or adds a finding and gives nothing, so that
//! checking goes on with the rest of the file.

use crate::{
    findings::{Findings, Pos, nearest, one_of, quote},
    tree::{Entry, Node, Value, as_bool, is_number},
};
use envforge_api::names::ServiceName;
use std::str::FromStr;

/// Longest duration in milliseconds: 30 days.
const LONGEST_MS: u64 = 30 * 24 * 3600 * 1000;

/// A map of which every key is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'n> {
    pub(crate) at: Pos,
    entries: &'n [Entry],
}

impl<'n> Section<'n> {
    pub(crate) fn get(self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub(crate) fn entry(self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// The wrong kind of value.
pub(crate) fn wrong(findings: &mut Findings<'_>, node: &Node, what: &str, wanted: &str, mend: &str) {
    if !matches!(node.value, Value::Broken) {
        findings.add(node.at, format!("{what} must be {wanted}, but this is {}", node.kind()), mend);
    }
}

/// A map with known keys; each other key is a finding. Nothing written counts as an empty map where `may_be_empty`.
pub(crate) fn section<'n>(
    findings: &mut Findings<'_>,
    node: &'n Node,
    what: &str,
    known: &[&str],
    may_be_empty: bool,
) -> Option<Section<'n>> {
    if may_be_empty && node.is_null() {
        return Some(Section { at: node.at, entries: &[] });
    }
    let Value::Map(entries) = &node.value else {
        wrong(findings, node, what, "a map", &format!("write {} as keys with values", one_of(known.iter().copied())));
        return None;
    };
    for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
        unknown_key(findings, entry, what, known);
    }
    Some(Section { at: node.at, entries })
}

fn unknown_key(findings: &mut Findings<'_>, entry: &Entry, what: &str, known: &[&str]) {
    if entry.key == "depends_on" {
        findings.add(
            entry.at,
            "`depends_on` is not supported: services start at the same time, each as soon as the resources it requires \
             are ready",
            "remove it; let the service retry its connections, and declare data services under `resources`",
        );
        return;
    }
    let choice = format!("{what} may have {}", one_of(known.iter().copied()));
    let mend = match nearest(&entry.key, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`? {choice}"),
        None => format!("remove it: {choice}"),
    };
    findings.add(entry.at, format!("{} is not a key of {what}", quote(&entry.key)), mend);
}

/// A map with free keys, in written order.
pub(crate) fn entries<'n>(findings: &mut Findings<'_>, node: &'n Node, what: &str, example: &str) -> &'n [Entry] {
    match &node.value {
        Value::Map(entries) => entries,
        _ if node.is_null() => &[],
        _ => {
            wrong(findings, node, what, "a map", &format!("write it as `{example}`"));
            &[]
        }
    }
}

/// Text; numbers and booleans must be in quotes.
pub(crate) fn text<'n>(findings: &mut Findings<'_>, node: &'n Node, what: &str) -> Option<&'n str> {
    match &node.value {
        Value::Scalar { text, plain } if !*plain || !(node.is_null() || as_bool(text).is_some() || is_number(text)) => {
            if text.trim().is_empty() {
                findings.add(node.at, format!("{what} is empty"), "write a value, or remove the key");
                return None;
            }
            Some(text)
        }
        Value::Scalar { .. } if !node.is_null() => {
            wrong(findings, node, what, "text", "put it in quotes");
            None
        }
        _ => {
            wrong(findings, node, what, "text", "write text after the `:`");
            None
        }
    }
}

/// A shell command. `true` and `false` are commands too.
pub(crate) fn command(findings: &mut Findings<'_>, node: &Node, what: &str) -> Option<String> {
    let given = match &node.value {
        Value::Scalar { text, plain: true } if as_bool(text).is_some() => text,
        Value::List(_) => {
            wrong(findings, node, what, "one shell command", "write it as one line of text, as in a shell");
            return None;
        }
        _ => text(findings, node, what)?,
    };
    if given.contains('\0') {
        findings.add(node.at, format!("{what} has a NUL character in it"), "remove it");
        return None;
    }
    Some(given.to_owned())
}

/// One of some words.
pub(crate) fn word<T: FromStr>(findings: &mut Findings<'_>, node: &Node, what: &str, words: &[&str]) -> Option<T> {
    let choice = format!("write {}", one_of(words.iter().copied()));
    let Value::Scalar { text: given, .. } = &node.value else {
        wrong(findings, node, what, "one word", &choice);
        return None;
    };
    if let Ok(value) = given.parse() {
        return Some(value);
    }
    let mend = match nearest(given, words.iter().copied()) {
        Some(word) => format!("did you mean `{word}`? {choice}"),
        None => choice,
    };
    findings.add(node.at, format!("{} is no {what}", quote(given)), mend);
    None
}

/// `true` or `false`.
pub(crate) fn boolean(findings: &mut Findings<'_>, node: &Node, what: &str) -> Option<bool> {
    if let Value::Scalar { text, plain: true } = &node.value
        && let Some(value) = as_bool(text)
    {
        return Some(value);
    }
    wrong(findings, node, what, "`true` or `false`", "write `true` or `false` without quotes");
    None
}

/// A port, 1 to 65535.
pub(crate) fn port(findings: &mut Findings<'_>, node: &Node, what: &str) -> Option<u16> {
    let mend = "write a number from 1 to 65535, such as `3000`";
    match &node.value {
        Value::Scalar { text, plain: true } if is_number(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => {
                findings.add(node.at, format!("{} is not a port: ports go from 1 to 65535", quote(text)), mend);
                None
            }
        },
        Value::Scalar { text, plain: false } if is_number(text) => {
            findings.add(node.at, format!("{what} must be a number, but this is text"), "remove the quotes");
            None
        }
        _ => {
            wrong(findings, node, what, "a number", mend);
            None
        }
    }
}

/// A duration in milliseconds: `200ms`, `1s`, `15m`, `2h`, `1h30m`.
pub(crate) fn duration(findings: &mut Findings<'_>, node: &Node, what: &str, least_ms: u64) -> Option<u64> {
    let mend = "write a number with its unit, such as `200ms`, `1s`, `15m` or `2h`";
    let Value::Scalar { text: given, .. } = &node.value else {
        wrong(findings, node, what, "a duration", mend);
        return None;
    };
    let Some(millis) = millis(given) else {
        findings.add(node.at, format!("{what}: {} is not a duration", quote(given)), mend);
        return None;
    };
    if millis < least_ms {
        let least =
            if least_ms.is_multiple_of(1000) { format!("{}s", least_ms / 1000) } else { format!("{least_ms}ms") };
        findings.add(node.at, format!("{what}: {} is too short", quote(given)), format!("write at least `{least}`"));
        return None;
    }
    if millis > LONGEST_MS {
        findings.add(node.at, format!("{what}: {} is longer than 30 days", quote(given)), "write at most `30d`");
        return None;
    }
    Some(millis)
}

fn millis(given: &str) -> Option<u64> {
    let mut rest = given;
    let (mut total, mut last) = (0_u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        // Larger units first, each once.
        if unit >= last {
            return None;
        }
        last = unit;
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[letters..];
    }
    (last != u64::MAX).then_some(total)
}

/// Items of a list; a single text counts as a list of one.
pub(crate) fn items<'n>(findings: &mut Findings<'_>, node: &'n Node, what: &str) -> Option<&'n [Node]> {
    match &node.value {
        Value::List(items) => Some(items),
        Value::Scalar { .. } if !node.is_null() => Some(std::slice::from_ref(node)),
        _ => {
            wrong(findings, node, what, "a list", "write it as `[first, second]`");
            None
        }
    }
}

/// Paths relative to the service that stay below it.
pub(crate) fn paths(findings: &mut Findings<'_>, node: &Node, what: &str) -> Vec<String> {
    let items = items(findings, node, what).unwrap_or_default();
    items.iter().filter_map(|item| relative_path(findings, item, what)).collect()
}

/// A path that stays below where it starts.
pub(crate) fn relative_path(findings: &mut Findings<'_>, node: &Node, what: &str) -> Option<String> {
    let given = text(findings, node, what)?;
    let reason = if given.starts_with('/') || given.starts_with('~') {
        "must be a relative path"
    } else if given.split('/').any(|part| part == "..") {
        "must not have `..` in it"
    } else if given.contains('\\') || given.chars().any(char::is_control) {
        "must have no backslash and no control character in it"
    } else if given.len() > 1024 {
        "is longer than 1024 octets"
    } else {
        return Some(given.to_owned());
    };
    findings.add(
        node.at,
        format!("{what} {reason}: {}", quote(given)),
        "write a path below the directory of this file",
    );
    None
}

/// A path prefix of a route: `/api`.
pub(crate) fn route_path(findings: &mut Findings<'_>, at: Pos, given: &str) -> Option<String> {
    let reason = if !given.starts_with('/') {
        "must begin with `/`"
    } else if given.len() > 512 {
        "is longer than 512 octets"
    } else if given.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '\\' | '%' | '?' | '#' | '*'))
    {
        "must have no space, `\\`, `%`, `?`, `#` or `*` in it"
    } else if given.contains("//") || given.split('/').any(|part| part == "." || part == "..") {
        "must have no `//`, `.` or `..` in it"
    } else if given == "/.envforge" || given.starts_with("/.envforge/") {
        "is reserved for EnvForge itself"
    } else if given.len() > 1 && given.ends_with('/') {
        "must not end with `/`"
    } else {
        return Some(given.to_owned());
    };
    findings.add(at, format!("the path {} {reason}", quote(given)), "write whole segments of a path, such as `/api`");
    None
}

/// A name of a service, worker, port, step or test.
pub(crate) fn name(findings: &mut Findings<'_>, at: Pos, given: &str, what: &str) -> Option<ServiceName> {
    match given.parse() {
        Ok(name) => Some(name),
        Err(_) => {
            let clean = suggestion(given);
            let mend = match clean.parse::<ServiceName>() {
                Ok(better) => format!("use lower-case letters, digits and single hyphens, such as `{better}`"),
                Err(_) => "use lower-case letters, digits and single hyphens, 63 at most".to_owned(),
            };
            findings.add(at, format!("{} is not a name for {what}", quote(given)), mend);
            None
        }
    }
}

fn suggestion(given: &str) -> String {
    let mut clean = String::new();
    for c in given.to_lowercase().chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            clean.push(c);
        } else if !clean.is_empty() && !clean.ends_with('-') {
            clean.push('-');
        }
    }
    clean.trim_end_matches('-').to_owned()
}

/// A name of letters, digits and underscores that does not begin with a digit.
pub(crate) fn is_identifier(given: &str) -> bool {
    given.len() <= 128
        && given.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && given.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The name of an input or output.
pub(crate) fn identifier(findings: &mut Findings<'_>, entry: &Entry, what: &str) -> Option<String> {
    if is_identifier(&entry.key) {
        return Some(entry.key.clone());
    }
    let reason = format!("{} is not a name for {what}", quote(&entry.key));
    findings.add(entry.at, reason, "use letters, digits and underscores, beginning with a letter");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_larger_units_come_first() {
        let good = [("200ms", 200), ("1s", 1000), ("15m", 900_000), ("2h", 7_200_000), ("1h30m", 5_400_000)];
        for (given, expected) in good {
            assert_eq!(millis(given), Some(expected), "{given}");
        }
        for bad in ["", "15", "m", "1.5h", "30m1h", "1m1m", "-1s", "1 s", "1w", "99999999999999999999s", "s1"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }
}
