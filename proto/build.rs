//! Compiles the `.proto` files without a `protoc` on the machine.

use std::path::PathBuf;

use prost::Message as _;

const FILES: &[&str] = &[
    "statehouse/v1/types.proto",
    "statehouse/v1/stream.proto",
    "statehouse/v1/state.proto",
    "statehouse/v1/score.proto",
    "statehouse/v1/models.proto",
    "statehouse/v1/pipeline.proto",
    "statehouse/v1/cluster.proto",
    "statehouse/v1/admin.proto",
    "statehouse/v1/peer.proto",
    "statehouse/bench/v1/echo.proto",
    "statehouse/bench/v1/etcd.proto",
];

/// What a node's client listener serves; the files that these import come with them.
const SERVED: &[&str] = &[
    "statehouse/v1/state.proto",
    "statehouse/v1/score.proto",
    "statehouse/v1/models.proto",
    "statehouse/v1/pipeline.proto",
    "statehouse/v1/cluster.proto",
    "statehouse/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let served = protox::compile(SERVED, ["."])?;
    std::fs::write(out.join("served.bin"), served.encode_to_vec())?;
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
