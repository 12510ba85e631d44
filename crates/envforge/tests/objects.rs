//! `envforge s3`: objects of a workspace at a person's terminal, which sees no key.

use envforge_testkit::storage::{self, Stored};
use serde_json::json;
use std::{fs, path::Path, process::Stdio};

#[test]
fn objects_are_listed_read_written_and_removed_without_a_key_also_asleep_and_nobody_else_s() {
    for server in [storage::seaweedfs(), storage::minio()] {
        let Some(stored) = Stored::start(Path::new(env!("CARGO_BIN_EXE_envforge")), server, &[]) else { continue };
        let local = &stored.local;
        local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
        local.ok(&["up", "other", "-c", "--no-attach", "--wait"]);
        stored.python("w", "s3.put_object(Bucket=bucket, Key='a/ü +%.txt', Body=b'hello'); tell(0)");
        let bucket = stored.environment("w")["S3_BUCKET"].clone();
        let listed = local.json(&["s3", "w"]);
        let whole = json!({"bucket": bucket, "endpoint": "http://localhost:9000",
            "objects": [{"key": "a/ü +%.txt", "size": 5}]});
        assert_eq!(listed, whole);
        assert_eq!(local.ok(&["s3", "w", "get", "a/ü +%.txt", "-"]), "hello");

        // Large, both ways, from a file and through pipes, and small.
        let file = |name: &str| local.dir().join(name).to_string_lossy().into_owned();
        let much: Vec<u8> = (0..20_000_003_u32).map(|n| (n % 251) as u8).collect();
        fs::write(file("much"), &much).expect("written");
        local.ok(&["s3", "w", "put", &file("much")]);
        let mut pipe = local.command(&["s3", "w", "put", "-", "empty"]);
        assert!(pipe.stdin(Stdio::null()).status().expect("it runs").success());
        local.ok(&["s3", "w", "get", "much", &file("back")]);
        assert!(fs::read(file("back")).expect("there") == much);
        let sizes = stored.python("w", "tell([o['Size'] for o in s3.list_objects_v2(Bucket=bucket)['Contents']])");
        assert_eq!(sizes, json!([5, 0, much.len()]));
        assert_eq!(local.json(&["s3", "w", "ls", "em"])["objects"], json!([{"key": "empty", "size": 0}]));

        // Asleep: the same, and neither the runtime nor its meter stirs.
        local.ok(&["sleep", "w", "--wait"]);
        let before = local.json(&["workspace", "usage", "w"]);
        assert_eq!(local.json(&["s3", "w"])["objects"].as_array().map(Vec::len), Some(3));
        assert_eq!(
            local.inside_ok("w", "echo inside | envforge s3 put - inside && envforge s3 get inside -"),
            "inside\ninside"
        );
        local.ok(&["s3", "w", "rm", "empty"]);
        let status = local.status("w");
        assert_eq!((&status["runtime"]["state"], &status["billing"]["state"]), (&json!("asleep"), &json!("off")));
        assert_eq!(local.json(&["workspace", "usage", "w"]), before);

        // What is not there is said, and what a key looks like leads nowhere else.
        let fails = |args: &[&str]| {
            let out = local.run(args);
            (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
        };
        for missing in ["empty", "no"] {
            let (code, said) = fails(&["s3", "w", "get", missing, &file("none")]);
            assert_eq!(code, Some(3), "{missing}: {said}");
        }
        // Servers differ in whether they take such a key for one at all.
        let (code, said) = fails(&["s3", "w", "get", "../much", &file("none")]);
        assert!(matches!(code, Some(1 | 3)), "{said}");
        assert!(!Path::new(&file("none")).exists());
        local.ok(&["s3", "other", "put", &file("much"), "own"]);
        let own = stored.environment("other")["S3_BUCKET"].clone();
        for key in [
            format!("../{own}/own"),
            format!("/../{own}/own"),
            format!("x/../../{own}/own"),
            format!("..%2f{own}%2fown"),
        ] {
            let (code, said) = fails(&["s3", "w", "get", &key, "-"]);
            assert!(matches!(code, Some(1 | 3)), "{key}: {said}");
            let _ = local.run(&["s3", "w", "rm", &key]);
            let _ = local.run(&["s3", "w", "put", &file("boot_id"), &key]);
            let objects = local.json(&["s3", "other"])["objects"].clone();
            assert_eq!(objects, json!([{"key": "own", "size": much.len()}]), "{key}");
        }
        let secret = stored.environment("w")["AWS_SECRET_ACCESS_KEY"].clone();
        assert!(!local.ok(&["s3", "w"]).contains(&secret) && !local.log_tails().contains(&secret));
    }
}
