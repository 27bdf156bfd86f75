//! A control plane whose members die, return, lag, get snapshots and are exchanged, at random from a seed, while it is
//! written to: what was answered is never lost, and in the end all members hold the same.
//!
//! ```text
//! LUNETTE_TEST_CHURNS=1000 cargo nextest run -p lunette-control --test churn
//! LUNETTE_TEST_SEED=7 ...      begins with this seed
//! ```

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use lunette_control::api::cluster::RegisterGatewayRequest;
use lunette_control::client::{ControlPlane, MapWatcher};
use lunette_control::raft::{ChangeError, Consensus, Metrics};
use lunette_control::{Control, ControlConfig, LogLimits};
use lunette_proto::ids::ClusterId;
use support::PATIENCE;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// Runs at a time: most of each is waiting for elections.
const TOGETHER: u64 = 6;
const STEPS: usize = 14;
/// Small, so that whoever is away for a moment needs a snapshot.
const LOG: LogLimits = LogLimits { snapshot_entries: 20, kept_entries: 4 };
const POLL: Duration = Duration::from_millis(20);

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % limit as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())]
    }
}

struct World {
    seed: u64,
    random: Random,
    folder: TempDir,
    cluster: ClusterId,
    /// Those that have joined and not left, dead ones too.
    members: BTreeMap<u64, Option<Control>>,
    voters: BTreeSet<u64>,
    plane: ControlPlane,
    watcher: MapWatcher,
    /// What was answered.
    names: BTreeSet<String>,
    trace: Vec<String>,
}

/// An address of each member's own, which nobody else gets while it is dead.
fn address(seed: u64, member: u64) -> SocketAddr {
    let [a, b] = ((std::process::id() as u64 * 131 + seed) as u16).to_be_bytes();
    SocketAddr::from(([127, 64 + a % 128, b, u8::try_from(member).expect("few members")], 7400))
}

