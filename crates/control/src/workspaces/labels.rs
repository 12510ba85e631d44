//! Parts of public host names: `<service>--<workspace>--<organization>.<base>` fits one DNS label of 63 octets.

use envforge_api::{
    dev_host,
    names::{ServiceName, Slug},
    project::ProjectSpec,
};
use std::collections::BTreeMap;

/// The public origin of each service of a project.
pub(crate) fn urls(
    spec: &ProjectSpec,
    workspace_label: &str,
    organization: &Slug,
    base: &str,
) -> BTreeMap<ServiceName, String> {
    let organization = dev_host::organization_part(organization);
    spec.services
        .iter()
        .map(|service| {
            let name = dev_host::service_part(&service.name);
            (service.name.clone(), format!("http://{name}--{workspace_label}--{organization}.{base}"))
        })
        .collect()
}
