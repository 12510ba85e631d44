//! The audit log: who changed what, written in the transaction of the change, never altered.

pub(crate) mod http;
pub(crate) mod store;
