//! What this gateway exports, and to whom: a pure function of the cluster map.
//!
//! ```text
//! ClusterMap + Units -> Exports { IQN -> Export { view, access list, CHAP } }
//! ```
//!
//! A new map makes new [`Exports`]; sessions then compare the view they had with the one they
//! have now ([`changes`]) and report the differences as unit attentions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use lunette_proto::ids::{Epoch, VolumeId};
use lunette_proto::map::{Chap, ClusterMap, Target, UnitState, Volume, VolumeState};
use lunette_volume::device::BlockDevice;

use crate::scsi::{Attention, LogicalUnit, Scope, TargetPort, TargetView, UnitOwner, Units};

/// Where logical units get their devices from, and what keeps their state.
pub trait Devices: Send + Sync {
    /// The device of a volume; `None` if this gateway cannot serve it at all.
    fn device(&self, volume: VolumeId) -> Option<Arc<dyn BlockDevice>>;

    /// Commits `change` of a volume, durably and for all gateways; then calls `done`, once, from anywhere and in
    /// bounded time, for the session's end waits for it. A map with the change in it comes before that, or later.
    fn keep(&self, volume: VolumeId, change: Change, done: Box<dyn FnOnce(Result<(), KeepError>) + Send>);
}

/// What a logical unit has the cluster keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its state, as made from the state of the revision before.
    State(Arc<UnitState>),
    /// Whether its write cache is enabled (SBC-3: WCE).
    WriteBack(bool),
}

/// Why a change was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// The state has changed since; the newer one comes with the next map.
    #[error("another gateway was faster")]
    Conflict,
    /// The volume is gone.
    #[error("the volume was deleted")]
    Gone,
    /// It is for the volume's owner to make. Nothing was changed.
    #[error("another gateway owns the volume")]
    NotOwner,
    /// Nobody could be asked. It may have been committed all the same.
    #[error("the control plane does not answer: {0}")]
    Unavailable(String),
}

/// All targets of one map, by IQN in lower case.
#[derive(Clone, Default)]
pub struct Exports {
    epoch: Epoch,
    targets: BTreeMap<String, Export>,
    discovery_chap: Option<Arc<Chap>>,
    /// Of the other gateways, by portal group tag.
    other_portals: BTreeMap<u16, Vec<SocketAddr>>,
}

/// One target.
#[derive(Clone)]
pub struct Export {
    /// What its sessions see.
    pub view: Arc<TargetView>,
    /// What its initiators must prove.
    pub chap: Option<Arc<Chap>>,
    acls: Vec<Entry>,
    draining: bool,
}

/// An entry of an access list.
#[derive(Clone)]
struct Entry {
    initiator: String,
    from: Option<IpNet>,
}

/// Who asks, and over which addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The initiator's iSCSI name, in lower case.
    pub initiator: String,
    /// Where it connects from.
    pub peer: IpAddr,
    /// Where it connected to.
    pub local: IpAddr,
}

/// The answer to a claimant.
pub enum Admission<'a> {
    /// No such target.
    NotFound,
    /// It exists, but not for this claimant.
    Forbidden,
    /// Come in.
    Admitted(&'a Export),
}

impl Exports {
    /// The targets of `map`, shown through the portal group `tag`.
    #[must_use]
    pub fn new(map: &ClusterMap, tag: u16, units: &Units) -> Self {
        let targets = map
            .targets
            .values()
            .map(|target| (target.iqn.to_ascii_lowercase(), Export::new(map, target, tag, units)))
            .collect();
        let others = map.gateways.values().filter(|gateway| gateway.portal_group_tag != tag);
        Self {
            epoch: map.epoch,
            targets,
            discovery_chap: map.discovery_chap.clone().map(Arc::new),
            other_portals: others
                .map(|gateway| (gateway.portal_group_tag, gateway.portals.clone()))
                .collect(),
        }
    }

    /// The map's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The portals of the other gateways as they are bound, with their portal group tags.
    pub fn other_portals(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        self.other_portals.iter().flat_map(|(tag, portals)| portals.iter().map(|portal| (*portal, *tag)))
    }

    /// What the initiator of a discovery session must prove; `None`: nothing.
    #[must_use]
    pub fn discovery_chap(&self) -> Option<Arc<Chap>> {
        self.discovery_chap.clone()
    }

    /// The logical unit of `volume`, through whichever target.
    #[must_use]
    pub fn unit(&self, volume: VolumeId) -> Option<Arc<LogicalUnit>> {
        self.units().find(|unit| unit.volume == volume).cloned()
    }

    /// All logical units, of a volume as many as targets map it.
    pub fn units(&self) -> impl Iterator<Item = &Arc<LogicalUnit>> {
        self.targets.values().flat_map(|export| export.view.luns.values())
    }

    /// Whether `claimant` may use the target of that name.
    #[must_use]
    pub fn admit(&self, iqn: &str, claimant: &Claimant) -> Admission<'_> {
        match self.targets.get(&iqn.to_ascii_lowercase()) {
            None => Admission::NotFound,
            Some(export) if export.admits(claimant) => Admission::Admitted(export),
            Some(_) => Admission::Forbidden,
        }
    }

    /// The targets that `claimant` may use, in the order of their names.
    pub fn discoverable<'a>(&'a self, claimant: &'a Claimant) -> impl Iterator<Item = &'a Export> {
        self.targets.values().filter(|export| export.admits(claimant))
    }
}

