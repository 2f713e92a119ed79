//! Generates the gRPC bindings from `proto/` without a system `protoc`.

use std::error::Error;

const PROTO: &str = "governance/v1/governance.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    tonic_prost_build::configure()
        // Payloads are decoded after their sequence is accounted for; sharing the frame's buffer
        // until then costs no copy.
        .bytes(".")
        // Only the simulator serves; a node's build carries no server code.
        .server_mod_attribute(".", "#[cfg(feature = \"simulator\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
