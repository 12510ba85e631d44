//! An acknowledged write is never lost: processes of an installation under load are killed at random moments, again and
//! again, and everything that a server said it had is there afterwards, once and in order; whatever was killed is back.
//!
//! `ENVFORGE_KILLS=500` kills more often than 200 times (more than a thousand fill an inbox, which forgets then); `ENVFORGE_KILLS_SEED=7` makes the same choices, as far as the machine is as fast.

mod chance;
mod load;
mod victims;

use chance::{Chance, given, seed};
use envforge_testkit::{
    local::{Local, program},
    machine::eventually,
    storage::{self, Stored},
};
use load::{Made, Workspace};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};
use victims::{ALL, Process, Victim};

/// As often as is promised.
const KILLS: u64 = 200;
/// Kills in a row that wait for nothing.
const AT_ONCE: u32 = 4;
/// The longest pause before a kill that waits for nothing, in milliseconds.
const LONGEST_PAUSE: u64 = 150;

/// What happened until now, for whoever has to understand a failure.
struct Story<'a> {
    seed: u64,
    local: &'a Local,
    begun: Instant,
    told: std::cell::RefCell<String>,
}

impl Story<'_> {
    fn tell(&self, what: &str) {
        let line = format!("{:>7} ms  {what}", self.begun.elapsed().as_millis());
        let _ = writeln!(self.told.borrow_mut(), "{line}");
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::env::var_os("ENVFORGE_KILLS").is_some() && !std::thread::panicking() {
            say(&self.told.borrow());
        }
        if std::thread::panicking() {
            say(&format!(
                "{}\n{}\nthe same again: ENVFORGE_KILLS_SEED={}",
                self.told.borrow(),
                self.local.log_tails(),
                self.seed
            ));
        }
    }
}

#[expect(clippy::print_stderr, reason = "a seed that is not told cannot be had again")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// A moment chosen by chance, in which nothing is waited for.
fn pause(chance: &mut Chance) {
    let (_held, nothing) = mpsc::channel::<()>();
    let _ = nothing.recv_timeout(Duration::from_millis(chance.below(LONGEST_PAUSE)));
}

/// The kills of a run.
struct Run<'a> {
    local: &'a Local,
    workspaces: &'a [Workspace],
    story: Story<'a>,
    chance: Chance,
    killed: BTreeMap<Victim, BTreeSet<Process>>,
    waited: BTreeMap<Victim, Vec<u128>>,
    at_once: u32,
}

impl Run<'_> {
    fn kill_one(&mut self) {
        let (victim, workspace, process) = eventually("somebody can be killed", || {
            let victim = *self.chance.one(&ALL);
            let workspace = self.chance.one(self.workspaces);
            let process = victim.find(self.local, workspace, &mut self.chance)?;
            process.kill().then_some((victim, workspace, process))
        });
        self.story.tell(&format!("killed {victim:?} of {}, {}", workspace.name, process.pid));
        assert!(self.killed.entry(victim).or_default().insert(process), "{victim:?} was killed before: {process:?}");
        if self.at_once < AT_ONCE && self.chance.below(2) == 0 {
            self.at_once += 1;
            pause(&mut self.chance);
            return;
        }
        self.at_once = 0;
        let begun = Instant::now();
        self.progress(victim, workspace, process);
        self.waited.entry(victim).or_default().push(begun.elapsed().as_millis());
        if self.chance.below(2) == 0 {
            pause(&mut self.chance);
        }
    }

    /// Waits until clients go on with what was killed, or another process is in its place.
    fn progress(&mut self, victim: Victim, workspace: &Workspace, process: Process) {
        // What is written down now may have been acknowledged before.
        let wanted: Vec<_> = victim.hits().iter().map(|made| (*made, workspace.acknowledged(*made) + 2)).collect();
        for (made, wanted) in wanted {
            let what = format!("{} of {} go on after {victim:?} was killed", made.name(), workspace.name);
            eventually(&what, || (workspace.acknowledged(made) >= wanted).then_some(()));
        }
        if victim.hits().is_empty() {
            let (local, chance) = (self.local, &mut self.chance);
            eventually(&format!("another {victim:?}"), || {
                victim.find(local, workspace, chance).filter(|next| *next != process)
            });
        }
    }

    /// The workspace sleeps in the middle of all this, wakes, and has everything.
    fn sleep_and_wake(&self, workspace: &Workspace) {
        for verb in ["sleep", "wake"] {
            // What is asked of a part that is just being started again may fail, and is asked again.
            eventually(&format!("{} can be told to {verb}", workspace.name), || {
                let out = self.local.run(&[verb, workspace.name, "--wait"]);
                let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
                self.story.tell(&format!("{verb} {}: {:?} {said}", workspace.name, out.status.code()));
                out.status.success().then_some(())
            });
        }
        self.whole(workspace);
    }

    fn whole(&self, workspace: &Workspace) {
        let status = self.local.wait_for(workspace.name, "as it should be", |status| {
            let all = |list: &str, state: &str| {
                status[list]
                    .as_array()
                    .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one["state"] == state))
            };
            status["runtime"]["state"] == "awake" && all("services", "healthy") && all("resources", "ready")
        });
        assert_eq!(status["billing"]["state"], "metering", "{status:#}");
        self.story.tell(&format!("{} is healthy", workspace.name));
        workspace.assert_all_there(self.local);
        assert_apart(self.local, workspace.name);
        self.story.tell(&format!("{} has everything", workspace.name));
    }
}

