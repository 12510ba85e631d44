//! Which workspace has to stand still so that the others have room: a pure function of what is free and of how large each
//! workspace was and is.
//!
//! Of what the host keeps free (the *reserve*) half is only not to be used (the *margin*), and half lies in a file (the
//! *ballast*), so that there is something to give back to the others when a single call has taken everything at once.

use crate::system::disk::Space;
use envforge_api::ids::WorkspaceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is kept free, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reserve(pub(super) u64);

impl Reserve {
    /// Below this much free space whoever took it stands still.
    pub(super) const fn margin(self) -> u64 {
        self.0 / 2
    }

    /// What lies in a file.
    pub(super) const fn ballast(self) -> u64 {
        self.0 / 2
    }

    /// Below this the ballast is given back.
    pub(super) const fn emergency(self) -> u64 {
        self.0 / 8
    }

    /// Less growth than this makes nobody stand still; in an emergency an eighth of it.
    const fn growth(self) -> u64 {
        self.0 / 8
    }

    /// A change of what is free that is worth another look at sizes.
    pub(super) const fn step(self) -> u64 {
        self.0 / 64
    }

    /// From here on everyone goes on.
    const fn relief(self) -> u64 {
        self.0
    }

    /// From here on sizes are looked at rarely.
    pub(super) const fn plenty(self) -> u64 {
        self.0.saturating_mul(2)
    }
}

/// How still a workspace stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Hold {
    /// Its runtime sleeps, and whatever of its shell writes is stopped: there, room can be made.
    Writers,
    /// Everything of it stands still, at once.
    All,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// This one stands still.
    Hold(WorkspaceId, Hold),
    /// The ballast goes.
    GiveBack,
    /// This one goes on.
    Release(WorkspaceId),
}

/// Octets that each workspace takes; `None`: more than could be counted in time.
pub(super) type Sizes = BTreeMap<WorkspaceId, Option<u64>>;

/// A look at sizes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured<'a> {
    pub(super) sizes: &'a Sizes,
    /// What was free when it began: of what was taken since, it may show nothing.
    pub(super) free: u64,
    /// It was made because time had passed.
    pub(super) in_time: bool,
}

/// One that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    hold: Hold,
    /// How large it was then.
    size: u64,
}

/// What is remembered between two looks, and from one daemon to the next.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Judge {
    /// How large each was: while there is plenty, or smaller since, or slowly become.
    before: BTreeMap<WorkspaceId, u64>,
    held: BTreeMap<WorkspaceId, Held>,
    /// What was free when one was made to stand still last.
    at_last: Option<u64>,
}

impl Judge {
    /// Decides on a look at what is free, and on sizes, where there are any that were not judged yet.
    pub(super) fn look(&mut self, reserve: Reserve, space: Space, measured: Option<Measured<'_>>) -> Vec<Step> {
        if let Some(measured) = measured {
            self.remember(measured.sizes, space.free >= reserve.plenty(), measured.in_time);
        }
        if space.free >= reserve.relief() {
            self.at_last = None;
            return std::mem::take(&mut self.held).into_keys().map(Step::Release).collect();
        }
        let Some(Measured { sizes, free: before, .. }) = measured else { return vec![] };
        let mut steps = Vec::new();
        if space.free >= reserve.margin() {
            let enough = space.free >= reserve.margin() + reserve.growth();
            let gave_back = |(id, held): (&WorkspaceId, &Held)| {
                let size = sizes.get(id).copied().flatten()?;
                (enough && size.saturating_add(reserve.growth()) <= held.size).then(|| id.clone())
            };
            let free: Vec<WorkspaceId> = self.held.iter().filter_map(gave_back).collect();
            for id in free {
                self.held.remove(&id);
                steps.push(Step::Release(id));
            }
            return steps;
        }
        let emergency = space.free < reserve.emergency();
        if emergency && before >= reserve.emergency() {
            // Whoever took it all may have done so after it was looked at: another one would stand still, and this one
            // get the ballast too.
            return steps;
        }
        // What one that stands still wrote before it did shows a moment later: the next one only when still more is gone.
        let gone_on = self.at_last.is_none_or(|free| space.free < free.saturating_sub(reserve.step() * 4));
        let wanted = if emergency { Hold::All } else { Hold::Writers };
        if (gone_on || emergency)
            && let Some(workspace) = self.heaviest(reserve, sizes, wanted)
        {
            let known = self.before.get(&workspace).copied().unwrap_or_default();
            let size = sizes.get(&workspace).copied().flatten().unwrap_or(known);
            self.held.insert(workspace.clone(), Held { hold: wanted, size });
            // From now on only what it takes in spite of that is held against it.
            self.before.insert(workspace.clone(), size);
            self.at_last = Some(space.free);
            steps.push(Step::Hold(workspace, wanted));
        }
        if emergency {
            steps.push(Step::GiveBack);
        }
        steps
    }

