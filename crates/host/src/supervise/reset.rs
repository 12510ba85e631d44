//! `envforge reset`: data services wiped and filled anew while everything else goes on.
//!
//! How often a resource was asked to be wiped comes with its description; how often it was is kept here. Whoever starts or
//! prepares its server makes both equal before anyone is told that it is ready, so that a reset which was cut short by
//! anything is completed by whoever comes next.

use super::{
    protocol::{Answer, ResetOrder},
    runs::Output,
    runtime::{Runtime, Shared},
    setup::SetupState,
};
use crate::{
    resources::{Context, Driver},
    system::files,
};
use envforge_api::{
    resource::ResourceKind,
    states::{ResourceState, Trouble},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A reset under way.
#[derive(Debug)]
pub(super) struct Reset {
    order: ResetOrder,
    /// Services that use what is wiped.
    services: BTreeSet<String>,
    step: Step,
    output: Output,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its consumers are being stopped.
    Stopping,
    /// It is wiped, made, filled; then set-up steps run.
    Filling,
}

impl Reset {
    /// Whether the processes of a service wait for it.
    pub(super) fn holds(&self, service: &str) -> bool {
        self.services.contains(service)
    }
}

fn wiped_path(workspace_dir: &Path) -> PathBuf {
    workspace_dir.join("state").join("wiped.json")
}

/// How often each resource was wiped.
fn wiped(workspace_dir: &Path) -> BTreeMap<ResourceKind, u32> {
    let bytes = fs::read(wiped_path(workspace_dir)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// What of a server was asked to be wiped and was not.
pub(super) fn due(shared: &Shared, context: &Context) -> BTreeMap<ResourceKind, u32> {
    let done = wiped(&shared.sandbox.dir);
    let asked = context.shares.iter().map(|share| (share.kind, share.reset));
    asked.filter(|(kind, times)| *times > done.get(kind).copied().unwrap_or_default()).collect()
}

/// Wipes what is due; [`done`] is to follow once the server is prepared again.
pub(super) async fn wipe(
    driver: &dyn Driver,
    context: &Context,
    due: &BTreeMap<ResourceKind, u32>,
) -> Result<(), Trouble> {
    for kind in due.keys() {
        driver.wipe(context, *kind).await?;
    }
    Ok(())
}

/// Keeps what was wiped.
pub(super) fn done(shared: &Shared, due: &BTreeMap<ResourceKind, u32>) -> Result<(), Trouble> {
    if due.is_empty() {
        return Ok(());
    }
    let mut all = wiped(&shared.sandbox.dir);
    all.extend(due);
    let bytes = serde_json::to_vec(&all).unwrap_or_default();
    files::write_durably(&wiped_path(&shared.sandbox.dir), &bytes, 0o600)
        .map_err(|e| Trouble::new(e.to_string(), e.hint))
}

impl Runtime {
    pub(super) fn begin_reset(&mut self, order: ResetOrder) -> Answer {
        if self.runs.contains_key(&order.id) {
            return Answer::Accepted;
        }
        let kinds: Vec<&str> = order.kinds.iter().map(|kind| kind.as_str()).collect();
        let title = format!("reset {}", kinds.join(", "));
        let output = match self.note_run(&order.id, title) {
            Ok(output) => output,
            Err(trouble) => return Answer::Refused { trouble },
        };
        let of_kind =
            self.spec.resources.iter().chain(&order.resources).filter(|r| order.kinds.contains(&r.resource.kind));
        let services: BTreeSet<String> =
            of_kind.flat_map(|resource| &resource.resource.consumers).map(ToString::to_string).collect();
        let processes = self.services.iter().filter(|known| services.contains(&known.spec.service));
        let restart: BTreeSet<String> = processes.map(|known| known.spec.name.clone()).collect();
        // Shell-layer steps run again first, and their end is told anew.
        self.released.retain(|service, _| !services.contains(service));
        let names: Vec<&str> = services.iter().map(String::as_str).collect();
        output.say(&format!("stopping {}", names.join(", ")));
        self.reset = Some(Reset { order, services, step: Step::Stopping, output });
        self.update(Vec::new(), &restart, self.stopped.clone());
        Answer::Accepted
    }

    /// Goes on with a reset as soon as what it waits for has come.
    pub(super) fn advance_reset(&mut self) {
        match self.reset.as_ref().map(|reset| reset.step) {
            Some(Step::Stopping) => self.wipe_when_alone(),
            Some(Step::Filling) => self.end_reset_when_filled(),
            None => {}
        }
    }

    fn wipe_when_alone(&mut self) {
        let Some(reset) = self.reset.as_mut() else { return };
        let uses = |service: &&super::service::Service| reset.services.contains(&service.spec.service);
        if self.services.iter().filter(uses).any(super::service::Service::has_process) {
            return;
        }
        reset.step = Step::Filling;
        let kinds: Vec<&str> = reset.order.kinds.iter().map(|kind| kind.as_str()).collect();
        reset.output.say(&format!("wiping {}", kinds.join(", ")));
        let (processes, resources) = (std::mem::take(&mut reset.order.processes), reset.order.resources.clone());
        let kinds = reset.order.kinds.clone();
        self.update_resources(resources);
        // Ready again only once it was wiped, whatever it says until then.
        self.expect_servers(&kinds);
        // Their shell-layer set-up may have ended meanwhile.
        let released = self.released.clone();
        self.update(processes, &BTreeSet::new(), self.stopped.clone());
        self.released = released;
    }

    fn end_reset_when_filled(&mut self) {
        let Some(reset) = &self.reset else { return };
        let mut failed = None;
        for kind in &reset.order.kinds {
            match self.state_of(*kind) {
                Some((ResourceState::Ready, _)) | None => {}
                Some((ResourceState::Blocked, trouble)) => failed = failed.or(trouble),
                Some((ResourceState::Waking | ResourceState::Disabled, _)) => return,
            }
        }
        for (service, setup) in &self.setups {
            match (&setup.state, reset.services.contains(service)) {
                (SetupState::Failed(trouble), true) => failed = failed.or_else(|| Some(trouble.clone())),
                (SetupState::Waiting | SetupState::Running, true) if failed.is_none() => return,
                (SetupState::Waiting | SetupState::Running | SetupState::Done | SetupState::Failed(_), _) => {}
            }
        }
        let Some(reset) = self.reset.take() else { return };
        let code = i32::from(failed.is_some());
        let reason = failed.map(|trouble| {
            let hint = if trouble.hint.is_empty() { String::new() } else { format!(" ({})", trouble.hint) };
            format!("{}{hint}", trouble.reason)
        });
        match &reason {
            Some(reason) => reset.output.say(reason),
            None => reset.output.say("ready; the services that use it are started"),
        }
        reset.output.exit(code);
        self.run_ended(&reset.order.id, Some(code), reason);
    }
}
