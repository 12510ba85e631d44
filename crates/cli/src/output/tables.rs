//! Tables: lists of workspaces, command records, usage sessions, audit entries, findings.

use super::{receipts, times};
use crate::local::Finding;
use comfy_table::{ContentArrangement, Table, presets};
use envforge_api::{
    command::CommandView,
    copy::{SnapshotList, SnapshotView},
    public::{AuditView, LinkView, ResourceView, UsageReport, WorkspaceView},
    secrets::SecretView,
    storage::ObjectList,
    time::Timestamp,
};

/// A table with a heading, without lines.
pub(crate) fn table(heading: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `ls`.
pub(crate) fn workspaces(all: &[WorkspaceView]) -> String {
    if all.is_empty() {
        return "no workspaces yet: `envforge up BRANCH` opens one".to_owned();
    }
    let rows = all
        .iter()
        .map(|ws| {
            let healthy =
                ws.services.iter().filter(|s| s.stated.state == envforge_api::states::ServiceState::Healthy).count();
            let services =
                if ws.services.is_empty() { "-".to_owned() } else { format!("{healthy}/{}", ws.services.len()) };
            vec![
                ws.workspace.to_string(),
                ws.project.to_string(),
                ws.branch.to_string(),
                ws.owner.clone(),
                ws.shell.state.to_string(),
                ws.runtime.stated.state.to_string(),
                services,
                ws.billing.state.to_string(),
            ]
        })
        .collect();
    table(&["WORKSPACE", "PROJECT", "BRANCH", "OWNER", "SHELL", "RUNTIME", "HEALTHY", "BILLING"], rows)
}

/// `workspace commands`.
pub(crate) fn commands(all: &[CommandView], now: Timestamp) -> String {
    let rows = all
        .iter()
        .map(|c| {
            vec![
                c.id.to_string(),
                c.kind.to_string(),
                c.state.to_string(),
                c.generation.to_string(),
                c.attempt.to_string(),
                c.requested_by.clone(),
                times::relative(c.requested_at, now),
                or_dash(c.reason.clone()),
            ]
        })
        .collect();
    table(&["ID", "KIND", "STATE", "GENERATION", "ATTEMPT", "BY", "ASKED", "REASON"], rows)
}

/// `secrets ls`.
pub(crate) fn secrets(all: &[SecretView], now: Timestamp) -> String {
    let rows = all
        .iter()
        .map(|s| {
            let project = s.project.as_ref().map_or_else(|| "(all)".to_owned(), ToString::to_string);
            vec![s.name.to_string(), project, times::relative(s.set_at, now), s.set_by.clone()]
        })
        .collect();
    table(&["NAME", "PROJECT", "SET", "BY"], rows)
}

/// One command record, a line each field.
pub(crate) fn command(c: &CommandView) -> String {
    let mut lines = vec![
        format!("{}  {}  {}", c.id, c.kind, c.state),
        format!("  workspace   {}", c.workspace),
        format!("  asked       {} by {} ({})", times::point(c.requested_at), c.requested_by, c.trigger),
        format!("  generation  {}, attempt {}", c.generation, c.attempt),
    ];
    if let Some(service) = &c.service {
        lines.push(format!("  service     {service}"));
    }
    if let Some(at) = c.finished_at {
        lines.push(format!("  finished    {}", times::point(at)));
    }
    if let Some(code) = c.exit_code {
        lines.push(format!("  exit        {code}"));
    }
    if let Some(reason) = &c.reason {
        lines.push(format!("  reason      {reason}"));
    }
    lines.extend(receipts::of_command(&c.receipt));
    lines.join("\n")
}

/// `workspace usage`.
pub(crate) fn usage(report: &UsageReport) -> String {
    let rows = report
        .sessions
        .iter()
        .map(|s| {
            vec![
                s.id.to_string(),
                s.size.to_string(),
                s.trigger.clone(),
                times::point(s.started_at),
                s.ended_at.map_or_else(|| "open".to_owned(), times::point),
                times::duration(i64::try_from(s.seconds).unwrap_or(i64::MAX)),
                or_dash(s.reason.clone()),
            ]
        })
        .collect();
    let total = times::duration(i64::try_from(report.total_seconds).unwrap_or(i64::MAX));
    let list = table(&["SESSION", "SIZE", "WOKEN BY", "STARTED", "ENDED", "METERED", "ENDED BECAUSE"], rows);
    format!("{list}\n\n{}: {total} metered ({} s)", report.workspace, report.total_seconds)
}

/// `links`, and those of `status`.
pub(crate) fn links(all: &[LinkView], now: Timestamp) -> String {
    let rows = all
        .iter()
        .map(|l| {
            let families = l.families.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            vec![
                l.id.to_string(),
                l.service.to_string(),
                families,
                l.issued_by.clone(),
                times::relative(l.expires_at, now),
            ]
        })
        .collect();
    table(&["LINK", "SERVICE", "FAMILIES", "BY", "EXPIRES"], rows)
}

/// `resources`: what each is, how it is, and who uses it.
pub(crate) fn resources(all: &[ResourceView], now: Timestamp) -> String {
    let rows = all.iter().map(|r| {
        let consumers = r.consumers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let of = r.service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        let trouble = [r.stated.reason.as_deref(), r.stated.hint.as_deref()].into_iter().flatten();
        vec![
            format!("{}{of}", r.kind),
            r.mode.to_string(),
            r.stated.state.to_string(),
            consumers,
            r.url.clone(),
            trouble.collect::<Vec<_>>().join("; "),
        ]
    });
    let mut lines = vec![table(&["RESOURCE", "MODE", "STATE", "USED BY", "REFERENCE", "WHY"], rows.collect())];
    let receipts = receipts::of_resources(all, now);
    if !receipts.is_empty() {
        lines.push(String::new());
        lines.extend(receipts);
    }
    lines.join("\n")
}

/// `s3 ls`: octets and key of each object.
pub(crate) fn objects(list: &ObjectList) -> String {
    if list.objects.is_empty() {
        return "no such objects".to_owned();
    }
    table(&["OCTETS", "KEY"], list.objects.iter().map(|one| vec![one.size.to_string(), one.key.clone()]).collect())
}

/// `snapshot ls`.
pub(crate) fn snapshots(list: &SnapshotList, now: Timestamp) -> String {
    if list.snapshots.is_empty() {
        return format!("no snapshots of {0}: `envforge snapshot create {0}` makes one", list.workspace);
    }
    let row = |s: &SnapshotView| {
        vec![
            s.id.to_string(),
            times::point(s.created_at),
            times::relative(s.created_at, now),
            s.cost.size_bytes.to_string(),
            s.reason.clone(),
        ]
    };
    table(&["SNAPSHOT", "CREATED", "", "OCTETS", "REASON"], list.snapshots.iter().map(row).collect())
}

/// `audit`.
pub(crate) fn audit(entries: &[AuditView]) -> String {
    let rows = entries
        .iter()
        .map(|e| {
            let details = e.details.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
            vec![times::point(e.at), e.actor.clone(), e.action.clone(), e.target.clone(), details]
        })
        .collect();
    table(&["TIME", "WHO", "WHAT", "ON", "DETAILS"], rows)
}

/// `doctor`.
pub(crate) fn findings(all: &[Finding]) -> String {
    let mut lines = Vec::new();
    for finding in all {
        let mark = match (finding.ok, finding.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "none",
        };
        lines.push(format!("{mark} {:<24} {}", finding.name, finding.found));
        if !finding.ok && !finding.hint.is_empty() {
            lines.push(format!("    hint: {}", finding.hint));
        }
    }
    lines.join("\n")
}
