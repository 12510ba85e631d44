//! A service's environment as it was resolved for its last start, masked unless the caller may see it.

use envforge_api::{
    names::ServiceName,
    problem::{Problem, ProblemKind},
    secret::Secret,
    stream::ServiceEnv,
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};

/// `<workspace_dir>/state/env/<service>.json`, root's, 0600: written with each start of the service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFile {
    /// In the order they are shown.
    pub variables: Vec<EnvVariable>,
}

/// One variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVariable {
    /// Its name.
    pub name: String,
    /// What the service gets.
    pub value: Secret,
    /// What people get: the same where nothing of it is secret, else with the secret parts masked.
    pub shown: String,
}

/// Where the environment of a service is kept.
#[must_use]
pub fn path_of(workspace_dir: &Path, service: &ServiceName) -> PathBuf {
    workspace_dir.join("state").join("env").join(format!("{service}.json"))
}

/// Reads it; `reveal` gives the values as they are.
pub(super) async fn read(workspace_dir: &Path, service: ServiceName, reveal: bool) -> Result<ServiceEnv, Problem> {
    let bytes = match tokio::fs::read(path_of(workspace_dir, &service)).await {
        Ok(bytes) => zeroize::Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Problem::new(
                ProblemKind::NotFound,
                format!("no environment was written yet for service `{service}`"),
                "wake the runtime once: `envforge wake`; `envforge status` shows the services",
            ));
        }
        Err(error) => return Err(Problem::internal(format!("the environment cannot be read: {}", error.kind()))),
    };
    // The reader's words would quote the file.
    let file: EnvFile =
        serde_json::from_slice(&bytes).map_err(|_| Problem::internal("the environment's file is damaged"))?;
    let value = |variable: &EnvVariable| {
        if reveal { variable.value.expose().to_owned() } else { variable.shown.clone() }
    };
    let variables = file.variables.iter().map(|variable| (variable.name.clone(), value(variable))).collect();
    Ok(ServiceEnv { service, variables })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_are_masked_unless_revealed_and_a_missing_file_says_what_to_do() {
        let dir = tempfile::tempdir().expect("directory");
        let service: ServiceName = "web".parse().expect("name");
        let missing = read(dir.path(), service.clone(), false).await.expect_err("no file");
        assert_eq!(missing.kind, ProblemKind::NotFound);
        assert!(missing.hint.contains("wake the runtime once"), "{}", missing.hint);
        let variable = EnvVariable {
            name: "DATABASE_URL".into(),
            value: Secret::new("postgres://u:secret@localhost/d".into()),
            shown: "postgres://u:***@localhost/d".into(),
        };
        let path = path_of(dir.path(), &service);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        let file = EnvFile { variables: vec![variable] };
        std::fs::write(&path, serde_json::to_vec(&file).expect("json")).expect("write");
        let masked = read(dir.path(), service.clone(), false).await.expect("masked");
        assert_eq!(masked.variables, [("DATABASE_URL".to_owned(), "postgres://u:***@localhost/d".to_owned())]);
        let plain = read(dir.path(), service, true).await.expect("plain");
        assert_eq!(plain.variables[0].1, "postgres://u:secret@localhost/d");
    }
}
