//! What is in a bucket, as a whole: listed, copied on the server, removed. For whoever forks, snapshots or wipes the data
//! of a workspace. S3 knows no moment for all objects at once: for a cut, nothing that writes may run meanwhile.

use super::s3::{Answer, Call, Client, Failed, all, first};
use envforge_api::sigv4;
use hyper::StatusCode;
use std::collections::BTreeMap;

/// Objects named in one answer.
const PAGE: usize = 1000;
/// An object that is larger is copied in parts of this size: servers copy at most 5 GiB at once.
const PART: u64 = 1 << 30;
/// An object that is larger is carried in parts of this size: each is in memory once.
const CARRIED: u64 = 16 << 20;

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

/// An object with when it was written: its description may change and its content stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The object.
    pub object: Object,
    /// When, as the server writes it.
    pub modified: String,
}

/// Everything in a bucket, by key.
///
/// # Errors
/// When the server does not answer, or the bucket is not there.
pub async fn list(client: &Client, bucket: &str) -> Result<Vec<Object>, Failed> {
    let mut found: Vec<Object> = pages(client, bucket).await?.into_iter().map(|listed| listed.object).collect();
    found.sort();
    Ok(found)
}

/// The same with times, of a bucket that holds nothing where it was never made.
///
/// # Errors
/// When the server does not answer.
pub async fn listed(client: &Client, bucket: &str) -> Result<BTreeMap<String, Listed>, Failed> {
    match pages(client, bucket).await {
        Ok(all) => Ok(all.into_iter().map(|listed| (listed.object.key.clone(), listed)).collect()),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

async fn pages(client: &Client, bucket: &str) -> Result<Vec<Listed>, Failed> {
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
            let modified = first(entry, "LastModified").unwrap_or_default();
            found.push(Listed { object: Object { key, size, digest }, modified });
        }
        if first(&text, "IsTruncated").as_deref() != Some("true") {
            break;
        }
        from = Some(first(&text, "NextContinuationToken").ok_or(Failed::Unreadable("a page without a next one"))?);
    }
    Ok(found)
}

/// Copies every object of a bucket into another one of the same server, which does it by itself; what it has under the
/// same keys is replaced. Returns what was copied. Cut short, it can be done again.
///
/// # Errors
/// When the server does not answer, or one of the buckets is not there.
pub async fn copy(client: &Client, from: &str, to: &str) -> Result<Vec<Object>, Failed> {
    copy_by(client, from, to, PART).await
}

/// The same with parts of so many octets, at least 5 MiB, for what is larger.
///
/// # Errors
/// As [`copy`].
pub async fn copy_by(client: &Client, from: &str, to: &str, part: u64) -> Result<Vec<Object>, Failed> {
    let objects = list(client, from).await?;
    for object in &objects {
        copy_object(client, from, object, to, part).await?;
    }
    Ok(objects)
}

async fn copy_object(client: &Client, from: &str, object: &Object, to: &str, part: u64) -> Result<(), Failed> {
    let source = format!("/{from}/{}", sigv4::encode(object.key.as_bytes(), "/"));
    let key = Some(object.key.as_str());
    if object.size <= part {
        let call = Call::on("PUT", to, key).header("x-amz-copy-source", source);
        return tag_of(&client.call(only(call, object)).await?.text()).map(drop);
    }
    // What a client told of an object is not kept by the server when it is put together from parts.
    let about = client.call(Call::on("HEAD", from, key)).await?;
    let begin = described(Call::on("POST", to, key), &about);
    in_parts(client, begin, to, object, part, &Parts::OfServer { source: &source }).await
}

/// Has a copy be made of what was listed or not at all.
fn only(call: Call, object: &Object) -> Call {
    call.header("x-amz-copy-source-if-match", format!("\"{}\"", object.digest))
}

/// What became of copying an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It is what was listed.
    AsListed,
    /// It was written or removed since.
    Moved,
}

/// Copies one object as it was listed.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn copy_one(client: &Client, from: &str, object: &Object, to: &str) -> Result<Copied, Failed> {
    match copy_object(client, from, object, to, PART).await {
        Ok(()) => Ok(Copied::AsListed),
        Err(error) if error.is(StatusCode::PRECONDITION_FAILED) || error.is(StatusCode::NOT_FOUND) => Ok(Copied::Moved),
        Err(error) => Err(error),
    }
}

/// Removes one object.
///
/// # Errors
/// When the server does not answer or refuses.
pub async fn remove(client: &Client, bucket: &str, key: &str) -> Result<(), Failed> {
    client.call(Call::on("DELETE", bucket, Some(key))).await.map(drop)
}

/// Has a bucket hold what another one of the same server holds, to which nobody writes: what differs is copied, what is not
/// there is removed. Done again, it comes to the same.
///
/// # Errors
/// When the server does not answer, or the bucket that is copied is not there.
pub async fn mirror(client: &Client, from: &str, to: &str) -> Result<(), Failed> {
    let wanted = list(client, from).await?;
    ensure_bucket(client, to).await?;
    let there = list(client, to).await?;
    for object in wanted.iter().filter(|object| there.binary_search(object).is_err()) {
        copy_object(client, from, object, to, PART).await?;
    }
    let gone = |object: &&Object| wanted.binary_search_by(|one| one.key.cmp(&object.key)).is_err();
    for object in there.iter().filter(gone) {
        remove(client, to, &object.key).await?;
    }
    Ok(())
}

