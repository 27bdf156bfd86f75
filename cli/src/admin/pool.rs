//! `lunette pool create|list|show|delete`.

use anyhow::Result;
use lunette_control::api::admin::{
    CreatePoolRequest, DeletePoolRequest, GetPoolRequest, ListPoolsRequest, Pool as Answer,
};

use super::{Connection, json};
use crate::args::{Name, Pool, PoolCreate};
use crate::output::{Format, Table, fields};
use crate::size::human;

pub(super) async fn run(command: Pool, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Pool::Create(create) => self::create(create, connection, format).await,
        Pool::List => list(connection, format).await,
        Pool::Show(Name { name }) => show(name, connection, format).await,
        Pool::Delete(Name { name }) => delete(name, connection).await,
    }
}

async fn create(create: PoolCreate, connection: &Connection, format: Format) -> Result<()> {
    let request = CreatePoolRequest {
        name: create.name,
        replicas: create.replicas,
        failure_domain: create.failure_domain.name().to_owned(),
        partitions: create.partitions.unwrap_or(0),
        min_size: create.min_size.unwrap_or(0),
    };
    let answer = connection.pools().create(request).await;
    let pool = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print_json_only(|| json::pool(&pool));
    Ok(())
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.pools().list(ListPoolsRequest {}).await;
    let pools = answer.map_err(|status| connection.refused(&status))?.into_inner().pools;
    format.print(|| table(&pools).text(), || json::pools(&pools));
    Ok(())
}

async fn show(name: String, connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.pools().get(GetPoolRequest { name }).await;
    let pool = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print(|| text(&pool), || json::pool(&pool));
    Ok(())
}

async fn delete(name: String, connection: &Connection) -> Result<()> {
    let answer = connection.pools().delete(DeletePoolRequest { name }).await;
    answer.map_err(|status| connection.refused(&status))?;
    Ok(())
}

pub(super) fn table(pools: &[Answer]) -> Table {
    let headings = [
        "POOL",
        ">REPLICAS",
        ">MIN",
        "DOMAIN",
        ">PARTITIONS",
        ">DISKS",
        ">VOLUMES",
        ">USABLE",
        ">PROVISIONED",
    ];
    let mut table = Table::new(&headings);
    for pool in pools {
        table.row([
            pool.name.clone(),
            pool.replicas.to_string(),
            pool.min_size.to_string(),
            pool.failure_domain.clone(),
            pool.partitions.to_string(),
            pool.disks.to_string(),
            pool.volumes.to_string(),
            human(pool.usable_bytes),
            human(pool.provisioned_bytes),
        ]);
    }
    table
}

/// Copies on their way to other disks.
fn moves(pool: &Answer) -> String {
    let counts = match (pool.moves, pool.moves_waiting) {
        (0, 0) => "none".to_owned(),
        (under_way, waiting) => format!("{under_way} under way, {waiting} to follow"),
    };
    if pool.moves_problem.is_empty() { counts } else { format!("{counts}; {}", pool.moves_problem) }
}

fn text(pool: &Answer) -> String {
    fields(&[
        ("name", pool.name.clone()),
        ("replicas", pool.replicas.to_string()),
        ("min-size", pool.min_size.to_string()),
        ("failure-domain", pool.failure_domain.clone()),
        ("partitions", pool.partitions.to_string()),
        ("table-version", pool.table_version.to_string()),
        ("disks", pool.disks.to_string()),
        ("volumes", pool.volumes.to_string()),
        ("usable", human(pool.usable_bytes)),
        ("provisioned", human(pool.provisioned_bytes)),
        ("degraded-partitions", pool.degraded_partitions.to_string()),
        ("moves", moves(pool)),
    ])
}