impl Export {
    fn new(map: &ClusterMap, target: &Target, tag: u16, units: &Units) -> Self {
        let luns = target.luns.iter().filter_map(|(number, lun)| {
            let volume = map.volumes.get(&lun.volume).filter(|volume| volume.state == VolumeState::Active)?;
            let unit = LogicalUnit {
                cluster: map.cluster,
                volume: volume.id,
                name: volume.name.clone(),
                size_bytes: volume.size_bytes,
                block_bytes: volume.block_bytes,
                read_only: lun.read_only,
                owner: owner(map, volume),
                device: units.devices().device(volume.id)?,
                shared: units.unit(volume.id, map),
            };
            Some((*number, Arc::new(unit)))
        });
        // A gateway is one target port, and its tag is never given out again.
        let port = |tag| TargetPort { group: tag, relative: tag };
        let mut ports: BTreeSet<_> =
            map.gateways.values().map(|gateway| port(gateway.portal_group_tag)).collect();
        ports.insert(port(tag));
        let view = TargetView {
            iqn: target.iqn.to_ascii_lowercase(),
            portal_group_tag: tag,
            relative_port: port(tag).relative,
            ports: ports.into_iter().collect(),
            luns: luns.collect(),
        };
        let acls = target.acls.iter();
        Self {
            view: Arc::new(view),
            chap: target.chap.clone().map(Arc::new),
            acls: acls
                .map(|acl| Entry { initiator: acl.initiator.to_ascii_lowercase(), from: acl.from })
                .collect(),
            draining: target.draining,
        }
    }

    /// Whether anybody at all is admitted over `local`, for want of an access list.
    #[must_use]
    pub fn is_open_at(&self, local: IpAddr) -> bool {
        self.acls.is_empty() && local.to_canonical().is_loopback()
    }

    /// Whether the target takes no logins, and asks its sessions to log out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether the target has an access list.
    #[must_use]
    pub fn has_acl(&self) -> bool {
        !self.acls.is_empty()
    }

    fn admits(&self, claimant: &Claimant) -> bool {
        let peer = claimant.peer.to_canonical();
        self.is_open_at(claimant.local)
            || self.acls.iter().any(|entry| {
                entry.from.is_none_or(|net| net.contains(&peer))
                    && glob(&entry.initiator, &claimant.initiator)
            })
    }
}

fn owner(map: &ClusterMap, volume: &Volume) -> Option<UnitOwner> {
    let owner = volume.owner?;
    let group = map.gateways.get(&owner.gateway)?.portal_group_tag;
    Some(UnitOwner { group, generation: owner.generation })
}

/// What sessions must be told when their view changes, in the order of reporting.
#[must_use]
pub fn changes(old: &TargetView, new: &TargetView) -> Vec<(Scope, Attention)> {
    let mut attentions = Vec::new();
    let volumes =
        |view: &TargetView| view.luns.iter().map(|(lun, unit)| (*lun, unit.volume)).collect::<Vec<_>>();
    if volumes(old) != volumes(new) {
        attentions.push((Scope::All, Attention::ReportedLunsChanged));
    }
    for (lun, after) in &new.luns {
        let Some(before) = old.luns.get(lun) else { continue };
        let scope = Scope::Lun(*lun);
        let group = |unit: &LogicalUnit| unit.owner.map(|owner| owner.group);
        if before.volume == after.volume && group(before) != group(after) {
            attentions.push((scope, Attention::AccessStateChanged));
        }
        if before.size_bytes != after.size_bytes {
            attentions.push((scope, Attention::CapacityChanged));
        }
        let shows = |unit: &LogicalUnit| (unit.volume, unit.size_bytes, unit.block_bytes, unit.read_only);
        if shows(before) != shows(after) {
            attentions.push((scope, Attention::InquiryChanged));
        }
    }
    attentions
}

/// Whether `name` matches `pattern`: `*` is any run of characters, `?` one. Both in lower case.
///
/// Backtracks to the last `*` only, so the work is bounded by the product of the lengths.
fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut star, mut position) = (0, None, 0);
    while position < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(expected) if *expected == '?' || *expected == name[position] => {
                at += 1;
                position += 1;
            }
            _ => match &mut star {
                None => return false,
                Some((after, from)) => {
                    *from += 1;
                    at = *after + 1;
                    position = *from;
                }
            },
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards the glob: literal, `*`, `?`, backtracking, and no quadratic trap.
    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "iqn.x", true),
            ("", "", true),
            ("", "a", false),
            ("iqn.2008-11.org.linux-kvm:*", "iqn.2008-11.org.linux-kvm:vm1", true),
            ("iqn.2008-11.org.linux-kvm:*", "iqn.2008-11.org.linux-kvm", false),
            ("iqn.?:a", "iqn.x:a", true),
            ("iqn.?:a", "iqn.:a", false),
            ("*a*b", "xaxbxab", true),
            ("*a*b", "xaxbxa", false),
            ("a*", "ba", false),
            ("a**c", "abc", true),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!glob(&"*a".repeat(100), &"a".repeat(99)));
    }
}
