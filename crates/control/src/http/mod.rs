//! What all routes share: authentication, extraction, errors, the router and its table.

pub(crate) mod auth;
pub(crate) mod errors;
pub(crate) mod extract;
pub(crate) mod openapi;
pub(crate) mod router;
