//! Signed links, and members who open a service without one. Who may share a workspace decides; what is signed opens
//! one dev host, and a code that is used once makes it a visit there.

pub(crate) mod codes;
pub(crate) mod http;
pub(crate) mod share;
pub(crate) mod store;
mod target;
