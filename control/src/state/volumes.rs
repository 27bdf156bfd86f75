//! Volumes: their life from creation to the day when their space is given back.

use std::collections::BTreeSet;

use lunette_proto::ids::{Generation, VolumeId};
use lunette_proto::limits::{
    BLOCK_BYTES, STRIPE_UNIT_BYTES_MAX, STRIPE_UNIT_BYTES_MIN, STRIPE_WIDTH_MAX, VOLUME_BYTES_MAX,
    VOLUMES_MAX,
};
use lunette_proto::map::{ClusterMap, Lun, Owner, Stripe, Target, Volume, VolumeState};

use super::limits::OWNERS_PER_COMMAND_MAX;
use super::names::{check_name, export_iqn};
use super::{Change, Draft, NameKind, NewOwner, Rejection, Response, take};

impl Draft<'_> {
    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(super) fn create_volume(
        &mut self,
        name: &str,
        pool: &str,
        size_bytes: u64,
        stripe: Option<Stripe>,
        block_bytes: u32,
        write_back: bool,
        export: bool,
    ) -> Result<Response, Rejection> {
        check_name(NameKind::Volume, name)?;
        check_size(size_bytes)?;
        check_stripe(stripe)?;
        if block_bytes != 512 && block_bytes != 4096 {
            return Err(Rejection::BlockBytes { bytes: block_bytes });
        }
        if self.map.volume_by_name(name).is_some() {
            return Err(Rejection::Exists { kind: NameKind::Volume, name: name.to_owned() });
        }
        let pool = match self.map.pool_by_name(pool) {
            Some(pool) => pool.id,
            None => return Err(Rejection::NotFound { kind: NameKind::Pool, name: bounded(pool) }),
        };
        if self.map.volumes.len() >= VOLUMES_MAX {
            return Err(Rejection::TooMany { what: "volumes".into(), max: VOLUMES_MAX });
        }
        let id = VolumeId(take(&mut self.next.volume)?);
        self.put(Change::PutVolume(Volume {
            id,
            name: name.to_owned(),
            pool,
            size_bytes,
            stripe,
            block_bytes,
            write_back,
            generation: Generation(0),
            owner: None,
            state: VolumeState::Active,
        }));
        if export {
            let luns = [(0, Lun { volume: id, read_only: false })].into();
            self.new_target(export_iqn(name), luns)?;
        }
        Ok(Response::Volume(id))
    }

    pub(super) fn resize_volume(&mut self, name: &str, size_bytes: u64) -> Result<Response, Rejection> {
        check_size(size_bytes)?;
        let volume = self.volume(name)?;
        if size_bytes < volume.size_bytes {
            let now = volume.size_bytes;
            return Err(Rejection::Shrink { name: name.to_owned(), now, bytes: size_bytes });
        }
        let id = volume.id;
        self.put(Change::PutVolume(Volume { size_bytes, ..volume.clone() }));
        Ok(Response::Volume(id))
    }

    /// On is nothing that an owner has to be asked for. Off says that everything acknowledged is on stable media, and
    /// that only the owner can bring about: it names the generation under which it did.
    pub(super) fn set_write_back(
        &mut self,
        id: VolumeId,
        generation: Option<Generation>,
        write_back: bool,
    ) -> Result<Response, Rejection> {
        let volume = self.active(id)?;
        let cached = volume.write_back && !write_back && volume.generation != Generation(0);
        if cached && generation != Some(volume.generation) {
            return Err(Rejection::NotFlushed { name: volume.name.clone() });
        }
        self.put(Change::PutVolume(Volume { write_back, ..volume.clone() }));
        Ok(Response::Volume(id))
    }

    pub(super) fn delete_volume(&mut self, name: &str, force: bool) -> Result<Response, Rejection> {
        let volume = self.volume(name)?;
        let id = volume.id;
        let shows = |target: &&Target| target.luns.values().any(|lun| lun.volume == id);
        let map = self.map;
        for target in map.targets.values().filter(shows) {
            if !force {
                let target = target.iqn.clone();
                return Err(Rejection::VolumeMapped { name: name.to_owned(), target });
            }
            let mut target = target.clone();
            target.luns.retain(|_, lun| lun.volume != id);
            // The target that an export made has no other purpose; one with other LUNs found another.
            if target.luns.is_empty() && target.iqn == export_iqn(name) {
                self.put(Change::RemoveTarget(target.id));
            } else {
                self.put(Change::PutTarget(target));
            }
        }
        self.put(Change::RemoveUnit(id));
        // Nobody ever owned it, so nobody wrote: there is no space to give back.
        if volume.generation == Generation(0) {
            self.put(Change::RemoveVolume(id));
        } else {
            self.put(Change::PutVolume(Volume { state: VolumeState::Deleting, ..volume.clone() }));
        }
        Ok(Response::Done)
    }

    pub(super) fn volume_purged(
        &mut self,
        id: VolumeId,
        generation: Generation,
    ) -> Result<Response, Rejection> {
        let map = self.map;
        match map.volumes.get(&id) {
            Some(volume) => {
                // Only the last owner knows that no other is still writing.
                let may = volume.state == VolumeState::Deleting && volume.generation == generation;
                if !may {
                    return Err(Rejection::NotPurgeable { volume: id, generation });
                }
                self.put(Change::RemoveVolume(id));
                Ok(Response::Done)
            }
            // Told twice, when the first answer was lost.
            None if id.0 > 0 && id.0 < self.next.volume => Ok(Response::Done),
            None => Err(Rejection::NoVolume(id)),
        }
    }

    /// Compared and swapped, each for itself: what of a batch is late does not hold the rest up.
    pub(super) fn assign_owners(&mut self, owners: &[NewOwner]) -> Result<Response, Rejection> {
        if owners.len() > OWNERS_PER_COMMAND_MAX {
            return Err(Rejection::TooMany { what: "volumes".into(), max: OWNERS_PER_COMMAND_MAX });
        }
        if let Some(unknown) = owners.iter().find(|new| !self.map.gateways.contains_key(&new.gateway)) {
            return Err(Rejection::NoGateway(unknown.gateway));
        }
        let map = self.map;
        let mut assigned: BTreeSet<VolumeId> = BTreeSet::new();
        for NewOwner { volume, seen, gateway } in owners {
            let Some(volume) = map.volumes.get(volume).filter(|volume| volume.generation == *seen) else {
                continue;
            };
            // One generation, one owner (invariant 36).
            if !assigned.insert(volume.id) {
                continue;
            }
            let generation = volume.generation.0.checked_add(1).ok_or(Rejection::IdsExhausted)?;
            let generation = Generation(generation);
            let owner = Some(Owner { gateway: *gateway, generation });
            self.put(Change::PutVolume(Volume { generation, owner, ..volume.clone() }));
        }
        Ok(Response::Done)
    }
}

