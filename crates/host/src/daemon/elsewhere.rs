//! Values of resources whose servers are not the workspace's own, and what names the data that is there: other values that
//! lead to the same data leave set-up steps done, and a new mode or another server has them run again.

use super::{cloud, secrets::Given, values::Values};
use crate::resources::outside::{self, Fields, Flaw};
use envforge_api::{
    names::{SecretName, ServiceName},
    resource::{ResourceKind, ResourceMode},
    secret::Secret,
    states::Trouble,
};
use envforge_manifest::ResolvedResource;
use std::collections::BTreeMap;

/// What a resource is known by.
pub(super) type Key = (ResourceKind, Option<ServiceName>);

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Elsewhere {
    /// Its fields, or why there are none.
    pub(super) fields: Result<Fields, Trouble>,
    /// They are asked for.
    pub(super) coming: bool,
    /// Names its data.
    pub(super) data: String,
}

/// All of these resources that lie elsewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct All(BTreeMap<Key, Elsewhere>);

impl All {
    /// Decides what each has.
    #[must_use]
    pub(super) fn of(resources: &[ResolvedResource], given: &Given, made: &BTreeMap<Key, cloud::Known>) -> Self {
        let one = |resource: &ResolvedResource| {
            let elsewhere = match resource.mode {
                ResourceMode::Managed | ResourceMode::Disabled => return None,
                ResourceMode::Provided => provided(resource, given),
                ResourceMode::Cloud => from_provisioner(made.get(&(resource.kind, resource.service.clone()))),
            };
            Some(((resource.kind, resource.service.clone()), elsewhere))
        };
        Self(resources.iter().filter_map(one).collect())
    }

    /// Whether a service's resource of this kind is on its way.
    #[must_use]
    pub(super) fn is_coming(&self, kind: ResourceKind, service: &ServiceName) -> bool {
        let own = self.0.get(&(kind, Some(service.clone())));
        own.or_else(|| self.0.get(&(kind, None))).is_some_and(|elsewhere| elsewhere.coming)
    }

    /// The one that this is about.
    #[must_use]
    pub(super) fn get(&self, resource: &ResolvedResource) -> Option<&Elsewhere> {
        self.0.get(&(resource.kind, resource.service.clone()))
    }

    /// Names the data that a service uses: its runtime steps are done for these.
    #[must_use]
    pub(super) fn data_of(
        &self,
        values: &Values,
        service: &ServiceName,
        kinds: impl Iterator<Item = ResourceKind> + Clone,
    ) -> String {
        let mut name = values.data_of(kinds.clone());
        for kind in kinds {
            let own = self.0.get(&(kind, Some(service.clone())));
            if let Some(elsewhere) = own.or_else(|| self.0.get(&(kind, None))) {
                name.push_str(&format!(" {kind} {}", elsewhere.data));
            }
        }
        name
    }

    /// What must not be shown.
    pub(super) fn masked(&self) -> impl Iterator<Item = Secret> {
        self.0.values().filter_map(|elsewhere| elsewhere.fields.as_ref().ok()).flat_map(outside::masked)
    }
}

/// The names under which the values of a provided resource are set.
pub(super) fn names(resource: &ResolvedResource) -> impl Iterator<Item = (&'static str, SecretName)> {
    let (kind, service) = (resource.kind, resource.service.clone());
    let fields = kind.fields().iter().copied();
    fields
        .filter_map(move |field| SecretName::of_resource(kind, service.as_ref(), field).ok().map(|name| (field, name)))
}

/// What was answered once is used without waiting for a program; until then the resource is on its way, or blocked by why
/// its program cannot be had.
fn from_provisioner(known: Option<&cloud::Known>) -> Elsewhere {
    let known = known.cloned().unwrap_or_default();
    let data = format!("cloud {}", known.data);
    match (known.fields, known.trouble) {
        (Some(fields), _) => Elsewhere { fields: Ok(fields), coming: false, data },
        (None, Some(trouble)) => Elsewhere { fields: Err(trouble), coming: false, data },
        (None, None) => Elsewhere { fields: Ok(Fields::new()), coming: true, data },
    }
}

fn provided(resource: &ResolvedResource, given: &Given) -> Elsewhere {
    let kind = resource.kind;
    let name = |field: &str| {
        SecretName::of_resource(kind, resource.service.as_ref(), field).map_or_else(|_| field.to_owned(), String::from)
    };
    let set: Fields = names(resource)
        .filter_map(|(field, name)| Some((field.to_owned(), given.get(name.as_str())?.clone())))
        .collect();
    let fields = outside::complete(kind, &set).map_err(|flaw| match flaw {
        Flaw::Missing(field) => {
            let missing = given.missing(&name(field));
            Trouble::new(format!("it is provided, and {}", missing.reason), missing.hint)
        }
        Flaw::Wrong(field, why) => {
            let (name, set) = (name(field), given.missing(&name(field)).hint);
            Trouble::new(format!("it is provided, and the secret {name} {why}"), set)
        }
    });
    let data = fields.as_ref().map(|fields| format!("provided {}", outside::place(fields))).unwrap_or_default();
    Elsewhere { fields, coming: false, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_api::resource::ResourceScope;

    fn database(service: Option<&str>) -> ResolvedResource {
        ResolvedResource {
            kind: ResourceKind::Database,
            mode: ResourceMode::Provided,
            scope: if service.is_some() { ResourceScope::Service } else { ResourceScope::Workspace },
            service: service.map(|name| name.parse().expect("a name")),
            consumers: vec![],
            extensions: vec![],
            seeds: vec![],
        }
    }

    fn data(given: &Given, resources: &[ResolvedResource]) -> String {
        let web = "web".parse().expect("a name");
        All::of(resources, given, &BTreeMap::new()).data_of(
            &Values::default(),
            &web,
            [ResourceKind::Database].into_iter(),
        )
    }

    #[test]
    fn data_that_lie_elsewhere_have_a_name_of_their_own_for_each_place() {
        let given = |url: &str| Given::with(&[("resource.database.url", url)]);
        let managed = ResolvedResource { mode: ResourceMode::Managed, ..database(None) };
        let names = [
            data(&given("postgres://u:p@h/a"), &[managed]),
            data(&given("postgres://u:p@h/a"), &[database(None)]),
            data(&given("postgres://u:p@h/b"), &[database(None)]),
        ];
        assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
        assert_eq!(names[1], data(&given("postgres://u2:p2@h/a"), &[database(None)]), "the same data, by another user");
    }

    #[test]
    fn each_service_has_values_of_its_own_where_the_scope_says_so() {
        let given = Given::with(&[("resource.database.url", "postgres://u:p@h/a")]);
        let all = All::of(&[database(Some("web"))], &given, &BTreeMap::new());
        let trouble = all.get(&database(Some("web"))).expect("there").fields.clone().expect_err("not set");
        assert!(trouble.hint.contains("secrets set resource.database.web.url"), "{}", trouble.hint);
        let given = Given::with(&[("resource.database.web.url", "postgres://u:p@h/a")]);
        let all = All::of(&[database(Some("web"))], &given, &BTreeMap::new());
        assert_eq!(
            all.get(&database(Some("web"))).expect("there").fields.as_ref().expect("whole")["user"].expose(),
            "u"
        );
        let flaw = Given::with(&[("resource.database.url", "hunter2")]);
        let trouble = All::of(&[database(None)], &flaw, &BTreeMap::new())
            .get(&database(None))
            .expect("there")
            .fields
            .clone()
            .expect_err("no URL");
        assert!(trouble.reason.contains("is not of the form postgres://") && !trouble.reason.contains("hunter2"));
    }
}
