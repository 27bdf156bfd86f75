//! Whether a history of one 4 KiB block can be explained.
//!
//! Each sector of 512 bytes holds the number of the write that wrote it, and above that number the bits that were ORed
//! to it since. The history is explained if
//! every operation can be given one moment between its call and its answer (a write without a definite
//! answer: up to the first operation that was called after the answer, or never) so that reads see
//! exactly what a register would hold. The search keeps all explanations at once (just-in-time
//! linearization). Where memory may be lost, any state since the last one known durable may come
//! back, and from then on all reads have to agree with one of them.

use std::collections::{BTreeMap, BTreeSet};

pub(super) const SECTORS: usize = 8;
pub(super) type Sectors = [u32; SECTORS];
pub(super) type Part = [Option<u32>; SECTORS];

/// Of what a sector holds, the number of the write.
pub(super) const STAMP_MAX: u32 = 0xff_ffff;

/// What an operation does to the block in one step, or sees there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Effect {
    Write(Part),
    Read(Part),
    Or(Part),
    /// Where the first is, the second comes.
    Swap(Part, Part),
    /// It has seen what is named in front of that sector, and there something else.
    Differs(Part, usize),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Call {
        op: u32,
        effect: Effect,
    },
    /// The operation has happened; a durable write cannot be lost any more, what follows it can.
    Ok {
        op: u32,
        durable: bool,
    },
    /// It may have happened, but nothing called from now on may be overtaken by it.
    Unknown {
        op: u32,
    },
    PowerLoss,
    FlushCall {
        op: u32,
    },
    FlushOk {
        op: u32,
    },
}

#[derive(Clone, Debug)]
struct Pending {
    effect: Effect,
    called: usize,
    fence: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Explanation {
    state: Sectors,
    /// Pending operations that have happened, and those without an answer that can happen no more
    /// (for what comes next the two are the same).
    closed: Vec<u32>,
}

impl Effect {
    /// Whether it may be had on that state; changes it.
    fn on(&self, state: &mut Sectors) -> bool {
        let is = |state: &Sectors, part: &[Option<u32>]| {
            state.iter().zip(part).all(|(sector, part)| part.is_none_or(|stamp| stamp == *sector))
        };
        let put = |state: &mut Sectors, part: &Part, how: fn(&mut u32, u32)| {
            for (sector, stamp) in state.iter_mut().zip(part) {
                stamp.iter().for_each(|stamp| how(sector, *stamp));
            }
            true
        };
        match self {
            Self::Read(part) => is(state, part),
            Self::Write(part) => put(state, part, |sector, stamp| *sector = stamp),
            Self::Or(part) => put(state, part, |sector, bits| *sector |= bits),
            Self::Swap(was, part) => is(state, was) && put(state, part, |sector, stamp| *sector = stamp),
            Self::Differs(part, at) => is(state, &part[..*at]) && part[*at] != Some(state[*at]),
        }
    }
}

/// The step that cannot be explained, if there is one.
pub(super) fn check(steps: &[Step]) -> Result<(), usize> {
    let seen = Seen::of(steps);
    let unanswered: BTreeSet<u32> = steps
        .iter()
        .filter_map(|step| if let Step::Unknown { op } = step { Some(*op) } else { None })
        .collect();
    let mut checker = Checker {
        pending: BTreeMap::new(),
        explanations: BTreeSet::from([Explanation { state: [0; SECTORS], closed: vec![] }]),
        losable: BTreeSet::from([[0; SECTORS]]),
        marks: BTreeMap::new(),
        since: BTreeMap::new(),
    };
    for (at, step) in steps.iter().enumerate() {
        // A change without an answer that nobody has seen need not have happened.
        if let Step::Call { op, effect } = step
            && unanswered.contains(op)
            && !seen.tells(effect)
        {
            continue;
        }
        checker.step(at, step);
        if checker.explanations.is_empty() {
            return Err(at);
        }
    }
    Ok(())
}

/// What operations have seen.
struct Seen {
    stamps: BTreeSet<u32>,
    bits: u32,
    /// Sectors of which somebody has seen only what is not there.
    differs: [bool; SECTORS],
}

impl Seen {
    fn of(steps: &[Step]) -> Self {
        let mut seen = Self { stamps: BTreeSet::from([0]), bits: 0, differs: [false; SECTORS] };
        for step in steps {
            let Step::Call {
                effect: Effect::Read(part) | Effect::Swap(part, _) | Effect::Differs(part, _),
                ..
            } = step
            else {
                continue;
            };
            for stamp in part.iter().flatten() {
                seen.stamps.insert(stamp & STAMP_MAX);
                seen.bits |= stamp & !STAMP_MAX;
            }
            if let Step::Call { effect: Effect::Differs(_, at), .. } = step {
                seen.differs[*at] = true;
            }
        }
        seen
    }

