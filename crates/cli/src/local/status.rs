//! What runs of a local installation, read from `keeper.json` and checked against the kernel.

use super::{
    LocalStatus, Part,
    keeper::PARTS,
    paths::Paths,
    program::read_address,
    state::{Named, PartState, Phase, Record, keeper_lives},
};

/// See [`super::status`].
pub(super) fn status(paths: &Paths) -> LocalStatus {
    let record = Record::read(paths);
    let keeper = record.as_ref().map(|record| record.keeper).filter(|keeper| keeper.lives() && keeper_lives(paths));
    let mut parts = vec![Part {
        name: "keeper".to_owned(),
        pid: keeper.map(|keeper| keeper.pid),
        state: match (keeper, record.as_ref().map(|record| record.phase)) {
            (None, _) | (_, None) => PartState::Stopped,
            (Some(_), Some(Phase::Starting)) => PartState::Starting,
            (Some(_), Some(Phase::Ready | Phase::Stopping | Phase::Stopped | Phase::Failed)) => PartState::Running,
        },
        since: record.as_ref().map(|record| record.since),
        restarts: 0,
        reason: record.as_ref().and_then(|record| Some(record.problem.as_ref()?.message.clone())),
        log: paths.log("keeper").display().to_string(),
    }];
    for name in PARTS {
        let noted = record.as_ref().and_then(|record| record.part(name));
        let process = noted.and_then(|part| part.process).filter(|process| Named::lives(*process));
        parts.push(Part {
            name: name.to_owned(),
            pid: process.map(|process| process.pid),
            state: match (process, noted) {
                (Some(_), Some(part)) => part.state,
                (None, Some(part)) if keeper.is_some() && part.state != PartState::Stopped => PartState::Restarting,
                (None | Some(_), None | Some(_)) => PartState::Stopped,
            },
            since: noted.map(|part| part.since),
            restarts: noted.map_or(0, |part| part.restarts),
            reason: noted.and_then(|part| part.reason.clone()),
            log: paths.log(name).display().to_string(),
        });
    }
    let control_runs = parts.iter().any(|part| part.name == "control" && part.state == PartState::Running);
    LocalStatus {
        running: control_runs && record.is_some_and(|record| record.phase == Phase::Ready) && keeper.is_some(),
        home: paths.home().to_owned(),
        address: read_address(paths).filter(|_| control_runs).map(|address| format!("http://{address}")),
        parts,
    }
}
