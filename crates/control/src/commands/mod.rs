//! Command records: what was asked, by whom, and how it ended.

pub(crate) mod cancel;
pub(crate) mod http;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod store;
