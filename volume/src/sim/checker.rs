//! Whether a history of one 4 KiB block can be explained.
//!
//! Each sector of 512 bytes holds the number of the write that wrote it. The history is explained if
//! every operation can be given one moment between its call and its answer (a write without a definite
//! answer: up to the first operation that was called after the answer, or never) so that reads see
//! exactly what a register would hold. The search keeps all explanations at once (just-in-time
//! linearization). Where memory may be lost, any state since the last one known durable may come
//! back, and from then on all reads have to agree with one of them.

use std::collections::{BTreeMap, BTreeSet};

pub(super) const SECTORS: usize = 8;
pub(super) type Sectors = [u32; SECTORS];
pub(super) type Part = [Option<u32>; SECTORS];

#[derive(Clone, Debug)]
pub(super) enum Step {
    Write {
        op: u32,
        part: Part,
    },
    Read {
        op: u32,
        part: Part,
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
    write: bool,
    part: Part,
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

/// The step that cannot be explained, if there is one.
pub(super) fn check(steps: &[Step]) -> Result<(), usize> {
    // A write without an answer that nobody has seen need not have happened.
    let mut seen: BTreeSet<u32> = BTreeSet::from([0]);
    for step in steps {
        if let Step::Read { part, .. } = step {
            seen.extend(part.iter().flatten());
        }
    }
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
        if let Step::Write { op, part } = step
            && unanswered.contains(op)
            && !part.iter().flatten().any(|stamp| seen.contains(stamp))
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
            Step::Write { op, part } => self.call(*op, true, *part, at),
            Step::Read { op, part } => self.call(*op, false, *part, at),
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

    fn call(&mut self, op: u32, write: bool, part: Part, called: usize) {
        self.pending.insert(op, Pending { write, part, called, fence: None });
    }

    /// Pending operations may have happened before now, in any number.
    fn anything_happened(&mut self) {
        let mut explanations = std::mem::take(&mut self.explanations);
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
        let mut seen = self.explanations.clone();
        let mut open: Vec<Explanation> = std::mem::take(&mut self.explanations).into_iter().collect();
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
        for (sector, part) in next.state.iter_mut().zip(pending.part) {
            match part {
                Some(stamp) if pending.write => *sector = stamp,
                Some(stamp) if *sector != stamp => return None,
                _ => {}
            }
        }
        next.closed.push(op);
        for (other, it) in &self.pending {
            let late = it.fence.is_some_and(|fence| fence < pending.called);
            if late && !next.closed.contains(other) {
                next.closed.push(*other);
            }
        }
        next.closed.sort_unstable();
        Some(next)
    }
}

/// The litmus tests of a register with crashes: one block, written whole.
#[cfg(test)]
mod tests {
    use super::*;

    fn w(op: u32) -> Step {
        Step::Write { op, part: [Some(op); SECTORS] }
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
        [Step::Read { op, part: [Some(value); SECTORS] }, Step::Ok { op, durable: false }]
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
        let head = [w(1), ok(1), Step::Write { op: 2, part }, ok(2)];
        let mut want = [Some(1); SECTORS];
        want[2] = Some(2);
        let read = |part| [Step::Read { op: 3, part }, ok(3)];
        assert!(check(&[head.as_slice(), &read(want)].concat()).is_ok());
        want[3] = Some(2);
        assert_eq!(check(&[head.as_slice(), &read(want)].concat()), Err(5));
    }
}
