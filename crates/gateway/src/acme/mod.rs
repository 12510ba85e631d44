//! Certificates by ACME, for the base and everything one label below it: such a wildcard is given for a DNS record alone,
//! and the record is made by a program of whoever runs the name server (see [`hook`]).
//!
//! What is kept lies in one directory: the account, and certificate and key in one file, so that nobody ever finds a
//! certificate beside the key of another. A certificate that is good is used without a word to anyone; one that cannot
//! be renewed is used until it is. Visitors' TLS reads the file as it would one that somebody else renews.
//!
//! [`standing`] decides, [`order`] acts, [`http`] is the way to the server, [`kept`] the directory.

mod hook;
mod http;
mod kept;
mod order;
mod standing;

pub use standing::Pace;

use crate::{known::Knowledge, tls::Files};
use envforge_api::{problem::Problem, time::Timestamp};
use http::Http;
use kept::Dir;
use standing::{Standing, Wanted, judge};
use std::{path::PathBuf, time::Duration};
use tokio_util::sync::CancellationToken;

/// How certificates are had.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The ACME server's directory.
    pub directory: String,
    /// The program that makes DNS records.
    pub hook: PathBuf,
    /// Where the account, the certificate and its key are kept.
    pub dir: PathBuf,
    /// Whom the server may write to, such as `mailto:ops@example.com`; told to it with a new account.
    pub contact: Option<String>,
    /// PEM of the authorities that the ACME server's own certificate may be of, instead of the public ones.
    pub root: Option<PathBuf>,
    /// How often is tried again.
    pub pace: Pace,
}

/// The longest time without a look at the clock, which may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// Keeps one certificate good.
#[derive(Debug)]
pub(crate) struct Keeper {
    settings: Settings,
    http: Http,
    hook: PathBuf,
    dir: Dir,
}

impl Keeper {
    /// # Errors
    /// When the directory, the hook or the authorities to trust cannot be used.
    pub(crate) fn open(settings: Settings) -> Result<Self, Problem> {
        let http = Http::new(settings.root.as_deref())?;
        let hook = hook::find(&settings.hook)?;
        let dir = Dir::open(settings.dir.clone())?;
        Ok(Self { settings, http, hook, dir })
    }

    /// Where the certificate and its key are.
    pub(crate) fn files(&self) -> Files {
        self.dir.files()
    }

    /// Keeps it good until `stop`; `there` is told once there is one that visitors can be served with.
    pub(crate) async fn keep(&self, knowledge: &Knowledge, stop: &CancellationToken, there: impl FnOnce()) {
        let mut there = Some(there);
        let mut failures = 0;
        let mut changes = knowledge.changes();
        while !stop.is_cancelled() {
            let base = knowledge.now().base.clone();
            let wanted = Wanted::new(&self.settings.directory, &base);
            let standing = self.standing(&wanted);
            match &standing {
                Standing::Good { .. } | Standing::Due(_) => there.take().into_iter().for_each(|there| there()),
                Standing::Unusable(why) if there.is_some() => {
                    tracing::info!(base = wanted.base(), %why, "visitors are served once there is a certificate");
                }
                Standing::Unusable(_) => {}
            }
            let pause = match standing {
                Standing::Good { renew_at } => {
                    failures = 0;
                    Duration::try_from(Timestamp::now().duration_until(renew_at)).unwrap_or_default().min(LOOK)
                }
                Standing::Due(why) | Standing::Unusable(why) => {
                    tracing::info!(base = wanted.base(), server = %wanted.directory, %why, "a certificate is asked for");
                    match self.renew(&wanted, stop).await {
                        Ok(()) => continue,
                        Err(_) if stop.is_cancelled() => return,
                        Err(problem) => {
                            failures += 1;
                            let pause = self.settings.pace.pause(failures, rand::random(), self.http.later());
                            tracing::error!(reason = %problem.message, hint = %problem.hint, seconds = pause.as_secs(),
                                "no certificate; it is tried again");
                            pause
                        }
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                // Another name is another matter. The other side of it lives as long as the gateway.
                _ = changes.wait_for(|known| known.base != base) => failures = 0,
            }
        }
    }

    fn standing(&self, wanted: &Wanted) -> Standing {
        match self.dir.certificate() {
            Ok(certificate) => judge(&certificate, wanted, Timestamp::now()),
            Err(why) => Standing::Unusable(why),
        }
    }

    /// One try.
    async fn renew(&self, wanted: &Wanted, stop: &CancellationToken) -> Result<(), Problem> {
        // What an earlier try was told is over.
        self.http.later();
        self.obtain(wanted, stop).await?;
        match self.standing(wanted) {
            Standing::Good { renew_at } => {
                tracing::info!(base = wanted.base(), %renew_at, "there is a new certificate");
                Ok(())
            }
            // To ask at once for another one would go on until the server has enough of it.
            Standing::Due(why) | Standing::Unusable(why) => {
                Err(broken("use the certificate that was given", why, "is the clock of this machine right?"))
            }
        }
    }
}

fn broken(doing: &str, why: impl std::fmt::Display, hint: &str) -> Problem {
    Problem::unavailable(format!("cannot {doing}: {why}"), hint)
}