    fn remember(&mut self, sizes: &Sizes, plenty: bool, in_time: bool) {
        for (workspace, size) in sizes {
            let Some(size) = *size else { continue };
            let before = self.before.entry(workspace.clone()).or_insert(size);
            if plenty || size < *before {
                *before = size;
            } else if in_time {
                // A disk that is never empty: what was taken hours ago is no longer news.
                *before += (size - *before) / 32;
            }
        }
    }

    /// Forgets those that are gone or to go; they go on, so that they can.
    pub(super) fn keep_only(&mut self, known: impl Fn(&WorkspaceId) -> bool) -> Vec<Step> {
        self.before.retain(|workspace, _| known(workspace));
        let gone: Vec<WorkspaceId> = self.held.keys().filter(|workspace| !known(workspace)).cloned().collect();
        gone.into_iter()
            .map(|workspace| {
                self.held.remove(&workspace);
                Step::Release(workspace)
            })
            .collect()
    }

    /// Who stands still, and how.
    pub(super) fn held(&self) -> BTreeMap<WorkspaceId, Hold> {
        self.held.iter().map(|(workspace, held)| (workspace.clone(), held.hold)).collect()
    }

    /// Who grew most, and enough, and does not stand so still already.
    fn heaviest(&self, reserve: Reserve, sizes: &Sizes, wanted: Hold) -> Option<WorkspaceId> {
        let grown = |workspace: &WorkspaceId, size: Option<u64>| match (size, wanted) {
            (Some(size), _) => size.saturating_sub(self.before.get(workspace).copied().unwrap_or(size)),
            // What cannot be counted has no share in what is kept for all.
            (None, Hold::All) => u64::MAX,
            (None, Hold::Writers) => 0,
        };
        let enough = match wanted {
            Hold::Writers => reserve.growth(),
            Hold::All => reserve.growth() / 8,
        };
        sizes
            .iter()
            .filter(|(workspace, _)| self.held.get(*workspace).is_none_or(|held| held.hold < wanted))
            .map(|(workspace, size)| (grown(workspace, *size), workspace))
            .filter(|(growth, _)| *growth >= enough)
            .max()
            .map(|(_, workspace)| workspace.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const RESERVE: Reserve = Reserve(800 * MIB);

    fn ids() -> (WorkspaceId, WorkspaceId) {
        (WorkspaceId::generate(), WorkspaceId::generate())
    }

    fn space(free: u64) -> Space {
        Space { total: 100_000 * MIB, free: free * MIB }
    }

    fn now(free: u64, sizes: &Sizes) -> Option<Measured<'_>> {
        Some(Measured { sizes, free: free * MIB, in_time: false })
    }

    /// Looks with what is free and with two sizes, all in MiB.
    fn looks(one: &WorkspaceId, other: &WorkspaceId) -> impl FnMut(u64, u64, u64) -> Vec<Step> + use<> {
        let (mut judge, one, other) = (Judge::default(), one.clone(), other.clone());
        move |free, first, second| {
            let sizes = [(one.clone(), Some(first * MIB)), (other.clone(), Some(second * MIB))].into();
            judge.look(RESERVE, space(free), now(free, &sizes))
        }
    }

    #[test]
    fn who_took_the_space_stands_still_and_who_is_merely_large_goes_on() {
        let (grows, large) = ids();
        let mut look = looks(&grows, &large);
        assert_eq!(look(1_000, 10, 50_000), vec![]);
        assert_eq!(look(700, 20, 50_000), vec![]);
        assert_eq!(look(410, 310, 50_000), vec![]);
        assert_eq!(look(390, 330, 50_000), vec![Step::Hold(grows.clone(), Hold::Writers)]);
        // What was on its way comes to an end.
        assert_eq!(look(380, 340, 50_000), vec![]);
        assert_eq!(look(450, 270, 50_000), vec![]);
        assert_eq!(look(800, 220, 50_000), vec![Step::Release(grows)]);
        assert_eq!(look(800, 220, 50_000), vec![]);
    }

    #[test]
    fn who_gave_back_what_it_took_goes_on_though_the_disk_is_as_full_as_before() {
        let (grows, other) = ids();
        let mut look = looks(&grows, &other);
        look(600, 10, 40);
        assert_eq!(look(390, 220, 40), vec![Step::Hold(grows.clone(), Hold::Writers)]);
        assert_eq!(look(450, 160, 40), vec![]);
        assert_eq!(look(600, 10, 40), vec![Step::Release(grows)]);
    }

    #[test]
    fn one_that_still_takes_space_stands_still_as_a_whole_before_the_ballast_is_given_back() {
        let (grows, other) = ids();
        let mut look = looks(&grows, &other);
        assert_eq!(look(700, 10, 40), vec![]);
        assert_eq!(look(390, 320, 40), vec![Step::Hold(grows.clone(), Hold::Writers)]);
        assert_eq!(look(99, 620, 40), vec![Step::Hold(grows.clone(), Hold::All), Step::GiveBack]);
        assert_eq!(look(499, 620, 40), vec![]);
        assert_eq!(look(900, 10, 40), vec![Step::Release(grows)]);
    }

    #[test]
    fn all_of_it_taken_in_one_call_is_given_back_when_its_taker_stands_still() {
        let (grows, other) = ids();
        let mut look = looks(&grows, &other);
        look(5_000, 10, 40);
        assert_eq!(look(0, 5_010, 40), vec![Step::Hold(grows.clone(), Hold::All), Step::GiveBack]);
    }

    #[test]
    fn sizes_of_before_it_was_taken_hold_nobody_and_give_nothing_back() {
        let (grows, other) = ids();
        let mut judge = Judge::default();
        let sizes = |size: u64, second: u64| -> Sizes {
            [(grows.clone(), Some(size * MIB)), (other.clone(), Some(second * MIB))].into()
        };
        judge.look(RESERVE, space(5_000), now(5_000, &sizes(10, 40)));
        // The other one grew a little while the look was on its way.
        assert_eq!(judge.look(RESERVE, space(0), now(5_000, &sizes(10, 60))), vec![]);
        let steps = judge.look(RESERVE, space(0), now(0, &sizes(5_010, 60)));
        assert_eq!(steps, vec![Step::Hold(grows, Hold::All), Step::GiveBack]);
    }

    #[test]
    fn what_cannot_be_counted_in_time_stands_still_in_an_emergency_alone() {
        let (hides, other) = ids();
        let mut judge = Judge::default();
        let sizes: Sizes = [(hides.clone(), None), (other, Some(10 * MIB))].into();
        assert_eq!(judge.look(RESERVE, space(300), now(300, &sizes)), vec![]);
        let steps = judge.look(RESERVE, space(50), now(50, &sizes));
        assert_eq!(steps, vec![Step::Hold(hides, Hold::All), Step::GiveBack]);
    }

    #[test]
    fn nobody_stands_still_for_what_someone_else_took_and_nothing_is_decided_without_sizes() {
        let (one, other) = ids();
        let mut look = looks(&one, &other);
        assert_eq!(look(700, 10, 40), vec![]);
        assert_eq!(look(300, 15, 44), vec![]);
        assert_eq!(look(50, 16, 45), vec![Step::GiveBack]);
        assert_eq!(Judge::default().look(RESERVE, space(0), None), vec![]);
    }

    #[test]
    fn two_who_take_it_stand_still_one_after_the_other() {
        let (one, other) = ids();
        let mut look = looks(&one, &other);
        look(790, 10, 10);
        assert_eq!(look(390, 240, 180), vec![Step::Hold(one.clone(), Hold::Writers)]);
        assert_eq!(look(350, 240, 220), vec![]);
        assert_eq!(look(330, 240, 240), vec![Step::Hold(other.clone(), Hold::Writers)]);
    }

    #[test]
    fn on_a_disk_that_is_never_empty_what_was_taken_over_days_is_held_against_nobody() {
        let (slow, other) = ids();
        let mut judge = Judge::default();
        let look = |judge: &mut Judge, free: u64, size: u64| {
            let sizes = [(slow.clone(), Some(size * MIB)), (other.clone(), Some(0))].into();
            judge.look(RESERVE, space(free), Some(Measured { sizes: &sizes, free: free * MIB, in_time: true }))
        };
        for minute in 0..1_000 {
            assert_eq!(look(&mut judge, 700 - minute / 4, 1_000 + minute / 4), vec![], "{minute}");
        }
        assert_eq!(look(&mut judge, 390, 1_260), vec![]);
    }

    #[test]
    fn one_that_is_to_go_goes_on() {
        let (grows, other) = ids();
        let mut judge = Judge::default();
        let sizes = |size: u64| -> Sizes { [(grows.clone(), Some(size * MIB)), (other.clone(), Some(0))].into() };
        judge.look(RESERVE, space(700), now(700, &sizes(10)));
        judge.look(RESERVE, space(300), now(300, &sizes(410)));
        assert_eq!(judge.held().len(), 1);
        assert_eq!(judge.keep_only(|id| id == &other), vec![Step::Release(grows.clone())]);
        assert!(judge.held().is_empty());
    }
}