/// Makes the bucket of the same name on another server hold the same objects: those that are missing or differ are
/// carried, those that are not here any more are removed there. Returns how many were carried. Whether two objects differ
/// is told by size and digest, so that large ones, and those that were uploaded in parts, are carried each time. Tags,
/// older versions and the settings of the bucket are not carried.
///
/// # Errors
/// When a server does not answer, or has no such bucket.
pub async fn carry(from: &Client, to: &Client, bucket: &str) -> Result<usize, Failed> {
    let (here, there) = (list(from, bucket).await?, list(to, bucket).await?);
    let mut carried = 0;
    for object in here.iter().filter(|object| there.binary_search(object).is_err()) {
        let key = Some(object.key.as_str());
        let about = from.call(Call::on("HEAD", bucket, key)).await?;
        if object.size > CARRIED {
            let begin = described(Call::on("POST", bucket, key), &about);
            in_parts(to, begin, bucket, object, CARRIED, &Parts::Carried { from }).await?;
        } else {
            let mut call = described(Call::on("PUT", bucket, key), &about);
            call.body = from.call(Call::on("GET", bucket, key)).await?.body.to_vec();
            to.call(call).await?;
        }
        carried += 1;
    }
    let gone = |object: &&Object| here.binary_search_by(|one| one.key.cmp(&object.key)).is_err();
    for object in there.iter().filter(gone) {
        to.call(Call::on("DELETE", bucket, Some(&object.key))).await?;
    }
    Ok(carried)
}

/// Headers that belong to an object, beside those that clients make up (`x-amz-meta-…`).
const KEPT: [&str; 5] =
    ["content-type", "content-encoding", "content-disposition", "content-language", "cache-control"];

/// Has a new object be described as one that is there.
fn described(mut call: Call, about: &Answer) -> Call {
    for (name, value) in &about.headers {
        let name = name.as_str();
        if let Ok(value) = value.to_str()
            && (KEPT.contains(&name) || name.starts_with("x-amz-meta-"))
        {
            call.headers.push((name.to_owned().into(), value.to_owned()));
        }
    }
    call
}

/// An error may come after the server has begun to answer with success.
fn tag_of(text: &str) -> Result<String, Failed> {
    let tag = first(text, "ETag").map(|tag| tag.trim_matches('"').to_owned());
    tag.ok_or(Failed::Unreadable("an object without a tag"))
}

/// Where the parts of a large object come from.
enum Parts<'a> {
    /// The server has them: bucket and key, encoded.
    OfServer { source: &'a str },
    /// Another server has, under the same names.
    Carried { from: &'a Client },
}

impl Parts<'_> {
    /// Makes one, from the first to the last octet; its tag.
    async fn put(
        &self,
        to: &Client,
        bucket: &str,
        object: &Object,
        call: Call,
        octets: [u64; 2],
    ) -> Result<String, Failed> {
        let key = object.key.as_str();
        let range = format!("bytes={}-{}", octets[0], octets[1]);
        match self {
            Self::OfServer { source } => {
                let call = call.header("x-amz-copy-source", *source).header("x-amz-copy-source-range", range);
                let call = only(call, object);
                tag_of(&to.call(call).await?.text())
            }
            Self::Carried { from } => {
                let read = Call::on("GET", bucket, Some(key)).header("range", range);
                let mut call = call;
                call.body = from.call(read).await?.body.to_vec();
                let answer = to.call(call).await?;
                let tag = answer.headers.get("etag").and_then(|tag| tag.to_str().ok());
                let tag = tag.map(|tag| tag.trim_matches('"').to_owned());
                tag.ok_or(Failed::Unreadable("a part without a tag"))
            }
        }
    }
}

/// Puts an object together from parts of so many octets.
async fn in_parts(
    client: &Client,
    begin: Call,
    bucket: &str,
    object: &Object,
    part: u64,
    parts: &Parts<'_>,
) -> Result<(), Failed> {
    let key = object.key.as_str();
    let upload = first(&client.call(begin.with("uploads", "")).await?.text(), "UploadId");
    let upload = upload.ok_or(Failed::Unreadable("no upload"))?;
    let put = async {
        let (mut done, mut start, mut number) = (String::new(), 0, 0_u32);
        while start < object.size {
            number += 1;
            let end = (start + part).min(object.size);
            let call = Call::on("PUT", bucket, Some(key)).with("partNumber", number.to_string());
            let call = call.with("uploadId", upload.as_str());
            let tag = parts.put(client, bucket, object, call, [start, end - 1]).await?;
            done.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{tag}\"</ETag></Part>"));
            start = end;
        }
        let mut end = Call::on("POST", bucket, Some(key)).with("uploadId", upload.as_str());
        end.body = format!("<CompleteMultipartUpload>{done}</CompleteMultipartUpload>").into_bytes();
        tag_of(&client.call(end).await?.text()).map(drop)
    };
    let outcome = put.await;
    if outcome.is_err() {
        // What is left of it takes space and is seen by nobody.
        let _ = client.call(Call::on("DELETE", bucket, Some(key)).with("uploadId", upload.as_str())).await;
    }
    outcome
}

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
