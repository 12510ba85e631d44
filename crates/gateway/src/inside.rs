//! Connections from inside workspaces: the host hands them over on a socket that only it may open, and says of which
//! workspace each is. To its own dev hosts a workspace needs no link.

use crate::{
    control::Control,
    known::Knowledge,
    sessions::{Sessions, Shown, Unverified, VerifiedSession},
};
use envforge_api::{dev_host::HostLabel, dial, dial::FromInside, ids::WorkspaceId, secret::Secret, time::Timestamp};
use std::{
    collections::HashMap,
    io,
    sync::{Mutex, PoisonError},
};
use tokio::{io::AsyncWriteExt, net::UnixStream};

/// A visit is asked for anew when it lasts no longer than so, in seconds.
const MARGIN_SECONDS: i64 = 60;

/// The visits of workspaces to themselves.
#[derive(Debug, Default)]
pub(crate) struct Residents {
    visits: Mutex<HashMap<HostLabel, (WorkspaceId, Secret, Timestamp)>>,
}

impl Residents {
    /// The session of a workspace on a dev host of its own.
    pub(crate) async fn session(
        &self,
        knowledge: &Knowledge,
        sessions: &Sessions,
        control: &Control,
        workspace: &WorkspaceId,
        host: &HostLabel,
    ) -> Result<VerifiedSession, Unverified> {
        let now = Timestamp::now();
        let known = self.visits.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned();
        let lasting = |until: Timestamp| until.duration_since(now).as_secs() > MARGIN_SECONDS;
        if let Some((of, token, until)) = known
            && of == *workspace
            && lasting(until)
            && let Ok(session) = sessions.verify(knowledge, Shown::Visit, token.expose(), host, now)
        {
            return Ok(session);
        }
        let granted = control.inside(workspace, host).await.map_err(|_| Unverified)?;
        let session = sessions.verify(knowledge, Shown::Visit, granted.token.expose(), host, now)?;
        let visit = (workspace.clone(), granted.token, granted.expires_at);
        self.visits.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone(), visit);
        Ok(session)
    }
}

/// Of which workspace a connection is, before anything else is said on it.
///
/// # Errors
/// When the other side does not say.
pub(crate) async fn greet(stream: &mut UnixStream) -> io::Result<WorkspaceId> {
    let from: FromInside = dial::asked(stream).await?;
    stream.write_all(b"\n").await?;
    Ok(from.workspace)
}
