//! Resources whose servers are not the host's: fields that the organization set or a provisioner answered, completed from
//! each other. A URL gives host, port, user and whatever else is in it; these give a URL. Pure; no error repeats a value.

use envforge_api::{resource::ResourceKind, secret::Secret};
use std::{borrow::Cow, collections::BTreeMap};

/// Fields of a resource by name.
pub type Fields = BTreeMap<String, Secret>;

/// Why fields do not make a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// This one is missing, and nothing that there is has it.
    Missing(&'static str),
    /// This one is not what it should be.
    Wrong(&'static str, &'static str),
}

/// A URL in its parts, decoded.
#[derive(Debug, Default)]
struct Parts<'a> {
    scheme: &'a str,
    user: Option<Cow<'a, str>>,
    password: Option<Cow<'a, str>>,
    host: &'a str,
    port: Option<u16>,
    path: Cow<'a, str>,
    query: &'a str,
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn parts(url: &str) -> Option<Parts<'_>> {
    let (scheme, rest) = url.split_once("://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let (user, password) = match user.map(|user| user.split_once(':').map_or((user, None), |(u, p)| (u, Some(p)))) {
        Some((user, password)) => (Some(decoded(user)?), password.map(decoded).map(|p| p.ok_or(())).transpose().ok()?),
        None => (None, None),
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (host, port.strip_prefix(':'))
        }
        None => address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map(str::parse).transpose().ok()?;
    let whole = !host.is_empty() && !url.contains(char::is_whitespace) && !url.contains(char::is_control);
    whole.then_some(())?;
    Some(Parts { scheme, user: user.filter(|u| !u.is_empty()), password, host, port, path: decoded(path)?, query })
}

