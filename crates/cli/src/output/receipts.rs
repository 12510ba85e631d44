//! What data services held when a runtime fell asleep, and whether they held it when it woke.

use super::times;
use envforge_api::{
    public::ResourceView,
    receipt::{Check, Holds, ResourceReceipt, SleepReceipt, TableRows, Verdict},
    time::Timestamp,
};

/// In one line.
fn line(receipt: &SleepReceipt, now: Option<Timestamp>) -> String {
    let held = receipt.manifest.as_ref().map(|manifest| {
        let when = now.map_or_else(|| times::point(manifest.taken_at), |now| times::relative(manifest.taken_at, now));
        format!("fell asleep {when} with {}", manifest.holds)
    });
    let check = receipt.check.as_ref().map(verdict);
    [held, check].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn verdict(check: &Check) -> String {
    let found = check.findings.join("; ");
    match check.verdict {
        Verdict::Verified => "woke as it was".into(),
        Verdict::Differs => format!("did NOT wake as it was: {found}"),
        Verdict::Unclean => found,
        Verdict::Unknown => format!("not verified: {found}"),
    }
}

/// `resources`, below the table.
pub(crate) fn of_resources(all: &[ResourceView], now: Timestamp) -> Vec<String> {
    let of = |r: &ResourceView| {
        let of = r.service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        r.receipt.as_ref().map(|receipt| format!("{}{of}: {}", r.kind, line(receipt, Some(now))))
    };
    all.iter().filter_map(of).collect()
}

/// `workspace command`: with each table.
pub(crate) fn of_command(all: &[ResourceReceipt]) -> Vec<String> {
    let mut lines = Vec::new();
    for one in all {
        let of = one.service.as_ref().map(|service| format!(" of {service}")).unwrap_or_default();
        lines.push(format!("  {:<11} {}", format!("{}{of}", one.kind), line(&one.receipt, None)));
        if let Some(Holds::Tables { tables, .. }) = one.receipt.manifest.as_ref().map(|manifest| &manifest.holds) {
            lines.extend(tables.iter().map(|TableRows { table, rows }| {
                let rows = rows.map_or_else(|| "not counted".to_owned(), |rows| rows.to_string());
                format!("                {table}  {rows}")
            }));
        }
    }
    lines
}

/// What a wake has to say loudly.
pub(crate) fn warnings(workspace: &str, all: &[ResourceReceipt]) -> Vec<String> {
    let differs = |one: &&ResourceReceipt| one.receipt.check.as_ref().is_some_and(|c| c.verdict == Verdict::Differs);
    all.iter()
        .filter(differs)
        .filter_map(|one| {
            let found = verdict(one.receipt.check.as_ref()?);
            Some(format!("WARNING: the {} of {workspace} {found}; `envforge why {workspace}` tells more", one.kind))
        })
        .collect()
}

/// Resources as a command record has them.
pub(crate) fn of_view(all: &[ResourceView]) -> Vec<ResourceReceipt> {
    let of = |r: &ResourceView| {
        Some(ResourceReceipt { kind: r.kind, service: r.service.clone(), receipt: r.receipt.clone()? })
    };
    all.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    fn receipt(verdict: &str, findings: &[&str]) -> ResourceReceipt {
        serde_json::from_value(serde_json::json!({
            "kind": "database",
            "manifest": {"taken_at": "2026-03-01T11:00:00Z", "took_ms": 9, "holds": "tables", "wal": "0/16B3748",
                "tables": [{"table": "app.public.orders", "rows": 5}, {"table": "app.public.large"}]},
            "check": {"at": "2026-03-01T11:55:00Z", "verdict": verdict, "findings": findings},
        }))
        .expect("a receipt")
    }

    #[test]
    fn a_command_shows_what_was_held_by_table_and_whether_it_was_so_after_the_wake() {
        let said = of_command(&[receipt("verified", &[])]);
        let first = "  database    fell asleep 2026-03-01 11:00:00Z with 5 rows, 2 tables (1 not counted), log at 0/16B3748; \
                     woke as it was";
        assert_eq!(said[0], first);
        assert_eq!(
            said[1..],
            ["                app.public.orders  5", "                app.public.large  not counted"]
        );
    }

    #[test]
    fn only_a_difference_is_a_warning() {
        let differs = receipt("differs", &["app.public.orders: 2 rows, had 5"]);
        let all = [receipt("verified", &[]), receipt("unclean", &["x"]), receipt("unknown", &["y"]), differs];
        let said = "WARNING: the database of w did NOT wake as it was: app.public.orders: 2 rows, had 5; \
                    `envforge why w` tells more";
        assert_eq!(warnings("w", &all), [said]);
        let mut ws = sample::workspace();
        ws.resources[0].receipt = Some(all[1].receipt.clone());
        let below = of_resources(&ws.resources, sample::now());
        assert!(below.len() == 1 && below[0].starts_with("database: fell asleep 1h 00m ago with"), "{below:?}");
    }
}
