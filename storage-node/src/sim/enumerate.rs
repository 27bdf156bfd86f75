//! All short sequences of operations, cut off at every write to the medium, with every part of what was not synced.
//!
//! Most crash bugs need three operations or fewer on a state that is worth breaking, so all of them are tried, after a
//! few beginnings. A sequence's last operation is the one that is cut: shorter sequences are sequences of their
//! own. Images that an earlier moment has had already, those without the newest write, are not made twice.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use lunette_proto::limits::EXTENT_BLOCKS;
use lunette_proto::node::Durability::{Stable, Volatile};

use super::disk::{Cut, Image, Kept, Moment, SimDisk};
use super::model::{Model, Seen};
use super::rng::Rng;
use super::world::{self, End, Op, World};
use crate::store::Layout;

/// The operations, by letter.
const OPS: &str = "abuclosqpdxXfvVwgreyDEBWFhHiZkjmnNz";
/// Those that prepare changes and resolve them, those that mark snapshots and end them, and those that are not tried together
/// with these: others do the same.
const PREPARES: &str = "hHiZ";
const RESOLVES: &str = "kj";
const MARKS: &str = "m";
const UNMARKS: &str = "nN";
const APART: &str = "bucqXVey";
/// What has happened before: what was done, after the disk was last opened.
const BEGINNINGS: &[&str] = &[
    "",
    "aso",
    "vsd",
    "asoBW",
    "ahiB",
    "aoaB",
    // What there is is seen by a snapshot; and, after some of that was changed, or is prepared to be, by another one.
    "aosm",
    "amshmiBW",
    // Every unit was used and given back; the ring is almost full, and a checkpoint has begun.
    "olololols",
    "ggggggggggggggggggggggggggggggggggggggggggB",
];
/// Operations in a sequence.
const DEPTH: usize = 3;
/// With more writes than these that no sync has covered, subsets are sampled.
const EXHAUSTIVE: usize = 8;
const SAMPLES: u64 = 256;

fn op(letter: char) -> Op {
    let write = |blocks: Range<u32>, durability| Op::Write { ns: 0, extent: 0, blocks, durability };
    let zeros = |blocks: Range<u32>, durability| Op::Zeros { ns: 0, extent: 0, blocks, durability };
    match letter {
        // Small writes at two places; one across a border of units; and one that fills a unit and a bit.
        'a' => write(3..4, Stable),
        'b' => write(20..21, Stable),
        'u' => write(15..17, Stable),
        'c' => write(32..50, Stable),
        // Large writes: where nothing is, and over what is there; a small one in a large one.
        'l' => write(32..48, Stable),
        'o' => write(0..16, Stable),
        's' => write(50..51, Stable),
        'q' => Op::Write { ns: 1, extent: 4, blocks: 3..5, durability: Stable },
        // Discards: of a part, of a unit, of the extent.
        'p' => zeros(52..54, Stable),
        'd' => zeros(48..64, Stable),
        'x' => zeros(0..EXTENT_BLOCKS, Stable),
        'X' => zeros(47..70, Volatile),
        'f' => Op::Flush { ns: 0 },
        'v' => write(5..6, Volatile),
        'V' => write(48..64, Volatile),
        'w' => Op::Watermark { ns: 0, behind: 1 },
        'g' => Op::Seal { ns: 0 },
        // Repairs: of what was missed, and of what is there.
        'r' => Op::Put { ns: 0, extent: 0, blocks: 2..7, seq: 5 },
        'e' => Op::Put { ns: 0, extent: 0, blocks: 2..4, seq: 11 },
        'y' => Op::Put { ns: 0, extent: 0, blocks: 48..64, seq: 12 },
        // Prepared: of a part, of a unit, where nothing is, and zeros.
        'h' => Op::Prepare { ns: 0, extent: 0, blocks: 2..4, zeros: false },
        'H' => Op::Prepare { ns: 0, extent: 0, blocks: 0..16, zeros: false },
        'i' => Op::Prepare { ns: 0, extent: 0, blocks: 20..22, zeros: false },
        'Z' => Op::Prepare { ns: 0, extent: 0, blocks: 48..64, zeros: true },
        'k' => Op::Resolve { ns: 0, extent: 0, commit: true },
        'j' => Op::Resolve { ns: 0, extent: 0, commit: false },
        // Snapshots: the oldest ends, or the newest.
        'm' => Op::Mark { ns: 0 },
        'n' => Op::Unmark { ns: 0, after: 0 },
        'N' => Op::Unmark { ns: 0, after: 1 },
        'D' => Op::Delete { ns: 0 },
        'E' => Op::Delete { ns: 1 },
        // One extent that is there, and one that never was.
        'z' => Op::Drop { ns: 0, extents: vec![0, 9] },
        'B' => Op::Begin,
        'W' => Op::Run,
        'F' => Op::Finish,
        _ => panic!("no operation {letter:?}"),
    }
}

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) beginning: usize,
    pub(super) letters: String,
    /// All in one batch.
    pub(super) hold: bool,
}

