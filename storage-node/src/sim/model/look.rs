//! Looks at a store: whether everything is what the model says that it may be.

use std::collections::BTreeMap;

use lunette_proto::ids::{Epoch, ExtentId, Generation, Namespace, Version};
use lunette_proto::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use lunette_proto::node::{DirtyExtent, Failure, ReplyBody};

use super::{BLOCK, Block, Deleted, Extent, Model, Seen, Value, ZEROS, marks, named, prepared};
use crate::engine::Operation;
use crate::store::disk::Disk;
use crate::store::{Missed, Prepared, Store, View};

impl Model {
    /// Looks at everything, after a crash; what it is, or what it may not be.
    pub(in crate::sim) fn check<D: Disk>(&self, store: &mut Store<D>) -> Result<Seen, String> {
        self.look(store, None)
    }

    /// The same of a medium that was spoiled: what may not be, or blocks that are said to be corrupt.
    pub(in crate::sim) fn check_spoiled<D: Disk>(
        &self,
        store: &mut Store<D>,
    ) -> Result<Vec<(ExtentId, u32)>, String> {
        let mut bad = Vec::new();
        self.look(store, Some(&mut bad))?;
        Ok(bad)
    }

    fn look<D: Disk>(
        &self,
        store: &mut Store<D>,
        mut bad: Option<&mut Vec<(ExtentId, u32)>>,
    ) -> Result<Seen, String> {
        let mut seen = Seen::new();
        let view = store.view().clone();
        for (id, namespace) in &self.namespaces {
            let is_spoiled = bad.is_some();
            marks::check(&view, *id, namespace, (!is_spoiled).then_some(&mut seen), is_spoiled)?;
            let kept = |index: u64, life: Option<&Extent>| {
                let id = ExtentId { namespace: *id, index };
                marks::check_extent(&view, id, namespace, life, is_spoiled.then_some(&mut 0))
            };
            let newest = Generation(u64::MAX);
            let (sealed, epoch) = match view.check(*id, newest, Epoch(u64::MAX)) {
                Err(Failure::Deleted) if namespace.deleted != Deleted::No => {
                    seen.push(1);
                    for index in marks::indices(namespace) {
                        kept(index, namespace.extents.get(&index))?;
                    }
                    continue;
                }
                Err(Failure::Generation { sealed, .. }) => {
                    let epoch = match view.check(*id, sealed, Epoch(0)) {
                        Err(Failure::Epoch { sealed, .. }) => sealed,
                        _ => Epoch(0),
                    };
                    (sealed, epoch)
                }
                other => return Err(format!("{id}: {other:?} of a namespace that is not deleted")),
            };
            if namespace.deleted == Deleted::Yes {
                return Err(format!("{id}: it was deleted and is there"));
            }
            seen.push(0);
            let Some(at) = namespace.seals.iter().position(|seal| *seal == (sealed, epoch)) else {
                let legal = &namespace.seals;
                return Err(format!("{id}: sealed to {sealed} under {epoch}, may be {legal:?}"));
            };
            seen.push(u8::try_from(at).expect("few seals"));
            let mut newest = BTreeMap::new();
            let mut gone = Vec::new();
            for (index, extent) in &namespace.extents {
                let id = ExtentId { namespace: *id, index: *index };
                let (which, life, (found, of_life, bad_of_life)) = extent.fitting(|life| {
                    kept(*index, Some(life))?;
                    let (mut seen, mut bad) = (Seen::new(), Vec::new());
                    let found = if is_spoiled {
                        check_spoiled_extent(&view, id, life, &mut bad)?
                    } else {
                        check_extent(&view, id, life, &mut seen)?
                    };
                    Ok((found, seen, bad))
                })?;
                seen.push(which);
                seen.extend(of_life);
                bad.iter_mut().for_each(|bad| bad.extend(&bad_of_life));
                gone.extend(life.is_gone().then_some(*index));
                // What is prepared is named, wherever the watermark is.
                let prepared = view.prepared(id).into_iter().map(|change| change.version);
                let named = prepared.chain([found].into_iter().filter(|found| *found > namespace.mark));
                newest.extend(named.max().map(|named| (*index, named)));
            }
            if sealed != Generation(0) {
                let sealed = check_sealed(store, *id, (sealed, epoch), &newest, namespace.mark)?;
                if let Some(named) = sealed.iter().find(|named| gone.contains(&named.index)) {
                    return Err(format!("{id}: {named:?} was dropped, and may differ"));
                }
            }
        }
        Ok(seen)
    }

