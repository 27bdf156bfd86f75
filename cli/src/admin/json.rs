//! The JSON that `--json` prints: the fields of the API's messages under their own names, sizes in
//! bytes, nothing for what is not set. Scripts depend on it: fields are added, never renamed.

use lunette_control::api::admin::status_response::Health;
use lunette_control::api::admin::{
    CatchUp, ControlStatus, DiscoveryChap, Disk, Gateway, Lun, Moves, Node, Pool, Scrub, Session,
    StatusResponse, Target, Volume,
};
use serde_json::{Value, json};

fn list<T>(items: &[T], one: fn(&T) -> Value) -> Value {
    Value::Array(items.iter().map(one).collect())
}

/// Empty text is `null`: the API has no other way to say that there is none.
fn some(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::from(text) }
}

pub(super) fn node(node: &Node) -> Value {
    json!({
        "id": node.id, "name": node.name, "address": node.address, "host": node.host,
        "rack": some(&node.rack), "zone": some(&node.zone), "up": node.up, "disks": node.disks,
        "disks_out": node.disks_out, "disks_catching_up": node.disks_catching_up,
        "disks_draining": node.disks_draining, "draining_copies": node.draining_copies,
    })
}

pub(super) fn nodes(nodes: &[Node]) -> Value {
    list(nodes, node)
}

fn scrub(scrub: &Scrub) -> Value {
    let damaged = scrub.damaged.unwrap_or_default();
    json!({
        "pass": scrub.pass, "running": scrub.running,
        "started_unix_ms": (scrub.pass > 0).then_some(scrub.started_unix_ms),
        "done_bytes": scrub.done_bytes, "total_bytes": scrub.total_bytes, "rate_bytes": scrub.rate_bytes,
        "left_ms": scrub.left_ms, "checked_blocks": scrub.checked_blocks, "found_blocks": scrub.found_blocks,
        "damaged": {
            "lost": damaged.lost, "torn": damaged.torn, "misdirected": damaged.misdirected,
            "stale": damaged.stale, "unreadable": damaged.unreadable,
        },
        "left_out_blocks": scrub.left_out_blocks, "repaired_blocks": scrub.repaired_blocks,
    })
}

pub(super) fn disk(disk: &Disk) -> Value {
    json!({
        "id": disk.id, "uuid": disk.uuid, "node": disk.node, "label": disk.label, "state": disk.state,
        "capacity_bytes": disk.capacity_bytes, "used_bytes": disk.used_bytes, "weight": disk.weight,
        "path": disk.label, "kind": some(&disk.kind), "reason": some(&disk.reason),
        "scrub": disk.scrub.as_ref().map(scrub),
        "catch_up": disk.catch_up.as_ref().map(catch_up), "draining": disk.draining,
        "copies": disk.copies, "arriving": disk.arriving, "leaving": disk.leaving,
        "replaced_by": (disk.replaced_by > 0).then_some(disk.replaced_by),
    })
}

fn catch_up(catch_up: &CatchUp) -> Value {
    json!({
        "behind_partitions": catch_up.behind_partitions, "partitions": catch_up.partitions,
        "checked_extents": catch_up.checked_extents, "waiting_extents": catch_up.waiting_extents,
        "copied_bytes": catch_up.copied_bytes, "left_ms": catch_up.left_ms,
    })
}

pub(super) fn disks(disks: &[Disk]) -> Value {
    list(disks, disk)
}

fn gateway(gateway: &Gateway) -> Value {
    json!({
        "id": gateway.id, "name": gateway.name, "portal_group_tag": gateway.portal_group_tag,
        "portals": gateway.portals, "up": gateway.up, "sessions": gateway.sessions, "volumes": gateway.volumes,
    })
}

pub(super) fn pool(pool: &Pool) -> Value {
    json!({
        "id": pool.id, "name": pool.name, "replicas": pool.replicas, "min_size": pool.min_size,
        "failure_domain": pool.failure_domain, "partitions": pool.partitions,
        "table_version": pool.table_version, "disks": pool.disks, "volumes": pool.volumes,
        "usable_bytes": pool.usable_bytes, "provisioned_bytes": pool.provisioned_bytes,
        "degraded_partitions": pool.degraded_partitions, "moves": pool.moves,
        "moves_waiting": pool.moves_waiting, "moves_problem": some(&pool.moves_problem),
    })
}

