//! CHAP secrets for the gateway: opened when a login asks for them, never kept.

use std::sync::Arc;

use arc_swap::ArcSwap;
use lunette_control::seal::{DISCOVERY, Sealer};
use lunette_proto::map::{ClusterMap, Sealed};
use lunette_target_iscsi::session::Secrets;
use zeroize::Zeroizing;

/// Opens what the present map holds.
pub(crate) struct ClusterSecrets {
    sealer: Arc<Sealer>,
    map: ArcSwap<ClusterMap>,
}

impl ClusterSecrets {
    pub(crate) fn new(sealer: Arc<Sealer>, map: Arc<ClusterMap>) -> Self {
        Self { sealer, map: ArcSwap::new(map) }
    }

    pub(crate) fn apply_map(&self, map: Arc<ClusterMap>) {
        self.map.store(map);
    }
}

impl Secrets for ClusterSecrets {
    /// A sealed secret is bound to its target and its user: the map says whose it is.
    fn unseal(&self, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        let map = self.map.load();
        let of_targets = map.targets.values().map(|target| (target.iqn.as_str(), target.chap.as_ref()));
        let places = of_targets.chain([(DISCOVERY, map.discovery_chap.as_ref())]);
        let mut credentials = places.flat_map(|(place, chap)| {
            chap.into_iter()
                .flat_map(|chap| [Some(&chap.initiator), chap.target.as_ref()])
                .flatten()
                .map(move |credential| (place, credential))
        });
        let (iqn, credential) = credentials.find(|(_, credential)| credential.secret == *sealed)?;
        match self.sealer.unseal(iqn, &credential.user, sealed) {
            Ok(secret) => Some(secret),
            Err(error) => {
                tracing::error!(%iqn, %error, "a CHAP secret does not open under this gateway's cluster key");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lunette_proto::ids::TargetId;
    use lunette_proto::map::{Chap, ChapCredential, Target};

    use super::*;

    #[test]
    fn a_secret_opens_where_it_belongs() {
        // Guards against one target's secret opening another, and against a stale map's.
        let folder = tempfile::tempdir().expect("a folder");
        let sealer = Arc::new(Sealer::open_or_create(&folder.path().join("key")).expect("a key"));
        let credential = |iqn: &str, user: &str, secret: &[u8]| ChapCredential {
            user: user.into(),
            secret: sealer.seal(iqn, user, secret).expect("sealed"),
        };
        let initiator = credential("iqn.a", "u", b"one");
        let target = credential("iqn.a", "t", b"two");
        let foreign = credential("iqn.b", "u", b"three");
        let chap =
            Chap { initiator: initiator.clone(), target: Some(target.clone()), algorithms: Vec::new() };
        let with = |chap: Option<Chap>| {
            let id = TargetId(1);
            let target = Target {
                id,
                iqn: "iqn.a".into(),
                luns: Default::default(),
                acls: Vec::new(),
                chap,
                draining: false,
            };
            Arc::new(ClusterMap { targets: [(id, target)].into(), ..ClusterMap::default() })
        };
        let secrets = ClusterSecrets::new(Arc::clone(&sealer), with(Some(chap)));
        let open = |sealed: &Sealed| secrets.unseal(sealed).map(|secret| secret.to_vec());
        assert_eq!(open(&initiator.secret), Some(b"one".to_vec()));
        assert_eq!(open(&target.secret), Some(b"two".to_vec()));
        assert_eq!(open(&foreign.secret), None);
        secrets.apply_map(with(None));
        assert_eq!(open(&initiator.secret), None);

        let [one, other] = ["u", "t"].map(|user| credential(DISCOVERY, user, user.as_bytes()));
        let chap = Chap { initiator: one.clone(), target: Some(other.clone()), algorithms: Vec::new() };
        let map = ClusterMap { discovery_chap: Some(chap), ..ClusterMap::default() };
        secrets.apply_map(Arc::new(map));
        assert_eq!(open(&one.secret), Some(b"u".to_vec()));
        assert_eq!(open(&other.secret), Some(b"t".to_vec()));
    }
}