/// One crash of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crash {
    moment: usize,
    cut: Cut,
}

impl Case {
    fn name(&self) -> String {
        format!("{}:{}:{}", self.beginning, self.letters, if self.hold { "one" } else { "each" })
    }

    fn hash(&self) -> u64 {
        self.name().bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31) ^ u64::from(byte))
    }

    fn parse(text: &str) -> (Self, Option<Crash>) {
        let fields: Vec<&str> = text.split(':').collect();
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        let case = Self {
            beginning: usize::try_from(number(0)).unwrap(),
            letters: fields[1].to_owned(),
            hold: fields[2] == "one",
        };
        let crash = (fields.len() > 3).then(|| {
            let kept = fields[4];
            let value = kept[1..].parse().expect("a number");
            let kept = if kept.starts_with('b') { Kept::Bits(value) } else { Kept::Seed(value) };
            Crash { moment: usize::try_from(number(3)).unwrap(), cut: Cut { kept, torn: number(5) } }
        });
        (case, crash)
    }
}

impl Crash {
    fn name(&self) -> String {
        let mut name = format!("{}:", self.moment);
        match self.cut.kept {
            Kept::Bits(bits) => write!(name, "b{bits}"),
            Kept::Seed(seed) => write!(name, "s{seed}"),
        }
        .unwrap();
        write!(name, ":{}", self.cut.torn).unwrap();
        name
    }
}

/// All sequences, shortest first.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut sequences = vec![String::new()];
    for _ in 0..DEPTH {
        sequences = sequences
            .iter()
            .flat_map(|sequence| OPS.chars().map(move |letter| format!("{sequence}{letter}")))
            .filter(|sequence| is_new(sequence))
            .collect();
        for (beginning, before) in BEGINNINGS.iter().enumerate() {
            let goes_with = |letters: &&String| {
                is_possible(&format!("{before}{letters}"))
                    && !(before.contains(MARKS) && letters.contains(|letter| APART.contains(letter)))
            };
            for letters in sequences.iter().filter(goes_with) {
                cases.push(Case { beginning, letters: letters.clone(), hold: false });
                // Checkpoints commit, so a batch of several operations has none inside.
                let is_batch = letters.len() > 1 && !letters.contains(['B', 'W', 'F', 'f']);
                if is_batch {
                    cases.push(Case { beginning, letters: letters.clone(), hold: true });
                }
            }
        }
    }
    cases
}

/// Nothing is done twice that changes nothing the second time.
fn is_new(sequence: &str) -> bool {
    let deleted =
        |mark: char, of: &[char]| sequence.find(mark).is_some_and(|at| sequence[at + 1..].contains(of));
    // Snapshots outlive what they see.
    let in_first: Vec<char> = OPS.chars().filter(|letter| !"qEBWFnN".contains(*letter)).collect();
    let has = |of: &str| sequence.contains(|letter| of.contains(letter));
    let is_special = [PREPARES, RESOLVES, MARKS, UNMARKS].into_iter().any(has);
    let is_repeated = ["ff", "ww", "zz"].iter().any(|twice| sequence.contains(twice));
    let is_apart = has(APART) && is_special;
    let is_deleted = deleted('D', &in_first) || deleted('E', &['E', 'q']);
    !(is_apart || is_deleted || is_repeated)
}

