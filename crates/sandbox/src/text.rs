//! Text that came out of a guest, made fit for a log or a terminal (A05, H12).

/// Longest text of a guest that goes into an error message, in characters.
pub const MAX_MESSAGE_CHARS: usize = 1024;

/// The text with everything that could steer a terminal or forge a line replaced, cut to `max_chars`.
pub fn harmless(text: &str, max_chars: usize) -> String {
    let mut out: String =
        text.chars().take(max_chars).map(|c| if is_harmless(c) { c } else { '?' }).collect();
    if text.chars().nth(max_chars).is_some() {
        out.push_str(" [cut]");
    }
    out
}

/// The last lines of a console, newest last, each harmless.
pub fn last_lines(bytes: &[u8], count: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(count)).map(|line| harmless(line, 240)).collect()
}

/// No control character, and none that changes the direction or the order of text.
fn is_harmless(c: char) -> bool {
    let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !reorders && c != '\u{feff}'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a05_escape_sequences_and_newlines_are_replaced() {
        assert_eq!(harmless("\x1b[31mred\nline\u{9b}x\u{202e}", 100), "?[31mred?line?x?");
    }

    #[test]
    fn a05_long_text_is_cut() {
        let text = harmless(&"x".repeat(1 << 20), 10);
        assert_eq!(text, "xxxxxxxxxx [cut]");
    }

    #[test]
    fn last_lines_skip_empty_ones() {
        assert_eq!(last_lines(b"a\n\nb\r\nc\n\n", 2), ["b", "c"]);
    }

    proptest! {
        #[test]
        fn a05_nothing_that_steers_a_terminal_is_left(bytes: Vec<u8>) {
            for line in last_lines(&bytes, 20) {
                prop_assert!(line.chars().all(is_harmless));
            }
        }
    }
}
