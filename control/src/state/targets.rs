//! Targets: what they show, to whom, and what initiators prove.

use std::collections::BTreeMap;

use lunette_proto::ids::TargetId;
use lunette_proto::limits::{LUNS_PER_TARGET_MAX, VOLUMES_MAX};
use lunette_proto::map::{Acl, Chap, ChapCredential, Lun, Target};

use super::limits::{ACLS_PER_TARGET_MAX, CHAP_USER_BYTES_MAX};
use super::names::{export_iqn, normal_acl, normal_iqn};
use super::volumes::bounded;
use super::{Change, Draft, NameKind, Rejection, Response, take};

impl Draft<'_> {
    pub(super) fn create_target(&mut self, iqn: Option<&str>) -> Result<Response, Rejection> {
        let iqn = match iqn {
            Some(iqn) => normal_iqn(iqn)?,
            None => self.free_iqn()?,
        };
        self.new_target(iqn, BTreeMap::new())
    }

    /// A name nobody has: its number is the id that the target will get, or the next that is free.
    fn free_iqn(&self) -> Result<String, Rejection> {
        (self.next.target..=u32::MAX)
            .map(|number| export_iqn(&format!("target-{number}")))
            .find(|iqn| self.map.target_by_iqn(iqn).is_none())
            .ok_or(Rejection::IdsExhausted)
    }

    /// Makes a target of a name that is known to be an iSCSI name.
    pub(super) fn new_target(
        &mut self,
        iqn: String,
        luns: BTreeMap<u16, Lun>,
    ) -> Result<Response, Rejection> {
        if self.map.target_by_iqn(&iqn).is_some() {
            return Err(Rejection::Exists { kind: NameKind::Target, name: iqn });
        }
        if self.map.targets.len() >= VOLUMES_MAX {
            return Err(Rejection::TooMany { what: "targets".into(), max: VOLUMES_MAX });
        }
        let id = TargetId(take(&mut self.next.target)?);
        self.put(Change::PutTarget(Target { id, iqn, luns, acls: Vec::new(), chap: None, draining: false }));
        Ok(Response::Target(id))
    }

    pub(super) fn delete_target(&mut self, iqn: &str) -> Result<Response, Rejection> {
        let target = self.target(iqn)?;
        self.put(Change::RemoveTarget(target.id));
        Ok(Response::Done)
    }

    pub(super) fn map_lun(
        &mut self,
        iqn: &str,
        volume: &str,
        lun: Option<u32>,
        read_only: bool,
    ) -> Result<Response, Rejection> {
        let mut target = self.target(iqn)?;
        let name = volume;
        let volume = self.volume(name)?.id;
        if let Some((lun, _)) = target.luns.iter().find(|(_, lun)| lun.volume == volume) {
            return Err(Rejection::MappedAlready { iqn: target.iqn, volume: name.to_owned(), lun: *lun });
        }
        let lun = match lun {
            Some(lun) => u16::try_from(lun)
                .ok()
                .filter(|lun| *lun < LUNS_PER_TARGET_MAX)
                .ok_or(Rejection::LunRange { lun })?,
            None => (0..LUNS_PER_TARGET_MAX).find(|lun| !target.luns.contains_key(lun)).ok_or_else(|| {
                Rejection::TooMany { what: "LUNs of a target".into(), max: LUNS_PER_TARGET_MAX.into() }
            })?,
        };
        if target.luns.contains_key(&lun) {
            return Err(Rejection::LunTaken { iqn: target.iqn, lun });
        }
        target.luns.insert(lun, Lun { volume, read_only });
        Ok(self.put_target(target))
    }

    pub(super) fn unmap_lun(&mut self, iqn: &str, volume: &str) -> Result<Response, Rejection> {
        let mut target = self.target(iqn)?;
        let id = self.volume(volume)?.id;
        let before = target.luns.len();
        target.luns.retain(|_, lun| lun.volume != id);
        if target.luns.len() == before {
            return Err(Rejection::NotMapped { iqn: target.iqn, volume: volume.to_owned() });
        }
        Ok(self.put_target(target))
    }

    pub(super) fn allow(&mut self, iqn: &str, acl: &Acl) -> Result<Response, Rejection> {
        let acl = normal_acl(acl)?;
        let mut target = self.target(iqn)?;
        if !target.acls.contains(&acl) {
            if target.acls.len() >= ACLS_PER_TARGET_MAX {
                let what = "access entries of a target".into();
                return Err(Rejection::TooMany { what, max: ACLS_PER_TARGET_MAX });
            }
            target.acls.push(acl);
        }
        Ok(self.put_target(target))
    }

    pub(super) fn deny(&mut self, iqn: &str, acl: &Acl) -> Result<Response, Rejection> {
        let acl = normal_acl(acl)?;
        let mut target = self.target(iqn)?;
        let before = target.acls.len();
        target.acls.retain(|entry| *entry != acl);
        if target.acls.len() == before {
            return Err(Rejection::NoAcl { iqn: target.iqn });
        }
        Ok(self.put_target(target))
    }

    pub(super) fn set_chap(&mut self, iqn: &str, chap: &Chap) -> Result<Response, Rejection> {
        check_chap(chap)?;
        let mut target = self.target(iqn)?;
        target.chap = Some(chap.clone());
        Ok(self.put_target(target))
    }

    pub(super) fn clear_chap(&mut self, iqn: &str) -> Result<Response, Rejection> {
        let mut target = self.target(iqn)?;
        target.chap = None;
        Ok(self.put_target(target))
    }

    pub(super) fn set_discovery_chap(&mut self, chap: Option<&Chap>) -> Result<Response, Rejection> {
        if let Some(chap) = chap {
            check_chap(chap)?;
        }
        self.put(Change::SetDiscoveryChap(chap.cloned()));
        Ok(Response::Done)
    }

    pub(super) fn set_draining(&mut self, iqn: &str, draining: bool) -> Result<Response, Rejection> {
        let mut target = self.target(iqn)?;
        target.draining = draining;
        Ok(self.put_target(target))
    }

    fn put_target(&mut self, target: Target) -> Response {
        let id = target.id;
        self.put(Change::PutTarget(target));
        Response::Target(id)
    }

    /// The target of that name, to be changed.
    fn target(&self, iqn: &str) -> Result<Target, Rejection> {
        let target = self.map.target_by_iqn(iqn).cloned();
        target.ok_or_else(|| Rejection::NotFound { kind: NameKind::Target, name: bounded(iqn) })
    }
}

fn check_chap(chap: &Chap) -> Result<(), Rejection> {
    check_user("user", &chap.initiator)?;
    if let Some(mutual) = &chap.target {
        check_user("mutual_user", mutual)?;
    }
    let twice = |index: usize| chap.algorithms[..index].contains(&chap.algorithms[index]);
    if chap.algorithms.is_empty() || (0..chap.algorithms.len()).any(twice) {
        return Err(Rejection::ChapAlgorithm { text: format!("{:?}", chap.algorithms) });
    }
    Ok(())
}

/// The secrets are sealed by now, and were checked before that; the names are in clear.
fn check_user(field: &str, credential: &ChapCredential) -> Result<(), Rejection> {
    let user = &credential.user;
    let fits = (1..=CHAP_USER_BYTES_MAX).contains(&user.len())
        && user.trim() == user
        && !user.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(Rejection::ChapUser { field: field.to_owned() }) }
}
