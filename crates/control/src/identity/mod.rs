//! Organizations, people and tokens. A local installation has one organization and one owner.

pub(crate) mod http;
pub(crate) mod store;
