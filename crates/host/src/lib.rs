//! The host: what EnvForge does on one machine.
//!
//! * [`system`] is the only place that touches the kernel: users, namespaces, cgroups, mounts, networks, entering.
//! * [`supervise`] is the runtime supervisor, one process per awake runtime.
//! * [`resources`] are the data services behind one `Driver` trait.
//! * [`daemon`] is the host daemon: ledger, reconcile, control link, shells, streams.

pub mod daemon;
pub mod resources;
pub mod supervise;
pub mod system;
