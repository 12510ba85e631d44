//! `hold`: keep a runtime awake, visibly and with an end.

use crate::{args::HoldArgs, context::Context, output::times};
use envforge_api::{
    problem::{Problem, ProblemKind},
    public::{Held, HoldRequest},
    time::Timestamp,
};
use std::process::ExitCode;

pub(super) async fn run(context: &Context, args: HoldArgs) -> Result<ExitCode, Problem> {
    let (ws, length) = match args.words.as_slice() {
        [length] => (None, length),
        [ws, length] => (Some(ws.as_str()), length),
        _ => return Err(Problem::new(ProblemKind::Usage, "how long?", "envforge hold [WS] (DURATION | off)")),
    };
    let seconds = seconds(length)?;
    let workspace = context.workspace(ws).await?;
    let client = context.client().await?;
    let held: Held = client.post(&format!("/v1/workspaces/{workspace}/hold"), &HoldRequest { seconds }).await?;
    context.out.data(&held, || match held.until {
        Some(until) => format!(
            "{workspace} is held awake until {} ({})",
            times::point(until),
            times::relative(until, Timestamp::now())
        ),
        None => format!("{workspace} is not held awake"),
    });
    Ok(ExitCode::SUCCESS)
}

/// Seconds of a hold; `off` is 0.
fn seconds(given: &str) -> Result<u64, Problem> {
    const LONGEST_S: u64 = 7 * 86_400;
    if given == "off" {
        return Ok(0);
    }
    match times::parse_duration(given)? {
        seconds @ 1..=LONGEST_S => Ok(seconds),
        _ => Err(Problem::new(
            ProblemKind::Usage,
            format!("a hold of {given} is not possible"),
            "at least 1s and at most 7d; `envforge hold off` ends one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_lasts_at_most_seven_days_and_off_ends_it() {
        assert_eq!(seconds("2h").expect("read"), 7200);
        assert_eq!(seconds("7d").expect("read"), 604_800);
        assert_eq!(seconds("off").expect("read"), 0);
        for bad in ["8d", "0s", "on"] {
            assert_eq!(seconds(bad).expect_err(bad).kind, ProblemKind::Usage);
        }
    }
}
