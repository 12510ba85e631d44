//! Keeps one workspace from using up the disk that all of a host share.
//!
//! Where the file system counts shares (btrfs with quotas), each workspace has a limit, and its own writes fail at it. Everywhere
//! a reserve is kept: below it, whoever took the space stands still, everyone else goes on, and all of it ends when
//! there is space again. [`judge`] decides, [`guard`] does.

mod guard;
mod judge;
mod room;
mod sizes;
mod writers;

pub(super) use guard::{begin, keep};
pub(super) use room::Room;

/// What an operator may set, in octets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Kept free; 0 = nothing is.
    pub reserve: Option<u64>,
    /// What a workspace takes at most, where the file system counts that.
    pub limit: Option<u64>,
}
