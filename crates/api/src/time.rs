//! Points in time and the clock behind them.
//!
//! Wall time (`Timestamp`, RFC 3339 in JSON) is for people. Everything that is measured on a host uses the boot
//! clock: milliseconds since the kernel started, which no one can step, together with the boot id.

use serde::{Deserialize, Serialize};
use std::fmt;

pub use jiff::Timestamp;

/// Milliseconds on the boot clock of one machine (`CLOCK_BOOTTIME`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct BootMillis(pub u64);

impl BootMillis {
    /// Milliseconds from `earlier` to this point; 0 if that lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The kernel's random id of one boot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
