//! Objects of a workspace for whoever may open its shell, asleep as well as awake: the server is the host's, so that neither
//! the runtime nor its meter has a part in it.
//!
//! The server is asked with the workspace's own keys, which open its own bucket and nothing else, whatever a key of an object
//! looks like. They stay on the host. An object appears whole or not at all, and never in the middle of a copy of the
//! workspace.

use super::{
    channel::{Cut, In, Out, Said},
    routes::Api,
};
use crate::{
    daemon::{hub::Workspace, storage, values::Values},
    resources::storage::{
        Bucket, keeper, objects,
        s3::{Call, Client, Failed},
    },
};
use envforge_api::{
    host::DesiredShell,
    names::ServiceName,
    problem::{Problem, ProblemKind},
    resource::{ResourceKind, ResourceMode},
    storage::{ObjectAct, ObjectList, ObjectView},
    stream::{Control, channel},
};
use hyper::StatusCode;
use tokio::sync::Mutex;

/// Octets of an object that are in memory at once.
const PART: usize = 8 << 20;
/// Octets sent at once.
const AT_ONCE: usize = 256 << 10;

/// Does what the first message asks.
pub(super) async fn act(api: &Api, workspace: &Workspace, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
    let Control::Storage(asked) = input.start().await? else {
        return Err(Problem::invalid("nothing is asked of the storage", "is this an EnvForge client?").into());
    };
    workspace.settled().await;
    let bucket = bucket(api, workspace, asked.service.as_ref())?;
    let place = storage::place(&api.hub);
    let trouble = |t: envforge_api::states::Trouble| Problem::new(ProblemKind::Failed, t.reason, t.hint);
    storage::ensure(&place).await.map_err(trouble)?;
    // It runs for as long as this is held.
    let _need = keeper::Need::ready(&place).await.map_err(trouble)?;
    let store = Store { client: Client::by_keeper(&place, bucket.keys.clone()), bucket, copies: &workspace.copies };
    match asked.act {
        ObjectAct::List { prefix } => store.list(&prefix, out).await,
        ObjectAct::Get { key } => store.get(&key, out).await,
        ObjectAct::Put { key } => match api.hub.room.holds(&workspace.id) {
            Some(held) => Err(trouble(held).into()),
            None => store.put(&key, out, input).await,
        },
        ObjectAct::Remove { key } => store.remove(&key).await,
    }
}

/// The bucket that is meant.
fn bucket(api: &Api, workspace: &Workspace, service: Option<&ServiceName>) -> Result<Bucket, Problem> {
    let (slug, gone) = {
        let intent = workspace.intent.borrow();
        (intent.slug.clone(), intent.shell == DesiredShell::Absent)
    };
    if gone {
        return Err(Problem::new(ProblemKind::Conflict, format!("workspace {slug} is being deleted"), ""));
    }
    let facts = workspace.runtime.borrow();
    let reports = facts.snapshot.iter().flat_map(|snapshot| &snapshot.resources);
    let mode = reports.into_iter().find(|r| r.kind == ResourceKind::Storage).map(|r| r.mode);
    if let Some(mode @ (ResourceMode::Provided | ResourceMode::Cloud | ResourceMode::Disabled)) = mode {
        let message = format!("storage of {slug} is {mode}: it has no server of this host");
        return Err(Problem::new(ProblemKind::Conflict, message, "connect to it as its operator says"));
    }
    let values = Values::of(&api.hub.installation.workspace_dir(&workspace.id));
    values.keyring().bucket(service).cloned().ok_or_else(|| none_yet(slug.as_str()))
}

fn none_yet(slug: &str) -> Problem {
    let hint = "a service that declares it gets it at the next wake: `resources: { storage: { required: true } }`";
    Problem::new(ProblemKind::NotFound, format!("{slug} has no such storage yet"), hint)
}

fn no_object(key: &str) -> Problem {
    Problem::new(
        ProblemKind::NotFound,
        format!("object `{key}` not found"),
        "`envforge s3 WS ls` shows which there are",
    )
}

/// A refusal in words for people.
fn refused(failed: &Failed) -> Problem {
    match failed {
        Failed::Refused { code, .. } if code == "NoSuchBucket" => none_yet("the workspace"),
        Failed::Refused { status: StatusCode::PRECONDITION_FAILED, .. } => {
            Problem::new(ProblemKind::Conflict, "the object was changed while it was read", "try again")
        }
        Failed::Refused { .. } | Failed::Unreachable(_) | Failed::Unreadable(_) => {
            Problem::new(ProblemKind::Failed, failed.to_string(), "`envforge logs WS storage` may say why")
        }
    }
}

struct Store<'a> {
    client: Client,
    bucket: Bucket,
    /// Held while an object appears or goes: no copy of the workspace is made at that moment.
    copies: &'a Mutex<()>,
}