/// No second is billed twice.
fn assert_apart(local: &Local, workspace: &str) {
    let usage = local.json(&["workspace", "usage", workspace]);
    let at = |text: &serde_json::Value| text.as_str().map(|text| text.parse::<jiff::Timestamp>().expect("a time"));
    let sessions = usage["sessions"].as_array().expect("sessions").iter();
    let mut all: Vec<_> = sessions.map(|one| (at(&one["started_at"]).expect("begun"), at(&one["ended_at"]))).collect();
    all.sort();
    for pair in all.windows(2) {
        assert!(pair[0].1.is_some_and(|end| end <= pair[1].0), "sessions overlap: {usage:#}");
    }
}

#[test]
fn what_was_acknowledged_is_there_however_often_and_whenever_anything_is_killed() {
    let kills = given("ENVFORGE_KILLS").unwrap_or(KILLS);
    let seed = given("ENVFORGE_KILLS_SEED").unwrap_or_else(seed);
    let (Some(boto3), Some(_)) = (storage::client(), program("mailpit", "kills under load")) else { return };
    let binary = Path::new(env!("CARGO_BIN_EXE_envforge"));
    let Some(stored) = Stored::start(binary, storage::seaweedfs(), &[("ENVFORGE_PROJECT", "load")]) else { return };
    say(&format!("{kills} kills, ENVFORGE_KILLS_SEED={seed}"));
    let local = &stored.local;
    let workspaces = load::begin(&stored, &boto3.to_string_lossy(), &["one", "two"]);
    let story = Story { seed, local, begun: Instant::now(), told: String::new().into() };
    let (killed, waited) = (BTreeMap::new(), BTreeMap::new());
    let mut run = Run { local, workspaces: &workspaces, story, chance: Chance::of(seed), killed, waited, at_once: 0 };
    let before: BTreeMap<_, _> = counts(&workspaces);
    for number in 1..=kills {
        run.kill_one();
        if number % (kills / 4).max(1) == 0 {
            let turn = usize::try_from(number / (kills / 4).max(1)).expect("small");
            run.sleep_and_wake(&workspaces[turn % workspaces.len()]);
        }
    }
    workspaces.iter().for_each(|workspace| run.whole(workspace));
    let made: BTreeMap<_, _> = counts(&workspaces).into_iter().map(|(of, now)| (of, now - before[&of])).collect();

    // Then the machine itself, as it is: under load.
    for victim in ALL {
        eventually(&format!("{victim:?} is back"), || victim.find(local, &workspaces[0], &mut run.chance));
    }
    local.cut_power();
    run.story.tell("power was cut");
    local.ok(&["ls"]);
    workspaces.iter().for_each(|workspace| run.whole(workspace));

    say(&format!("in {} s, acknowledged: {made:?}", run.story.begun.elapsed().as_secs()));
    for (victim, processes) in &run.killed {
        let waited = run.waited.get(victim).cloned().unwrap_or_default();
        say(&format!(
            "{victim:?}: {} killed, back after at most {:?} ms of {waited:?}",
            processes.len(),
            waited.iter().max()
        ));
    }
    for ((workspace, of), count) in made {
        assert!(count >= kills, "only {count} {} of {workspace} were made meanwhile", of.name());
    }
    for victim in ALL {
        let others = run.killed.get(&victim).map_or(0, BTreeSet::len);
        assert!(kills < KILLS || others > 1, "{victim:?} was killed {others} times");
    }
}

fn counts(workspaces: &[Workspace]) -> BTreeMap<(&'static str, Made), u64> {
    let each = workspaces.iter().flat_map(|workspace| Made::ALL.map(|made| (workspace, made)));
    each.map(|(workspace, made)| ((workspace.name, made), workspace.acknowledged(made))).collect()
}
