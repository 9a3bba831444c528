//! `nacre logs`: what a container wrote while nobody was with it, each line to the stream that it was written to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nacre_protocol::task::LogLine;

use super::ps::{Condition, condition};
use super::run::LOG_FILE;
use crate::args::LogsArgs;
use crate::record::Records;

/// How often a followed log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn run(root: &Path, args: &LogsArgs) -> Result<()> {
    let records = Records::open(root)?;
    let record = records.find(&args.container)?;
    let path = records.bundle(&record.id).join(LOG_FILE);
    if !record.detached && !path.exists() {
        bail!("container {} ran in the foreground: its output was not kept (run it with -d)", record.name);
    }
    let tail = match args.tail.as_deref() {
        None | Some("all") => None,
        Some(text) => Some(text.parse::<usize>().with_context(|| format!("invalid --tail {text:?}"))?),
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !args.follow => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut reader = BufReader::new(file);
    let mut output = Output { timestamps: args.timestamps };
    print_tail(&mut reader, tail, &mut output)?;
    if !args.follow {
        return Ok(());
    }
    loop {
        let running = matches!(
            condition(&records, &record),
            Condition::Running | Condition::Paused | Condition::Created
        );
        while let Some(line) = next_line(&mut reader)? {
            output.print(&line)?;
        }
        if !running {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn print_tail(reader: &mut BufReader<File>, tail: Option<usize>, output: &mut Output) -> Result<()> {
    let mut last = VecDeque::new();
    while let Some(line) = next_line(reader)? {
        match tail {
            None => output.print(&line)?,
            Some(count) => {
                last.push_back(line);
                if last.len() > count {
                    last.pop_front();
                }
            }
        }
    }
    last.iter().try_for_each(|line| output.print(line))
}

/// The next whole line; one that is still being written is read again later.
fn next_line(reader: &mut BufReader<File>) -> Result<Option<LogLine>> {
    loop {
        let mut text = Vec::new();
        let count = reader.read_until(b'\n', &mut text).context("cannot read the log")?;
        if count == 0 {
            return Ok(None);
        }
        if text.last() != Some(&b'\n') {
            reader.seek_relative(-i64::try_from(count)?).context("cannot read the log")?;
            return Ok(None);
        }
        // A line that a crash left damaged is skipped: the others still count.
        if let Ok(line) = serde_json::from_slice(&text) {
            return Ok(Some(line));
        }
    }
}

struct Output {
    timestamps: bool,
}

impl Output {
    fn print(&mut self, line: &LogLine) -> Result<()> {
        let mut text = if self.timestamps { format!("{} ", line.time) } else { String::new() };
        text.push_str(&line.log);
        let written = match line.stream.as_str() {
            "stderr" => io::stderr().write_all(text.as_bytes()),
            _ => io::stdout().write_all(text.as_bytes()),
        };
        written.context("cannot write")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn reader(text: &str) -> BufReader<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        BufReader::new(file)
    }

    #[test]
    fn damaged_line_is_skipped_and_unfinished_line_waits() {
        let good = r#"{"log":"a\n","stream":"stdout","time":"t"}"#;
        let mut reader = reader(&format!("{{broken\n{good}\n{{\"log\":"));
        assert_eq!(next_line(&mut reader).unwrap().unwrap().log, "a\n");
        assert!(next_line(&mut reader).unwrap().is_none());
        assert!(next_line(&mut reader).unwrap().is_none());
    }
}