/// Only what was prepared is resolved, and what was marked ends; checkpoints are begun, written and finished in this order.
fn is_possible(sequence: &str) -> bool {
    let count = |sequence: &str, of: &str| sequence.chars().filter(|letter| of.contains(*letter)).count();
    let mut ends = sequence.char_indices().map(|(at, _)| &sequence[..=at]);
    if ends.any(|beginning| {
        count(beginning, RESOLVES) > count(beginning, PREPARES)
            || count(beginning, UNMARKS) > count(beginning, MARKS)
    }) {
        return false;
    }
    let mut next = 'B';
    for letter in sequence.chars().filter(|letter| "BWF".contains(*letter)) {
        if letter != next {
            return false;
        }
        next = match letter {
            'B' => 'W',
            'W' => 'F',
            _ => 'B',
        };
    }
    true
}

/// What all cases have in common.
pub(super) struct Start {
    image: Image,
    model: Model,
    world_seqs: Vec<Op>,
}

/// A small disk with something on it.
pub(super) fn start() -> Start {
    let layout = Layout::new(5 << 18, 192 << 10).expect("large enough");
    let image = world::formatted(&layout);
    let ops = vec![
        Op::Seal { ns: 0 },
        Op::Seal { ns: 1 },
        // 11, 12, 13 of the first namespace.
        Op::Write { ns: 0, extent: 0, blocks: 2..4, durability: Stable },
        Op::Write { ns: 0, extent: 0, blocks: 48..64, durability: Stable },
        Op::Write { ns: 1, extent: 4, blocks: 0..16, durability: Stable },
    ];
    Start { image, model: Model::default(), world_seqs: ops }
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) cases: u64,
    pub(super) moments: u64,
    pub(super) images: u64,
    pub(super) second: u64,
    pub(super) torn_tails: u64,
    pub(super) blocked: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.cases += other.cases;
        self.moments += other.moments;
        self.images += other.images;
        self.second += other.second;
        self.torn_tails += other.torn_tails;
        self.blocked += other.blocked;
    }
}

/// What the power may cut off, with what may be there afterwards.
struct Cuts {
    moments: Vec<Moment>,
    /// While the operation went on; and after it.
    during: Model,
    after: Model,
    trace: u64,
    blocked: u64,
}

impl Start {
    fn cuts(&self, case: &Case) -> Result<Cuts, End> {
        let mut world = World::open(self.image.clone(), self.model.clone())?;
        for op in &self.world_seqs {
            world.step(op, false)?;
        }
        world.checkpoint()?;
        for letter in BEGINNINGS[case.beginning].chars() {
            world.step(&op(letter), false)?;
        }
        let letters: Vec<char> = case.letters.chars().collect();
        let (last, first) = letters.split_last().expect("not empty");
        for letter in first {
            world.step(&op(*letter), case.hold)?;
        }
        world.disk.record();
        world.step(&op(*last), case.hold)?;
        let during = std::mem::take(&mut world.noted);
        if case.hold {
            world.commit()?;
        }
        world.check_live()?;
        world.audit()?;
        let mut moments = world.disk.recorded();
        moments.push(world.disk.now());
        let (trace, blocked) = (world.disk.trace(), world.blocked);
        Ok(Cuts { moments, during, after: world.model, trace, blocked })
    }

