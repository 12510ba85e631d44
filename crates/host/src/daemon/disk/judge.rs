//! Which workspace has to stand still so that the others have room: a pure function of what is free and of how large each
//! workspace was and is.
//!
//! Of what the host keeps free (the *reserve*) half is only not to be used (the *margin*), and half lies in a file (the
//! *ballast*), so that there is something to give back to the others when a single call has taken everything at once.

use crate::system::disk::Space;
use envforge_api::ids::WorkspaceId;
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
    const fn emergency(self) -> u64 {
        self.0 / 8
    }

    /// Less growth than this makes nobody stand still.
    const fn growth(self) -> u64 {
        self.0 / 8
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// Its runtime sleeps, and whatever of its shell writes is stopped: there, room can be made.
    Writers,
    /// Its shell stands still as a whole too.
    All,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// This one stands still.
    Hold(WorkspaceId, Hold),
    /// The ballast goes.
    GiveBack,
    /// All that stood still go on.
    Release,
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// How large each was while there was plenty, or smaller since.
    before: BTreeMap<WorkspaceId, u64>,
    held: BTreeMap<WorkspaceId, Hold>,
    /// What was free when one was made to stand still last.
    at_last: Option<u64>,
}

impl Judge {
    /// Decides on a look. `sizes` are of the workspaces that can write, of all of them where space is not plenty.
    pub(super) fn look(&mut self, reserve: Reserve, space: Space, sizes: &BTreeMap<WorkspaceId, u64>) -> Vec<Step> {
        let plenty = space.free >= reserve.plenty();
        for (workspace, size) in sizes {
            let before = self.before.entry(workspace.clone()).or_insert(*size);
            *before = if plenty { *size } else { (*before).min(*size) };
        }
        if space.free >= reserve.relief() {
            self.at_last = None;
            return if std::mem::take(&mut self.held).is_empty() { vec![] } else { vec![Step::Release] };
        }
        if space.free >= reserve.margin() {
            return vec![];
        }
        let emergency = space.free < reserve.emergency();
        // What one that stands still wrote before it did shows a moment later: the next one only when still more is gone.
        let gone_on = self.at_last.is_none_or(|free| space.free < free.saturating_sub(reserve.0 / 16));
        let wanted = if emergency { Hold::All } else { Hold::Writers };
        let mut steps = Vec::new();
        if (gone_on || emergency)
            && let Some(workspace) = self.heaviest(reserve, sizes, wanted)
        {
            self.held.insert(workspace.clone(), wanted);
            // From now on only what it takes in spite of that is held against it.
            self.before.insert(workspace.clone(), sizes.get(&workspace).copied().unwrap_or_default());
            self.at_last = Some(space.free);
            steps.push(Step::Hold(workspace, wanted));
        }
        if emergency {
            steps.push(Step::GiveBack);
        }
        steps
    }

    /// Forgets those that are gone.
    pub(super) fn keep_only(&mut self, known: impl Fn(&WorkspaceId) -> bool) {
        self.before.retain(|workspace, _| known(workspace));
        self.held.retain(|workspace, _| known(workspace));
    }

    /// Whether its size was looked at.
    pub(super) fn knows(&self, workspace: &WorkspaceId) -> bool {
        self.before.contains_key(workspace)
    }

