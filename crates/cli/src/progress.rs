//! A pull on the screen: a bar for each layer on a terminal, plain lines elsewhere; always on stderr.

use std::collections::HashMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nacre_image::{Digest, Event};
use rustix::termios::isatty;

use crate::output::{escape, short_id, size};

/// Draws the events of one pull.
pub(crate) struct Display {
    bars: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
    terminal: bool,
    tell: Tell,
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// Every step.
    All,
    /// What moves, and nothing of an image that is here already.
    News,
    /// Nothing: only how it ends counts.
    Nothing,
}

impl Display {
    pub(crate) fn new(tell: Tell) -> Self {
        let terminal = isatty(std::io::stderr());
        let draws = terminal && tell != Tell::Nothing;
        let target = if draws { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), layers: Mutex::default(), terminal, tell }
    }

    pub(crate) fn event(&self, event: Event<'_>) {
        if self.tell == Tell::Nothing {
            return;
        }
        match event {
            Event::Resolving { reference } => self.line(&format!("{reference}: asking the registry")),
            Event::UpToDate { digest } if self.tell == Tell::All => {
                self.line(&format!("{digest}: up to date"))
            }
            Event::Resolved { layers, missing_bytes, .. } if missing_bytes > 0 => {
                self.line(&format!("{layers} layers, {} to fetch", size(missing_bytes)));
            }
            Event::LayerExists { layer } if self.tell == Tell::All => {
                self.line(&format!("{}: here already", name(layer)))
            }
            Event::LayerStarted { layer, size_bytes } => self.start(layer, size_bytes),
            Event::LayerBytes { layer, done_bytes } => {
                self.with_bar(layer, |bar| bar.set_position(done_bytes))
            }
            Event::LayerRetry { layer, reason } => {
                self.line(&format!("{}: trying again: {}", name(layer), escape(reason)))
            }
            Event::LayerDone { layer, stored_bytes } => {
                self.with_bar(layer, |bar| bar.finish_with_message("stored"));
                if !self.terminal {
                    self.line(&format!("{}: stored, {}", name(layer), size(stored_bytes)));
                }
            }
            _ => {}
        }
    }

    /// Leaves the finished bars on the screen.
    pub(crate) fn finish(&self) {
        for bar in self.bars_by_layer().values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn start(&self, layer: &Digest, size_bytes: u64) {
        if !self.terminal {
            self.line(&format!("{}: fetching {}", name(layer), size(size_bytes)));
            return;
        }
        let template = "{prefix} {msg:8} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(size_bytes).with_style(style.progress_chars("=> "));
        bar.set_prefix(name(layer).to_owned());
        bar.set_message("fetching");
        self.bars_by_layer().insert(layer.clone(), self.bars.add(bar));
    }

    fn with_bar(&self, layer: &Digest, change: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bars_by_layer().get(layer) {
            change(bar);
        }
    }

    fn line(&self, text: &str) {
        if self.terminal {
            // A line that the terminal does not take is lost, as the terminal is.
            let _ = self.bars.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    fn bars_by_layer(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        // A thread that panicked while it held the lock has left the map whole.
        self.layers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn name(layer: &Digest) -> &str {
    short_id(layer.hex())
}
