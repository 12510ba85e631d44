//! Every word that crosses a process boundary of EnvForge.
//!
//! The control plane, the host daemon, the runtime supervisor, the gateway and the command line share
//! these types and nothing else. The crate knows no SQL, no argument parsing and no kernel. Rules kept here:
//!
//! * ids print their kind (`ws_…`), secrets do not print at all;
//! * states are enums that answer questions (`can_wake()`), serialized as the words of the product contract;
//! * a type that is stored or sent refuses bad input when it is read, with a message that says how to mend it.

pub mod capability;
pub mod client;
pub mod command;
pub mod copy;
pub mod dev_host;
pub mod dial;
pub mod forward;
pub mod gateway;
pub mod generation;
pub mod home;
pub mod host;
pub mod ids;
pub mod link;
pub mod mail;
pub mod names;
pub mod problem;
pub mod project;
#[cfg(any(test, fuzzing))]
pub mod properties;
pub mod public;
pub mod receipt;
pub mod resource;
pub mod role;
pub mod secret;
pub mod secrets;
pub mod sign;
pub mod sigv4;
pub mod states;
pub mod storage;
pub mod stream;
pub mod time;
pub mod trust;
pub mod tunnel;
pub mod usage;
