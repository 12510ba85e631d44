//! Workspaces: what should be, what is, and how one becomes the other.

pub(crate) mod act;
pub(crate) mod grant;
pub(crate) mod http;
pub(crate) mod lifecycle;
pub(crate) mod open;
pub(crate) mod placement;
pub(crate) mod removal;
pub(crate) mod store;
pub(crate) mod view;
