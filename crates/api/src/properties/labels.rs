//! Dev host labels: what is read as one, and how they are made of names.

use crate::{
    dev_host::{HostLabel, organization_part, port_part, service_part, workspace_part},
    names::{Branch, ServiceName, Slug, short_hash},
};
use sha2::{Digest, Sha256};

/// The input is lines: a host, a base, then names in turn for a service, a port, a workspace and an organization.
pub fn labels(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let host = lines.next().unwrap_or_default();
    let base = lines.next().unwrap_or_default();
    reads_only_labels(host);
    reads_only_hosts_below(host, base);
    let lines: Vec<&str> = lines.take(8).collect();
    let made: Vec<Made> = lines.chunks_exact(4).map(Made::of).collect();
    for one in &made {
        one.holds(base);
    }
    if let [a, b] = &made[..] {
        differ(&a.workspace, &b.workspace, workspace_part);
        differ(&a.organization, &b.organization, organization_part);
        differ(&a.service, &b.service, service_part);
    }
    for line in lines {
        reads_only_labels(line);
        if let Ok(branch) = line.parse::<Branch>() {
            let slug = Slug::from_branch(&branch);
            assert_eq!(slug.as_str().parse().as_ref(), Ok(&slug));
            obeys(&workspace_part(&slug), slug.as_str(), 27);
        }
    }
}

/// PRODUCT: one DNS label of three parts, none of them with `--`, and never an internationalised name.
fn is_sound(label: &str) -> bool {
    let letters = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let edges = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
    label.len() <= 63
        && !label.contains("---")
        && label.matches("--").count() == 2
        && label.split("--").all(|part| letters(part) && edges(part))
        && !label.starts_with("xn--")
}

fn reads_only_labels(given: &str) {
    let read = given.parse::<HostLabel>();
    assert_eq!(read.is_ok(), is_sound(given));
    let Ok(label) = read else { return };
    assert_eq!(label.to_string(), given);
    assert_eq!(label.parts().join("--"), given);
    let json = serde_json::to_string(&label).expect("written");
    assert_eq!(serde_json::from_str::<HostLabel>(&json).expect("read again"), label);
    let [service, workspace, organization] = label.parts();
    assert_eq!(HostLabel::join(service, workspace, organization), Ok(label));
}

fn reads_only_hosts_below(host: &str, base: &str) {
    let Ok(label) = HostLabel::of_host(host, base) else { return };
    assert!(is_sound(label.as_str()));
    // The host is the label, the base's name, perhaps a dot, perhaps a port, and nothing else.
    let host = host.to_ascii_lowercase();
    let rest = host.strip_prefix(label.as_str()).expect("it begins with the label");
    let name = base.rsplit_once(':').map_or(base, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let rest = rest.strip_prefix('.').and_then(|rest| rest.strip_prefix(name.as_str())).expect("then the base");
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let port = rest.strip_prefix(':').unwrap_or("0");
    assert!(rest.is_empty() || (!port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())), "{rest}");
    found_again(&label, base);
}

/// The address made for a label leads back to it, however a visitor writes it.
fn found_again(label: &HostLabel, base: &str) {
    let address = format!("{label}.{base}");
    for host in [address.to_ascii_uppercase(), address] {
        assert_eq!(HostLabel::of_host(&host, base).as_ref(), Ok(label), "{host}");
    }
}

struct Made {
    service: ServiceName,
    port: ServiceName,
    workspace: Slug,
    organization: Slug,
}

impl Made {
    fn of(lines: &[&str]) -> Self {
        let name = |at: usize| nearest(lines[at]).parse().unwrap_or_else(|_| "x".parse().expect("a name"));
        let slug = |at: usize| nearest(lines[at]).parse().expect("a slug");
        Self { service: name(0), port: name(1), workspace: slug(2), organization: slug(3) }
    }

    fn holds(&self, base: &str) {
        let (workspace, organization) = (workspace_part(&self.workspace), organization_part(&self.organization));
        obeys(&workspace, self.workspace.as_str(), 27);
        obeys(&organization, self.organization.as_str(), 16);
        let service = (service_part(&self.service), self.service.to_string());
        let port = (port_part(&self.service, &self.port), format!("{}-{}", self.service, self.port));
        for (part, name) in [service, port] {
            obeys(&part, &name, 16);
            let label = HostLabel::join(&part, &workspace, &organization).expect("a label");
            assert_eq!(label.parts(), [part.as_str(), workspace.as_str(), organization.as_str()]);
            reads_only_labels(label.as_str());
            for base in ["dev.localhost:8080", "dev.example.com"] {
                found_again(&label, base);
            }
            reads_only_hosts_below(&format!("{label}.{base}"), base);
        }
    }
}

/// A slug like this text, so that most inputs name something.
fn nearest(text: &str) -> String {
    let mut slug = String::new();
    for octet in text.bytes() {
        match char::from(octet).to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') if slug.len() < 63 => slug.push(c),
            _ if !slug.is_empty() && !slug.ends_with('-') && slug.len() < 62 => slug.push('-'),
            _ => {}
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "x".to_owned() } else { slug.to_owned() }
}

/// PRODUCT: the name up to `max` octets, else a prefix, `-` and 6 base32 digits of its SHA-256.
fn obeys(part: &str, name: &str, max: usize) {
    assert!(part.len() <= max && part.parse::<Slug>().is_ok(), "{part}");
    if name.len() <= max {
        assert_eq!(part, name);
        return;
    }
    let (head, digits) = part.rsplit_once('-').expect("a prefix and digits");
    assert!(name.starts_with(head), "{part} of {name}");
    // As long as there is room; only a hyphen at its end is left out.
    let hyphen = name.as_bytes()[head.len()] == b'-';
    assert!(head.len() == max - 7 || (hyphen && head.len() == max - 8), "{part} of {name}");
    assert_eq!(digits, base32(name));
}

/// Six digits of five bits each, without the library that the product uses.
fn base32(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let bits = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    let digit = |n: u32| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(bits >> (27 - 5 * n) & 31) as usize]);
    (0..6).map(digit).collect()
}

/// Different names have different parts, unless they meet in the digest or one is spelt like the other's part.
fn differ<N: AsRef<str> + PartialEq>(a: &N, b: &N, part: fn(&N) -> String) {
    if a == b || part(a) != part(b) {
        return;
    }
    let (a_part, b_part) = (part(a), part(b));
    let spelt = a_part == b.as_ref() || b_part == a.as_ref();
    let met = short_hash(a.as_ref()) == short_hash(b.as_ref());
    assert!(spelt != met, "{} and {}", a.as_ref(), b.as_ref());
}
