//! Where dev hosts lie: scheme, host names, port.

use envforge_api::{dev_host::HostLabel, problem::Problem};

/// The base of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    scheme: &'static str,
    /// Host with its port where that is not the scheme's own.
    authority: String,
}

impl Base {
    /// Reads `HOST[:PORT]`, or the same after `http://` or `https://`.
    ///
    /// # Errors
    /// `invalid`.
    pub(crate) fn parse(given: &str) -> Result<Self, Problem> {
        let (scheme, authority) = match given.split_once("://") {
            Some(("https", rest)) => ("https", rest),
            Some(("http", rest)) => ("http", rest),
            Some(_) => ("", given),
            None => ("http", given),
        };
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let part = |part: &str| {
            let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&part.len()) && part.bytes().all(sound) && !part.starts_with('-') && !part.ends_with('-')
        };
        let sound = !scheme.is_empty()
            && host.split('.').all(part)
            && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        if !sound {
            return Err(Problem::invalid(
                format!("`{given}` cannot be the base of dev hosts"),
                "write it as dev.example.com, dev.localhost:8080 or https://dev.example.com, in lower case",
            ));
        }
        Ok(Self { scheme, authority: authority.to_owned() })
    }

    /// `http` or `https`.
    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The base itself: `https://dev.example.com`.
    pub(crate) fn own(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// `dev.localhost:8080`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// `http://web--signed-links--local.dev.localhost:8080`.
    pub(crate) fn origin(&self, label: &HostLabel) -> String {
        format!("{}://{label}.{}", self.scheme, self.authority)
    }

    /// Where a link's token is shown around.
    pub(crate) fn share(&self, token: &str) -> String {
        format!("{}://{}/share/{token}", self.scheme, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_host_perhaps_with_scheme_and_port() {
        let label = "web--a--b".parse().expect("a label");
        for (given, origin) in [
            ("dev.localhost", "http://web--a--b.dev.localhost"),
            ("dev.localhost:8080", "http://web--a--b.dev.localhost:8080"),
            ("https://dev.example.com", "https://web--a--b.dev.example.com"),
        ] {
            assert_eq!(Base::parse(given).expect(given).origin(&label), origin);
        }
        for bad in ["", "Dev.localhost", "a..b", "a/b", "ftp://a", "a:0", "a:x", "https://a/", "-a", "a b", "a:1:2"] {
            assert!(Base::parse(bad).is_err(), "{bad}");
        }
    }
}
