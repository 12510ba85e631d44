//! The control plane against a real PostgreSQL and a simulated host.

#[path = "../support/mod.rs"]
mod support;

mod authorization;
mod commands;
mod copies;
mod gateways;
mod hosts;
mod keys;
mod links;
mod opening;
mod projects;
mod races;
mod records;
mod secrets;
mod usage;
