//! Certificates by ACME, for the base and everything one label below it: such a wildcard is given for a DNS record alone,
//! and the record is made by a program of whoever runs the name server (see [`hook`]).
//!
//! What is kept lies in one directory: the account, and certificate and key in one file, so that nobody ever finds a
//! certificate beside the key of another. A certificate that is good is used without a word to anyone; one that cannot
//! be renewed is used until it is.

mod hook;
mod kept;
mod order;

use crate::tls::Files;
use envforge_api::{problem::Problem, time::Timestamp};
use kept::Certificate;
use std::{path::PathBuf, time::Duration};
use tokio::time::sleep;

/// How certificates are had.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ACME server's directory.
    pub directory: String,
    /// The program that makes DNS records.
    pub hook: PathBuf,
    /// Where the account, the certificate and its key are kept.
    pub dir: PathBuf,
    /// Whom the server may write to, such as `mailto:ops@example.com`.
    pub contact: Option<String>,
    /// PEM of the authority that the ACME server's own certificate is of, where that is not a public one.
    pub root: Option<PathBuf>,
}

impl Settings {
    /// Where the certificate and its key are.
    #[must_use]
    pub fn files(&self) -> Files {
        let both = self.dir.join("certificate.pem");
        Files { certificate: both.clone(), key: both }
    }
}

/// The longest time without a look at the clock, which may be set.
const LOOK: Duration = Duration::from_secs(12 * 3600);
/// Pause after the first failure, tripled by each further one: a public server refuses all orders for an hour after five
/// that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(120);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);

/// Returns once there is a certificate that is good.
pub(crate) async fn first(settings: &Settings, base: &str) {
    let mut pause = FIRST_PAUSE;
    while due(&read(settings, base), Timestamp::now()) == Due::Missing {
        tracing::info!(base, "a certificate is asked for; visitors are served once it is there");
        renew(settings, base, &mut pause).await;
    }
}

/// Keeps it good.
pub(crate) async fn keep(settings: &Settings, base: &str) {
    let mut pause = FIRST_PAUSE;
    loop {
        match due(&read(settings, base), Timestamp::now()) {
            Due::In(time) => sleep(time.min(LOOK)).await,
            Due::Missing | Due::Now => renew(settings, base, &mut pause).await,
        }
    }
}

/// One try; a pause after it when it failed.
async fn renew(settings: &Settings, base: &str, pause: &mut Duration) {
    match order::obtain(settings, base).await {
        Ok(()) => {
            tracing::info!(base, "there is a new certificate");
            *pause = FIRST_PAUSE;
        }
        Err(problem) => {
            tracing::error!(reason = %problem.message, hint = %problem.hint, minutes = pause.as_secs() / 60,
                "no certificate; it is tried again");
            sleep(pause.mul_f64(rand::random_range(1.0..1.2))).await;
            *pause = (*pause * 3).min(LONGEST_PAUSE);
        }
    }
}

fn read(settings: &Settings, base: &str) -> Option<Certificate> {
    Certificate::read(&settings.files()).filter(|certificate| certificate.covers(base))
}

/// When the next one is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// There is none that a visitor would accept.
    Missing,
    /// A third of its life is left, or less.
    Now,
    In(Duration),
}

fn due(certificate: &Option<Certificate>, now: Timestamp) -> Due {
    let Some(Certificate { from, until, .. }) = certificate else { return Due::Missing };
    if *until <= now {
        return Due::Missing;
    }
    let third = until.duration_since(*from).as_secs() / 3;
    let left = until.duration_since(now).as_secs();
    match u64::try_from(left - third) {
        Ok(seconds @ 1..) => Due::In(Duration::from_secs(seconds)),
        Ok(0) | Err(_) => Due::Now,
    }
}

fn broken(doing: &str, why: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::unavailable(format!("cannot {doing}: {why}"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left_and_missed_when_it_is_over() {
        let from = Timestamp::now();
        let at = |days: i64| from + jiff::SignedDuration::from_hours(24 * days);
        let certificate = Some(Certificate { names: vec![], from, until: at(90) });
        assert_eq!(due(&None, from), Due::Missing);
        assert_eq!(due(&certificate, from), Due::In(Duration::from_secs(60 * 86_400)));
        assert_eq!(due(&certificate, at(60)), Due::Now);
        assert_eq!(due(&certificate, at(89)), Due::Now);
        assert_eq!(due(&certificate, at(90)), Due::Missing);
    }
}
