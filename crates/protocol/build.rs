//! Generates the agent's messages and ttrpc service from `proto/agent.proto`, and the messages of `proto/cri.proto`, in pure
//! Rust (no protoc).

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    if env::var_os("CARGO_FEATURE_RPC").is_some() {
        generate("agent", &["agent.rs", "agent_ttrpc.rs"])?;
    }
    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        generate("cri", &["cri.rs"])?;
    }
    Ok(())
}

fn generate(name: &str, files: &[&str]) -> Result<(), Box<dyn Error>> {
    let out = env::var("OUT_DIR")?;
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs([format!("proto/{name}.proto")])
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // The generated files open with inner attributes and docs, which `include!` does not take.
    for file in files {
        let path = Path::new(&out).join(file);
        let text = fs::read_to_string(&path)?;
        let text: Vec<_> =
            text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
        fs::write(&path, text.join("\n"))?;
    }
    Ok(())
}