impl<'a> Draft<'a> {
    /// The active volume of that name, borrowed from the map and not from the draft.
    pub(super) fn volume(&self, name: &str) -> Result<&'a Volume, Rejection> {
        let map: &'a ClusterMap = self.map;
        let volume = map.volume_by_name(name);
        volume.ok_or_else(|| Rejection::NotFound { kind: NameKind::Volume, name: bounded(name) })
    }

    /// The active volume of that id, likewise.
    pub(super) fn active(&self, id: VolumeId) -> Result<&'a Volume, Rejection> {
        let map: &'a ClusterMap = self.map;
        let volume = map.volumes.get(&id).filter(|volume| volume.state == VolumeState::Active);
        volume.ok_or(Rejection::NoVolume(id))
    }
}

/// What comes from outside goes into messages: as much of it as a name may have, and one more.
pub(super) fn bounded(name: &str) -> String {
    name.chars().take(lunette_proto::limits::ISCSI_NAME_BYTES_MAX).collect()
}

fn check_size(bytes: u64) -> Result<(), Rejection> {
    let block = u64::from(BLOCK_BYTES);
    if bytes == 0 {
        return Err(Rejection::SizeZero);
    }
    if bytes > VOLUME_BYTES_MAX {
        return Err(Rejection::SizeTooLarge { bytes });
    }
    if !bytes.is_multiple_of(block) {
        let below = bytes / block * block;
        let above = below + block;
        let nearest = if below > 0 && bytes - below < above - bytes { below } else { above };
        return Err(Rejection::SizeUnaligned { bytes, nearest });
    }
    Ok(())
}

fn check_stripe(stripe: Option<Stripe>) -> Result<(), Rejection> {
    let Some(Stripe { unit_bytes, width }) = stripe else { return Ok(()) };
    let range = STRIPE_UNIT_BYTES_MIN..=STRIPE_UNIT_BYTES_MAX;
    if !range.contains(&unit_bytes) || !unit_bytes.is_power_of_two() {
        return Err(Rejection::StripeUnit { bytes: unit_bytes });
    }
    if !(2..=STRIPE_WIDTH_MAX).contains(&width) {
        return Err(Rejection::StripeWidth { width: width.into() });
    }
    Ok(())
}
