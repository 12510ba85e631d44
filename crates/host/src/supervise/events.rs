//! Everything that can happen to a runtime.

use super::protocol::{Answer, Ask};
use envforge_api::{ids::CommandId, names::ServiceName, resource::ResourceKind, states::Trouble};
use std::process::ExitStatus;
use tokio::sync::oneshot;

/// Something happened. `run` numbers the runs of one process, so that news of an earlier run changes nothing.
#[derive(Debug)]
pub(super) enum Event {
    /// A service's process ended, and nothing of its group is left.
    ServiceEnded { name: String, run: u64, status: ExitStatus },
    /// A health check of a service.
    Checked { name: String, run: u64, outcome: Result<(), String> },
    /// A crashed service may be started again.
    Due { name: String, run: u64 },
    /// A run of a service has lasted as long as its start may take.
    Lasted { name: String, run: u64 },
    /// A resource server answers and is prepared.
    ServerReady { server: &'static str, run: u64 },
    /// A resource server could not be made, started or prepared.
    ServerFailed { server: &'static str, run: u64, trouble: Trouble },
    /// What services newly ask of a resource server that serves cannot be had.
    ServerUnprepared { server: &'static str, run: u64, trouble: Trouble },
    /// A resource server's process is gone.
    ServerEnded { server: &'static str, run: u64 },
    /// A failed resource server may be tried again.
    ServerDue { server: &'static str, run: u64 },
    /// How a resource was seen whose server is somewhere else.
    Outside { kind: ResourceKind, service: Option<ServiceName>, run: u64, trouble: Option<Trouble> },
    /// A setup step began or ended (exit status).
    Step { service: String, step: String, ended: Option<i32> },
    /// The setup of a service came to its end.
    SetupEnded { service: String, outcome: Result<(), Trouble> },
    /// A run ended.
    RunEnded { id: CommandId, exit_code: Option<i32>, reason: Option<String> },
    /// The daemon asks.
    Asked { ask: Ask, answer: oneshot::Sender<Answer> },
    /// Time for a reading and a look at the idle judge.
    Tick { database: Option<String> },
    /// It stood still for as long as was allowed.
    StoodTooLong { number: u64 },
    /// Every process of the runtime is gone, as was asked.
    Gone { reason: String },
}
