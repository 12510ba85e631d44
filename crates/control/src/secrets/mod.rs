//! Secrets: values that an organization gives to services, provided resources and provisioners.
//!
//! Each is sealed at rest with a key that lies in no database ([`sealing`]), and bound to where it belongs: a row that was
//! moved to another name, project or organization cannot be opened. A value leaves by one door, to the host of a workspace
//! that declares it; nobody is ever shown one. A project's own secret stands before the organization's of the same name.

pub(crate) mod http;
pub(crate) mod sealing;
mod store;

use crate::{
    app::App,
    audit, db,
    http::{auth::Allowed, errors::Failure, errors::not_found},
    projects, workspaces,
};
use envforge_api::{
    ids::{HostId, OrganizationId, ProjectId},
    names::{SecretName, Slug},
    problem::Problem,
    secret::Secret,
    secrets::{GivenSecrets, LONGEST_VALUE, SecretView, WantedSecrets},
};
use sealing::{Belongs, Ring};
use sqlx::PgPool;

/// A row.
#[derive(Debug)]
struct Sealed {
    organization: OrganizationId,
    project: Option<ProjectId>,
    name: SecretName,
    key: String,
    text: String,
}

impl Sealed {
    fn belongs(&self) -> Belongs<'_> {
        Belongs { organization: &self.organization, project: self.project.as_ref(), name: &self.name }
    }
}

/// Seals anew what another key than the first one sealed: that one may then be taken away.
///
/// # Errors
/// As the database. What no key opens stays as it is.
pub(crate) async fn renew(pool: &PgPool, ring: &Ring) -> Result<(), Failure> {
    let (mut renewed, mut unopened) = (0_u32, 0_u32);
    for row in store::sealed_with_others(pool, ring.first()).await? {
        let Some(value) = ring.unseal(&row.key, &row.text, row.belongs()) else {
            unopened += 1;
            continue;
        };
        let sealed = ring.seal(&value, row.belongs())?;
        let (key, old) = (ring.first().to_owned(), row.text);
        db::write(pool, move |tx| Box::pin(async move { store::replace(tx, &old, &key, &sealed).await })).await?;
        renewed += 1;
    }
    if renewed > 0 {
        tracing::info!(renewed, key = ring.first(), "secrets are sealed with the first key now");
    }
    if unopened > 0 {
        tracing::error!(
            unopened,
            "secrets are sealed with keys that secrets.key does not have: add the key, or set them again"
        );
    }
    Ok(())
}

/// What a request is about.
#[derive(Debug, Clone)]
struct Place {
    organization: OrganizationId,
    project: Option<(ProjectId, Slug)>,
}

impl Place {
    async fn find(app: &App, allowed: &Allowed, project: Option<&str>) -> Result<Self, Failure> {
        let organization = allowed.caller.organization().clone();
        let Some(given) = project else { return Ok(Self { organization, project: None }) };
        let missing = || not_found(format!("project `{}`", given.chars().take(80).collect::<String>()));
        let slug: Slug = given.parse().map_err(|_| missing())?;
        let found = projects::store::find(&app.pool, &organization, Some(&slug)).await?.pop().ok_or_else(missing)?;
        Ok(Self { organization, project: Some((found.id, slug)) })
    }

    fn id(&self) -> Option<&ProjectId> {
        self.project.as_ref().map(|(id, _)| id)
    }

    fn details(&self) -> [(&'static str, String); 1] {
        let named = self.project.as_ref().map(|(_, slug)| slug.to_string());
        [("project", named.unwrap_or_else(|| "all".to_owned()))]
    }
}

/// Sets one. What runs keeps what it has until its next start.
///
/// # Errors
/// `invalid` for a value that no environment can carry.
async fn set(app: &App, by: String, place: Place, name: SecretName, value: Secret) -> Result<SecretView, Failure> {
    check(&value)?;
    let belongs = Belongs { organization: &place.organization, project: place.id(), name: &name };
    let (key, sealed) = (app.secrets.first().to_owned(), app.secrets.seal(&value, belongs)?);
    db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let set_at = store::set(&mut *tx, &place.organization, place.id(), &name, (&key, &sealed), &by).await?;
            let details = place.details();
            audit::store::add(tx, &place.organization, &by, "secret.set", name.as_str(), &details).await?;
            Ok(SecretView { name, project: place.project.map(|(_, slug)| slug), set_at, set_by: by })
        })
    })
    .await
}

fn check(value: &Secret) -> Result<(), Problem> {
    let text = value.expose();
    let bad = |what: &str, mend: &str| Err(Problem::invalid(format!("the value {what}"), mend));
    if text.is_empty() {
        return bad("is empty", "give one; `envforge secrets rm NAME` takes a secret away");
    }
    if text.len() > LONGEST_VALUE {
        return bad("is longer than 32 KiB", "keep files elsewhere, and give what opens them");
    }
    if text.contains('\0') {
        return bad(
            "has a NUL character in it",
            "environments cannot carry one: encode the value, for instance in base64",
        );
    }
    Ok(())
}

/// Takes one away.
///
/// # Errors
/// `not_found` when it is not set there.
async fn remove(app: &App, by: String, place: Place, name: SecretName) -> Result<SecretView, Failure> {
    db::write(&app.pool, move |tx| {
        Box::pin(async move {
            let missing = || not_found(format!("secret `{name}`"));
            let (set_at, set_by) =
                store::remove(&mut *tx, &place.organization, place.id(), &name).await?.ok_or_else(missing)?;
            let details = place.details();
            audit::store::add(tx, &place.organization, &by, "secret.remove", name.as_str(), &details).await?;
            Ok(SecretView { name, project: place.project.map(|(_, slug)| slug), set_at, set_by })
        })
    })
    .await
}

/// What a host's workspace declares.
///
/// # Errors
/// `not_found` for a workspace that is not on that host.
async fn give(app: &App, host: &HostId, wanted: &WantedSecrets) -> Result<GivenSecrets, Failure> {
    let row = workspaces::store::by_id(&app.pool, &wanted.workspace).await?.filter(|row| row.host == *host);
    let row = row.ok_or_else(|| not_found("that workspace"))?;
    let names: Vec<&str> = wanted.names.iter().map(SecretName::as_str).collect();
    let prefixes: Vec<String> = wanted.provisioners.iter().map(|kind| format!("provisioner.{kind}.")).collect();
    let mut given = GivenSecrets::default();
    // The organization's come first, so that the project's own replace them.
    for row in store::wanted(&app.pool, &row.organization, &row.project, &names, &prefixes).await? {
        given.values.remove(&row.name);
        given.unopened.remove(&row.name);
        match app.secrets.unseal(&row.key, &row.text, row.belongs()) {
            Some(value) => drop(given.values.insert(row.name, value)),
            None => drop(given.unopened.insert(row.name)),
        }
    }
    Ok(given)
}