    /// Looks at what readers see without a crash: the last values.
    pub(in crate::sim) fn check_live<D: Disk>(&self, view: &View<D>) -> Result<(), String> {
        for (namespace, state) in &self.namespaces {
            let wrong = |what| format!("live: {what}");
            marks::check(view, *namespace, state, None, false).map_err(wrong)?;
            for index in marks::indices(state) {
                let id = ExtentId { namespace: *namespace, index };
                marks::check_extent(view, id, state, state.extents.get(&index), None).map_err(wrong)?;
            }
            if state.deleted != Deleted::No {
                continue;
            }
            for (index, extent) in &state.extents {
                let id = ExtentId { namespace: *namespace, index: *index };
                check_extent(view, id, &extent.last_only(), &mut Seen::new()).map_err(wrong)?;
            }
        }
        Ok(())
    }
}

/// Every block is one of what it may be; the newest version of any.
fn check_extent<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    extent: &Extent,
    seen: &mut Seen,
) -> Result<Version, String> {
    let missed = |what: &str, missed: Missed| match missed {
        Missed::Wait => format!("{id}: {what} says wait"),
        Missed::Failed(failure) => format!("{id}: {what}: {failure}"),
    };
    let listed = || view.extents(id.namespace, id.index, Version::NONE).0;
    if extent.is_gone() && listed().iter().any(|listed| listed.index == id.index) {
        return Err(format!("{id}: it was dropped, and is listed"));
    }
    let mut versions = vec![Version::NONE; EXTENT_BLOCKS as usize];
    let mut at = 0;
    for run in view.versions(id, true).map_err(|why| missed("versions", why))? {
        let end = at + run.blocks as usize;
        if run.blocks == 0 || end > versions.len() {
            return Err(format!("{id}: versions of {end} blocks"));
        }
        versions[at..end].fill(run.version);
        at = end;
    }
    let mut newest = Version::NONE;
    let mut found = BTreeMap::new();
    let mut rest = None;
    for run in extent.looked_at() {
        let data = view.read(id, run.clone(), true).map_err(|why| missed(&format!("read {run:?}"), why))?;
        if data.len() != run.len() * BLOCK {
            return Err(format!("{id}: read of {run:?} gives {} bytes", data.len()));
        }
        for (index, data) in run.zip(data.chunks_exact(BLOCK)) {
            let version = versions[index as usize];
            newest = newest.max(version);
            let block = extent.block(index);
            let Some(which) = block.find(version, data) else {
                return Err(format!(
                    "{id}: block {index} is {version} {}, may be {}",
                    named(data),
                    legal(block)
                ));
            };
            let which = u8::try_from(which).expect("few values");
            if extent.blocks.contains_key(&index) {
                found.insert(index, which);
            } else if *rest.get_or_insert(which) != which {
                return Err(format!("{id}: a discard of the extent is in some blocks and not in others"));
            }
        }
    }
    check_whole(id, extent, &found, rest.unwrap_or(0))?;
    seen.extend(found.into_values());
    seen.push(rest.unwrap_or(0));
    prepared::check(view, id, extent, &versions, seen)?;
    Ok(newest)
}