impl World {
    async fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Self::config(&folder, seed, 1, None, false);
        let control = Control::open(&folder.path().join("1"), config).await.expect("opens");
        control.serve().await.expect("leads");
        let cluster = control.cluster();
        let plane = ControlPlane::new([address(seed, 1).to_string()]).expect("an address");
        let watcher = MapWatcher::start(plane.clone(), Some(cluster));
        Self {
            seed,
            random: Random(seed),
            folder,
            cluster,
            members: BTreeMap::from([(1, Some(control))]),
            voters: BTreeSet::from([1]),
            plane,
            watcher,
            names: BTreeSet::new(),
            trace: Vec::new(),
        }
    }

    fn config(
        folder: &TempDir,
        seed: u64,
        member: u64,
        cluster: Option<ClusterId>,
        join: bool,
    ) -> ControlConfig {
        let listen = address(seed, member);
        let config = support::config(folder.path());
        ControlConfig { cluster, member: Some(member), listen, join, log: LOG, ..config }
    }

    async fn open(&self, member: u64) -> Control {
        let config = Self::config(&self.folder, self.seed, member, Some(self.cluster), true);
        let control = Control::open(&self.folder.path().join(member.to_string()), config).await;
        let control = control.unwrap_or_else(|error| panic!("{error}: {:?}", self.trace));
        control.start();
        control
    }

    fn living(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, control)| control.is_some()).map(|(id, _)| *id).collect()
    }

    fn dead(&self) -> Vec<u64> {
        self.members.iter().filter(|(_, control)| control.is_none()).map(|(id, _)| *id).collect()
    }

    /// Voters that may die without the quorum.
    fn spare(&self) -> usize {
        let dead = self.voters.iter().filter(|id| self.members[id].is_none()).count();
        (self.voters.len() - 1) / 2 - dead
    }

    fn leader(&self) -> Option<(&dyn Consensus, Metrics)> {
        let living = self.members.values().flatten().map(Control::consensus);
        living
            .map(|consensus| (consensus, consensus.metrics()))
            .find(|(consensus, _)| *consensus.leading().borrow())
    }

    async fn write(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("gw{}", self.names.len());
            let portals = vec!["127.0.0.1:3260".to_owned()];
            let request = RegisterGatewayRequest { name: name.clone(), portals, ..Default::default() };
            let answer = self.plane.register_gateway(PATIENCE, &request).await;
            answer.unwrap_or_else(|status| panic!("seed {}: {status}: {:?}", self.seed, self.trace));
            self.names.insert(name);
        }
    }

    async fn kill(&mut self, member: u64) {
        let control = self.members.get_mut(&member).and_then(Option::take).expect("alive");
        control.stop().await;
    }

    async fn revive(&mut self, member: u64) {
        let control = self.open(member).await;
        self.members.insert(member, Some(control));
        // As those learn it that hold a stream to the leader.
        self.plane.learn(self.members.keys().map(|member| address(self.seed, *member).to_string()));
    }

    async fn join(&mut self) -> u64 {
        let member = self.plane.new_control_member(PATIENCE, self.cluster).await.expect("an id");
        self.revive(member).await;
        let at = address(self.seed, member).to_string();
        self.plane.join_control(PATIENCE, self.cluster, member, &at).await.expect("joins");
        member
    }

    /// Until the leader has done it: it may have to see first that a member is up, or has caught up.
    async fn change(&mut self, add: &[u64], remove: &[u64]) {
        let end = Instant::now() + PATIENCE;
        let (add, remove) =
            (BTreeSet::from_iter(add.iter().copied()), BTreeSet::from_iter(remove.iter().copied()));
        loop {
            let result = match self.leader() {
                Some((leader, _)) => leader.change_members(add.clone(), remove.clone()).await,
                None => Err(ChangeError::Consensus(lunette_control::raft::ConsensusError::NoQuorum)),
            };
            match result {
                Ok(()) => break,
                // Done, and the leader that did it died or was removed before it could say so.
                Err(ChangeError::Refused(lunette_control::raft::MembershipError::Unknown { id }))
                    if remove.contains(&id) =>
                {
                    break;
                }
                Err(error) => {
                    assert!(Instant::now() < end, "seed {}: {error}: {:?}", self.seed, self.trace);
                }
            }
            sleep(POLL).await;
        }
        self.voters = self.voters.union(&add).copied().filter(|id| !remove.contains(id)).collect();
        for member in remove {
            if let Some(Some(control)) = self.members.remove(&member) {
                control.stop().await;
            }
        }
    }

    /// The members to leave so that `count` voters are left, dead ones first.
    fn leavers(&mut self, count: usize) -> Vec<u64> {
        let (mut dead, mut alive): (Vec<u64>, Vec<u64>) =
            self.voters.iter().partition(|id| self.members[id].is_none());
        let mut leavers = Vec::new();
        while leavers.len() < self.voters.len() - count {
            let from = if dead.is_empty() { &mut alive } else { &mut dead };
            let index = self.random.below(from.len());
            leavers.push(from.remove(index));
        }
        leavers
    }

    async fn step(&mut self) {
        let (kind, count) = (self.random.below(10), 1 + self.random.below(30));
        let (living, dead) = (self.living(), self.dead());
        self.trace.push(format!("{kind} with {count}: {:?} vote, {dead:?} dead", self.voters));
        match kind {
            0..3 => self.write(count).await,
            3 | 4 if self.spare() > 0 => {
                let leader = self.leader().map(|(_, metrics)| metrics.member).filter(|_| kind == 3);
                let member = leader.unwrap_or_else(|| self.random.one_of(&living));
                self.kill(member).await;
                self.write(count).await;
            }
            5 if !dead.is_empty() => {
                let member = self.random.one_of(&dead);
                self.revive(member).await;
            }
            6 if !dead.is_empty() => {
                let (old, new) = (self.random.one_of(&dead), self.join().await);
                self.change(&[new], &[old]).await;
            }
            7 if self.voters.len() < 5 => {
                let new = [self.join().await, self.join().await];
                self.write(count).await;
                self.change(&new, &[]).await;
            }
            8 if self.voters.len() > 1 => {
                let leavers = self.leavers(self.voters.len() - 2);
                self.change(&[], &leavers).await;
            }
            9 => {
                for member in &living {
                    self.kill(*member).await;
                }
                for member in self.members.keys().copied().collect::<Vec<_>>() {
                    self.revive(member).await;
                }
            }
            _ => self.write(1).await,
        }
    }

    /// Everybody returns, and everybody holds everything.
    async fn end(mut self) {
        for member in self.dead() {
            self.revive(member).await;
        }
        self.write(1).await;
        let end = Instant::now() + PATIENCE;
        let equal = |this: &Self| {
            let mut maps = this.members.values().flatten().map(Control::map);
            let first = maps.next().expect("a member");
            let names: BTreeSet<String> =
                first.gateways.values().map(|gateway| gateway.name.clone()).collect();
            (names == this.names && maps.all(|map| map == first)).then_some(first.epoch)
        };
        let epoch = loop {
            if let Some(epoch) = equal(&self) {
                break epoch;
            }
            assert!(Instant::now() < end, "seed {}: members differ: {:?}", self.seed, self.trace);
            sleep(POLL).await;
        };
        let watched =
            timeout(PATIENCE, self.watcher.at_least(epoch)).await.expect("in time").expect("watched");
        assert_eq!(*watched, self.members.values().flatten().next().expect("a member").map());
        let voters = |(_, metrics): (&dyn Consensus, Metrics)| {
            metrics
                .members
                .iter()
                .map(|member| member.voter.then_some(member.id))
                .collect::<Option<BTreeSet<_>>>()
        };
        assert_eq!(self.leader().and_then(voters), Some(self.voters.clone()), "{:?}", self.trace);
        self.watcher.stop().await;
        for control in self.members.into_values().flatten() {
            control.stop().await;
        }
    }
}

/// Guards what was answered, and the equality of members, against every order of deaths, returns, snapshots and changes of
/// the membership.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn churn() {
    let (first, count) = (number("LUNETTE_TEST_SEED", 1), number("LUNETTE_TEST_CHURNS", 24));
    let mut seeds = first..first + count;
    let mut running = tokio::task::JoinSet::new();
    loop {
        while running.len() < TOGETHER as usize {
            let Some(seed) = seeds.next() else { break };
            running.spawn(async move {
                let mut world = World::new(seed).await;
                // Most begin with several.
                if seed % 4 != 0 {
                    let new = [world.join().await, world.join().await];
                    world.change(&new, &[]).await;
                }
                for _ in 0..STEPS {
                    world.step().await;
                }
                world.end().await;
            });
        }
        match running.join_next().await {
            Some(ended) => ended.expect("a run does not fail"),
            None => return,
        }
    }
}
