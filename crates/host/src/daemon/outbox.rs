//! Readings on their way to the control plane. They stay in their files until they are stored there, and then until
//! their instance has ended.

use crate::supervise::meter;
use envforge_api::{ids::RuntimeInstanceId, usage::Reading};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Readings of one sync.
const AT_ONCE: usize = 500;

/// How far each instance's readings are stored.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    sent: BTreeMap<RuntimeInstanceId, u64>,
}

fn marker(path: &Path) -> PathBuf {
    path.with_extension("sent")
}

impl Outbox {
    /// Readings of the given workspaces that are not stored yet.
    pub(super) fn collect(&mut self, workspace_dirs: &[PathBuf]) -> Vec<Reading> {
        let mut all = Vec::new();
        for dir in workspace_dirs {
            let Ok(entries) = fs::read_dir(dir.join("meter")) else { continue };
            for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
                let Some(instance) = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok()) else {
                    continue;
                };
                let sent = *self.sent.entry(instance).or_insert_with(|| {
                    fs::read_to_string(marker(&path)).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
                });
                if let Ok(readings) = meter::read(&path) {
                    all.extend(readings.into_iter().filter(|reading| reading.n >= sent));
                }
                if all.len() >= AT_ONCE {
                    all.truncate(AT_ONCE);
                    return all;
                }
            }
        }
        all
    }

    /// Notes which of the sent readings are stored now; removes files of instances that ended and are stored whole.
    pub(super) fn stored(
        &mut self,
        dir_of: impl Fn(&Reading) -> PathBuf,
        sent: &[Reading],
        stored: &[(RuntimeInstanceId, u64)],
    ) {
        for reading in sent {
            if !stored.iter().any(|(instance, n)| *instance == reading.instance && *n == reading.n) {
                continue;
            }
            let path = meter::path_of(&dir_of(reading), &reading.instance);
            let known = self.sent.entry(reading.instance.clone()).or_insert(0);
            *known = (*known).max(reading.n + 1);
            if reading.ended.is_some() {
                // Sent again after a crash between these lines, they are known there already.
                let _ = fs::remove_file(&path);
                let _ = fs::remove_file(marker(&path));
                self.sent.remove(&reading.instance);
            } else {
                let _ = fs::write(marker(&path), known.to_string());
            }
        }
    }
}
