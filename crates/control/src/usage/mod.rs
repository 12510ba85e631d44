//! The meter's books: readings stored once, sessions made of them.

pub(crate) mod http;
pub(crate) mod record;
pub(crate) mod store;
