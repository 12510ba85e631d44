//! Objects of storage in forks and snapshots: at one cut with everything else, apart from their source, gone with what they
//! belong to, whoever is killed.

use envforge_testkit::{
    local::Local,
    machine::{eventually, sigkill},
    storage::{self, Stored},
};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_envforge"))
}

/// With each of the two servers that is there.
fn with_each_server(test: impl Fn(&Stored)) {
    for server in [storage::seaweedfs(), storage::minio()] {
        if let Some(stored) = Stored::start(binary(), server, &[]) {
            stored.local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
            test(&stored);
        }
    }
}

const ALL: &str = "tell({o['Key']: s3.get_object(Bucket=bucket, Key=o['Key'])['Body'].read()[:20].decode() \
                   for o in s3.list_objects_v2(Bucket=bucket).get('Contents', [])})";

/// Writes an object, overwrites another one, notes the number in a file: in this order, again and again.
const WRITER: &str = r"
n = 0
while True:
    n += 1
    s3.put_object(Bucket=bucket, Key='n/%06d' % n, Body=str(n).encode())
    s3.put_object(Bucket=bucket, Key='latest', Body=str(n).encode())
    with open('/workspace/numbers.log', 'a') as log: log.write('%d\n' % n)
";

/// Buckets that the server holds, by what lies on its disk.
fn buckets(local: &Local) -> String {
    let found = Command::new("find").arg(local.home().join("storage")).output().expect("find");
    String::from_utf8_lossy(&found.stdout).into_owned()
}

fn bucket_of(snapshot: &str) -> String {
    snapshot.replace('_', "-")
}

fn snapshots(local: &Local) -> Vec<Value> {
    local.json(&["snapshot", "ls", "w"])["snapshots"].as_array().expect("snapshots").clone()
}

#[test]
fn a_fork_has_the_objects_of_its_cut_and_goes_its_own_way() {
    with_each_server(|stored| {
        let local = &stored.local;
        stored.python(
            "w",
            "s3.put_object(Bucket=bucket, Key='a b/ü+%', Body=b'kept', Metadata={'own': 'kept'}); tell(1)",
        );
        let script = stored.script(WRITER);
        local.ok(&["run", "w", "--service", "web", "--detach", "--", "python3", "-c", &script]);
        let written = || {
            let text = local.inside("w", "tail -n 1 /workspace/numbers.log").stdout;
            String::from_utf8_lossy(&text).trim().parse::<u64>().unwrap_or(0)
        };
        eventually("some are written", || (written() > 30).then_some(()));
        local.ok(&["fork", "w", "try-2"]);
        let at_fork = written();
        eventually("it writes on", || (written() > at_fork + 5).then_some(()));
        local.wait_healthy("try-2");
        let found = stored.python("try-2", ALL);
        let numbers = found.as_object().expect("objects").keys().filter_map(|key| key.strip_prefix("n/"));
        let numbers: Vec<u64> = numbers.map(|n| n.parse().expect("a number")).collect();
        let newest = numbers.len() as u64;
        assert_eq!(numbers, (1..=newest).collect::<Vec<_>>(), "none is missing in between");
        let latest: u64 = found["latest"].as_str().and_then(|n| n.parse().ok()).expect("a number");
        let noted = local.inside_ok("try-2", "tail -n 1 /workspace/numbers.log").parse::<u64>().expect("a number");
        assert!(noted <= latest && latest <= newest && newest <= noted + 1, "one cut: {noted} {latest} {newest}");
        assert!(newest > 30 && newest <= written(), "{newest}");
        let own = "tell([s3.head_object(Bucket=bucket, Key='a b/ü+%')['Metadata'], s3.get_object(Bucket=bucket, Key='a b/ü+%')['Body'].read().decode()])";
        assert_eq!(stored.python("try-2", own), json!([{ "own": "kept" }, "kept"]));

        // Both go their own way, and neither's keys open the other's.
        stored.python("try-2", "s3.put_object(Bucket=bucket, Key='mine', Body=b'x'); s3.delete_object(Bucket=bucket, Key='latest'); tell(1)");
        let of_source = stored.environment("w")["S3_BUCKET"].clone();
        assert_ne!(of_source, stored.environment("try-2")["S3_BUCKET"]);
        assert_eq!(
            stored.python("try-2", &format!("tell('OPEN' in refused(lambda: s3.head_bucket(Bucket='{of_source}')))")),
            false
        );
        let seen = "tell(['OPEN' in refused(lambda: s3.head_object(Bucket=bucket, Key='mine')), s3.head_object(Bucket=bucket, Key='latest')['ContentLength'] > 0])";
        assert_eq!(stored.python("w", seen), json!([false, true]));

        // Asleep, with a server that has to be started for it.
        local.ok(&["sleep", "try-2", "--wait"]);
        local.ok(&["sleep", "w", "--wait"]);
        eventually("no server", || local.pids_in("storage").is_empty().then_some(()));
        local.ok(&["fork", "w", "try-3"]);
        local.ok(&["wake", "try-3", "--wait"]);
        assert_eq!(stored.python("try-3", own), json!([{ "own": "kept" }, "kept"]));
        let bucket = stored.environment("try-3")["S3_BUCKET"].clone();
        local.ok(&["delete", "try-3", "--yes", "--force"]);
        assert!(!buckets(local).contains(&format!("/{bucket}")), "{}", buckets(local));
    });
}

