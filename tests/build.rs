//! Generates the messages of `proto/cri.proto`, in pure Rust (no protoc).

use std::error::Error;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cri.proto");
    let out = env::var("OUT_DIR")?;
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/cri.proto")
        .customize(protobuf_codegen::Customize::default().gen_mod_rs(false))
        .out_dir(&out)
        .run()?;
    // The generated file opens with inner attributes and docs, which `include!` does not take.
    let path = Path::new(&out).join("cri.rs");
    let text = fs::read_to_string(&path)?;
    let text: Vec<_> =
        text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    fs::write(&path, text.join("\n"))?;
    Ok(())
}
