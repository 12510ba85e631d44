//! What a data service held when its runtime fell asleep, and whether that was so when it woke.
//!
//! A receipt is metadata and safe to paste: counts, positions, digests and the names of tables, which are in the
//! repository's migrations anyway. No row, key, name of an object or address of a mail is in one, and no secret.

use crate::{names::ServiceName, resource::ResourceKind, states::words, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Tables named in one manifest at most, the smallest first.
pub const MOST_TABLES: usize = 100;

/// What a data service held at one moment, when nothing used it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Manifest {
    /// When it was counted.
    #[schema(value_type = String, format = DateTime)]
    pub taken_at: Timestamp,
    /// Milliseconds that counting took; it is given up after half a second.
    pub took_ms: u64,
    /// What it held.
    #[serde(flatten)]
    pub holds: Holds,
}

/// What is counted of each kind. What was not counted in time is absent, and never guessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", tag = "holds")]
pub enum Holds {
    /// PostgreSQL.
    Tables {
        /// Where its log ended, as `0/16B3748`.
        #[serde(default)]
        wal: Option<String>,
        /// Tables of its databases.
        tables: Vec<TableRows>,
        /// Tables that are not named here.
        #[serde(default)]
        more: u64,
    },
    /// Redis.
    Keys {
        /// In all of its databases. Those with a time to live may be fewer after a sleep.
        #[serde(default)]
        keys: Option<u64>,
        /// Octets of its files.
        #[serde(default)]
        octets: Option<u64>,
        /// SHA-256 of its files, where they are small.
        #[serde(default)]
        digest: Option<String>,
    },
    /// S3 storage.
    Objects {
        /// How many.
        #[serde(default)]
        objects: Option<u64>,
        /// Octets of all of them.
        #[serde(default)]
        octets: Option<u64>,
        /// SHA-256 of their names, sizes and entity tags.
        #[serde(default)]
        digest: Option<String>,
    },
    /// Mailpit.
    Messages {
        /// How many.
        #[serde(default)]
        messages: Option<u64>,
    },
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TableRows {
    /// `database.schema.table`.
    pub table: String,
    /// Its rows; absent = not counted in time.
    #[serde(default)]
    pub rows: Option<u64>,
}

words!(
    /// What came of comparing a data service after a wake with its manifest.
    Verdict, "verdict" {
        /// It is as it was.
        Verified = "verified",
        /// It is not: something changed its data while it slept.
        Differs = "differs",
        /// It was not put to sleep before (killed, or the machine restarted): its own log brought back what it had
        /// acknowledged, and there is nothing to compare with.
        Unclean = "unclean",
        /// It could not be told in time.
        Unknown = "unknown",
    }
);

/// A comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What came of it.
    pub verdict: Verdict,
    /// What differs, or why it could not be told, in words for people.
    #[serde(default)]
    pub findings: Vec<String>,
}

/// What is known of a data service's last sleep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SleepReceipt {
    /// What it held when it fell asleep last.
    #[serde(default)]
    pub manifest: Option<Manifest>,
    /// Whether it held that when it woke after it; absent while it sleeps.
    #[serde(default)]
    pub check: Option<Check>,
}

/// The same in a command record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceReceipt {
    /// Kind.
    pub kind: ResourceKind,
    /// The service it belongs to, where its scope is one service.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub service: Option<ServiceName>,
    /// What is known.
    #[serde(flatten)]
    pub receipt: SleepReceipt,
}

fn counted(number: Option<u64>, one: &str, many: &str) -> String {
    match number {
        Some(1) => format!("1 {one}"),
        Some(number) => format!("{number} {many}"),
        None => format!("{many} not counted"),
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables { wal, tables, more } => {
                let rows = tables.iter().filter_map(|table| table.rows).sum();
                let uncounted = tables.iter().filter(|table| table.rows.is_none()).count() as u64 + more;
                let known = tables.len() as u64 + more;
                write!(f, "{}, {}", counted(Some(rows), "row", "rows"), counted(Some(known), "table", "tables"))?;
                if uncounted > 0 {
                    write!(f, " ({uncounted} not counted)")?;
                }
                wal.as_ref().map_or(Ok(()), |wal| write!(f, ", log at {wal}"))
            }
            Self::Keys { keys, octets, digest } => {
                write!(f, "{}", counted(*keys, "key", "keys"))?;
                octets.map_or(Ok(()), |octets| write!(f, ", {octets} octets"))?;
                short(f, digest.as_ref())
            }
            Self::Objects { objects, octets, digest } => {
                write!(f, "{}", counted(*objects, "object", "objects"))?;
                octets.map_or(Ok(()), |octets| write!(f, ", {octets} octets"))?;
                short(f, digest.as_ref())
            }
            Self::Messages { messages } => write!(f, "{}", counted(*messages, "message", "messages")),
        }
    }
}

fn short(f: &mut fmt::Formatter<'_>, digest: Option<&String>) -> fmt::Result {
    digest.map_or(Ok(()), |digest| write!(f, ", digest {}", digest.get(..12).unwrap_or(digest)))
}

