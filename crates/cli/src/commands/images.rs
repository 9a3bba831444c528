//! `nacre images`: what is in the store.

use std::path::Path;

use anyhow::Result;
use nacre_image::{ImageSummary, Reference};
use serde_json::json;

use crate::args::{Format, ImagesArgs};
use crate::duration;
use crate::output::{escape, short_id, size, table};
use crate::store;

pub(super) fn run(root: &Path, args: &ImagesArgs) -> Result<()> {
    let images = store::open(root)?.list()?;
    let id = |image: &ImageSummary| {
        let whole = image.id.to_string();
        if args.no_trunc { whole } else { short_id(&whole).to_owned() }
    };
    if args.quiet {
        images.iter().for_each(|image| println!("{}", id(image)));
        return Ok(());
    }
    let mut rows = Vec::new();
    for image in &images {
        let tagged: Vec<&Reference> = image.names.iter().filter(|name| name.tag().is_some()).collect();
        let names: Vec<[String; 2]> = match (&tagged[..], image.names.first()) {
            ([], Some(name)) => vec![[name.familiar_repository(), "<none>".into()]],
            ([], None) => vec![["<none>".into(), "<none>".into()]],
            (tagged, _) => tagged
                .iter()
                .map(|name| [name.familiar_repository(), name.tag().unwrap_or("<none>").to_owned()])
                .collect(),
        };
        for [repository, tag] in names {
            rows.push([repository, tag, id(image), created(image), size(image.size_bytes)]);
        }
    }
    if args.format == Format::Json {
        for [repository, tag, id, created, size] in &rows {
            println!(
                "{}",
                json!({ "Repository": repository, "Tag": tag, "ID": id, "CreatedSince": created, "Size": size })
            );
        }
        return Ok(());
    }
    println!("{}", table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows));
    Ok(())
}

/// `3 days ago`, or what the image says where that is no time.
fn created(image: &ImageSummary) -> String {
    let Some(text) = &image.created else { return "N/A".to_owned() };
    let format = &time::format_description::well_known::Rfc3339;
    match time::OffsetDateTime::parse(text, format) {
        Ok(then) => {
            format!("{} ago", duration::rough(duration::now_s().saturating_sub(then.unix_timestamp())))
        }
        Err(_) => escape(text),
    }
}
