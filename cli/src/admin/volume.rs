//! `lunette volume create|list|show|resize|set|own|delete`.

use anyhow::{Context, Result};
use lunette_control::api::admin::{
    CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest, OwnVolumeRequest,
    ResizeVolumeRequest, SetWriteBackRequest, Volume as Answer,
};

use super::{Connection, json};
use crate::args::{Name, OnOff, Volume, VolumeCreate, VolumeDelete, VolumeOwn, VolumeResize, VolumeSet};
use crate::output::{Format, Table, fields, yes};
use crate::size::human;

pub(super) async fn run(command: Volume, connection: &Connection, format: Format) -> Result<()> {
    match command {
        Volume::Create(create) => self::create(create, connection, format).await,
        Volume::List => list(connection, format).await,
        Volume::Show(Name { name }) => show(name, connection, format).await,
        Volume::Resize(resize) => self::resize(resize, connection, format).await,
        Volume::Set(set) => self::set(set, connection, format).await,
        Volume::Own(own) => self::own(own, connection, format).await,
        Volume::Delete(delete) => self::delete(delete, connection).await,
    }
}

async fn create(create: VolumeCreate, connection: &Connection, format: Format) -> Result<()> {
    let unit = create.stripe_unit.map_or(0, |unit| unit.bytes());
    let request = CreateVolumeRequest {
        name: create.name,
        size_bytes: create.size.bytes(),
        pool: create.pool,
        stripe_unit_bytes: u32::try_from(unit).context("--stripe-unit is too large: at most 1M")?,
        stripe_width: create.stripe_width.unwrap_or(0),
        write_back: create.write_back,
        block_bytes: create.block_size.parse().context("--block-size is 512 or 4096")?,
        export: create.export,
    };
    let answer = connection.volumes().create(request).await;
    let volume = answer.map_err(|status| connection.refused(&status))?.into_inner();
    connection.settle().await;
    // An export has a name that the caller needs; without one, success says enough.
    let targets = || volume.exports.iter().map(|export| format!("{}\n", export.target)).collect();
    format.print(targets, || json::volume(&volume));
    Ok(())
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.volumes().list(ListVolumesRequest {}).await;
    let volumes = answer.map_err(|status| connection.refused(&status))?.into_inner().volumes;
    format.print(|| table(&volumes).text(), || json::volumes(&volumes));
    Ok(())
}

async fn show(name: String, connection: &Connection, format: Format) -> Result<()> {
    let answer = connection.volumes().get(GetVolumeRequest { name }).await;
    let volume = answer.map_err(|status| connection.refused(&status))?.into_inner();
    format.print(|| text(&volume), || json::volume(&volume));
    Ok(())
}

async fn resize(resize: VolumeResize, connection: &Connection, format: Format) -> Result<()> {
    let request = ResizeVolumeRequest { name: resize.name, size_bytes: resize.size.bytes() };
    let answer = connection.volumes().resize(request).await;
    let volume = answer.map_err(|status| connection.refused(&status))?.into_inner();
    connection.settle().await;
    format.print_json_only(|| json::volume(&volume));
    Ok(())
}

async fn set(set: VolumeSet, connection: &Connection, format: Format) -> Result<()> {
    let write_back = set.write_back == OnOff::On;
    let request = SetWriteBackRequest { name: set.name, write_back, force: set.force };
    let answer = connection.volumes().set_write_back(request).await;
    let volume = answer.map_err(|status| connection.refused(&status))?.into_inner();
    connection.settle().await;
    format.print_json_only(|| json::volume(&volume));
    Ok(())
}

async fn own(own: VolumeOwn, connection: &Connection, format: Format) -> Result<()> {
    let request = OwnVolumeRequest { name: own.name, gateway: own.gateway };
    let answer = connection.volumes().own(request).await;
    let volume = answer.map_err(|status| connection.refused(&status))?.into_inner();
    connection.settle().await;
    let text = || fields(&[("owner", volume.owner.clone()), ("generation", volume.generation.to_string())]);
    format.print(text, || json::volume(&volume));
    Ok(())
}

async fn delete(delete: VolumeDelete, connection: &Connection) -> Result<()> {
    let request = DeleteVolumeRequest { name: delete.name, force: delete.force };
    let answer = connection.volumes().delete(request).await;
    answer.map_err(|status| connection.refused(&status))?;
    connection.settle().await;
    Ok(())
}

fn table(volumes: &[Answer]) -> Table {
    let mut table = Table::new(&["VOLUME", ">SIZE", "POOL", "LAYOUT", "OWNER", "STATE", "EXPORTS"]);
    for volume in volumes {
        let exports: Vec<String> =
            volume.exports.iter().map(|export| format!("{},{}", export.target, export.lun)).collect();
        table.row([
            volume.name.clone(),
            human(volume.size_bytes),
            volume.pool.clone(),
            layout(volume),
            volume.owner.clone(),
            volume.state.clone(),
            exports.join(";"),
        ]);
    }
    table
}

/// `replicas=3`, and `stripe=64KiBx4` if it is striped.
fn layout(volume: &Answer) -> String {
    let replicas = format!("replicas={}", volume.replicas);
    if volume.stripe_width == 0 {
        return replicas;
    }
    format!("{replicas},stripe={}x{}", human(volume.stripe_unit_bytes.into()), volume.stripe_width)
}

fn text(volume: &Answer) -> String {
    let mut text = fields(&[
        ("name", volume.name.clone()),
        ("size", human(volume.size_bytes)),
        ("size-bytes", volume.size_bytes.to_string()),
        ("pool", volume.pool.clone()),
        ("layout", layout(volume)),
        ("block-bytes", volume.block_bytes.to_string()),
        ("write-back", yes(volume.write_back)),
        ("serial", volume.serial.clone()),
        // What multipath and /dev/disk/by-id show: the designator's type, then the name.
        ("wwid", format!("3{}", volume.naa)),
        ("owner", volume.owner.clone()),
        ("generation", volume.generation.to_string()),
        ("state", volume.state.clone()),
    ]);
    for export in &volume.exports {
        let access = if export.read_only { " read-only" } else { "" };
        text.push_str(&format!("export: {} lun {}{access}\n", export.target, export.lun));
    }
    text
}
