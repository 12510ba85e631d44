//! Data services of a workspace: kinds, modes and how they are shown.

use crate::states::words;
use serde::{Deserialize, Serialize};

words!(
    /// What a resource is for.
    ResourceKind, "resource kind" {
        /// PostgreSQL.
        Database = "database",
        /// Redis that may forget.
        Cache = "cache",
        /// Redis that must not.
        Queue = "queue",
        /// S3.
        Storage = "storage",
        /// SMTP with an inbox.
        Mail = "mail",
    }
);

impl ResourceKind {
    /// The fields that an environment reference `resource.<kind>.<field>` may name.
    #[must_use]
    pub const fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Database => &["url", "host", "port", "name", "user", "password"],
            Self::Cache | Self::Queue => &["url", "host", "port"],
            Self::Storage => &["url", "endpoint", "bucket", "region", "access_key", "secret_key"],
            Self::Mail => &["smtp_url", "host", "port"],
        }
    }

    /// The port a managed server listens on inside the workspace.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Database => 5432,
            Self::Cache | Self::Queue => 6379,
            Self::Storage => 9000,
            Self::Mail => 1025,
        }
    }

    /// How the resource is written wherever it is shown.
    #[must_use]
    pub const fn safe_url(self) -> &'static str {
        match self {
            Self::Database => "postgres://***@resource.database/app",
            Self::Cache => "redis://resource.cache",
            Self::Queue => "redis://resource.queue",
            Self::Storage => "s3://***@resource.storage",
            Self::Mail => "smtp://resource.mail",
        }
    }
}

words!(
    /// Who provides a resource.
    ResourceMode, "resource mode" {
        /// A real server of the workspace's own, local to the host.
        Managed = "managed",
        /// Values the organization gives.
        Provided = "provided",
        /// Made by the organization's provisioner.
        Cloud = "cloud",
        /// Not there.
        Disabled = "disabled",
    }
);

words!(
    /// Who shares a resource inside one workspace.
    ResourceScope, "resource scope" {
        /// All services of the workspace.
        Workspace = "workspace",
        /// Each service has its own.
        Service = "service",
    }
);
