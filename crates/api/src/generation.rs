//! Counters that order what different processes believe.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, utoipa::ToSchema,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The value that follows this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Version of one workspace's desired state; bumped in the transaction that changes it.
    Generation
);
counter!(
    /// Fences the sender of host reports: one value per registration of a host.
    HostEpoch
);
counter!(
    /// Position in the stream of intents for one host; 0 asks for everything.
    IntentSeq
);
counter!(
    /// Version of a project's applied file.
    Revision
);

/// What a host does with an intent whose generation it compares with the accepted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fence {
    /// Newer than the accepted one: accept it.
    Newer,
    /// The same generation and the same content: nothing to do.
    Same,
    /// Older than the accepted one: refuse it.
    Older,
    /// The same generation with other content: an error of the sender.
    Conflict,
}

impl Fence {
    /// Compares an offered generation with the accepted one; `same_content` says whether both mean the same.
    #[must_use]
    pub fn judge(accepted: Generation, offered: Generation, same_content: bool) -> Self {
        match offered.cmp(&accepted) {
            std::cmp::Ordering::Greater => Self::Newer,
            std::cmp::Ordering::Less => Self::Older,
            std::cmp::Ordering::Equal if same_content => Self::Same,
            std::cmp::Ordering::Equal => Self::Conflict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_generation_with_other_content_is_a_conflict() {
        let g = Generation(4);
        assert_eq!(Fence::judge(g, g, true), Fence::Same);
        assert_eq!(Fence::judge(g, g, false), Fence::Conflict);
        assert_eq!(Fence::judge(g, g.next(), false), Fence::Newer);
        assert_eq!(Fence::judge(g.next(), g, true), Fence::Older);
    }
}