    /// Whether anybody can tell that a change has happened.
    fn tells(&self, effect: &Effect) -> bool {
        let (part, is_seen): (_, &dyn Fn(u32) -> bool) = match effect {
            Effect::Write(part) | Effect::Swap(_, part) => (part, &|stamp| self.stamps.contains(&stamp)),
            Effect::Or(part) => (part, &|bits| self.bits & bits != 0),
            Effect::Read(_) | Effect::Differs(..) => return true,
        };
        part.iter().zip(self.differs).any(|(it, differs)| it.is_some_and(|it| differs || is_seen(it)))
    }
}

struct Checker {
    pending: BTreeMap<u32, Pending>,
    explanations: BTreeSet<Explanation>,
    /// What a loss of memory may bring back.
    losable: BTreeSet<Sectors>,
    /// The same for each flush that is going on.
    marks: BTreeMap<u32, BTreeSet<Sectors>>,
    /// States since a pending operation happened.
    since: BTreeMap<u32, BTreeSet<Sectors>>,
}

impl Checker {
    fn step(&mut self, at: usize, step: &Step) {
        match step {
            Step::Call { op, effect } => {
                self.pending.insert(*op, Pending { effect: *effect, called: at, fence: None });
            }
            Step::Ok { op, durable } => {
                self.happened(*op);
                let since = self.since.remove(op);
                if *durable {
                    self.losable = since.unwrap_or_default();
                }
            }
            Step::Unknown { op } => {
                if let Some(pending) = self.pending.get_mut(op) {
                    pending.fence = Some(at);
                }
            }
            Step::PowerLoss => {
                self.anything_happened();
                let mut more = Vec::new();
                for explanation in &self.explanations {
                    for state in &self.losable {
                        more.push(Explanation { state: *state, ..explanation.clone() });
                    }
                }
                self.explanations.extend(more);
                // A flush that is going on covers what is left.
                for mark in self.marks.values_mut().chain(self.since.values_mut()) {
                    mark.extend(&self.losable);
                }
            }
            Step::FlushCall { op } => {
                self.marks.insert(*op, self.explanations.iter().map(|it| it.state).collect());
            }
            Step::FlushOk { op } => {
                if let Some(mark) = self.marks.remove(op) {
                    self.losable = mark;
                }
            }
        }
    }

