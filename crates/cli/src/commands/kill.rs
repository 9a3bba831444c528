//! `nacre kill`: a signal for a container.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::record::Records;
use crate::shim::Shim;

pub(super) fn run(root: &Path, name: &str, signal: &str) -> Result<String> {
    let number = parse_signal(signal)?;
    let records = Records::open(root)?;
    let record = records.find(name)?;
    if records.exit(&record.id).is_some() {
        bail!("container {} is not running", record.name);
    }
    super::block_on(async {
        let shim = Shim::connect(&records.bundle(&record.id), &record.id).await?;
        Ok(shim.kill("", number, false).await?)
    })?;
    Ok(name.to_owned())
}

/// `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
pub(super) fn parse_signal(text: &str) -> Result<u32> {
    if let Ok(number) = text.parse::<u32>() {
        if (1..=64).contains(&number) {
            return Ok(number);
        }
        bail!("invalid signal {text}: signals are 1 to 64");
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // glibc keeps 32 and 33 for itself, so that RTMIN is 34 in every program.
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: Option<u32> =
            if offset.is_empty() { Some(0) } else { offset.strip_prefix('+').and_then(|n| n.parse().ok()) };
        if let Some(number) =
            offset.and_then(|offset| 34u32.checked_add(offset)).filter(|&number| number <= 64)
        {
            return Ok(number);
        }
    }
    match Signal::from_str(&format!("SIG{name}")) {
        Ok(signal) => Ok((signal as i32).unsigned_abs()),
        Err(_) => bail!("invalid signal {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_signal("TERM").unwrap(), 15);
        assert_eq!(parse_signal("sigkill").unwrap(), 9);
        assert_eq!(parse_signal("1").unwrap(), 1);
        assert_eq!(parse_signal("SIGRTMIN+3").unwrap(), 37);
        for bad in ["0", "65", "NOPE", "RTMIN+99", ""] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
