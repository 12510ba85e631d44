//! Gateways: what they are told (keys, revocations, how workspaces stand), what they ask (codes, visits, routes,
//! wakes) and what they report. A gateway sees its organization and nothing else; what it may not see is not found.

mod activity;
mod feed;
pub(crate) mod http;
mod inside;
mod route;
pub(crate) mod store;
mod wake;

pub(crate) use activity::traffic;
