use super::*;

const ID: ExtentId = ExtentId { namespace: Namespace(1), index: 0 };

fn version(seq: u64) -> Version {
    Version { generation: Generation(1), seq }
}

fn write(model: &mut Model, seq: u64, repair: bool) {
    model.change(ID, version(seq), 3..4, repair, |block| Some(content(ID, block, version(seq))));
}

/// Numbers of the versions that the block may have.
fn legal(model: &Model) -> Vec<u64> {
    let block = model.namespaces[&ID.namespace].extents[&0].block(3);
    block.0.iter().map(|value| value.version.seq).collect()
}

/// Guards the litmus tests T1 to T4 of the consistency model: what was asked for after the durable value may be
/// there, what was before it may not.
#[test]
fn what_may_be_there() {
    let mut model = Model::default();
    write(&mut model, 1, false);
    assert_eq!(legal(&model), [0, 1]);
    model.settle();
    assert_eq!(legal(&model), [1]);
    write(&mut model, 2, false);
    write(&mut model, 3, false);
    assert_eq!(legal(&model), [1, 2, 3]);
}

/// Guards versions: what is older has no effect, a repair of an equal one has.
#[test]
fn older_ones_have_no_effect() {
    let mut model = Model::default();
    write(&mut model, 5, false);
    model.settle();
    write(&mut model, 4, true);
    write(&mut model, 5, false);
    assert_eq!(legal(&model), [5]);
    write(&mut model, 5, true);
    assert_eq!(legal(&model), [5, 5]);
    model.change(ID, version(6), 0..EXTENT_BLOCKS, false, |_| None);
    assert_eq!(legal(&model), [5, 5, 6]);
    model.settle();
    model.change(ID, version(6), 0..EXTENT_BLOCKS, false, |_| None);
    assert_eq!(legal(&model), [6]);
}

/// Guards rule R6: what was seen after a crash is what there is.
#[test]
fn what_was_seen_stays() {
    let mut model = Model::default();
    model.seal(ID.namespace, Generation(1), Epoch(1));
    model.settle();
    write(&mut model, 1, false);
    write(&mut model, 2, false);
    // Not deleted, the first seal, not dropped, the second value, nothing elsewhere.
    model.adopt(&vec![0, 0, 0, 1, 0]);
    assert_eq!(legal(&model), [1]);
    assert_eq!(model.sealed(ID.namespace), (Generation(1), Epoch(1)));
}

/// Guards drops: until one is durable an extent may be what it was, and after it there is nothing of that.
#[test]
fn what_is_dropped_has_another_life() {
    let mut model = Model::default();
    model.seal(ID.namespace, Generation(1), Epoch(1));
    write(&mut model, 1, false);
    model.settle();
    model.drop_extent(ID);
    assert_eq!(legal(&model), [0]);
    let extent = |model: &Model| model.namespaces[&ID.namespace].extents[&0].clone();
    assert!(extent(&model).is_gone());
    let mut undone = model.clone();
    undone.adopt(&vec![0, 0, 0, 0, 0]);
    assert_eq!(legal(&undone), [1]);
    write(&mut model, 1, true);
    assert_eq!((legal(&model), extent(&model).is_gone()), (vec![0, 1], false));
    model.settle();
    assert_eq!((legal(&model), extent(&model).earlier.len()), (vec![1], 0));
}

/// Guards the contents: different in every sector, of every block and version.
#[test]
fn contents_differ() {
    let one = content(ID, 3, version(1));
    let mut sectors: Vec<Vec<u8>> = one.chunks(512).map(<[u8]>::to_vec).collect();
    sectors.extend(content(ID, 3, version(2)).chunks(512).map(<[u8]>::to_vec));
    sectors.extend(content(ID, 4, version(1)).chunks(512).map(<[u8]>::to_vec));
    sectors.sort();
    sectors.dedup();
    assert_eq!(sectors.len(), 24);
    assert_eq!(named(&one), "[1/0#3 1.1]");
}
