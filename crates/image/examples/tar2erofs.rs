//! Converts a tar stream from standard input to an EROFS blob: `tar2erofs BLOB < layer.tar`.
//!
//! For timing against `mkfs.erofs --tar=f` and for looking at what a conversion makes of an archive.

use std::fs::File;
use std::io;
use std::process::ExitCode;

use nacre_image::layer::{LayerLimits, convert};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: tar2erofs BLOB < layer.tar");
        return ExitCode::from(2);
    };
    let result = File::create(path)
        .map_err(|error| Box::new(error) as Box<dyn std::error::Error>)
        .and_then(|blob| Ok(convert(io::stdin().lock(), &blob, &LayerLimits::default())?));
    match result {
        Ok(summary) => {
            let (entries, bytes) = (summary.entries, summary.uncompressed_bytes);
            println!("{entries} entries, {bytes} bytes -> {} bytes", summary.blob_len);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&*error);
            while let Some(error) = cause {
                eprintln!("tar2erofs: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