impl Holds {
    /// What is otherwise than it was `before`, in words for people. What one of the two has not counted says nothing.
    #[must_use]
    pub fn differences(&self, before: &Self) -> Vec<String> {
        match (before, self) {
            (Self::Tables { tables: had, more: hid, .. }, Self::Tables { tables: has, more: hides, .. }) => {
                differing_tables(had, has, *hid == 0 && *hides == 0)
            }
            // Keys with a time to live end by themselves: their number alone proves nothing.
            (Self::Keys { .. }, Self::Keys { .. }) => vec![],
            (
                Self::Objects { objects: Some(had), digest: was, .. },
                Self::Objects { objects: Some(has), digest: is, .. },
            ) if had != has || was != is => match had == has {
                true => vec![format!(
                    "{}, of which some are not those that it had",
                    counted(Some(*has), "object", "objects")
                )],
                false => vec![format!("{}, had {had}", counted(Some(*has), "object", "objects"))],
            },
            (Self::Messages { messages: Some(had) }, Self::Messages { messages: Some(has) }) if had != has => {
                vec![format!("{}, had {had}", counted(Some(*has), "message", "messages"))]
            }
            (
                Self::Tables { .. } | Self::Keys { .. } | Self::Objects { .. } | Self::Messages { .. },
                Self::Tables { .. } | Self::Keys { .. } | Self::Objects { .. } | Self::Messages { .. },
            ) => vec![],
        }
    }

    /// Whether everything in it was counted.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Tables { tables, more, .. } => *more == 0 && tables.iter().all(|table| table.rows.is_some()),
            Self::Keys { keys, .. } => keys.is_some(),
            Self::Objects { objects, .. } => objects.is_some(),
            Self::Messages { messages } => messages.is_some(),
        }
    }
}

fn differing_tables(had: &[TableRows], has: &[TableRows], all: bool) -> Vec<String> {
    let find =
        |tables: &[TableRows], name: &str| tables.iter().find(|table| table.table == name).map(|table| table.rows);
    let mut found = Vec::new();
    for TableRows { table, rows: before } in had {
        match (find(has, table), before) {
            (Some(Some(now)), Some(before)) if now != *before => {
                found.push(format!("{table}: {}, had {before}", counted(Some(now), "row", "rows")));
            }
            (None, _) if all => found.push(format!("{table} is gone")),
            (Some(_) | None, _) => {}
        }
    }
    if all {
        found.extend(has.iter().filter(|t| find(had, &t.table).is_none()).map(|t| format!("{} is new", t.table)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(all: &[(&str, Option<u64>)], more: u64) -> Holds {
        let tables = all.iter().map(|(table, rows)| TableRows { table: (*table).to_owned(), rows: *rows }).collect();
        Holds::Tables { wal: None, tables, more }
    }

    #[test]
    fn differences_are_named_by_table_and_what_was_not_counted_says_nothing() {
        let before = tables(&[("app.public.a", Some(5)), ("app.public.b", Some(1)), ("app.public.c", None)], 0);
        let after = tables(&[("app.public.a", Some(2)), ("app.public.b", None), ("app.public.c", Some(9))], 0);
        assert_eq!(after.differences(&before), ["app.public.a: 2 rows, had 5"]);
        let without = tables(&[("app.public.a", Some(5)), ("app.public.d", Some(0))], 0);
        let gone = ["app.public.b is gone", "app.public.c is gone", "app.public.d is new"];
        assert_eq!(without.differences(&before), gone);
        assert_eq!(tables(&[("app.public.a", Some(5))], 3).differences(&before), [""; 0], "some are not named");
        assert!(!before.is_complete() && without.is_complete());
        assert_eq!(before.to_string(), "6 rows, 3 tables (1 not counted)");
    }

    #[test]
    fn objects_and_messages_differ_by_number_and_objects_by_digest_and_keys_may_have_ended_by_themselves() {
        let objects = |objects, digest: &str| Holds::Objects { objects, octets: Some(1), digest: Some(digest.into()) };
        assert_eq!(objects(Some(1), "b").differences(&objects(Some(2), "a")), ["1 object, had 2"]);
        let some = ["2 objects, of which some are not those that it had"];
        assert_eq!(objects(Some(2), "b").differences(&objects(Some(2), "a")), some);
        assert!(objects(None, "").differences(&objects(Some(2), "a")).is_empty());
        let messages = |messages| Holds::Messages { messages };
        assert_eq!(messages(Some(0)).differences(&messages(Some(1))), ["0 messages, had 1"]);
        let keys = |keys| Holds::Keys { keys: Some(keys), octets: None, digest: None };
        assert!(keys(1).differences(&keys(3)).is_empty());
    }

    #[test]
    fn a_manifest_is_one_flat_object() {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "taken_at": "2026-01-01T00:00:00Z", "took_ms": 3, "holds": "messages", "messages": 7,
        }))
        .expect("a manifest");
        assert_eq!(manifest.holds.to_string(), "7 messages");
    }
}
