//! The user of a bucket: one that may do with its objects whatever it likes, and nothing anywhere else.
//!
//! SeaweedFS has AWS's interface for users on its S3 port, MinIO one of its own. Neither lets the user open the bucket to
//! others (by policy or ACL) or remove it: then another workspace on the same server could read it, or have its name.

use super::{
    Bucket, Kind, objects,
    s3::{Call, Client, Failed, all, first},
    sealed,
};
use hyper::StatusCode;
use serde_json::json;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// What both servers call what a user may do.
const ACTIONS: [&str; 12] = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:ListBucket",
    "s3:GetObjectVersion",
    "s3:DeleteObjectVersion",
    "s3:GetObjectTagging",
    "s3:PutObjectTagging",
    "s3:DeleteObjectTagging",
    "s3:AbortMultipartUpload",
    "s3:GetBucketLocation",
    "s3:GetBucketVersioning",
];
/// What each calls otherwise than the other.
const OF_MINIO: [&str; 4] =
    ["s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:ListMultipartUploadParts", "s3:PutBucketVersioning"];
const OF_SEAWEEDFS: [&str; 9] = [
    "s3:ListBucketVersions",
    "s3:ListMultipartUploads",
    "s3:ListParts",
    "s3:CreateMultipartUpload",
    "s3:UploadPart",
    "s3:CompleteMultipartUpload",
    "s3:PutBucketVersioning",
    "s3:GetBucketCors",
    "s3:PutBucketCors",
];