    /// Pending operations may have happened before now, in any number.
    fn anything_happened(&mut self) {
        let mut explanations = self.looked();
        let mut open: Vec<Explanation> = explanations.iter().cloned().collect();
        while let Some(explanation) = open.pop() {
            for next in self.pending.keys().copied().filter_map(|next| self.apply(&explanation, next)) {
                if explanations.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        self.note_states(&explanations);
        self.explanations = explanations;
    }

    /// The explanations, with everything seen that can be.
    fn looked(&mut self) -> BTreeSet<Explanation> {
        let explanations = std::mem::take(&mut self.explanations);
        explanations.into_iter().map(|it| self.look(it)).collect()
    }

    /// What only looks, and can see what is there, does so now: it changes nothing, so later is no better, unless
    /// something without an answer could come before it.
    fn look(&self, mut at: Explanation) -> Explanation {
        for (op, pending) in &self.pending {
            let looks = matches!(pending.effect, Effect::Read(_) | Effect::Differs(..));
            if looks
                && !at.closed.contains(op)
                && pending.effect.on(&mut at.state)
                && self.overtaken(pending).all(|other| at.closed.contains(&other))
            {
                at.closed.push(*op);
            }
        }
        at.closed.sort_unstable();
        at
    }

    /// Operations that can happen no more once this one has.
    fn overtaken(&self, by: &Pending) -> impl Iterator<Item = u32> {
        let called = by.called;
        let late =
            move |(op, it): (&u32, &Pending)| it.fence.is_some_and(|fence| fence < called).then_some(*op);
        self.pending.iter().filter_map(late)
    }

    fn note_states(&mut self, explanations: &BTreeSet<Explanation>) {
        for explanation in explanations {
            self.losable.insert(explanation.state);
            for mark in self.marks.values_mut() {
                mark.insert(explanation.state);
            }
            for op in &explanation.closed {
                self.since.entry(*op).or_default().insert(explanation.state);
            }
        }
    }

    fn happened(&mut self, op: u32) {
        let mut explained = BTreeSet::new();
        let mut seen = self.looked();
        let mut open: Vec<Explanation> = seen.iter().cloned().collect();
        while let Some(explanation) = open.pop() {
            if explanation.closed.contains(&op) {
                self.since.entry(op).or_default().insert(explanation.state);
                explained.insert(explanation);
                continue;
            }
            for next in self.pending.keys().copied().filter_map(|next| self.apply(&explanation, next)) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        self.note_states(&seen);
        self.pending.remove(&op);
        let settled: Vec<u32> = self
            .pending
            .iter()
            .filter(|(id, it)| it.fence.is_some() && explained.iter().all(|e| e.closed.contains(id)))
            .map(|(id, _)| *id)
            .collect();
        self.pending.retain(|id, _| !settled.contains(id));
        self.since.retain(|id, _| *id == op || self.pending.contains_key(id));
        self.explanations = explained
            .into_iter()
            .map(|mut it| {
                it.closed.retain(|id| *id != op && !settled.contains(id));
                it
            })
            .collect();
    }

    fn apply(&self, from: &Explanation, op: u32) -> Option<Explanation> {
        if from.closed.contains(&op) {
            return None;
        }
        let pending = &self.pending[&op];
        let mut next = from.clone();
        pending.effect.on(&mut next.state).then_some(())?;
        next.closed.push(op);
        for other in self.overtaken(pending) {
            if !next.closed.contains(&other) {
                next.closed.push(other);
            }
        }
        Some(self.look(next))
    }
}

/// The litmus tests of a register with crashes: one block, written whole.
#[cfg(test)]
mod tests {
    use super::*;

    fn w(op: u32) -> Step {
        Step::Call { op, effect: Effect::Write([Some(op); SECTORS]) }
    }
    fn ok(op: u32) -> Step {
        Step::Ok { op, durable: true }
    }
    fn volatile(op: u32) -> Step {
        Step::Ok { op, durable: false }
    }
    fn lost(op: u32) -> Step {
        Step::Unknown { op }
    }
    fn reads(op: u32, value: u32) -> [Step; 2] {
        let effect = Effect::Read([Some(value); SECTORS]);
        [Step::Call { op, effect }, Step::Ok { op, durable: false }]
    }
    fn history(head: &[Step], values: &[u32]) -> bool {
        let mut steps = head.to_vec();
        for (at, value) in values.iter().enumerate() {
            steps.extend(reads(100 + at as u32, *value));
        }
        check(&steps).is_ok()
    }
    fn legal(head: &[Step], values: &[u32], all: &[u32]) {
        for value in all {
            assert_eq!(history(head, &[*value, *value]), values.contains(value), "reading {value}");
        }
    }

    /// Guards the checker: acked writes are read, lost ones may be, but for ever the same way.
    #[test]
    fn stable_writes() {
        legal(&[w(1), ok(1)], &[1], &[0, 1]);
        legal(&[w(1), lost(1)], &[0, 1], &[0, 1, 2]);
        legal(&[w(1), w(2), ok(1), ok(2)], &[1, 2], &[0, 1, 2]);
        assert!(!history(&[w(1), lost(1)], &[0, 1]));
        assert!(!history(&[w(1), lost(1)], &[1, 0]));
        assert!(!history(&[w(1), w(2), ok(1), ok(2)], &[1, 2]));
    }

    /// Guards against ghosts: a write without an answer does not come after a later one.
    #[test]
    fn ghosts() {
        legal(&[w(1), lost(1), w(2), ok(2)], &[2], &[0, 1, 2]);
        legal(&[w(1), w(2), ok(2), lost(1)], &[1, 2], &[0, 1, 2]);
    }

    /// Guards the write cache: what a flush covers stays, what came after may go, and stays gone.
    #[test]
    fn power_loss() {
        let cut = Step::PowerLoss;
        legal(&[w(1), volatile(1), cut.clone()], &[0, 1], &[0, 1]);
        let flush = [Step::FlushCall { op: 9 }, Step::FlushOk { op: 9 }];
        let mut head = vec![w(1), volatile(1)];
        head.extend(flush.clone());
        head.extend([w(2), volatile(2), cut.clone()]);
        legal(&head, &[1, 2], &[0, 1, 2]);
        assert!(!history(&head, &[1, 2]));
        legal(&[w(1), ok(1), cut.clone()], &[1], &[0, 1]);
        // The durable one is answered last: what came after it may go, it may not.
        legal(&[w(1), w(2), volatile(2), ok(1), cut.clone()], &[1, 2], &[0, 1, 2]);
        legal(&[w(1), volatile(1), Step::FlushCall { op: 9 }, cut], &[0, 1], &[0, 1]);
    }

    /// Guards against torn blocks and bad merges: sectors of two writes only as written.
    #[test]
    fn parts() {
        let mut part = [None; SECTORS];
        part[2] = Some(2);
        let head = [w(1), ok(1), Step::Call { op: 2, effect: Effect::Write(part) }, ok(2)];
        let mut want = [Some(1); SECTORS];
        want[2] = Some(2);
        let read = |part| [Step::Call { op: 3, effect: Effect::Read(part) }, ok(3)];
        assert!(check(&[head.as_slice(), &read(want)].concat()).is_ok());
        want[3] = Some(2);
        assert_eq!(check(&[head.as_slice(), &read(want)].concat()), Err(5));
    }

    fn all(value: u32) -> Part {
        [Some(value); SECTORS]
    }
    fn call(op: u32, effect: Effect) -> Step {
        Step::Call { op, effect }
    }
    fn swap(op: u32, was: u32) -> Step {
        call(op, Effect::Swap(all(was), all(op)))
    }

    /// Guards comparisons: of two that compare the same one is done, and what differs differed at some moment.
    #[test]
    fn swaps() {
        legal(&[w(1), ok(1), swap(2, 1), ok(2)], &[2], &[0, 1, 2]);
        legal(&[w(1), ok(1), swap(2, 1), lost(2)], &[1, 2], &[0, 1, 2]);
        assert!(!history(&[w(1), ok(1), swap(2, 0), ok(2)], &[]));
        assert!(!history(&[w(1), ok(1), swap(2, 1), swap(3, 1), ok(2), ok(3)], &[]));
        let differs = |op, part| [call(op, Effect::Differs(part, 0)), volatile(op)];
        let both = |rest: [Step; 2]| {
            let mut head = vec![w(1), ok(1), swap(2, 1)];
            head.extend(rest);
            head.push(ok(2));
            head
        };
        legal(&both(differs(3, all(1))), &[2], &[0, 1, 2]);
        legal(&both(differs(3, all(7))), &[2], &[0, 1, 2]);
        assert!(!history(&differs(3, all(0)), &[]));
        // Nobody has read it, but it is why the comparison failed.
        assert!(history(&[&[w(1), lost(1)], &differs(2, all(0))[..]].concat(), &[1]));
        assert!(!history(&[&[w(1), lost(1)], &differs(2, all(0))[..]].concat(), &[0]));
    }

    /// Guards the bits above the number: one step that keeps the number.
    #[test]
    fn ors() {
        const BIT: u32 = STAMP_MAX + 1;
        let or = |op, bits| call(op, Effect::Or(all(bits)));
        let values = [0, 1, BIT, BIT | 1, (3 * BIT) | 1];
        legal(&[w(1), ok(1), or(2, BIT), ok(2)], &[BIT | 1], &values);
        legal(&[w(1), ok(1), or(2, BIT), lost(2)], &[1, BIT | 1], &values);
        legal(&[or(2, BIT), w(1), ok(1), ok(2)], &[1, BIT | 1], &values);
        legal(
            &[w(1), or(2, BIT), or(3, 2 * BIT), ok(2), ok(3), ok(1)],
            &[1, BIT | 1, (3 * BIT) | 1],
            &values,
        );
    }
}