impl Store<'_> {
    async fn call(&self, call: Call) -> Result<crate::resources::storage::s3::Answer, Problem> {
        self.client.call(call).await.map_err(|failed| refused(&failed))
    }

    fn on(&self, method: &'static str, key: &str) -> Call {
        Call::on(method, &self.bucket.name, Some(key))
    }

    /// Size and tag of an object.
    async fn about(&self, key: &str) -> Result<(u64, String), Problem> {
        let answer = match self.client.call(self.on("HEAD", key)).await {
            Ok(answer) => answer,
            Err(failed) if failed.is(StatusCode::NOT_FOUND) => return Err(no_object(key)),
            Err(failed) => return Err(refused(&failed)),
        };
        let field = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let size = field("content-length").and_then(|size| size.parse().ok());
        let unreadable = || refused(&Failed::Unreadable("an object without size or tag"));
        Ok((size.ok_or_else(unreadable)?, field("etag").ok_or_else(unreadable)?))
    }

    async fn list(&self, prefix: &str, out: &Out) -> Result<i32, Cut> {
        let all = objects::list(&self.client, &self.bucket.name).await.map_err(|failed| refused(&failed))?;
        let shown = all.into_iter().filter(|object| object.key.starts_with(prefix));
        let list = ObjectList {
            bucket: self.bucket.name.clone(),
            endpoint: format!("http://localhost:{}", ResourceKind::Storage.port()),
            objects: shown.map(|object| ObjectView { key: object.key, size: object.size }).collect(),
        };
        let json = serde_json::to_vec(&list).map_err(|error| Problem::internal(error.to_string()))?;
        self.tell(&json, out).await?;
        Ok(0)
    }

    async fn tell(&self, octets: &[u8], out: &Out) -> Result<(), Cut> {
        for chunk in octets.chunks(AT_ONCE) {
            out.data(channel::STDOUT, chunk).await?;
        }
        Ok(())
    }

    async fn get(&self, key: &str, out: &Out) -> Result<i32, Cut> {
        let (size, tag) = self.about(key).await?;
        let mut from = 0;
        while from < size {
            let to = (from + PART as u64).min(size);
            let call = self.on("GET", key).header("range", format!("bytes={from}-{}", to - 1));
            let octets = self.call(call.header("if-match", tag.clone())).await?.body;
            if octets.len() as u64 != to - from {
                return Err(refused(&Failed::Unreadable("another part than was asked for")).into());
            }
            self.tell(&octets, out).await?;
            from = to;
        }
        Ok(0)
    }

    async fn put(&self, key: &str, out: &Out, input: &mut In<'_>) -> Result<i32, Cut> {
        out.control(&Control::Started).await?;
        let mut upload: Option<Upload> = None;
        let mut octets = Vec::new();
        loop {
            let ended = match input.next().await? {
                Said::Stdin(more) => {
                    octets.extend_from_slice(&more);
                    more.is_empty()
                }
                Said::Resize(_) | Said::Signal(_) | Said::Identity(_) => continue,
            };
            if octets.len() >= PART {
                let upload = match &mut upload {
                    Some(upload) => upload,
                    none => none.insert(self.begin(key).await?),
                };
                self.part(key, upload, std::mem::take(&mut octets)).await?;
            }
            if ended {
                break;
            }
        }
        let Some(mut upload) = upload else {
            let mut call = self.on("PUT", key);
            call.body = octets;
            let _alone = self.copies.lock().await;
            self.call(call).await?;
            return Ok(0);
        };
        if !octets.is_empty() {
            self.part(key, &mut upload, octets).await?;
        }
        let mut call = self.on("POST", key).with("uploadId", upload.id.as_str());
        call.body = format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", upload.done).into_bytes();
        let _alone = self.copies.lock().await;
        // An error may come after the server has begun to answer with success.
        if !self.call(call).await?.text().contains("<ETag>") {
            return Err(refused(&Failed::Unreadable("an object without a tag")).into());
        }
        upload.kept = true;
        Ok(0)
    }

    async fn begin(&self, key: &str) -> Result<Upload, Problem> {
        let text = self.call(self.on("POST", key).with("uploads", "")).await?.text();
        let id = text.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once("</UploadId>"));
        let id = id.ok_or_else(|| refused(&Failed::Unreadable("no upload")))?.0.to_owned();
        let (client, bucket, key) = (self.client.clone(), self.bucket.name.clone(), key.to_owned());
        Ok(Upload { client, bucket, key, id, number: 0, done: String::new(), kept: false })
    }

    async fn part(&self, key: &str, upload: &mut Upload, octets: Vec<u8>) -> Result<(), Problem> {
        upload.number += 1;
        let number = upload.number;
        let mut call = self.on("PUT", key).with("partNumber", number.to_string()).with("uploadId", upload.id.as_str());
        call.body = octets;
        let answer = self.call(call).await?;
        let tag = answer.headers.get("etag").and_then(|tag| tag.to_str().ok()).map(|tag| tag.trim_matches('"'));
        let tag = tag.ok_or_else(|| refused(&Failed::Unreadable("a part without a tag")))?;
        upload.done.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>\"{tag}\"</ETag></Part>"));
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<i32, Cut> {
        self.about(key).await?;
        let _alone = self.copies.lock().await;
        self.call(self.on("DELETE", key)).await?;
        Ok(0)
    }
}

/// A large object on its way. One that does not become an object is taken back: what is left of it would take space and be
/// seen by nobody.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    id: String,
    number: u32,
    done: String,
    kept: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.kept {
            let call = Call::on("DELETE", &self.bucket, Some(&self.key)).with("uploadId", self.id.as_str());
            let client = self.client.clone();
            // Fails with the server: what is left then stays until the bucket is made anew.
            tokio::spawn(async move { drop(client.call(call).await) });
        }
    }
}