fn policy(kind: Kind, bucket: &str) -> String {
    let more: &[&str] = match kind {
        Kind::MinIo => &OF_MINIO,
        Kind::SeaweedFs => &OF_SEAWEEDFS,
    };
    let actions: Vec<&str> = ACTIONS.iter().chain(more).copied().collect();
    let resources = [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")];
    let mut statements = vec![json!({ "Effect": "Allow", "Action": actions, "Resource": resources })];
    if kind == Kind::MinIo {
        // Otherwise each user may change its own password and make keys beside the one that it was given.
        statements.push(json!({ "Effect": "Deny", "Action": ["admin:*"] }));
    }
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

/// Makes a bucket and its user, or what is missing of them. `root` asks. The last step is what lets the user in: whoever
/// is let in has everything.
///
/// # Errors
/// When the server refuses.
pub async fn ensure(root: &Client, kind: Kind, bucket: &Bucket) -> Result<(), Failed> {
    if answers(root, bucket).await {
        return Ok(());
    }
    objects::ensure_bucket(root, &bucket.name).await?;
    match kind {
        Kind::SeaweedFs => {
            let user = ("UserName", bucket.name.as_str());
            known(iam(root, "CreateUser", &[user]).await)?;
            let keys = [
                user,
                ("AccessKeyId", bucket.keys.access_key.as_str()),
                ("SecretAccessKey", bucket.keys.secret_key.expose()),
            ];
            known(iam(root, "CreateAccessKey", &keys).await)?;
            let policy = policy(kind, &bucket.name);
            iam(root, "PutUserPolicy", &[user, ("PolicyName", "bucket"), ("PolicyDocument", &policy)]).await.map(drop)
        }
        Kind::MinIo => {
            let mut call = admin("PUT", "add-canned-policy").with("name", bucket.name.as_str());
            call.body = policy(kind, &bucket.name).into_bytes();
            root.call(call).await?;
            let user = json!({ "secretKey": bucket.keys.secret_key.expose(), "status": "enabled" }).to_string();
            let mut call = admin("PUT", "add-user").with("accessKey", bucket.keys.access_key.as_str());
            call.body = sealed::seal(&root.keys().secret_key, user.as_bytes());
            root.call(call).await?;
            let attach = admin("PUT", "set-user-or-group-policy")
                .with("isGroup", "false")
                .with("policyName", bucket.name.as_str())
                .with("userOrGroup", bucket.keys.access_key.as_str());
            root.call(attach).await.map(drop)
        }
    }
}

/// Whether a request that is signed with its keys is let in.
pub async fn answers(any: &Client, bucket: &Bucket) -> bool {
    any.with_keys(&bucket.keys).call(Call::on("HEAD", &bucket.name, None)).await.is_ok()
}

/// How long a bucket that was made anew has to let its user in without a break.
const STEADY: Duration = Duration::from_millis(500);
/// How long that is waited for at most; who comes then asks again.
const SETTLES: Duration = Duration::from_secs(10);

/// Waits until a bucket that was made anew lets its user in: SeaweedFS hears of buckets that went and came a moment later,
/// and refuses their users in between.
pub async fn settled(any: &Client, bucket: &Bucket) {
    let steady = async {
        let mut since = Instant::now();
        while since.elapsed() < STEADY {
            sleep(Duration::from_millis(20)).await;
            if !answers(any, bucket).await {
                since = Instant::now();
            }
        }
    };
    let _ = timeout(SETTLES, steady).await;
}

/// Objects that are tried for one that holds something.
const TRIED: &str = "20";

/// Waits until what is in a bucket can be read: SeaweedFS knows names, and answers for them, a moment before it knows where
/// their content lies. One that is damaged is waited for no longer than one that was made anew.
pub async fn readable(any: &Client, bucket: &Bucket) {
    let client = any.with_keys(&bucket.keys);
    let read = async || {
        let listed = client.call(Call::on("GET", &bucket.name, None).with("list-type", "2").with("max-keys", TRIED));
        let text = listed.await?.text();
        let holds = |entry: &&str| first(entry, "Size").is_some_and(|size| size != "0");
        let Some(key) = all(&text, "Contents").into_iter().find(holds).and_then(|entry| first(entry, "Key")) else {
            return Ok::<_, Failed>(());
        };
        match client.call(Call::on("GET", &bucket.name, Some(&key)).header("range", "bytes=0-0")).await {
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(()),
            answered => answered.map(drop),
        }
    };
    let until = async {
        while read().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = timeout(SETTLES, until).await;
}

/// Removes a bucket, everything in it and its user. What is gone already is as wanted.
///
/// # Errors
/// When the server refuses.
pub async fn remove(root: &Client, kind: Kind, bucket: &Bucket) -> Result<(), Failed> {
    // First: a user that nobody can name any more would keep what is in the bucket.
    match kind {
        Kind::SeaweedFs => {
            let user = ("UserName", bucket.name.as_str());
            // A user may have made further ones for itself.
            if let Ok(keys) = iam(root, "ListAccessKeys", &[user]).await {
                for key in all(&keys, "AccessKeyId") {
                    gone(iam(root, "DeleteAccessKey", &[user, ("AccessKeyId", key)]).await)?;
                }
            }
            gone(iam(root, "DeleteUser", &[user]).await)?;
        }
        Kind::MinIo => {
            let user = admin("DELETE", "remove-user").with("accessKey", bucket.keys.access_key.as_str());
            gone(root.call(user).await)?;
            let policy = admin("DELETE", "remove-canned-policy").with("name", bucket.name.as_str());
            gone(root.call(policy).await)?;
        }
    }
    objects::remove_bucket(root, &bucket.name).await
}

/// Which server it is.
///
/// # Errors
/// When it does not answer, or is none that EnvForge knows how to make users of.
pub async fn kind(root: &Client) -> Result<Kind, Failed> {
    let answer = root.call(Call { path: "/".into(), ..Call::default() }).await?;
    let server = answer.headers.get("server").and_then(|value| value.to_str().ok()).unwrap_or_default();
    Kind::of_header(server).ok_or(Failed::Unreadable("it is neither SeaweedFS nor MinIO"))
}

/// What is gone already is as wanted.
fn gone<T>(outcome: Result<T, Failed>) -> Result<(), Failed> {
    match outcome {
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(()),
        other => other.map(drop),
    }
}

/// What is there already is as wanted.
fn known(outcome: Result<String, Failed>) -> Result<(), Failed> {
    match outcome {
        Err(Failed::Refused { code, .. }) if code == "EntityAlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

async fn iam(root: &Client, action: &str, parameters: &[(&str, &str)]) -> Result<String, Failed> {
    let mut form = format!("Action={action}&Version=2010-05-08");
    for (name, value) in parameters {
        form.push_str(&format!("&{name}={}", envforge_api::sigv4::encode(value.as_bytes(), "")));
    }
    let call = Call { method: "POST", path: "/".into(), body: form.into_bytes(), service: "iam", ..Call::default() };
    let text = root.call(call.header("content-type", "application/x-www-form-urlencoded")).await?.text();
    if first(&text, "Error").is_some() { Err(Failed::Unreadable("an error as an answer")) } else { Ok(text) }
}

fn admin(method: &'static str, what: &str) -> Call {
    Call { method, path: format!("/minio/admin/v3/{what}"), ..Call::default() }
}
