//! JSON as it stands in a body, skimmed rather than parsed.
//!
//! A reader holds on to the few values that it wants and jumps over all others. The grammar of what
//! is passed is checked, strings stay as they are until somebody asks for their characters, and
//! nesting costs one bit a level, so depth exhausts neither the stack nor the memory.

use std::borrow::Cow;

/// The most bytes of JSON that one byte of a string can take: `\u0041`.
const LONGEST_ESCAPE: usize = 6;

/// A key with escapes that is longer than this, in bytes, is none that anybody asks for.
const LONGEST_KEY: usize = 1024;

/// The grammar is broken, or the body ends too soon.
#[derive(Debug)]
pub(super) struct Malformed;

/// A value as it stands in the body.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    Text(Text<'a>),
    Number(&'a [u8]),
    Boolean(bool),
    Null,
    /// An object or an array.
    Nested,
}

/// What stands between two quotes. Its escapes are well formed, its UTF-8 is not checked yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a> {
    raw: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The characters meant. None if it is no text (not UTF-8, half a surrogate pair) or certainly
    /// longer than so many bytes.
    pub(super) fn decoded(&self, bytes_max: usize) -> Option<Cow<'a, str>> {
        if self.raw.len() > bytes_max.saturating_mul(LONGEST_ESCAPE) {
            return None;
        }
        let text = str::from_utf8(self.raw).ok()?;
        if !self.escaped {
            return Some(Cow::Borrowed(text));
        }
        let mut decoded = String::with_capacity(text.len());
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            decoded.push(if char == '\\' { unescaped(&mut chars)? } else { char });
        }
        Some(Cow::Owned(decoded))
    }

    /// The bytes meant, for a comparison with a key that matters; empty if it can't be one.
    pub(super) fn as_key(&self) -> Cow<'a, [u8]> {
        if !self.escaped {
            return Cow::Borrowed(self.raw);
        }
        let decoded = self.decoded(LONGEST_KEY);
        Cow::Owned(decoded.map(|text| text.into_owned().into_bytes()).unwrap_or_default())
    }
}

/// The character that an escape stands for; its backslash has been taken already.
fn unescaped(chars: &mut std::str::Chars<'_>) -> Option<char> {
    Some(match chars.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let unit = code_unit(chars)?;
            if !(0xd800..0xdc00).contains(&unit) {
                return char::from_u32(unit);
            }
            if chars.next()? != '\\' || chars.next()? != 'u' {
                return None;
            }
            let low = code_unit(chars).filter(|low| (0xdc00..0xe000).contains(low))?;
            char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00))?
        }
        itself => itself,
    })
}

fn code_unit(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |unit, _| Some(unit * 16 + chars.next()?.to_digit(16)?))
}

/// The part of the body that has not been read yet.
pub(super) struct Json<'a> {
    rest: &'a [u8],
}

impl<'a> Json<'a> {
    pub(super) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// Whether only blanks are left.
    pub(super) fn is_over(&mut self) -> bool {
        self.peek().is_err()
    }

    /// The first byte of the next token, which stays where it is.
    pub(super) fn peek(&mut self) -> Result<u8, Malformed> {
        loop {
            match self.rest {
                [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] => self.rest = rest,
                [byte, ..] => return Ok(*byte),
                [] => return Err(Malformed),
            }
        }
    }

    /// Takes a token of one byte.
    fn take(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek()?;
        self.rest = self.rest.get(1..).unwrap_or_default();
        Ok(byte)
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.take()? == wanted { Ok(()) } else { Err(Malformed) }
    }

    /// Opens an object and takes its first key, with its colon; None if it is empty.
    pub(super) fn first_key(&mut self) -> Result<Option<Text<'a>>, Malformed> {
        self.expect(b'{')?;
        if self.peek()? == b'}' {
            self.expect(b'}')?;
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// The key after a member of an object; None if that was the last one.
    pub(super) fn next_key(&mut self) -> Result<Option<Text<'a>>, Malformed> {
        match self.take()? {
            b',' => self.key().map(Some),
            b'}' => Ok(None),
            _ => Err(Malformed),
        }
    }

