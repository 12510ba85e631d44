//! Projects: applied files, each change a revision.

pub(crate) mod http;
pub(crate) mod store;