    /// Tries a share of its crashes (of 256), or that one.
    pub(super) fn run(&self, case: &Case, only: Option<Crash>, share: u64) -> Result<Count, String> {
        let fail = |what: String| format!("LUNETTE_SIM_CASE={} {what}", case.name());
        let cuts = self.cuts(case).map_err(|end| fail(end.to_string()))?;
        let mut count = Count { cases: 1, blocked: cuts.blocked, ..Count::default() };
        let mut rng = Rng::new(case.hash());
        let last = cuts.moments.len() - 1;
        for (at, moment) in cuts.moments.iter().enumerate() {
            let (is_end, open) = (at == last, moment.open());
            count.moments += 1;
            let model = if is_end { &cuts.after } else { &cuts.during };
            let mut attempt = |cut: Cut, is_drawn: bool| {
                let crash = Crash { moment: at, cut };
                match only {
                    Some(only) if only.moment != at || only.cut != cut => return Ok(()),
                    None if !is_drawn => return Ok(()),
                    _ => {}
                }
                let twice = only.is_some() || cut.torn % 8 == 3;
                count.images += 1;
                let outcome = check(&moment.image(cut), model, twice, cut.torn, &mut count);
                outcome.map_err(|what| fail(what).replacen(' ', &format!(":{} ", crash.name()), 1))
            };
            if let Some(Crash { moment, cut }) = only {
                if moment == at {
                    attempt(cut, true)?;
                }
                continue;
            }
            // While the operation goes on, only what has the newest write is new; it may be torn.
            let newest = if is_end || open == 0 { 0 } else { 1u64 << (open.min(63) - 1) };
            if open <= EXHAUSTIVE {
                for bits in (0..1u64 << open).filter(|bits| bits & newest == newest) {
                    attempt(Cut { kept: Kept::Bits(bits), torn: 0 }, rng.below(256) < share)?;
                    if bits != 0 {
                        let torn = rng.next() | 1;
                        attempt(Cut { kept: Kept::Bits(bits), torn }, rng.below(256) < share)?;
                    }
                }
            } else {
                for _ in 0..SAMPLES {
                    let (seed, torn) = (rng.next(), rng.next());
                    let torn = if torn % 3 == 0 { 0 } else { torn };
                    attempt(Cut { kept: Kept::Seed(seed), torn }, rng.below(256) < share)?;
                }
            }
        }
        Ok(count)
    }

    /// What it asks of the medium.
    pub(super) fn trace(&self, case: &Case) -> Result<u64, End> {
        Ok(self.cuts(case)?.trace)
    }
}

/// Recovers `image`: it opens, its books are right, every block is one of what it may be; and with `twice`, another
/// crash, in the middle of that recovery or after it, changes nothing of it.
fn check(image: &Image, model: &Model, twice: bool, seed: u64, count: &mut Count) -> Result<(), String> {
    let disk = if twice { SimDisk::new(image.clone()) } else { SimDisk::plain(image.clone()) };
    if twice {
        disk.record();
    }
    let seen = recover(&disk, model, count)?;
    if !twice {
        return Ok(());
    }
    let mut rng = Rng::new(seed);
    let mut moments = disk.recorded();
    moments.push(disk.now());
    let last = moments.len() - 1;
    let drawn = usize::try_from(rng.below(moments.len() as u64)).unwrap();
    for at in [last, drawn] {
        let cut = Cut { kept: Kept::Seed(rng.next()), torn: rng.next() };
        let again = SimDisk::plain(moments[at].image(cut));
        count.second += 1;
        let twice = recover(&again, model, count).map_err(|what| format!("after a second crash: {what}"))?;
        if at == last && twice != seen {
            return Err(format!("a second recovery sees {twice:?}, not {seen:?}"));
        }
    }
    Ok(())
}

fn recover(disk: &Arc<SimDisk>, model: &Model, count: &mut Count) -> Result<Seen, String> {
    let (mut store, recovered) = world::open(disk).map_err(|error| format!("open: {error}"))?;
    count.torn_tails += u64::from(recovered.torn_tail);
    store.audit().map_err(|what| format!("audit: {what}"))?;
    model.check(&mut store)
}

/// The first failure, and after how many images; `None` if there is none in so many.
pub(super) fn hunt(images_max: u64) -> Option<(u64, String)> {
    let start = start();
    let cases = cases();
    let stride =
        [7919, 7907].into_iter().find(|stride| !cases.len().is_multiple_of(*stride)).expect("primes");
    let mut images = 0;
    for at in 0..cases.len() {
        let case = &cases[at * stride % cases.len()];
        let run = std::panic::AssertUnwindSafe(|| start.run(case, None, 64));
        match std::panic::catch_unwind(run) {
            Ok(Ok(count)) => images += count.images,
            Ok(Err(what)) => return Some((images, what)),
            Err(_) => return Some((images, format!("LUNETTE_SIM_CASE={} panicked", case.name()))),
        }
        if images > images_max {
            break;
        }
    }
    None
}

