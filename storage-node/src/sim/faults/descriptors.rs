//! What a descriptor that is damaged, or cannot be read at the moment, costs: nothing that is not damaged itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use lunette_proto::ids::ExtentId;
use lunette_proto::limits::BLOCK_BYTES;

use crate::sim::disk::SimDisk;
use crate::sim::model::Model;
use crate::store::Store;
use crate::store::descriptor::{BlockState, UNIT_BLOCKS};
use crate::store::disk::Disk;

/// After one bit of a descriptor flipped: of all blocks of its unit but one, what they were can still be told, whatever
/// was written beside them.
pub(super) fn check_salvaged(
    store: &Store<Arc<SimDisk>>,
    model: &Model,
    bad: &[(ExtentId, u32)],
) -> Result<(), String> {
    let view = store.view();
    let mut forgotten = BTreeMap::<u32, u32>::new();
    for (id, block) in bad {
        let slot = u8::try_from(block / UNIT_BLOCKS).expect("inside the extent");
        let unit = view.state.read().extents.get(*id).and_then(|extent| extent.unit(slot));
        let value = model.namespaces[&id.namespace].extents[&id.index].block(*block).last();
        let (Some(unit), Some(_)) = (unit, &value.data) else { continue };
        let descriptor = view.current(*id, slot, unit).map_err(|error| error.to_string())?;
        let index = block % UNIT_BLOCKS;
        let mut data = vec![0; BLOCK_BYTES as usize];
        let at = view.layout.unit(unit.unit) + u64::from(index * BLOCK_BYTES);
        view.disk.read(at, &mut data).map_err(|error| error.to_string())?;
        let entry = &descriptor.blocks[index as usize];
        if entry.state != BlockState::Lost || descriptor.verify(index, &data).is_err() {
            *forgotten.entry(unit.unit).or_default() += 1;
        }
    }
    match forgotten.into_iter().find(|(_, blocks)| *blocks > 1) {
        Some((unit, blocks)) => Err(format!("what {blocks} lost blocks of unit {unit} were is forgotten")),
        None => Ok(()),
    }
}

mod tests {
    use lunette_proto::node::Durability::Stable;

    use super::super::{all_kept, layout};
    use super::*;
    use crate::sim::disk::{Fault, FaultKind};
    use crate::sim::world::{End, NAMESPACES, Op, World, formatted};

    const ID: ExtentId = ExtentId { namespace: NAMESPACES[0], index: 0 };

    fn write(blocks: std::ops::Range<u32>) -> Op {
        Op::Write { ns: 0, extent: 0, blocks, durability: Stable }
    }

    /// A whole unit in a checkpoint, and nothing of it in memory; where its descriptor is.
    fn world() -> (World, u64) {
        let mut world = World::open(formatted(&layout()), Model::default()).unwrap();
        for op in [Op::Seal { ns: 0 }, write(0..16)] {
            world.step(&op, false).unwrap();
        }
        world.checkpoint().unwrap();
        let (disk, model) = (world.disk.clone(), world.model.clone());
        let world = world.opened(World::on(disk, model).unwrap().store);
        let unit = world.store.view().state.read().extents.get(ID).unwrap().unit(0).unwrap();
        let at = layout().descriptor(unit.unit);
        (world, at)
    }

    /// Guards acknowledged data against a read that fails once: the disk fails, and has everything when it is opened again.
    #[test]
    fn a_read_that_fails_costs_nothing() {
        let (mut world, at) = world();
        let kind = FaultKind::ReadError;
        world.disk.inject(Fault { kind, range: at..at + 512, skip: 0, times: 1, hits: 0 });
        assert!(matches!(world.step(&write(3..4), false), Err(End::Failed(_))));
        assert_eq!(world.disk.heal(), 1);
        let mut again = World::on(SimDisk::new(all_kept(&world.disk)), world.noted.clone()).unwrap();
        assert_eq!(again.model.clone().check_spoiled(&mut again.store), Ok(Vec::new()));
    }

    /// Guards the same while a disk is opened whose journal changes such a unit.
    #[test]
    fn a_read_that_fails_when_opened_costs_nothing() {
        let (mut world, at) = world();
        world.step(&write(3..4), false).unwrap();
        let disk = SimDisk::new(all_kept(&world.disk));
        let kind = FaultKind::ReadError;
        disk.inject(Fault { kind, range: at..at + 512, skip: 0, times: 1, hits: 0 });
        assert!(matches!(World::on(disk.clone(), world.model.clone()), Err(End::Failed(_))));
        assert_eq!(disk.heal(), 1);
        let mut again = World::on(disk, world.model.clone()).unwrap();
        assert_eq!(again.model.clone().check_spoiled(&mut again.store), Ok(Vec::new()));
    }

    /// Guards the only copy: a write beside blocks whose descriptor is damaged is done, the others are said to be
    /// damaged before and after it, and what the descriptor said of them is still there after checkpoints.
    #[test]
    fn a_write_beside_damage_forgets_nothing() {
        let (mut world, at) = world();
        world.disk.spoil(|image| image.flip(at + 64 + 5 * 28 + 16, 3));
        let lost = |world: &mut World| world.model.clone().check_spoiled(&mut world.store).unwrap();
        assert_eq!(lost(&mut world).len(), 16);
        world.step(&write(3..4), false).unwrap();
        world.checkpoint().unwrap();
        let store = World::on(world.disk.clone(), world.model.clone()).unwrap().store;
        let mut world = world.opened(store);
        let bad = lost(&mut world);
        assert_eq!(bad.len(), 15);
        assert!(!bad.contains(&(ID, 3)));
        check_salvaged(&world.store, &world.model, &bad).unwrap();
        // Another member has them.
        bad.iter().for_each(|(id, block)| world.repair(*id, *block).unwrap());
        assert_eq!(lost(&mut world), []);
    }
}
