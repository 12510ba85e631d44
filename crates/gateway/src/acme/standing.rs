//! Decides, without a clock or a network: whether a certificate is served with, when it is renewed, and how long to wait
//! after a failure.

use super::kept::Certificate;
use envforge_api::time::Timestamp;
use std::time::Duration;

/// The longest that a server's own word on when to come again is followed: one that is wrong must not end renewals.
const LONGEST_LATER: Duration = Duration::from_secs(24 * 3600);
/// What each further failure multiplies the pause with.
const STEEPER: u32 = 3;

/// What is to be certified, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The ACME server's directory.
    pub(super) directory: String,
    /// The base and everything one label below it.
    pub(super) names: [String; 2],
}

impl Wanted {
    /// For a base as the control plane tells it: a name, perhaps with a port.
    pub(super) fn new(directory: &str, base: &str) -> Self {
        let base = base.split_once(':').map_or(base, |(name, _)| name);
        Self { directory: directory.to_owned(), names: [base.to_owned(), format!("*.{base}")] }
    }

    /// The name without the wildcard.
    pub(super) fn base(&self) -> &str {
        &self.names[0]
    }
}

/// How a certificate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Served with, and left alone until then.
    Good { renew_at: Timestamp },
    /// Served with while another one is ordered.
    Due(String),
    /// Not served with at a start.
    Unusable(String),
}

/// How the certificate stands now. It is renewed when a third of its lifetime is left.
pub(super) fn judge(certificate: &Certificate, wanted: &Wanted, now: Timestamp) -> Standing {
    let renew_at = certificate.until - certificate.from.duration_until(certificate.until) / 3;
    if now >= certificate.until {
        Standing::Unusable(format!("the certificate ended at {}", certificate.until))
    } else if let Some(name) = wanted.names.iter().find(|name| !certificate.names.contains(name)) {
        Standing::Unusable(format!("the certificate is not for {name}"))
    } else if certificate.directory != wanted.directory {
        Standing::Due(format!("the certificate was had from {}", certificate.directory))
    } else if now >= renew_at {
        Standing::Due(format!("the certificate ends at {}", certificate.until))
    } else {
        Standing::Good { renew_at }
    }
}

/// How often is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Pause after a first failure.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Default for Pace {
    /// A public server refuses all orders for an hour after five that failed within one: here it is four.
    fn default() -> Self {
        Self { first: Duration::from_secs(120), longest: Duration::from_secs(6 * 3600) }
    }
}

impl Pace {
    /// The pause after so many failures in a row. `jitter`, from 0 to 1, adds up to a quarter, so that gateways which
    /// failed together do not come again together; `later` is when the server wants to be asked at the earliest.
    pub(super) fn pause(&self, failures: u32, jitter: f64, later: Option<Duration>) -> Duration {
        let grown = self.first.saturating_mul(STEEPER.saturating_pow(failures.saturating_sub(1)));
        let pause = grown.min(self.longest).mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0);
        pause.max(later.unwrap_or_default().min(LONGEST_LATER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn certificate() -> Certificate {
        Certificate {
            directory: "https://ca.example/directory".into(),
            names: vec!["*.dev.example".into(), "dev.example".into()],
            from: at("2026-01-01T00:00:00Z"),
            until: at("2026-04-01T00:00:00Z"),
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_lifetime_is_left() {
        let wanted = Wanted::new("https://ca.example/directory", "dev.example:8443");
        let renew_at = at("2026-03-02T00:00:00Z");
        let judged = |now: &str| judge(&certificate(), &wanted, at(now));
        assert_eq!(judged("2026-01-01T00:00:00Z"), Standing::Good { renew_at });
        assert_eq!(judged("2026-03-01T23:59:59Z"), Standing::Good { renew_at });
        assert!(matches!(judged("2026-03-02T00:00:00Z"), Standing::Due(_)));
        assert!(matches!(judged("2026-03-31T23:59:59Z"), Standing::Due(_)));
        assert!(matches!(judged("2026-04-01T00:00:00Z"), Standing::Unusable(_)));
    }

    #[test]
    fn one_of_another_server_goes_on_until_it_is_replaced_and_one_for_another_name_is_not_used() {
        let now = at("2026-01-02T00:00:00Z");
        let elsewhere = Wanted::new("https://other.example/directory", "dev.example");
        let Standing::Due(why) = judge(&certificate(), &elsewhere, now) else { panic!("it is replaced") };
        assert!(why.contains("https://ca.example/directory"), "{why}");
        for base in ["dev2.example", "x.dev.example", "example"] {
            let Standing::Unusable(why) =
                judge(&certificate(), &Wanted::new("https://ca.example/directory", base), now)
            else {
                panic!("{base} is another name")
            };
            assert!(why.contains(base), "{why}");
        }
    }

    #[test]
    fn pauses_grow_from_minutes_to_hours_and_are_never_shorter_than_the_server_wants() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let pace = Pace::default();
        let pauses: Vec<Duration> = (1..=6).map(|failures| pace.pause(failures, 0.0, None)).collect();
        assert_eq!(pauses, [2, 6, 18, 54, 162, 360].map(minutes));
        assert_eq!(pace.pause(u32::MAX, 1.0, None), minutes(450));
        assert_eq!(pace.pause(1, 0.0, Some(minutes(90))), minutes(90));
        assert_eq!(pace.pause(3, 0.0, Some(minutes(1))), minutes(18));
        assert_eq!(
            pace.pause(1, 0.0, Some(Duration::MAX)),
            minutes(24 * 60),
            "a server that is wrong ends no renewals"
        );
        assert!(pauses[..4].iter().sum::<Duration>() > minutes(60), "the fifth try is in another hour than the first");
    }
}
