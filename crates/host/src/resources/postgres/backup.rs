//! A copy of a cluster that serves: its files are copied between two words of PostgreSQL, and what it wrote meanwhile is
//! replayed by the copy when it first starts.
//!
//! Both words and a slot, which keeps the write-ahead log until it is copied, hang on one connection: when that ends,
//! however it ends, the cluster forgets them.

use super::{Door, password_of, trouble};
use crate::system::sandbox::Sandbox;
use envforge_api::states::Trouble;
use sqlx::{Connection, PgConnection, Row};
use std::{
    io,
    path::{Path, PathBuf},
};

const HINT: &str = "`envforge logs WS database` has what PostgreSQL said; try again";
/// The first version in which the words are called as they are now, as it numbers itself.
const RENAMED: i32 = 150_000;

/// A cluster in backup mode.
#[derive(Debug)]
pub struct Backup {
    connection: PgConnection,
    version: i32,
    wal: PathBuf,
    first: String,
}

/// What a copy needs besides files.
#[derive(Debug)]
pub struct Finished {
    /// Content of `backup_label`.
    pub label: String,
    /// The last segment that it needs.
    pub last: String,
}

fn failed(error: impl std::fmt::Display) -> Trouble {
    trouble("copy the database", error, HINT)
}

impl Backup {
    /// Begins. From here on files may be copied in any order.
    ///
    /// # Errors
    /// When the cluster does not answer or refuses.
    pub async fn begin(sandbox: &Sandbox) -> Result<Self, Trouble> {
        let dir = &sandbox.dir;
        let own = password_of(dir).map_err(failed)?;
        let door = Door::open(sandbox).map_err(failed)?;
        let mut connection = door.connect(&own, "postgres").await.map_err(failed)?;
        let version: String =
            sqlx::query_scalar("SHOW server_version_num").fetch_one(&mut connection).await.map_err(failed)?;
        let version = version.parse().unwrap_or(RENAMED);
        // A name of its own: a slot of a killed backend may be there for a moment longer.
        let slot = format!("envforge_{}", envforge_api::secret::Secret::random(5).expose());
        sqlx::query("SELECT pg_create_physical_replication_slot($1, true, true)")
            .bind(slot)
            .execute(&mut connection)
            .await
            .map_err(failed)?;
        let begin = if version < RENAMED {
            "SELECT pg_walfile_name(pg_start_backup('envforge', true, false))"
        } else {
            "SELECT pg_walfile_name(pg_backup_start('envforge', true))"
        };
        let first = sqlx::query_scalar(begin).fetch_one(&mut connection).await.map_err(failed)?;
        Ok(Self { connection, version, wal: dir.join("data").join("postgresql").join("pg_wal"), first })
    }

    /// Segments that are full by now, from the first that the copy needs on: they do not change any more.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn full_segments(&mut self) -> Result<Vec<String>, Trouble> {
        let current: String = sqlx::query_scalar("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed)?;
        Ok(self.segments().map_err(failed)?.into_iter().filter(|name| *name < current).collect())
    }

    /// Ends. What is in the files by now, together with the segments up to the last, is the cluster of this moment.
    ///
    /// # Errors
    /// When the connection broke, or the cluster lies in several places.
    pub async fn finish(&mut self) -> Result<Finished, Trouble> {
        let end = if self.version < RENAMED {
            "SELECT pg_walfile_name(lsn) AS last, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
        } else {
            "SELECT pg_walfile_name(lsn) AS last, labelfile, spcmapfile FROM pg_backup_stop(false)"
        };
        let row = sqlx::query(end).fetch_one(&mut self.connection).await.map_err(failed)?;
        let spaces: Option<String> = row.try_get("spcmapfile").map_err(failed)?;
        if spaces.is_some_and(|spaces| !spaces.trim().is_empty()) {
            return Err(failed("it has tablespaces outside of its directory"));
        }
        Ok(Finished { label: row.try_get("labelfile").map_err(failed)?, last: row.try_get("last").map_err(failed)? })
    }

    /// The segments on disk from the first that the copy needs on. Those after the current one are for later use.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn segments(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.wal)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            if is_segment && name >= self.first {
                found.push(name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Lets go of the log. The end of the connection does the same.
    pub async fn close(self) {
        let _ = self.connection.close().await;
    }
}

/// What a copy of a cluster must not have of a cluster that serves; as `pg_basebackup` leaves out.
#[must_use]
pub fn is_left_out(path: &Path) -> bool {
    const EMPTIED: [&str; 8] = [
        "pg_wal",
        "pg_replslot",
        "pg_stat_tmp",
        "pg_dynshmem",
        "pg_notify",
        "pg_serial",
        "pg_snapshots",
        "pg_subtrans",
    ];
    let emptied = path.parent().and_then(Path::to_str).is_some_and(|parent| EMPTIED.contains(&parent));
    emptied || is_of_a_process(path)
}

/// What no copy of a cluster has: what is about the server that runs on it, and slots that keep log for someone.
#[must_use]
pub fn is_of_a_process(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ["postmaster.pid", "postmaster.opts"].contains(&name.as_str()) && path.parent() == Some(Path::new(""))
        || path.parent() == Some(Path::new("pg_replslot"))
        || name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
}
