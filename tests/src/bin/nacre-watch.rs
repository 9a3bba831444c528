//! Prints what inotify tells of a directory: a line for each event, its kind and its name. For containers, whose image
//! has no program that does.

use std::io::Write as _;
use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    let events = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::MODIFY;
    inotify::add_watch(&inotify, path, events)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "watching")?;
    out.flush()?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = Reader::new(&inotify, &mut buffer);
    let kinds = [
        (ReadFlags::CREATE, "create"),
        (ReadFlags::MOVED_TO, "moved-to"),
        (ReadFlags::DELETE, "delete"),
        (ReadFlags::MODIFY, "modify"),
    ];
    loop {
        let event = reader.next()?;
        let kind =
            kinds.iter().find(|(flag, _)| event.events().contains(*flag)).map_or("other", |kind| kind.1);
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        writeln!(out, "{kind} {name}")?;
        out.flush()?;
    }
}
