//! The administration API over loopback: what it does, and every kind of error.

mod support;

use lunette_control::api::admin::*;
use lunette_control::api::cluster::RegisterGatewayRequest;
use lunette_control::{Control, ControlError};
use support::{PATIENCE, Plane, field, reason};
use tonic::{Code, Status};

const IQN: &str = "iqn.2026-11.io.lunette:v";

fn volume(name: &str, size_bytes: u64) -> CreateVolumeRequest {
    CreateVolumeRequest { name: name.into(), size_bytes, export: true, ..CreateVolumeRequest::default() }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(
    answer: Result<tonic::Response<T>, Status>,
    code: Code,
    want: &str,
    wrong_field: Option<&str>,
) {
    let status = answer.expect_err("refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(reason(&status), want, "{status:?}");
    assert_eq!(field(&status).as_deref(), wrong_field, "{status:?}");
    assert!(!status.message().is_empty() && !status.message().contains('\n'), "one sentence: {status:?}");
}

/// Guards the life of a volume as a tool sees it.
#[tokio::test]
async fn volumes() {
    let mut plane = Plane::with_pool().await;
    let volumes = &mut plane.admin.volumes;
    let made = volumes.create(volume("v", 1 << 30)).await.expect("creates").into_inner();
    assert_eq!((made.id, made.pool.as_str(), made.replicas, made.block_bytes), (1, "default", 3, 512));
    assert_eq!(made.exports, [Export { target: IQN.into(), lun: 0, read_only: false }]);
    assert_eq!(made.naa.len(), 32);
    assert!(made.naa.starts_with('6'));
    assert_eq!((made.owner.as_str(), made.generation, made.state.as_str()), ("", 0, "unavailable"));
    let got = volumes.get(GetVolumeRequest { name: "v".into() }).await.expect("there").into_inner();
    assert_eq!(got, made);
    let resize = ResizeVolumeRequest { name: "v".into(), size_bytes: 2 << 30 };
    assert_eq!(volumes.resize(resize).await.expect("grows").into_inner().size_bytes, 2 << 30);
    volumes.create(volume("a", 4096)).await.expect("creates");
    let list = volumes.list(ListVolumesRequest {}).await.expect("lists").into_inner().volumes;
    assert_eq!(list.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["a", "v"]);

    let delete = |force| DeleteVolumeRequest { name: "v".into(), force };
    refused(volumes.delete(delete(false)).await, Code::FailedPrecondition, "VOLUME_MAPPED", None);
    volumes.delete(delete(true)).await.expect("deletes");
    refused(volumes.delete(delete(true)).await, Code::NotFound, "VOLUME_NOT_FOUND", None);
    let pool =
        plane.admin.pools.get(GetPoolRequest { name: "default".into() }).await.expect("there").into_inner();
    assert_eq!((pool.volumes, pool.provisioned_bytes, pool.disks, pool.min_size), (1, 4096, 3, 2));
    // Three disks, three copies: what one disk has.
    assert_eq!(pool.usable_bytes, 64 << 30);
    plane.control.stop().await;
}

/// Guards each code of the API, with a reason for programs and the field where one is wrong.
#[tokio::test]
async fn errors() {
    let mut plane = Plane::with_pool().await;
    let (pools, volumes, targets) =
        (&mut plane.admin.pools, &mut plane.admin.volumes, &mut plane.admin.targets);
    volumes.create(volume("v", 4096)).await.expect("creates");

    let invalid = Code::InvalidArgument;
    refused(volumes.create(volume("No", 4096)).await, invalid, "NAME_INVALID", Some("name"));
    refused(volumes.create(volume("w", 0)).await, invalid, "SIZE_ZERO", Some("size_bytes"));
    refused(volumes.create(volume("w", 5000)).await, invalid, "SIZE_UNALIGNED", Some("size_bytes"));
    let half = CreateVolumeRequest { stripe_width: 4, ..volume("w", 4096) };
    refused(volumes.create(half).await, invalid, "STRIPE_HALF", Some("stripe_width"));
    let wide = CreateVolumeRequest { stripe_unit_bytes: 65_536, stripe_width: 70_000, ..volume("w", 4096) };
    refused(volumes.create(wide).await, invalid, "STRIPE_WIDTH_INVALID", Some("stripe_width"));
    refused(volumes.create(volume("v", 4096)).await, Code::AlreadyExists, "VOLUME_EXISTS", None);
    let elsewhere = CreateVolumeRequest { pool: "none".into(), ..volume("w", 4096) };
    refused(volumes.create(elsewhere).await, Code::NotFound, "POOL_NOT_FOUND", None);
    let shrink = ResizeVolumeRequest { name: "v".into(), size_bytes: 0 };
    refused(volumes.resize(shrink).await, invalid, "SIZE_ZERO", Some("size_bytes"));

    let pool = |replicas, failure_domain: &str, partitions, min_size| CreatePoolRequest {
        name: "p".into(),
        replicas,
        failure_domain: failure_domain.into(),
        partitions,
        min_size,
    };
    for replicas in [0, 6, 256, u32::MAX] {
        refused(pools.create(pool(replicas, "", 64, 0)).await, invalid, "REPLICAS_INVALID", Some("replicas"));
    }
    refused(
        pools.create(pool(2, "room", 64, 0)).await,
        invalid,
        "FAILURE_DOMAIN_INVALID",
        Some("failure_domain"),
    );
    refused(pools.create(pool(2, "", 70_000, 0)).await, invalid, "PARTITIONS_INVALID", Some("partitions"));
    refused(pools.create(pool(2, "", 64, 3)).await, invalid, "MIN_SIZE_INVALID", Some("min_size"));
    refused(pools.create(pool(4, "", 64, 0)).await, Code::FailedPrecondition, "PLACEMENT_IMPOSSIBLE", None);
    refused(
        pools.create(pool(2, "rack", 64, 0)).await,
        Code::FailedPrecondition,
        "PLACEMENT_IMPOSSIBLE",
        None,
    );
    let delete = DeletePoolRequest { name: "default".into() };
    refused(pools.delete(delete).await, Code::FailedPrecondition, "POOL_IN_USE", None);

    let target = |iqn: &str| CreateTargetRequest { iqn: iqn.into() };
    refused(targets.create(target("disk")).await, invalid, "IQN_INVALID", Some("iqn"));
    refused(targets.create(target(&IQN.to_uppercase())).await, Code::AlreadyExists, "TARGET_EXISTS", None);
    let made = targets.create(target("")).await.expect("creates").into_inner();
    assert_eq!(made.iqn, "iqn.2026-11.io.lunette:target-2");
    let map = |lun| MapLunRequest { iqn: made.iqn.clone(), volume: "v".into(), lun, read_only: true };
    refused(targets.map(map(Some(99_999))).await, invalid, "LUN_INVALID", Some("lun"));
    targets.map(map(None)).await.expect("maps");
    refused(targets.map(map(Some(5))).await, Code::AlreadyExists, "MAPPED_ALREADY", None);
    let allow = |initiator: &str, from: &str| AllowRequest {
        iqn: IQN.into(),
        acl: Some(Acl { initiator: initiator.into(), from: from.into() }),
    };
    refused(targets.allow(allow("*", "10.0.0.0/40")).await, invalid, "ACL_FROM_INVALID", Some("acl.from"));
    refused(targets.allow(allow("a b", "")).await, invalid, "ACL_PATTERN_INVALID", Some("acl.initiator"));
    let nobody = AllowRequest { iqn: IQN.into(), acl: None };
    refused(targets.allow(nobody).await, invalid, "ACL_MISSING", Some("acl"));
    let allowed = targets.allow(allow("*", "10.1.2.3/8")).await.expect("allows").into_inner();
    assert_eq!(allowed.acls, [Acl { initiator: "*".into(), from: "10.0.0.0/8".into() }]);
    let single = targets.allow(allow("*", "fd00::1")).await.expect("allows").into_inner();
    assert_eq!(single.acls[1].from, "fd00::1/128");
    let deny = DenyRequest { iqn: IQN.into(), acl: Some(single.acls[1].clone()) };
    assert_eq!(targets.deny(deny.clone()).await.expect("denies").into_inner().acls.len(), 1);
    refused(targets.deny(deny).await, Code::NotFound, "ACL_NOT_FOUND", None);

    let drain = |iqn: &str, draining| DrainRequest { iqn: iqn.into(), draining };
    assert!(targets.drain(drain(IQN, true)).await.expect("drains").into_inner().draining);
    assert!(!targets.drain(drain(IQN, false)).await.expect("is back").into_inner().draining);
    refused(targets.drain(drain("iqn.none", true)).await, Code::NotFound, "TARGET_NOT_FOUND", None);

    let sessions = &mut plane.admin.sessions;
    for id in ["", "gw1", "gw1/x", "none/1", "gw1/99999999999"] {
        let kick = KickSessionRequest { id: id.into() };
        refused(sessions.kick(kick).await, Code::NotFound, "SESSION_NOT_FOUND", None);
    }
    let kick = KickSessionRequest { id: "gw1/1".into() };
    refused(sessions.kick(kick).await, Code::Unavailable, "GATEWAY_DOWN", None);
    plane.control.stop().await;
}

/// Guards limits: the last thing that fits is taken, the next is refused as exhausted.
#[tokio::test]
async fn limits() {
    let plane = Plane::new().await;
    let portals = |count: u16| RegisterGatewayRequest {
        portals: (1..=count).map(|port| format!("127.0.0.1:{port}")).collect(),
        ..support::gateway()
    };
    plane.plane().register_gateway(PATIENCE, &portals(64)).await.expect("fits");
    let answer = plane.plane().register_gateway(PATIENCE, &portals(65)).await;
    refused(answer.map(tonic::Response::new), Code::ResourceExhausted, "LIMIT_REACHED", None);
    plane.control.stop().await;
}

fn chap(secret: &str, mutual_user: &str, mutual_secret: &str) -> SetChapRequest {
    SetChapRequest {
        iqn: IQN.to_uppercase(),
        user: "alice".into(),
        secret: secret.into(),
        mutual_user: mutual_user.into(),
        mutual_secret: mutual_secret.into(),
        algorithms: vec![],
    }
}

/// Guards CHAP secrets: checked, sealed, opened by whoever has the key, and nowhere on the disk in clear.
#[tokio::test]
async fn chap_secrets() {
    const SECRET: &str = "canary-secret-one";
    const MUTUAL: &str = "canary-secret-two";
    const DISCOVERY_SECRET: &str = "canary-secret-three";
    const DISCOVERY_MUTUAL: &str = "canary-secret-four";
    let mut plane = Plane::with_pool().await;
    plane.admin.volumes.create(volume("v", 4096)).await.expect("creates");
    let targets = &mut plane.admin.targets;
    let invalid = Code::InvalidArgument;
    let long = "x".repeat(256);
    for bad in ["", "eleven-char", "with\ttabulator", "umlaut-ä-umlaut", long.as_str()] {
        refused(targets.set_chap(chap(bad, "", "")).await, invalid, "CHAP_SECRET_INVALID", Some("secret"));
    }
    let half = targets.set_chap(chap(SECRET, "bob", "")).await;
    refused(half, invalid, "CHAP_MUTUAL_HALF", Some("mutual_secret"));
    let same = targets.set_chap(chap(SECRET, "bob", SECRET)).await;
    refused(same, invalid, "CHAP_SECRETS_EQUAL", Some("mutual_secret"));
    let unknown = SetChapRequest { algorithms: vec!["crc32".into()], ..chap(SECRET, "", "") };
    refused(targets.set_chap(unknown).await, invalid, "CHAP_ALGORITHM_INVALID", Some("algorithms"));
    let nameless = SetChapRequest { user: String::new(), ..chap(SECRET, "", "") };
    refused(targets.set_chap(nameless).await, invalid, "CHAP_USER_INVALID", Some("user"));

    let target = targets.set_chap(chap(SECRET, "bob", MUTUAL)).await.expect("sets").into_inner();
    assert_eq!((target.chap_user.as_str(), target.chap_mutual_user.as_str()), ("alice", "bob"));
    assert_eq!(target.chap_algorithms, ["sha3-256", "sha256", "sha1", "md5"]);
    let map = plane.control.map();
    let kept = map.target_by_iqn(IQN).expect("there").chap.clone().expect("set");
    let sealer = plane.control.sealer();
    let opened = sealer.unseal(IQN, "alice", &kept.initiator.secret).expect("opens");
    assert_eq!(opened.as_slice(), SECRET.as_bytes());
    let mutual = kept.target.expect("set");
    assert_eq!(sealer.unseal(IQN, "bob", &mutual.secret).expect("opens").as_slice(), MUTUAL.as_bytes());

    let discovery = SetDiscoveryChapRequest {
        user: "carol".into(),
        secret: DISCOVERY_SECRET.into(),
        mutual_user: "dave".into(),
        mutual_secret: DISCOVERY_MUTUAL.into(),
        algorithms: vec!["sha256".into()],
    };
    let weak = SetDiscoveryChapRequest { secret: "eleven-char".into(), ..discovery.clone() };
    refused(targets.set_discovery_chap(weak).await, invalid, "CHAP_SECRET_INVALID", Some("secret"));
    let set = targets.set_discovery_chap(discovery).await.expect("sets").into_inner();
    let algorithms = vec!["sha256".to_owned()];
    let shown = DiscoveryChap { user: "carol".into(), mutual_user: "dave".into(), algorithms };
    assert_eq!(set, shown);
    let status = plane.admin.cluster.status(StatusRequest {}).await.expect("answers").into_inner();
    assert_eq!(status.discovery_chap, Some(shown));
    let kept = plane.control.map().discovery_chap.clone().expect("set");
    let opened = sealer.unseal(lunette_control::seal::DISCOVERY, "carol", &kept.initiator.secret);
    assert_eq!(opened.expect("opens").as_slice(), DISCOVERY_SECRET.as_bytes());
    let plane = plane.restart().await;
    assert_eq!(plane.control.map().discovery_chap, Some(kept), "as it was before the restart");
    let mut targets = plane.admin.targets.clone();
    targets.clear_discovery_chap(ClearDiscoveryChapRequest {}).await.expect("clears");
    assert_eq!(plane.control.map().discovery_chap, None);

    let folder = plane.folder;
    plane.control.stop().await;
    let file = std::fs::read(folder.path().join("control/control.redb")).expect("there");
    assert!(
        file.windows(IQN.len()).any(|part| part == IQN.as_bytes()),
        "the name is found, so one can search"
    );
    for secret in [SECRET, MUTUAL, "canary-secret"] {
        assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} lies in clear");
    }
}

/// Guards a restart: everything is as it was, down to the ids that come next.
#[tokio::test]
async fn restart() {
    let mut plane = Plane::with_pool().await;
    plane.admin.volumes.create(volume("v", 4096)).await.expect("creates");
    plane.admin.volumes.create(volume("w", 4096)).await.expect("creates");
    plane.admin.volumes.delete(DeleteVolumeRequest { name: "w".into(), force: true }).await.expect("deletes");
    let before = plane.control.map();
    let mut plane = plane.restart().await;
    assert_eq!(plane.control.map(), before);
    let made = plane.admin.volumes.create(volume("w", 4096)).await.expect("creates").into_inner();
    assert_eq!(made.id, 3, "an id is never used again");
    plane.control.stop().await;
}

/// Guards a taken address: said in one line, and nothing is made on the disk.
#[tokio::test]
async fn address_in_use() {
    let plane = Plane::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = support::config(folder.path());
    config.listen = plane.control.address();
    let error = Control::open(&folder.path().join("control"), config).await.err().expect("refused");
    assert!(matches!(error, ControlError::Listen { .. }), "{error}");
    assert!(error.to_string().contains(&plane.control.address().to_string()), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("there").count(), 0);
    plane.control.stop().await;
}
