//! For tests only: whole installations in temporary homes, databases, control planes and simulated hosts.

pub mod disk;
pub mod elsewhere;
pub mod fixture;
pub mod forward;
pub mod local;
pub mod machine;
pub mod outside;
pub mod seat;
pub mod storage;
pub mod terminal;
pub mod visitor;