/// The share of all crashes that is tried unless told otherwise: `LUNETTE_SIM_IMAGES=all` tries all, or this many of
/// 256.
fn share() -> u64 {
    match std::env::var("LUNETTE_SIM_IMAGES").as_deref() {
        Ok("all") => 256,
        Ok(share) => share.parse().expect("`all`, or a share of 256"),
        Err(_) => SHARE,
    }
}

const SHARE: u64 = 40;
/// Tests that share the cases, so that they run beside each other.
const PARTS: usize = 32;

/// One of the parts. `LUNETTE_SIM_CASE` tries one case, or one crash of it; `LUNETTE_SIM_SEED` draws another share.
fn part(which: usize) {
    if let Ok(text) = std::env::var("LUNETTE_SIM_CASE") {
        if which == 0 {
            let (case, crash) = Case::parse(&text);
            println!("{:?}", start().run(&case, crash, 256).unwrap_or_else(|what| panic!("{what}")));
        }
        return;
    }
    // Some of the cases, and some of each one's crashes: making a case costs as much as a few images.
    let share = share();
    let of_cases = (share * 4).min(256);
    let of_crashes = (share * 256).div_ceil(of_cases);
    let mut drawn = Rng::new(super::setting("LUNETTE_SIM_SEED").unwrap_or(0));
    let start = start();
    let mut count = Count::default();
    let mut failures = Vec::new();
    for case in cases().iter().skip(which).step_by(PARTS) {
        if drawn.below(256) >= of_cases {
            continue;
        }
        match start.run(case, None, of_crashes) {
            Ok(more) => count += more,
            Err(what) => failures.push(what),
        }
        if failures.len() >= 5 {
            break;
        }
    }
    println!("part {which} of {PARTS}: {count:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(count.torn_tails > 0, "no torn tail: {count:?}");
}

macro_rules! parts {
    ($($name:ident: $part:literal;)*) => {$(
        /// Guards every rule of the store: whatever a loss of power leaves, after any three operations, is what was
        /// promised.
        #[test]
        fn $name() {
            part($part);
        }
    )*};
}

parts! {
    short_sequences_survive_every_crash_0: 0;
    short_sequences_survive_every_crash_1: 1;
    short_sequences_survive_every_crash_2: 2;
    short_sequences_survive_every_crash_3: 3;
    short_sequences_survive_every_crash_4: 4;
    short_sequences_survive_every_crash_5: 5;
    short_sequences_survive_every_crash_6: 6;
    short_sequences_survive_every_crash_7: 7;
    short_sequences_survive_every_crash_8: 8;
    short_sequences_survive_every_crash_9: 9;
    short_sequences_survive_every_crash_10: 10;
    short_sequences_survive_every_crash_11: 11;
    short_sequences_survive_every_crash_12: 12;
    short_sequences_survive_every_crash_13: 13;
    short_sequences_survive_every_crash_14: 14;
    short_sequences_survive_every_crash_15: 15;
    short_sequences_survive_every_crash_16: 16;
    short_sequences_survive_every_crash_17: 17;
    short_sequences_survive_every_crash_18: 18;
    short_sequences_survive_every_crash_19: 19;
    short_sequences_survive_every_crash_20: 20;
    short_sequences_survive_every_crash_21: 21;
    short_sequences_survive_every_crash_22: 22;
    short_sequences_survive_every_crash_23: 23;
    short_sequences_survive_every_crash_24: 24;
    short_sequences_survive_every_crash_25: 25;
    short_sequences_survive_every_crash_26: 26;
    short_sequences_survive_every_crash_27: 27;
    short_sequences_survive_every_crash_28: 28;
    short_sequences_survive_every_crash_29: 29;
    short_sequences_survive_every_crash_30: 30;
    short_sequences_survive_every_crash_31: 31;
}

/// Guards replay: the same case asks the same of the medium.
#[test]
fn a_case_repeats() {
    let start = start();
    for case in cases().iter().step_by(997) {
        let traces = [start.trace(case).unwrap(), start.trace(case).unwrap()];
        assert_eq!(traces[0], traces[1], "{case:?}");
    }
}
