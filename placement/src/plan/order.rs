//! Which disk of a row is its first: the preferred copy for reads.
//!
//! Each disk is first for its copies / copies of a row, rounded down or up. Spread over the cells of
//! a row in equal parts, the choice meets that exactly, so there is one in whole numbers too: a
//! flow in which each partition takes one disk of its row. The lower bounds are filled first (what a
//! disk has, a longer flow never takes from it), then the upper.

use super::flow::Flow;
use super::topology::{NONE, Topology};

/// The first disk of each row of `cells`. `before` is the first disk by the previous table, or `NONE`;
/// it stays where that is even enough.
pub(super) fn first_disks(cells: &[u32], width: usize, disks: usize, before: &[u32]) -> Vec<u32> {
    let mut copies = vec![0_u32; disks];
    for &disk in cells {
        copies[disk as usize] += 1;
    }
    let width_u32 = u32::try_from(width).expect("a row's width is a u8");
    let lower: Vec<u32> = copies.iter().map(|copies| copies / width_u32).collect();
    let rounded: Vec<u32> =
        copies.iter().map(|copies| u32::from(!copies.is_multiple_of(width_u32))).collect();

    let topology = Topology::separate(disks);
    let mut flow = Flow::new(&topology, 1, before.len(), cells, &lower);
    choose(&mut flow, &lower, before);
    flow.complete_from_origins();
    let upper: Vec<u32> = lower.iter().zip(&rounded).map(|(lower, rounded)| lower + rounded).collect();
    flow.allow(&rounded);
    choose(&mut flow, &upper, before);
    flow.complete_from_origins();
    flow.into_cells()
}

/// A good start: the previous choice, else the disk that has the largest part of its share left.
fn choose(flow: &mut Flow<'_>, share: &[u32], before: &[u32]) {
    for (partition, &disk) in (0_u32..).zip(before) {
        if disk != NONE {
            flow.offer(partition, disk);
        }
    }
    for partition in flow.order().to_vec() {
        let left = |disk: u32| u64::from(flow.free(disk));
        let of = |disk: u32| u64::from(share[disk as usize]);
        let best = (flow.origins(partition).iter().copied()).max_by(|&one, &other| {
            (left(one) * of(other)).cmp(&(left(other) * of(one))).then(other.cmp(&one))
        });
        if let Some(disk) = best {
            flow.offer(partition, disk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards against first disks outside their row or spread unevenly, also where a greedy choice
    /// runs into a corner: disk 0 is in every row, and the others have few rows to be first in.
    #[test]
    fn even_in_awkward_rows() {
        let cells: Vec<u32> = (0..30).flat_map(|row| [0, 1 + row / 10]).collect();
        let first = first_disks(&cells, 2, 4, &[NONE; 30]);
        let mut counts = [0; 4];
        for (row, &disk) in first.iter().enumerate() {
            assert!(cells[2 * row..2 * row + 2].contains(&disk), "row {row} is not on disk {disk}");
            counts[disk as usize] += 1;
        }
        assert_eq!(counts, [15, 5, 5, 5]);
    }

    /// Guards against reads that change place although the previous choice was even.
    #[test]
    fn stays_where_even() {
        let cells = [0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 0];
        for before in [[0, 1, 2, 0, 1, 2], [1, 2, 0, 1, 2, 0], [0, 2, 2, 1, 1, 0]] {
            assert_eq!(first_disks(&cells, 2, 3, &before), before);
        }
    }
}
