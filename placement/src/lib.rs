//! The ring: where an extent lies, as pure functions of the cluster map.
//!
//! ```text
//! extent --hash--> partition --table--> ordered disks        (hash, for every request)
//! disks, weights, domains, old table --plan--> new table     (plan, when the cluster changes)
//! ```
//!
//! A pool's hash space is cut into P equal partitions, fixed when the pool is created. An extent's
//! partition never changes ([`partition_of`]); which disks a partition lies on is a table that the
//! control plane commits. Looking an extent up is one hash, one multiplication and one table row.
//!
//! # The table
//!
//! [`plan()`] computes the table as a flow of minimum cost. Rings of virtual nodes and straw-drawing
//! hashes spread load by luck: with a few hundred partitions per disk the fullest disk is 10 to 40 %
//! above the mean, and the pool is full when that disk is. Where domains differ in size they also
//! miss combinations that the rule allows. A flow misses none: it finds a table that obeys all of
//! the following, in this order, or there is none.
//!
//! 1. **The failure-domain rule.** Two copies of a partition never share a disk, host, rack or zone,
//!    whichever the pool names. It is a capacity of one between a partition and a domain.
//! 2. **Load by weight.** Each disk has a quota of copies, its fair share rounded down or up. A
//!    domain that is heavier than one copy of every partition is held to exactly that, and the rest
//!    is shared out among the others by weight (water filling). Quotas are capacities towards the sink.
//! 3. **Fewest moves.** A copy that stays where the previous table had it costs nothing, any other
//!    costs one. Roundings go where they save a move.
//! 4. **Preferred copies.** The first disk of a row, which reads go to, is chosen by one more flow so
//!    that each disk is first for its share of the partitions. No data moves for it.
//!
//! ```text
//! source --copies--> partition --1--> (partition, domain) --1, cost 0 or 1--> disk --quota--> sink
//! ```
//!
//! The network is never built: arcs are implied by the rows, the search visits each partition, copy
//! and domain a few times at most, and copies that can stay are kept before it starts, so the work
//! follows the size of the change. Everything is integer arithmetic over sorted input: one input has one
//! table, on every machine.
//!
//! # In the middle of a move
//!
//! Two copies of one extent are never in one failure domain, also in the middle of a move (invariant
//! 16). A disk that enters a row is paired with the one that leaves from its own domain, if there is
//! one; therefore any subset of a plan's moves, in any order, leaves rows that obey the rule.

mod hash;
mod plan;

pub use hash::{locate, partition_of};
pub use plan::{Candidate, DiskLoad, Load, Move, Plan, PlanError, PlanRequest, candidates_of, plan};