    /// Opens an array; false if it is empty.
    pub(super) fn first_item(&mut self) -> Result<bool, Malformed> {
        self.expect(b'[')?;
        if self.peek()? == b']' {
            self.expect(b']')?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Goes on after an item of an array; false if that was the last one.
    pub(super) fn next_item(&mut self) -> Result<bool, Malformed> {
        match self.take()? {
            b',' => Ok(true),
            b']' => Ok(false),
            _ => Err(Malformed),
        }
    }

    fn key(&mut self) -> Result<Text<'a>, Malformed> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    pub(super) fn value(&mut self) -> Result<Value<'a>, Malformed> {
        match self.peek()? {
            b'{' | b'[' => self.skip_nested().map(|()| Value::Nested),
            byte => self.scalar(byte),
        }
    }

    /// A value that does not nest and begins with `byte`.
    fn scalar(&mut self, byte: u8) -> Result<Value<'a>, Malformed> {
        match byte {
            b'"' => self.string().map(Value::Text),
            b't' => self.literal(b"true", Value::Boolean(true)),
            b'f' => self.literal(b"false", Value::Boolean(false)),
            b'n' => self.literal(b"null", Value::Null),
            _ => self.number().map(Value::Number),
        }
    }

    /// Jumps over an object or array, without recursion.
    fn skip_nested(&mut self) -> Result<(), Malformed> {
        let mut nesting = Nesting::none();
        loop {
            match self.peek()? {
                open @ (b'{' | b'[') => {
                    self.expect(open)?;
                    nesting.enter(open == b'{');
                    if self.peek()? != nesting.closing() {
                        if nesting.in_object() {
                            self.key()?;
                        }
                        continue;
                    }
                }
                byte => {
                    self.scalar(byte)?;
                }
            }
            // A value is complete, or the bracket just opened closes at once.
            loop {
                match self.take()? {
                    b',' => {
                        if nesting.in_object() {
                            self.key()?;
                        }
                        break;
                    }
                    byte if byte == nesting.closing() => nesting.leave(),
                    _ => return Err(Malformed),
                }
                if nesting.is_over() {
                    return Ok(());
                }
            }
        }
    }

    fn string(&mut self) -> Result<Text<'a>, Malformed> {
        self.expect(b'"')?;
        let text = self.rest;
        let mut rest = text;
        let mut escaped = false;
        loop {
            rest = skip_plain(rest);
            match rest {
                [b'"', after @ ..] => {
                    self.rest = after;
                    let raw = text.get(..text.len() - rest.len()).unwrap_or_default();
                    return Ok(Text { raw, escaped });
                }
                [b'\\', b'u', a, b, c, d, after @ ..]
                    if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
                {
                    (rest, escaped) = (after, true);
                }
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', after @ ..] => {
                    (rest, escaped) = (after, true);
                }
                [0..b' ' | b'\\', ..] | [] => return Err(Malformed),
                [_, after @ ..] => rest = after,
            }
        }
    }

    fn literal(&mut self, word: &[u8], meaning: Value<'a>) -> Result<Value<'a>, Malformed> {
        self.rest = self.rest.strip_prefix(word).ok_or(Malformed)?;
        Ok(meaning)
    }

    fn number(&mut self) -> Result<&'a [u8], Malformed> {
        let text = self.rest;
        self.skip_one_of(b"-");
        if !self.skip_one_of(b"0") {
            self.digits()?;
        }
        if self.skip_one_of(b".") {
            self.digits()?;
        }
        if self.skip_one_of(b"eE") {
            self.skip_one_of(b"+-");
            self.digits()?;
        }
        // Only what follows tells that a number is complete.
        match self.rest {
            [b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r', ..] => {
                Ok(text.get(..text.len() - self.rest.len()).unwrap_or_default())
            }
            _ => Err(Malformed),
        }
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        if !self.skip_one_of(b"0123456789") {
            return Err(Malformed);
        }
        while self.skip_one_of(b"0123456789") {}
        Ok(())
    }

    fn skip_one_of(&mut self, wanted: &[u8]) -> bool {
        match self.rest {
            [byte, rest @ ..] if wanted.contains(byte) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }
}

/// Jumps over bytes that mean nothing inside a string, eight at a time, until fewer are left.
fn skip_plain(mut rest: &[u8]) -> &[u8] {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    const fn all(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    while let Some((chunk, after)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        // The lowest high bit of each marks its first hit; those above may be wrong.
        let controls = word.wrapping_sub(all(b' ')) & !word;
        let quotes = (word ^ all(b'"')).wrapping_sub(ONES) & !(word ^ all(b'"'));
        let escapes = (word ^ all(b'\\')).wrapping_sub(ONES) & !(word ^ all(b'\\'));
        let found = (controls | quotes | escapes) & HIGHS;
        if found != 0 {
            let plain = usize::try_from(found.trailing_zeros() / 8).unwrap_or_default();
            return rest.get(plain..).unwrap_or_default();
        }
        rest = after;
    }
    rest
}

/// Which brackets are open, one bit each: 1 for an object, 0 for an array.
struct Nesting {
    /// The innermost ones, below a marker bit.
    inner: u64,
    /// Full words of those further out.
    outer: Vec<u64>,
}

impl Nesting {
    fn none() -> Self {
        Self { inner: 1, outer: Vec::new() }
    }

    fn enter(&mut self, object: bool) {
        if self.inner.leading_zeros() == 0 {
            self.outer.push(self.inner);
            self.inner = 1;
        }
        self.inner = (self.inner << 1) | u64::from(object);
    }

    fn leave(&mut self) {
        self.inner >>= 1;
        if self.inner == 1 {
            self.inner = self.outer.pop().unwrap_or(1);
        }
    }

    fn in_object(&self) -> bool {
        self.inner & 1 == 1
    }

    fn closing(&self) -> u8 {
        if self.in_object() { b'}' } else { b']' }
    }

    /// Only meaningful after the last [`leave`](Self::leave).
    fn is_over(&self) -> bool {
        self.inner == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_costs_a_bit() {
        let mut nesting = Nesting::none();
        for level in 0..1_000_000 {
            nesting.enter(level % 3 == 0);
        }
        assert!(nesting.outer.len() <= 1_000_000 / 63);
        for level in (0..1_000_000).rev() {
            assert!(!nesting.is_over());
            assert_eq!(nesting.in_object(), level % 3 == 0);
            nesting.leave();
        }
        assert!(nesting.is_over());
    }
}