/// Every change is in all of its blocks, or newer ones are; or it is in none.
fn check_whole(id: ExtentId, extent: &Extent, found: &BTreeMap<u32, u8>, rest: u8) -> Result<(), String> {
    let mut changes: BTreeMap<u32, (bool, u32)> = BTreeMap::new();
    let blocks = extent.blocks.iter().map(|(index, block)| (*index, block, found[index]));
    for (index, block, which) in blocks.chain([(EXTENT_BLOCKS, &extent.rest, rest)]) {
        for (at, value) in block.0.iter().enumerate().skip(1) {
            // A repair with the version that is there cannot be told from it.
            if block.0[..at].iter().any(|older| older.version == value.version) {
                continue;
            }
            let has = at <= usize::from(which);
            let (other, first) = *changes.entry(value.change).or_insert((has, index));
            if has != other {
                let (with, without) = if has { (index, first) } else { (first, index) };
                let version = value.version;
                return Err(format!("{id}: {version} is in block {with}, and not in block {without}"));
            }
        }
    }
    Ok(())
}

/// Every block is one of what it may be, or is said to be corrupt; the newest version of any.
fn check_spoiled_extent<D: Disk>(
    view: &View<D>,
    id: ExtentId,
    extent: &Extent,
    bad: &mut Vec<(ExtentId, u32)>,
) -> Result<Version, String> {
    let runs = match view.versions(id, true) {
        Ok(runs) => runs,
        // The medium cannot read it now: nothing is known.
        Err(Missed::Failed(Failure::DiskFailed)) => {
            bad.push((id, 0));
            return Ok(Version::NONE);
        }
        Err(other) => return Err(format!("{id}: versions: {other:?}")),
    };
    let versions: Vec<Version> =
        runs.iter().flat_map(|run| std::iter::repeat_n(run.version, run.blocks as usize)).collect();
    let mut newest = Version::NONE;
    for index in extent.looked_at().into_iter().flatten() {
        let version = versions.get(index as usize).copied().unwrap_or(Version::NONE);
        match view.read(id, index..index + 1, true) {
            Ok(data) => {
                let block = extent.block(index);
                if block.find(version, &data).is_none() {
                    let legal = legal(block);
                    return Err(format!("{id}: block {index} is {version} {}, may be {legal}", named(&data)));
                }
                newest = newest.max(version);
            }
            Err(Missed::Failed(Failure::Corrupt { offset })) if offset / BLOCK_BYTES == index => {
                bad.push((id, index));
            }
            Err(other) => return Err(format!("{id}: block {index}: {other:?}")),
        }
    }
    prepared::check_spoiled(view, id, extent)?;
    Ok(newest)
}

/// What a seal answers names every extent that has something beyond the watermark, or prepared: these, up to these. What it
/// says the disk has completely is not beyond what it was told. The extents that it names.
fn check_sealed<D: Disk>(
    store: &mut Store<D>,
    namespace: Namespace,
    (generation, epoch): (Generation, Epoch),
    newest: &BTreeMap<u64, Version>,
    mark: Version,
) -> Result<Vec<DirtyExtent>, String> {
    let prepared = store.prepare(epoch, &Operation::Seal { namespace, generation });
    let reply = match prepared {
        Ok(Prepared::Answer { reply, .. }) => reply,
        Ok(Prepared::Blocked) => return Ok(Vec::new()),
        Err(fatal) => return Err(format!("{namespace}: a seal: {}", fatal.0)),
    };
    let Ok(ReplyBody::Sealed(sealed)) = reply else {
        return Err(format!("{namespace}: a seal answers {reply:?}"));
    };
    if sealed.complete > mark {
        return Err(format!("{namespace}: complete up to {}, and was told {mark}", sealed.complete));
    }
    for (index, newest) in newest {
        let named = |dirty: &DirtyExtent| dirty.index == *index && dirty.newest >= *newest;
        if !sealed.dirty.iter().any(named) {
            let dirty = &sealed.dirty;
            return Err(format!("{namespace}: extent {index} has {newest}, and dirty is {dirty:?}"));
        }
    }
    Ok(sealed.dirty)
}

fn legal(block: &Block) -> String {
    let name =
        |value: &Value| format!("{} {}", value.version, named(value.data.as_deref().unwrap_or(&ZEROS)));
    block.0.iter().map(name).collect::<Vec<_>>().join(" or ")
}
