//! Passes: a host shows one to a gateway to have its tunnel taken in. Short-lived, since a tunnel that is open needs none.

use crate::{app::App, http::errors::Failure};
use envforge_api::{
    ids::HostId,
    time::Timestamp,
    tunnel::{PASS_SECONDS, Pass, PassGranted},
};

/// A pass for the host that asks.
///
/// # Errors
/// `internal` when it cannot be signed.
pub(super) fn grant(app: &App, host: HostId) -> Result<PassGranted, Failure> {
    let expires_at = Timestamp::now() + jiff::SignedDuration::from_secs(PASS_SECONDS);
    let token = app.keys.sign(&Pass { host, expires_at })?;
    Ok(PassGranted { token, expires_at, base: app.base.authority().to_owned() })
}