    /// Who grew most, and enough, and does not stand so still already.
    fn heaviest(&self, reserve: Reserve, sizes: &BTreeMap<WorkspaceId, u64>, wanted: Hold) -> Option<WorkspaceId> {
        let grown = |workspace: &WorkspaceId, size: u64| {
            size.saturating_sub(self.before.get(workspace).copied().unwrap_or(size))
        };
        sizes
            .iter()
            .filter(|(workspace, _)| self.held.get(*workspace).is_none_or(|hold| *hold < wanted))
            .map(|(workspace, size)| (grown(workspace, *size), workspace))
            .filter(|(growth, _)| *growth >= reserve.growth())
            .max()
            .map(|(_, workspace)| workspace.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const RESERVE: Reserve = Reserve(800 * MIB);

    fn space(free: u64) -> Space {
        Space { total: 100_000 * MIB, free: free * MIB }
    }

    fn two() -> (WorkspaceId, WorkspaceId) {
        (WorkspaceId::generate(), WorkspaceId::generate())
    }

    fn sizes(of: [(&WorkspaceId, u64); 2]) -> BTreeMap<WorkspaceId, u64> {
        of.into_iter().map(|(id, mib)| (id.clone(), mib * MIB)).collect()
    }

    #[test]
    fn who_took_the_space_stands_still_and_who_is_merely_large_goes_on() {
        let (grows, large) = two();
        let mut judge = Judge::default();
        let mut look = |free, size| judge.look(RESERVE, space(free), &sizes([(&grows, size), (&large, 50_000)]));
        assert_eq!(look(1_000, 10), vec![]);
        assert_eq!(look(700, 20), vec![]);
        assert_eq!(look(410, 310), vec![]);
        assert_eq!(look(390, 330), vec![Step::Hold(grows.clone(), Hold::Writers)]);
        // What was on its way comes to an end.
        assert_eq!(look(380, 340), vec![]);
        assert_eq!(look(790, 10), vec![]);
        assert_eq!(look(800, 10), vec![Step::Release]);
        assert_eq!(look(800, 10), vec![]);
    }

    #[test]
    fn one_that_still_takes_space_stands_still_as_a_whole_before_the_ballast_is_given_back() {
        let (grows, other) = two();
        let mut judge = Judge::default();
        let mut look = |free, size| judge.look(RESERVE, space(free), &sizes([(&grows, size), (&other, 40)]));
        assert_eq!(look(700, 10), vec![]);
        assert_eq!(look(390, 320), vec![Step::Hold(grows.clone(), Hold::Writers)]);
        assert_eq!(look(99, 620), vec![Step::Hold(grows.clone(), Hold::All), Step::GiveBack]);
        assert_eq!(look(499, 620), vec![]);
        assert_eq!(look(900, 10), vec![Step::Release]);
    }

    #[test]
    fn all_of_it_taken_in_one_call_is_given_back_when_its_taker_stands_still() {
        let (grows, other) = two();
        let mut judge = Judge::default();
        let mut look = |free, size| judge.look(RESERVE, space(free), &sizes([(&grows, size), (&other, 40)]));
        look(5_000, 10);
        assert_eq!(look(0, 1_510), vec![Step::Hold(grows.clone(), Hold::All), Step::GiveBack]);
    }

    #[test]
    fn nobody_stands_still_for_what_someone_else_took() {
        let (one, other) = two();
        let mut judge = Judge::default();
        let mut look = |free, sizes| judge.look(RESERVE, space(free), &sizes);
        assert_eq!(look(700, sizes([(&one, 10), (&other, 40)])), vec![]);
        assert_eq!(look(300, sizes([(&one, 40), (&other, 60)])), vec![]);
        assert_eq!(look(50, sizes([(&one, 50), (&other, 70)])), vec![Step::GiveBack]);
    }

    #[test]
    fn two_who_take_it_stand_still_one_after_the_other() {
        let (one, other) = two();
        let mut judge = Judge::default();
        let mut look = |free, sizes| judge.look(RESERVE, space(free), &sizes);
        look(790, sizes([(&one, 10), (&other, 10)]));
        assert_eq!(look(390, sizes([(&one, 240), (&other, 180)])), vec![Step::Hold(one.clone(), Hold::Writers)]);
        assert_eq!(look(350, sizes([(&one, 240), (&other, 220)])), vec![]);
        assert_eq!(look(330, sizes([(&one, 240), (&other, 240)])), vec![Step::Hold(other.clone(), Hold::Writers)]);
    }
}