/// The field that is the resource's URL, the schemes that it may have, and the ports that these mean.
const fn url_of(kind: ResourceKind) -> (&'static str, &'static [(&'static str, u16)], &'static str) {
    match kind {
        ResourceKind::Database => (
            "url",
            &[("postgres", 5432), ("postgresql", 5432)],
            "is not of the form postgres://USER:PASSWORD@HOST:PORT/NAME",
        ),
        ResourceKind::Cache | ResourceKind::Queue => {
            ("url", &[("redis", 6379), ("rediss", 6379)], "is not of the form redis://USER:PASSWORD@HOST:PORT/NUMBER")
        }
        ResourceKind::Storage => ("endpoint", &[("http", 80), ("https", 443)], "is not of the form https://HOST:PORT"),
        ResourceKind::Mail => {
            ("smtp_url", &[("smtp", 25), ("smtps", 465)], "is not of the form smtp://USER:PASSWORD@HOST:PORT")
        }
    }
}

/// The whole fields of a resource from those that are set.
///
/// # Errors
/// The first flaw.
pub fn complete(kind: ResourceKind, set: &Fields) -> Result<Fields, Flaw> {
    let (url, schemes, form) = url_of(kind);
    let mut all = set.clone();
    if kind == ResourceKind::Storage
        && !all.contains_key(url)
        && let Some(public) = all.get("url").cloned()
    {
        all.insert(url.to_owned(), public);
    }
    if !all.contains_key(url) {
        let made = made_url(kind, schemes, set)?;
        all.insert(url.to_owned(), Secret::new(made));
    }
    let text = all.get(url).cloned().unwrap_or_else(|| Secret::new(String::new()));
    let wrong = Flaw::Wrong(url, form);
    let parts = parts(text.expose()).ok_or(wrong)?;
    let default = schemes.iter().find(|(scheme, _)| *scheme == parts.scheme).map(|(_, port)| *port).ok_or(wrong)?;
    let mut fill = |name: &str, value: &str| {
        all.entry(name.to_owned()).or_insert_with(|| Secret::new(value.to_owned()));
    };
    fill("host", parts.host);
    fill("port", &parts.port.unwrap_or(default).to_string());
    match kind {
        ResourceKind::Database => {
            let user = parts.user.as_deref().ok_or(Flaw::Missing("user"))?;
            fill("user", user);
            fill("password", parts.password.as_deref().unwrap_or_default());
            fill("name", if parts.path.is_empty() { user } else { &parts.path });
        }
        ResourceKind::Storage => {
            fill("url", text.expose());
            fill("region", "us-east-1");
            for needed in ["bucket", "access_key", "secret_key"] {
                if !set.contains_key(needed) {
                    return Err(Flaw::Missing(needed));
                }
            }
        }
        ResourceKind::Cache | ResourceKind::Queue | ResourceKind::Mail => {}
    }
    if all.get("port").is_none_or(|port| port.expose().parse::<u16>().is_err()) {
        return Err(Flaw::Wrong("port", "is no port"));
    }
    Ok(all)
}

fn made_url(kind: ResourceKind, schemes: &[(&str, u16)], set: &Fields) -> Result<String, Flaw> {
    let field = |name: &str| set.get(name).map(Secret::expose);
    let (url, _, _) = url_of(kind);
    if kind == ResourceKind::Storage {
        return Err(Flaw::Missing(url));
    }
    let host = field("host").ok_or(Flaw::Missing(url))?;
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let (scheme, default) = schemes.first().copied().unwrap_or_default();
    let port = field("port").map_or_else(|| default.to_string(), ToOwned::to_owned);
    Ok(match kind {
        ResourceKind::Database => {
            let user = encoded(field("user").ok_or(Flaw::Missing("user"))?);
            let password = field("password").map(|p| format!(":{}", encoded(p))).unwrap_or_default();
            let name = encoded(field("name").unwrap_or_else(|| field("user").unwrap_or_default()));
            format!("{scheme}://{user}{password}@{host}:{port}/{name}")
        }
        ResourceKind::Cache | ResourceKind::Queue => format!("{scheme}://{host}:{port}/0"),
        ResourceKind::Mail | ResourceKind::Storage => format!("{scheme}://{host}:{port}"),
    })
}

/// What of the fields must not be shown: what opens the resource, and where it is.
#[must_use]
pub fn masked(fields: &Fields) -> Vec<Secret> {
    let hidden = ["url", "smtp_url", "endpoint", "password", "secret_key", "access_key", "host"];
    let mut all = Vec::new();
    for (_, value) in fields.iter().filter(|(name, _)| hidden.contains(&name.as_str())) {
        all.push(value.clone());
        if let Some(parts) = parts(value.expose()) {
            all.extend(parts.password.map(|password| Secret::new(password.into_owned())));
            all.push(Secret::new(parts.host.to_owned()));
        }
    }
    // What everyone calls so is no secret.
    all.retain(|value| !["localhost", "127.0.0.1"].contains(&value.expose()));
    all
}

/// What must not be shown of a single value: the value, and the password and host of one that is a URL.
#[must_use]
pub fn masked_value(value: &Secret) -> Vec<Secret> {
    masked(&BTreeMap::from([("url".to_owned(), value.clone())]))
}

/// Names the data that a resource holds: values that lead elsewhere have another name.
#[must_use]
pub fn place(fields: &Fields) -> String {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    for name in ["host", "port", "name", "bucket"] {
        digest.update(fields.get(name).map(Secret::expose).unwrap_or_default());
        digest.update([0]);
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..8])
}

/// How a client of PostgreSQL finds the database: in its environment alone.
#[must_use]
pub fn libpq(fields: &Fields) -> BTreeMap<String, String> {
    let field = |name: &str| fields.get(name).map(Secret::expose).unwrap_or_default().to_owned();
    let of = [
        ("PGHOST", "host"),
        ("PGPORT", "port"),
        ("PGUSER", "user"),
        ("PGPASSWORD", "password"),
        ("PGDATABASE", "name"),
    ];
    let mut all: BTreeMap<String, String> = of.into_iter().map(|(name, of)| (name.to_owned(), field(of))).collect();
    let url = field("url");
    let settings = parts(&url).map(|parts| parts.query).unwrap_or_default();
    for (name, value) in settings.split('&').filter_map(|setting| setting.split_once('=')) {
        let known = match name {
            "sslmode" => "PGSSLMODE",
            "sslrootcert" => "PGSSLROOTCERT",
            "channel_binding" => "PGCHANNELBINDING",
            _ => continue,
        };
        all.extend(decoded(value).map(|value| (known.to_owned(), value.into_owned())));
    }
    all
}

/// What signs in to a Redis and asks whether it is there, in its own protocol; `None` where that needs TLS.
#[must_use]
pub fn redis_greeting(fields: &Fields) -> Option<(String, u32)> {
    let url = fields.get("url")?;
    let parts = parts(url.expose()).filter(|parts| parts.scheme == "redis")?;
    let say = |words: &[&str]| {
        let each = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        format!("*{}\r\n{}", words.len(), each.collect::<String>())
    };
    let ping = say(&["PING"]);
    Some(match (parts.user.as_deref(), parts.password.as_deref()) {
        (_, None) => (ping, 1),
        (None, Some(password)) => (say(&["AUTH", password]) + &ping, 2),
        (Some(user), Some(password)) => (say(&["AUTH", user, password]) + &ping, 2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned()))).collect()
    }

    fn shown(fields: &Fields) -> String {
        fields.iter().map(|(name, value)| format!("{name}={} ", value.expose())).collect()
    }

    #[test]
    fn a_url_gives_the_fields_that_are_not_set_and_fields_give_the_url() {
        use ResourceKind::{Cache, Database, Mail, Storage};
        let cases: &[(ResourceKind, Pairs, &str)] = &[
            (
                Database,
                &[("url", "postgres://a%40b:p%2Fw%3A@db.example:6543/app?sslmode=require")],
                "host=db.example name=app password=p/w: port=6543 url=postgres://a%40b:p%2Fw%3A@db.example:6543/app?sslmode=require user=a@b ",
            ),
            (
                Database,
                &[("host", "fd00::1"), ("user", "a@b"), ("password", "p/w:"), ("name", "app")],
                "host=fd00::1 name=app password=p/w: port=5432 url=postgres://a%40b:p%2Fw%3A@[fd00::1]:5432/app user=a@b ",
            ),
            (
                Database,
                &[("url", "postgresql://u@[fd00::1]")],
                "host=fd00::1 name=u password= port=5432 url=postgresql://u@[fd00::1] user=u ",
            ),
            (Cache, &[("url", "rediss://:pw@c.example")], "host=c.example port=6379 url=rediss://:pw@c.example "),
            (Cache, &[("host", "c"), ("port", "7000")], "host=c port=7000 url=redis://c:7000/0 "),
            (Mail, &[("smtp_url", "smtps://u:p@m.example")], "host=m.example port=465 smtp_url=smtps://u:p@m.example "),
            (
                Storage,
                &[("endpoint", "https://s.example"), ("bucket", "b"), ("access_key", "a"), ("secret_key", "s")],
                "access_key=a bucket=b endpoint=https://s.example host=s.example port=443 region=us-east-1 secret_key=s url=https://s.example ",
            ),
        ];
        for (kind, set, whole) in cases {
            assert_eq!(shown(&complete(*kind, &fields(set)).expect(whole)), *whole);
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_and_never_repeated() {
        use ResourceKind::{Cache, Database, Mail, Storage};
        let url = |kind| Flaw::Wrong(url_of(kind).0, url_of(kind).2);
        let cases: &[(ResourceKind, Pairs, Flaw)] = &[
            (Database, &[], Flaw::Missing("url")),
            (Database, &[("host", "h")], Flaw::Missing("user")),
            (Database, &[("url", "mysql://u@h/d")], url(Database)),
            (Database, &[("url", "postgres://u@h:port/d")], url(Database)),
            (Database, &[("url", "postgres://u:%zz@h/d")], url(Database)),
            (Database, &[("url", "postgres:///d")], url(Database)),
            (Database, &[("url", "postgres://h/d")], Flaw::Missing("user")),
            (Database, &[("url", "postgres://u@h/d"), ("port", "x")], Flaw::Wrong("port", "is no port")),
            (Cache, &[("url", "hunter2")], url(Cache)),
            (Mail, &[("port", "25")], Flaw::Missing("smtp_url")),
            (Storage, &[("endpoint", "http://h")], Flaw::Missing("bucket")),
        ];
        for (kind, set, flaw) in cases {
            assert_eq!(complete(*kind, &fields(set)), Err(*flaw), "{set:?}");
        }
    }

    #[test]
    fn password_and_address_are_masked_wherever_they_come_from() {
        let all =
            masked(&fields(&[("url", "postgres://user:p%40ss@db.example/app"), ("user", "user"), ("port", "5432")]));
        let all: Vec<&str> = all.iter().map(Secret::expose).collect();
        assert_eq!(all, ["postgres://user:p%40ss@db.example/app", "p@ss", "db.example"]);
        assert_eq!(masked_value(&Secret::new("plain".into())).len(), 1);
    }

    #[test]
    fn values_that_lead_to_the_same_data_have_its_name_whoever_signs_in() {
        let of = |url: &str| place(&complete(ResourceKind::Database, &fields(&[("url", url)])).expect("whole"));
        assert_eq!(of("postgres://a:b@h/d"), of("postgresql://c:d@h:5432/d?sslmode=require"));
        assert_ne!(of("postgres://a:b@h/d"), of("postgres://a:b@h/e"));
    }

    #[test]
    fn a_client_is_told_how_to_connect_in_its_environment() {
        let whole = complete(ResourceKind::Database, &fields(&[("url", "postgres://u:p@h/d?sslmode=require&x=y")]));
        let environment = libpq(&whole.expect("whole"));
        assert_eq!((environment["PGPASSWORD"].as_str(), environment["PGSSLMODE"].as_str()), ("p", "require"));
        assert_eq!(environment.len(), 6);
        let greet = |url| redis_greeting(&fields(&[("url", url)]));
        assert_eq!(greet("redis://h").expect("plain"), ("*1\r\n$4\r\nPING\r\n".into(), 1));
        assert_eq!(greet("redis://:pw@h").expect("plain").1, 2);
        assert_eq!(greet("rediss://:pw@h"), None);
    }
}
