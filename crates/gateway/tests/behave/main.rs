//! The gateway as its neighbours meet it: a stand-in for the control plane, one for the host's dial socket, services that
//! behave as a test wants, and visitors down to the octets.

mod acme;
mod authority;
mod bodies;
mod hostile;
mod support;
mod tls;
mod tokens;
mod tunnel;
