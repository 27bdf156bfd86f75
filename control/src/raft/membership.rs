//! Which members are to vote, decided from what is known of all of them: a pure function, and its refusals with numbers.
//!
//! A control plane has 1, 3 or 5 voting members. An even one more would make the quorum larger and survive no more
//! deaths, so members come and go in pairs, or one takes the place of another.

use std::collections::BTreeSet;

use thiserror::Error;

use super::Member;

/// How many members may vote.
const VOTERS: [usize; 3] = [1, 3, 5];
/// Entries of the log that a new voter may lack: what it lacks, every commit may have to wait for.
const BEHIND_MAX: u64 = 1000;

/// Why members cannot come or go as was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MembershipError {
    /// Nothing to do.
    #[error("no member is named")]
    Nothing,
    /// The id is not there.
    #[error("the control plane has no member {id}; `lunette cluster status` shows those it has")]
    Unknown {
        /// Which.
        id: u64,
    },
    /// Two wishes that contradict each other.
    #[error("member {id} cannot be added and removed at once")]
    Both {
        /// Which.
        id: u64,
    },
    /// A new voter that does not answer.
    #[error("member {id} at {address} does not answer; start it first")]
    Down {
        /// Which.
        id: u64,
        /// Where it should.
        address: String,
    },
    /// A new voter that lags.
    #[error("member {id} is {behind} entries of the log behind; try again when it has caught up")]
    Behind {
        /// Which.
        id: u64,
        /// By how much.
        behind: u64,
    },
    /// A number of voters that there cannot be.
    #[error(
        "the control plane would have {after} voting members instead of {now}; it can have 1, 3 or 5: members come and go in pairs, and one that is dead is replaced by `lunette cluster member replace`"
    )]
    Count {
        /// Voters now.
        now: usize,
        /// Voters after the change.
        after: usize,
    },
    /// Too few would answer.
    #[error("of the {after} voting members that there would be, {up} answer, and {need} are needed")]
    NoQuorum {
        /// Voters after the change.
        after: usize,
        /// Those of them that answer.
        up: usize,
        /// A majority of them.
        need: usize,
    },
}

/// Who votes once `add` have come and `remove` have gone, if that can be.
pub(super) fn plan(
    members: &[Member],
    add: &BTreeSet<u64>,
    remove: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>, MembershipError> {
    let known = |id: u64| members.iter().find(|member| member.id == id);
    if add.is_empty() && remove.is_empty() {
        return Err(MembershipError::Nothing);
    }
    if let Some(id) = add.intersection(remove).next() {
        return Err(MembershipError::Both { id: *id });
    }
    if let Some(id) = add.union(remove).find(|id| known(**id).is_none()) {
        return Err(MembershipError::Unknown { id: *id });
    }
    for member in add.iter().filter_map(|id| known(*id)).filter(|member| !member.voter) {
        let (id, address) = (member.id, member.address.clone());
        if !member.up {
            return Err(MembershipError::Down { id, address });
        }
        if let Some(behind) = member.behind.filter(|behind| *behind > BEHIND_MAX) {
            return Err(MembershipError::Behind { id, behind });
        }
    }
    let now: BTreeSet<u64> = members.iter().filter(|member| member.voter).map(|member| member.id).collect();
    let after: BTreeSet<u64> = now.union(add).copied().filter(|id| !remove.contains(id)).collect();
    if after == now {
        return Ok(after);
    }
    if !VOTERS.contains(&after.len()) {
        return Err(MembershipError::Count { now: now.len(), after: after.len() });
    }
    let up = after.iter().filter(|id| known(**id).is_some_and(|member| member.up)).count();
    let need = after.len() / 2 + 1;
    if up < need {
        return Err(MembershipError::NoQuorum { after: after.len(), up, need });
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, voter: bool, up: bool) -> Member {
        Member { id, address: format!("host{id}:7400"), voter, up, behind: Some(0) }
    }

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    /// Guards against a control plane that no majority can answer for any more: by an even number, the last one, or dead
    /// ones that stay where live ones go.
    #[test]
    fn what_can_be() {
        let one = [member(1, true, true), member(2, false, true), member(3, false, true)];
        let three =
            [member(1, true, true), member(2, true, true), member(3, true, false), member(4, false, true)];
        let two_dead =
            [member(1, true, true), member(2, true, false), member(3, true, false), member(4, false, true)];
        let ok = |ids: &[u64]| Ok(set(ids));
        let count = |now, after| Err(MembershipError::Count { now, after });
        let table = [
            (&one[..], &[2, 3][..], &[][..], ok(&[1, 2, 3])),
            (&one, &[2], &[], count(1, 2)),
            (&one, &[], &[1], count(1, 0)),
            (&one, &[2], &[1], ok(&[2])),
            (&one, &[], &[3], ok(&[1])),
            (&three, &[4], &[3], ok(&[1, 2, 4])),
            (&three, &[], &[3], count(3, 2)),
            (&three, &[4], &[], count(3, 4)),
            (&three, &[], &[2, 3], ok(&[1])),
            (&three, &[], &[1, 2], Err(MembershipError::NoQuorum { after: 1, up: 0, need: 1 })),
            (&three, &[], &[1, 2, 3], count(3, 0)),
            (&three, &[4], &[1], ok(&[2, 3, 4])),
            (&two_dead, &[4], &[1], Err(MembershipError::NoQuorum { after: 3, up: 1, need: 2 })),
            (&two_dead, &[4], &[2], ok(&[1, 3, 4])),
            (&three, &[2], &[], ok(&[1, 2, 3])),
            (&three, &[], &[], Err(MembershipError::Nothing)),
            (&three, &[9], &[], Err(MembershipError::Unknown { id: 9 })),
            (&three, &[], &[9], Err(MembershipError::Unknown { id: 9 })),
            (&three, &[4], &[4], Err(MembershipError::Both { id: 4 })),
        ];
        for (members, add, remove, want) in table {
            assert_eq!(plan(members, &set(add), &set(remove)), want, "+{add:?} -{remove:?}");
        }
    }

    /// Guards commits against a new voter that they would have to wait for.
    #[test]
    fn a_voter_is_there_and_has_caught_up() {
        let mut members = vec![member(1, true, true), member(2, false, false), member(3, false, true)];
        let down = Err(MembershipError::Down { id: 2, address: "host2:7400".into() });
        assert_eq!(plan(&members, &set(&[2, 3]), &set(&[])), down);
        members[1].up = true;
        members[2].behind = Some(BEHIND_MAX + 1);
        let behind = Err(MembershipError::Behind { id: 3, behind: BEHIND_MAX + 1 });
        assert_eq!(plan(&members, &set(&[2, 3]), &set(&[])), behind);
        members[2].behind = Some(BEHIND_MAX);
        assert_eq!(plan(&members, &set(&[2, 3]), &set(&[])), Ok(set(&[1, 2, 3])));
    }
}
