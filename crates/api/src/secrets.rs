//! Secrets of an organization: what is asked of them and what is shown. A value goes one way each time: from the person
//! who sets it to the control plane, and from there to a host whose workspace declares it. No answer to a person has one.

use crate::{
    ids::WorkspaceId,
    names::{SecretName, Slug},
    resource::ResourceKind,
    secret::Secret,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Longest value, in octets: a chain of certificates fits, a file does not.
pub const LONGEST_VALUE: usize = 32 << 10;
/// A value below this many octets is a word like any other: it cannot be masked in what programs print.
pub const SHORTEST_MASKED: usize = 6;

/// `PUT /v1/secrets/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SetSecret {
    /// The value: 1 to [`LONGEST_VALUE`] octets without NUL.
    #[schema(value_type = String)]
    pub value: Secret,
}

/// A secret as it is shown: everything but its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretView {
    /// Its name.
    pub name: SecretName,
    /// The project it is for; absent: every project of the organization that has none of this name.
    #[serde(default)]
    pub project: Option<Slug>,
    /// When it was set last.
    #[schema(value_type = String, format = DateTime)]
    pub set_at: Timestamp,
    /// By whom.
    pub set_by: String,
}

/// `GET /v1/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretList {
    /// Those of the organization first, then by project; by name in each.
    pub secrets: Vec<SecretView>,
}

/// `POST /v1/host/secrets`: what the manifests of a workspace on the asking host declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WantedSecrets {
    /// The workspace.
    #[schema(value_type = String)]
    pub workspace: WorkspaceId,
    /// Those declared.
    pub names: BTreeSet<SecretName>,
    /// All settings of the provisioners of these kinds.
    #[serde(default)]
    pub provisioners: BTreeSet<ResourceKind>,
}

/// Answer to [`WantedSecrets`]: the project's own, else the organization's. One that is not set is in neither field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GivenSecrets {
    /// Values by name.
    #[schema(value_type = BTreeMap<String, String>)]
    pub values: BTreeMap<SecretName, Secret>,
    /// Set, and sealed with a key that the control plane does not have (any more).
    #[serde(default)]
    pub unopened: BTreeSet<SecretName>,
}
