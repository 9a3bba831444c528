//! How a VM ended, in words.

use nacre_protocol::control::ExitReason;

use crate::process::End;
use crate::tail::Tail;
use crate::text::harmless;

/// Lines of the console, and of the VMM's standard error, that an error shows.
const SHOWN_LINES: usize = 8;

/// What Linux's panic() prints before its reason.
const PANIC: &str = "Kernel panic - not syncing: ";

/// Why and how a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// How the process ended.
    pub end: End,
    /// What it said before.
    pub reason: Option<ExitReason>,
    /// What the guest's kernel said when it panicked.
    pub panic: Option<String>,
    /// Last lines of the guest's console.
    pub console: Vec<String>,
    /// Last lines of the VMM's standard error.
    pub stderr: Vec<String>,
}

/// The reason of the panic that these lines of a console tell; a call trace may stand behind it.
fn panic_in(console: &[String]) -> Option<String> {
    let reason = |line: &String| line.split_once(PANIC).map(|(_, reason)| reason.to_owned());
    console.iter().rev().find_map(reason)
}

impl VmExit {
    /// What is known when the process is reaped.
    pub(super) fn new(end: End, reason: Option<ExitReason>, serial: &Tail, stderr: &Tail) -> Self {
        let mut console = serial.lines(usize::MAX);
        let panic = panic_in(&console);
        console.drain(..console.len().saturating_sub(SHOWN_LINES));
        Self { end, reason, panic, console, stderr: stderr.lines(SHOWN_LINES) }
    }

    /// Nothing is known.
    pub(super) fn unknown() -> Self {
        Self { end: End::Unknown, reason: None, panic: None, console: Vec::new(), stderr: Vec::new() }
    }

    /// The console's last lines, for the end of a message.
    pub(crate) fn last_lines(&self) -> String {
        match self.console.is_empty() {
            true => "its console is empty".to_owned(),
            false => format!("last console lines: {}", self.console.join(" | ")),
        }
    }
}

impl std::fmt::Display for VmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(panic) = &self.panic {
            write!(f, "the VM ended: the guest's kernel panicked: {panic}")?;
            return f.write_str(
                "; where no container caused it, build kernel and agent anew: `cargo xtask guest`",
            );
        }
        match &self.reason {
            Some(ExitReason::GuestReset) => f.write_str("the VM ended: the guest restarted the machine")?,
            Some(ExitReason::Stopped) => f.write_str("the VM was stopped")?,
            Some(ExitReason::VcpuFailed { vcpu, message }) => {
                write!(f, "the VM ended: vCPU {vcpu} failed: {}", harmless(message, 256))?;
            }
            Some(ExitReason::Internal { message }) => write!(f, "the VM ended: {}", harmless(message, 512))?,
            None => write!(f, "the VMM died ({})", self.end)?,
        }
        if !self.stderr.is_empty()
            && !matches!(self.reason, Some(ExitReason::GuestReset | ExitReason::Stopped))
        {
            write!(f, "; its last words: {}", self.stderr.join(" | "))?;
        }
        if !self.console.is_empty() {
            write!(f, "; last console lines: {}", self.console.join(" | "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_with(console: &str, reason: Option<ExitReason>) -> VmExit {
        let mut serial = Tail::new(4096);
        serial.push(console.as_bytes());
        VmExit::new(End::Status(0), reason, &serial, &Tail::new(4096))
    }

    #[test]
    fn panic_is_told_although_a_long_trace_stands_behind_it() {
        let trace = "[    1.2] Call Trace:\n".repeat(40);
        let console =
            format!("[    1.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0xb\n{trace}");
        let text = exit_with(&console, Some(ExitReason::GuestReset)).to_string();
        assert!(
            text.contains("the guest's kernel panicked: Attempted to kill init! exitcode=0xb;"),
            "{text}"
        );
        assert!(text.contains("cargo xtask guest") && !text.contains("Call Trace"), "{text}");
    }

    #[test]
    fn restart_without_a_panic_shows_the_last_lines() {
        let text = exit_with("one\ntwo\n", Some(ExitReason::GuestReset)).to_string();
        assert_eq!(text, "the VM ended: the guest restarted the machine; last console lines: one | two");
    }

    #[test]
    fn a05_panic_text_is_made_harmless() {
        let text = exit_with("Kernel panic - not syncing: a\x1b[2Jb\n", None).to_string();
        assert!(text.contains("a?[2Jb"), "{text:?}");
    }
}
