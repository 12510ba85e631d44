//! What the specification's tests stand on: a private PostgreSQL, a control plane on port 0, a simulated host.

pub(crate) mod cluster;
pub(crate) mod host;
pub(crate) mod installation;
