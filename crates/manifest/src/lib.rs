//! envforge.yml and project files: text in, checked description or findings out.
//!
//! Nothing here reads a file or knows a clock. [`parse_service`] and [`parse_project`] turn untrusted text into
//! checked values or into every finding they have, with line, column, reason and mend; [`resolve`] joins a project
//! with the manifests of its services into what a host starts.

mod faces;
mod findings;
mod join;
mod model;
mod project;
mod resolve;
mod schema;
mod section;
mod service;
mod tree;

pub use envforge_api::{dev_host::ProxyMode, link::Family as RouteFamily};
pub use faces::faces;
pub use model::*;
pub use resolve::*;
pub use schema::{project_schema, service_schema};

use envforge_api::{problem::Diagnostic, project::ProjectSpec};

/// Reads one envforge.yml. `file` is how the user knows it, for findings.
///
/// # Errors
/// Every finding, in the order of the file.
pub fn parse_service(file: &str, text: &str) -> Result<ServiceManifest, Vec<Diagnostic>> {
    service::parse(file, text)
}

/// Reads one project file. `file` is how the user knows it, for findings.
///
/// # Errors
/// Every finding, in the order of the file.
pub fn parse_project(file: &str, text: &str) -> Result<ProjectSpec, Vec<Diagnostic>> {
    project::parse(file, text)
}

/// One line for each difference, such as `+ service backend`; empty = the same.
#[must_use]
pub fn changes(old: Option<&ProjectSpec>, new: &ProjectSpec) -> Vec<String> {
    project::changes(old, new)
}
