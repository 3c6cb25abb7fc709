//! What commands print: pleasant on a terminal, plain in a pipe, calm when nobody reads any more.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a piece of text stands out on a terminal. In a pipe it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A failure.
    Bad,
    /// What the line is about.
    Bold,
    /// Beside the point.
    Dim,
    /// A success.
    Good,
    /// Worth a look.
    Notice,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Bad => "\x1b[31m",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Notice => "\x1b[33m",
        }
    }
}

/// The standard output of a command. Cheap to clone; lines of several clones do not mix.
#[derive(Debug, Clone)]
pub struct Output {
    colour: bool,
    closed: Arc<AtomicBool>,
}

impl Output {
    /// Colours if stdout is a terminal and `NO_COLOR` is unset or empty.
    pub fn new() -> Self {
        Self { colour: wants_colour(&io::stdout()), closed: Arc::default() }
    }

    /// Prints a line. When the reader has gone it is dropped, and so are all that follow.
    pub fn line(&self, text: impl fmt::Display) {
        if self.is_closed() {
            return;
        }
        let mut stdout = io::stdout().lock();
        if writeln!(stdout, "{text}").and_then(|()| stdout.flush()).is_err() {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// The reader has gone: a command that only prints can end.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Text that stands out if this output shows colours.
    pub fn paint<T: fmt::Display>(&self, style: Style, text: T) -> Painted<T> {
        Painted { style: self.colour.then_some(style), text }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

/// Text that may stand out.
#[derive(Debug, Clone, Copy)]
pub struct Painted<T> {
    style: Option<Style>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(style) = self.style else { return self.text.fmt(f) };
        f.write_str(style.code())?;
        self.text.fmt(f)?;
        f.write_str("\x1b[0m")
    }
}

/// Text from outside on one line, with nothing in it that a terminal would obey.
#[derive(Debug, Clone, Copy)]
pub struct Foreign<'a>(pub &'a str);

impl fmt::Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                // Marks that turn the direction of writing around are as good as control characters.
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    write!(f, "{}", character.escape_unicode())?;
                }
                _ if character.is_control() => write!(f, "{}", character.escape_default())?,
                _ => fmt::Write::write_char(f, character)?,
            }
        }
        Ok(())
    }
}

/// Says on stderr why a command failed: one line first, then what lay behind it.
pub fn error(error: &anyhow::Error) {
    let mut stderr = io::stderr().lock();
    let style = wants_colour(&stderr).then_some(Style::Bad);
    let mut text = format!("{} {error}\n", Painted { style, text: "error:" });
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  because: {cause}\n"));
    }
    // Nobody is left to be told that stderr is closed.
    drop(stderr.write_all(text.as_bytes()));
}

/// A remark on stderr that is not the result.
pub fn note(text: impl fmt::Display) {
    let mut stderr = io::stderr().lock();
    let style = wants_colour(&stderr).then_some(Style::Notice);
    let text = format!("{} {text}\n", Painted { style, text: "note:" });
    drop(stderr.write_all(text.as_bytes()));
}

fn wants_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_only_for_terminals() {
        let output = |colour| Output { colour, closed: Arc::default() };
        assert_eq!(output(false).paint(Style::Good, "ok").to_string(), "ok");
        assert_eq!(output(true).paint(Style::Good, "ok").to_string(), "\x1b[32mok\x1b[0m");
        assert_eq!(
            output(true).paint(Style::Dim, format_args!("{:<4}", "a")).to_string().len(),
            12
        );
    }

    #[test]
    fn nothing_from_outside_commands_the_terminal_or_starts_a_line() {
        let shown = Foreign("a\x1b[2Jb\nc\u{202e}\u{9b}é").to_string();
        assert_eq!(shown, "a\\u{1b}[2Jb\\nc\\u{202e}\\u{9b}é");
    }
}
