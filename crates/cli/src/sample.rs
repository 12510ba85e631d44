//! A workspace for tests, with one of everything that can be shown.

use envforge_api::{public::WorkspaceView, time::Timestamp};

/// The moment at which the sample is looked at.
pub(crate) fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().expect("a time")
}

/// One healthy service, one that crashes because its step failed, one blocked resource.
pub(crate) fn workspace() -> WorkspaceView {
    serde_json::from_value(serde_json::json!({
        "id": "ws_00000000000000000000000000", "workspace": "signed-links", "project": "scheduler",
        "organization": "acme", "branch": "signed-links", "owner": "ada", "version": 7,
        "shell": {"state": "ready", "since": "2026-03-01T11:00:00Z"},
        "runtime": {"state": "awake", "since": "2026-03-01T11:55:00Z", "size": "medium", "generation": 3},
        "services": [
            {"name": "web", "kind": "service", "state": "healthy", "since": "2026-03-01T11:55:10Z", "health": "passing",
             "url": "http://web--signed-links--acme.dev.localhost", "restarts": 0, "stale": true, "port": 3000},
            {"name": "backend", "kind": "service", "state": "crashed", "since": "2026-03-01T11:58:00Z", "health": "none",
             "reason": "its process ended with status 7", "hint": "`envforge logs signed-links backend` shows its output",
             "restarts": 2, "exit_code": 7, "stale": false}
        ],
        "resources": [
            {"kind": "database", "mode": "managed", "state": "ready", "since": "2026-03-01T11:55:01Z",
             "consumers": ["backend"], "url": "postgres://***@resource.database/app"},
            {"kind": "mail", "mode": "managed", "state": "blocked", "since": "2026-03-01T11:55:01Z",
             "reason": "mailpit is not installed", "hint": "install it", "consumers": ["backend"], "url": "smtp://resource.mail"}
        ],
        "steps": [
            {"name": "web.install", "shell_layer": true, "state": "succeeded", "exit_code": 0},
            {"name": "backend.migrate", "shell_layer": false, "state": "failed", "exit_code": 1, "last_lines": ["no such table"]}
        ],
        "billing": {"state": "metering", "session_started_at": "2026-03-01T11:55:00Z", "session_seconds": 298},
        "links": [],
        "activity": {"holders": ["a hold until 2026-03-01T14:00:00Z"], "sleeps_at": null,
            "last_wake": {"at": "2026-03-01T11:55:00Z", "reason": "`up` by ada"},
            "last_sleep": {"at": "2026-03-01T09:00:00Z", "reason": "idle for 15m"}}
    }))
    .expect("a workspace view")
}