#[test]
fn a_snapshot_keeps_objects_in_a_bucket_of_its_own_and_a_restore_puts_them_back() {
    with_each_server(|stored| {
        let local = &stored.local;
        let put = |key: &str, text: &str| {
            stored.python("w", &format!("s3.put_object(Bucket=bucket, Key='{key}', Body=b'{text}'); tell(1)"));
        };
        put("kept", "as it was");
        put("changed", "old");
        let made = local.json(&["snapshot", "create", "w"]);
        let snapshot = made["snapshot"].as_str().expect("an id").to_owned();
        let before = json!({ "kept": "as it was", "changed": "old" });
        put("changed", "new");
        put("late", "x");
        stored.python("w", "s3.delete_object(Bucket=bucket, Key='kept'); tell(1)");
        let tries = format!(
            "tell(['OPEN' in refused(lambda: s3.head_bucket(Bucket='{0}')), 'OPEN' in refused(lambda: s3.get_object(Bucket='{0}', Key='kept'))])",
            bucket_of(&snapshot)
        );
        assert_eq!(stored.python("w", &tries), json!([false, false]), "no key of the workspace opens it");

        let restored = local.json(&["snapshot", "restore", "w", &snapshot, "--yes"]);
        let kept = restored["snapshot"].as_str().expect("an id").to_owned();
        local.wait_healthy("w");
        assert_eq!(stored.python("w", ALL), before);
        local.ok(&["snapshot", "restore", "w", &kept, "--yes"]);
        local.wait_healthy("w");
        assert_eq!(stored.python("w", ALL), json!({ "changed": "new", "late": "x" }));

        // A reset makes one first.
        local.ok(&["reset", "w", "storage", "--yes"]);
        assert_eq!(stored.python("w", ALL), json!({}));
        let newest = snapshots(local).remove(0);
        assert_eq!(newest["reason"], "before reset");
        local.ok(&["snapshot", "restore", "w", newest["id"].as_str().expect("an id"), "--yes"]);
        local.wait_healthy("w");
        assert_eq!(stored.python("w", ALL), json!({ "changed": "new", "late": "x" }));

        // What is removed is gone from the server.
        local.ok(&["snapshot", "rm", "w", &snapshot]);
        assert!(!buckets(local).contains(&bucket_of(&snapshot)), "{}", buckets(local));
        local.ok(&["up", "v", "-c", "--no-attach", "--wait"]);
        local.ok(&["delete", "w", "--yes", "--force"]);
        assert!(!buckets(local).contains("/snap-"), "{}", buckets(local));
    });
}

#[test]
fn whoever_is_killed_nothing_half_is_shown_or_left_and_a_restore_comes_to_its_end() {
    with_each_server(|stored| {
        let local = &stored.local;
        stored.python("w", "[s3.put_object(Bucket=bucket, Key='%04d' % n, Body=b'x') for n in range(400)]; tell(1)");
        let dir = local.home().join("snapshots").join(local.status("w")["id"].as_str().expect("an id"));
        let halves = || {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.filter(|at| !at.join("manifest.json").exists()).collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            let makes = scope.spawn(|| local.run(&["snapshot", "create", "w"]));
            eventually("its buckets are named", || {
                halves().first().filter(|at| at.join("objects.json").exists()).cloned()
            });
            sigkill(local.part("host"));
            assert!(!makes.join().expect("joined").status.success(), "it is not silently made again");
        });
        eventually("nothing is left of it", || halves().is_empty().then_some(()));
        assert!(snapshots(local).is_empty());
        eventually("not on the server either", || (!buckets(local).contains("/snap-")).then_some(()));

        let made = local.json(&["snapshot", "create", "w"]);
        let snapshot = made["snapshot"].as_str().expect("an id").to_owned();
        stored.python("w", "[s3.delete_object(Bucket=bucket, Key='%04d' % n) for n in range(200)]; tell(1)");
        let journal = local.workspace_dir("w").join("state/restore.json");
        std::thread::scope(|scope| {
            let restores = scope.spawn(|| local.run(&["snapshot", "restore", "w", &snapshot, "--yes"]));
            eventually("a journal", || journal.exists().then_some(()));
            sigkill(local.part("host"));
            drop(restores.join());
        });
        eventually("it comes to its end", || (!journal.exists()).then_some(()));
        local.ok(&["wake", "w", "--wait"]);
        assert_eq!(stored.python("w", "tell(len(s3.list_objects_v2(Bucket=bucket)['Contents']))"), 400);
        assert_eq!(snapshots(local).len(), 2, "with the one that keeps what was there before");
    });
}
