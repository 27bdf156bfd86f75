//! Compiles the gRPC API. protox is a compiler for `.proto` files in Rust, so building Lunette needs
//! no protoc on the machine.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;

/// Where the `.proto` files lie, seen from this crate.
const API: &str = "../proto/api";

/// Messages that bear a secret in clear; their `Debug` is written by hand and prints none of it.
const SECRET: [&str; 3] = [
    ".lunette.admin.v1.SetChapRequest",
    ".lunette.admin.v1.SetDiscoveryChapRequest",
    ".lunette.admin.v1.CreateJoinTokenResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={API}");
    let mut files = Vec::new();
    proto_files(Path::new(API), &mut files)?;
    files.sort();

    let descriptors = protox::compile(&files, [API])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Server reflection serves this file.
    fs::write(out.join("api.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".lunette.cluster")
        .skip_debug(SECRET)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}

fn proto_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
