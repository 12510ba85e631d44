//! What is in a bucket, as a whole: listed, copied on the server, removed. For whoever forks, snapshots or wipes the data
//! of a workspace. S3 knows no moment for all objects at once: for a cut, nothing that writes may run meanwhile.

use super::s3::{Call, Client, Failed, all, first};
use envforge_api::sigv4;
use hyper::StatusCode;

/// Objects named in one answer.
const PAGE: usize = 1000;
/// An object that is larger is copied in parts of this size: servers copy at most 5 GiB at once.
const PART: u64 = 1 << 30;

/// One object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Octets.
    pub size: u64,
    /// Its entity tag without quotes: the MD5 digest, or for an object of parts the digest of theirs and their number.
    pub digest: String,
}

/// Everything in a bucket, by key.
///
/// # Errors
/// When the server does not answer, or the bucket is not there.
pub async fn list(client: &Client, bucket: &str) -> Result<Vec<Object>, Failed> {
    let mut found = Vec::new();
    let mut from: Option<String> = None;
    loop {
        let mut call = Call::on("GET", bucket, None)
            .with("list-type", "2")
            .with("encoding-type", "url")
            .with("max-keys", PAGE.to_string());
        if let Some(from) = from.take() {
            call = call.with("continuation-token", from);
        }
        let text = client.call(call).await?.text();
        for entry in all(&text, "Contents") {
            let unreadable = || Failed::Unreadable("an object without key or size");
            let key = first(entry, "Key").ok_or_else(unreadable)?;
            // Servers write a space in a listing as `+`, as in a form, and `+` itself as %2B.
            let key = String::from_utf8(sigv4::decode(&key.replace('+', "%20"))).map_err(|_| unreadable())?;
            let size = first(entry, "Size").and_then(|size| size.parse().ok()).ok_or_else(unreadable)?;
            let digest = first(entry, "ETag").unwrap_or_default().trim_matches('"').to_owned();
            found.push(Object { key, size, digest });
        }
        if first(&text, "IsTruncated").as_deref() != Some("true") {
            break;
        }
        from = Some(first(&text, "NextContinuationToken").ok_or(Failed::Unreadable("a page without a next one"))?);
    }
    found.sort();
    Ok(found)
}

/// Copies every object of a bucket into another one of the same server, which does it by itself; what it has under the
/// same keys is replaced. Returns what was copied. Cut short, it can be done again.
///
/// # Errors
/// When the server does not answer, or one of the buckets is not there.
pub async fn copy(client: &Client, from: &str, to: &str) -> Result<Vec<Object>, Failed> {
    let objects = list(client, from).await?;
    for object in &objects {
        copy_one(client, from, to, object, PART).await?;
    }
    Ok(objects)
}

async fn copy_one(client: &Client, from: &str, to: &str, object: &Object, part: u64) -> Result<(), Failed> {
    let source = format!("/{from}/{}", sigv4::encode(object.key.as_bytes(), "/"));
    let copied = |text: &str| {
        // An error may come after the server has begun to answer with success.
        first(text, "ETag")
            .map(|tag| tag.trim_matches('"').to_owned())
            .ok_or(Failed::Unreadable("a copy without an end"))
    };
    let key = Some(object.key.as_str());
    if object.size <= part {
        let call = Call::on("PUT", to, key).header("x-amz-copy-source", source);
        return copied(&client.call(call).await?.text()).map(drop);
    }
    // What a client told of an object is not kept by the server when it is put together from parts.
    let about = client.call(Call::on("HEAD", from, key)).await?;
    let mut begin = Call::on("POST", to, key).with("uploads", "");
    for name in KEPT {
        if let Some(value) = about.headers.get(name).and_then(|value| value.to_str().ok()) {
            begin = begin.header(name, value);
        }
    }
    let upload = first(&client.call(begin).await?.text(), "UploadId").ok_or(Failed::Unreadable("no upload"))?;
    let parts = async {
        let mut done = String::new();
        for (number, start) in (1_u32..).zip((0..object.size).step_by(usize::try_from(part).unwrap_or(usize::MAX))) {
            let end = (start + part).min(object.size) - 1;
            let call = Call::on("PUT", to, key)
                .with("partNumber", number.to_string())
                .with("uploadId", upload.as_str())
                .header("x-amz-copy-source", source.as_str())
                .header("x-amz-copy-source-range", format!("bytes={start}-{end}"));
            let tag = copied(&client.call(call).await?.text())?;
            done.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{tag}\"</ETag></Part>"));
        }
        let mut end = Call::on("POST", to, key).with("uploadId", upload.as_str());
        end.body = format!("<CompleteMultipartUpload>{done}</CompleteMultipartUpload>").into_bytes();
        copied(&client.call(end).await?.text()).map(drop)
    };
    let outcome = parts.await;
    if outcome.is_err() {
        // What is left of it takes space and is seen by nobody.
        let _ = client.call(Call::on("DELETE", to, key).with("uploadId", upload.as_str())).await;
    }
    outcome
}

/// Headers that belong to an object.
const KEPT: [&str; 5] =
    ["content-type", "content-encoding", "content-disposition", "content-language", "cache-control"];

/// Removes every object of a bucket, older versions and unfinished uploads included: the bucket is made anew.
///
/// # Errors
/// When the server does not answer.
pub async fn clear(client: &Client, bucket: &str) -> Result<(), Failed> {
    remove_bucket(client, bucket).await?;
    ensure_bucket(client, bucket).await
}

/// Makes a bucket, if it is missing.
///
/// # Errors
/// When the server refuses.
pub async fn ensure_bucket(client: &Client, bucket: &str) -> Result<(), Failed> {
    match client.call(Call::on("PUT", bucket, None)).await {
        Ok(_) => Ok(()),
        Err(Failed::Refused { code, .. }) if code == "BucketAlreadyOwnedByYou" => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a bucket with everything in it; one that is gone is as wanted.
///
/// # Errors
/// When the server refuses.
pub async fn remove_bucket(client: &Client, bucket: &str) -> Result<(), Failed> {
    // SeaweedFS removes what is in it, MinIO does when it is told to.
    let call = Call::on("DELETE", bucket, None).header("x-minio-force-delete", "true");
    match client.call(call).await {
        Ok(_) => Ok(()),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(()),
        Err(error) => Err(error),
    }
}