pub(super) fn pools(pools: &[Pool]) -> Value {
    list(pools, pool)
}

pub(super) fn volume(volume: &Volume) -> Value {
    let exports: Vec<Value> = volume
        .exports
        .iter()
        .map(|export| json!({"target": export.target, "lun": export.lun, "read_only": export.read_only}))
        .collect();
    json!({
        "id": volume.id, "name": volume.name, "pool": volume.pool, "size_bytes": volume.size_bytes,
        "replicas": volume.replicas, "stripe_unit_bytes": volume.stripe_unit_bytes,
        "stripe_width": volume.stripe_width, "block_bytes": volume.block_bytes,
        "write_back": volume.write_back, "serial": volume.serial, "naa": volume.naa,
        "owner": some(&volume.owner), "generation": volume.generation, "exports": exports,
        "state": volume.state,
    })
}

pub(super) fn volumes(volumes: &[Volume]) -> Value {
    list(volumes, volume)
}

fn lun(lun: &Lun) -> Value {
    json!({
        "lun": lun.lun, "volume": lun.volume, "read_only": lun.read_only, "size_bytes": lun.size_bytes,
    })
}

pub(super) fn target(target: &Target) -> Value {
    let acls: Vec<Value> =
        target.acls.iter().map(|acl| json!({"initiator": acl.initiator, "from": some(&acl.from)})).collect();
    json!({
        "id": target.id, "iqn": target.iqn, "luns": list(&target.luns, lun), "acls": acls,
        "chap_user": some(&target.chap_user), "chap_mutual_user": some(&target.chap_mutual_user),
        "chap_algorithms": target.chap_algorithms, "sessions": target.sessions,
        "draining": target.draining,
    })
}

fn moves(moves: &Moves) -> Value {
    json!({
        "under_way": moves.under_way, "waiting": moves.waiting, "copied_bytes": moves.copied_bytes,
        "left_ms": moves.left_ms, "problems": moves.problems,
    })
}

pub(super) fn discovery_chap(chap: &DiscoveryChap) -> Value {
    json!({ "user": chap.user, "mutual_user": some(&chap.mutual_user), "algorithms": chap.algorithms })
}

pub(super) fn targets(targets: &[Target]) -> Value {
    list(targets, target)
}

pub(super) fn session(session: &Session) -> Value {
    json!({
        "id": session.id, "gateway": session.gateway, "kind": session.kind, "target": some(&session.target),
        "initiator": session.initiator, "initiator_address": session.initiator_address,
        "portal": session.portal, "isid": session.isid, "since_unix_ms": session.since_unix_ms,
        "commands": session.commands, "read_bytes": session.read_bytes,
        "written_bytes": session.written_bytes, "errors": session.errors,
        "header_digest": session.header_digest, "data_digest": session.data_digest,
        "chap_user": some(&session.chap_user),
    })
}

pub(super) fn sessions(sessions: &[Session]) -> Value {
    list(sessions, session)
}

pub(super) fn control(control: &ControlStatus) -> Value {
    let members: Vec<Value> = control
        .members
        .iter()
        .map(|member| {
            json!({
                "id": member.id, "address": member.address, "voter": member.voter, "up": member.up,
                "behind": member.behind,
            })
        })
        .collect();
    json!({
        "leader": control.leader, "term": control.term, "applied": control.applied, "members": members,
    })
}

/// The word for a state of health.
pub(super) fn health(status: &StatusResponse) -> &'static str {
    match status.health() {
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unavailable => "unavailable",
        // A state that this version does not know is no good news.
        Health::Unspecified => "unknown",
    }
}

pub(super) fn status(status: &StatusResponse) -> Value {
    json!({
        "health": health(status), "reasons": status.reasons, "cluster_id": status.cluster_id,
        "epoch": status.epoch, "version": status.version,
        "control": status.control.as_ref().map(control), "nodes": nodes(&status.nodes),
        "disks": disks(&status.disks), "gateways": list(&status.gateways, gateway),
        "pools": pools(&status.pools), "volumes": status.volumes, "targets": status.targets,
        "sessions": status.sessions, "capacity_bytes": status.capacity_bytes,
        "used_bytes": status.used_bytes,
        "discovery_chap": status.discovery_chap.as_ref().map(discovery_chap),
        "moves": status.moves.as_ref().map(moves),
    })
}
