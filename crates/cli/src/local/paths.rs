//! Where things lie in the home of a local installation, and with which program it is run.

use envforge_api::problem::Problem;
use std::path::{Path, PathBuf};

/// The directories and files of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paths(PathBuf);

impl Paths {
    /// Those below `home`, which need not exist.
    pub(super) fn new(home: &Path) -> Self {
        Self(std::path::absolute(home).unwrap_or_else(|_| home.to_owned()))
    }

    pub(super) fn home(&self) -> &Path {
        &self.0
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.0.join("keeper.lock")
    }

    pub(super) fn record(&self) -> PathBuf {
        self.0.join("keeper.json")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The log of a part, or of the `keeper`.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// State directory of the control plane.
    pub(super) fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// Where the control plane writes the address it bound.
    pub(super) fn address(&self) -> PathBuf {
        self.control().join("address")
    }

    pub(super) fn owner_token(&self) -> PathBuf {
        self.control().join("owner.token")
    }

    pub(super) fn host_token(&self) -> PathBuf {
        self.control().join("host.token")
    }

    pub(super) fn gateway_token(&self) -> PathBuf {
        self.control().join("gateway.token")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.postgres().join("data")
    }
}

/// The program all parts are run with.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    /// The `envforge` binary.
    pub(super) exe: PathBuf,
}

impl Programs {
    /// This very program. After an upgrade in place that is the new one.
    ///
    /// # Errors
    /// When the kernel does not say which it is.
    pub(super) fn current() -> Result<Self, Problem> {
        let exe = std::env::current_exe()
            .map_err(|error| Problem::internal(format!("cannot find the path of this program: {error}")))?;
        let text = exe.to_string_lossy();
        Ok(Self { exe: text.strip_suffix(" (deleted)").map_or_else(|| exe.clone(), PathBuf::from) })
    }
}
