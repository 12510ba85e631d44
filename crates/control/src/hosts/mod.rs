//! Hosts: registration, sync, leased acts, and the bells that wake parked requests.

pub(crate) mod ask;
pub(crate) mod bells;
pub(crate) mod http;
pub(crate) mod listen;
mod pass;
mod reboot;
pub(crate) mod register;
pub(crate) mod store;
pub(crate) mod sync;
