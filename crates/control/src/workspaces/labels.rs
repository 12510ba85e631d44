//! Parts of public host names: `<service>--<workspace>--<organization>.<base>` fits one DNS label of 63 octets.

use envforge_api::{
    names::{ServiceName, Slug, short_hash},
    project::ProjectSpec,
};
use std::collections::BTreeMap;

const SERVICE_MAX: usize = 16;
const WORKSPACE_MAX: usize = 27;
const ORGANIZATION_MAX: usize = 16;

/// The name itself where it is short enough, else a prefix, `-` and six digits of its digest.
fn label(name: &str, max: usize) -> String {
    if name.len() <= max {
        return name.to_owned();
    }
    let head: String = name.chars().take(max - 7).collect();
    format!("{}-{}", head.trim_end_matches('-'), short_hash(name))
}

/// A workspace's label.
pub(crate) fn workspace(slug: &Slug) -> String {
    label(slug.as_str(), WORKSPACE_MAX)
}

/// The public origin of each service of a project.
pub(crate) fn urls(
    spec: &ProjectSpec,
    workspace_label: &str,
    organization: &Slug,
    base: &str,
) -> BTreeMap<ServiceName, String> {
    let organization = label(organization.as_str(), ORGANIZATION_MAX);
    spec.services
        .iter()
        .map(|service| {
            let name = label(service.name.as_str(), SERVICE_MAX);
            (service.name.clone(), format!("http://{name}--{workspace_label}--{organization}.{base}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_fit_one_dns_label() {
        let service = label(&"s".repeat(60), SERVICE_MAX);
        let workspace = workspace(&"w".repeat(63).parse().expect("a slug"));
        let organization = label(&"o".repeat(63), ORGANIZATION_MAX);
        let whole = format!("{service}--{workspace}--{organization}");
        assert_eq!(whole.len(), 63);
        assert_eq!(label("signed-links", WORKSPACE_MAX), "signed-links");
        assert!(!label("aaaaaaaa-bbbbbbbbbbb", SERVICE_MAX).contains("--"));
    }
}
