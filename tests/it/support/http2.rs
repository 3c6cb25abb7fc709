//! HTTP/2 frame by frame, as no client of good will writes it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use super::{TestRelay, eventually, patience};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// The last of a stream's frames; of SETTINGS and PING, that it confirms one.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// What a connection begins with, before its settings.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of one frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block in which nothing is compressed.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            push_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn push_length(block: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    if length < PREFIX {
        return block.push(u8::try_from(length).unwrap());
    }
    block.push(0x7f);
    let mut rest = length - PREFIX;
    while rest >= 0x80 {
        block.push(u8::try_from(rest % 0x80).unwrap() | 0x80);
        rest /= 0x80;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// A frame that came from the relay.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Why a stream or the connection ends, where it is a frame that says so.
    pub(crate) fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().unwrap()))
    }
}

/// A connection without TLS; what comes is read at once, by a thread of its own.
pub(crate) struct RawHttp2 {
    stream: TcpStream,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    frames: Vec<Frame>,
    ended: bool,
}

impl RawHttp2 {
    /// Connects and says its settings: pairs of an identifier and a value.
    pub(crate) fn open(relay: &TestRelay, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(relay.listen()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(patience())).unwrap();
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        let seen = Arc::<Mutex<Seen>>::default();
        let (mut from, into) = (stream.try_clone().unwrap(), Arc::clone(&seen));
        drop(std::thread::spawn(move || {
            while let Ok(frame) = read_frame(&mut from) {
                into.lock().unwrap().frames.push(frame);
            }
            into.lock().unwrap().ended = true;
        }));
        let mut connection = Self { stream, seen };
        connection.write(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).unwrap();
        connection
    }

    /// Writes frames; an error says that the relay has closed.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// What came so far.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.seen.lock().unwrap().frames.clone()
    }

    /// The relay has closed it.
    pub(crate) fn ended(&self) -> bool {
        self.seen.lock().unwrap().ended
    }

    /// Waits for a frame.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, is_it: impl Fn(&Frame) -> bool) -> Frame {
        eventually(what, || {
            let frames = self.frames();
            let found = frames.iter().find(|frame| is_it(frame)).cloned();
            found.ok_or_else(|| format!("closed: {}, {} frames", self.ended(), frames.len()))
        })
    }

    /// Waits until the relay ends the connection. Where it could still say why, it is this error.
    #[track_caller]
    pub(crate) fn is_sent_away(&self, error: u32) {
        eventually("it is closed", || self.ended());
        let frames = self.frames();
        let why = frames.iter().filter(|frame| frame.kind == GOAWAY).find_map(Frame::error);
        assert!(why.is_none_or(|why| why == error), "sent away with {why:?}, not {error}");
    }

    /// The same, and it could say why: with this error and no other.
    #[track_caller]
    pub(crate) fn is_told_to_go(&self, error: u32) {
        eventually("it is closed", || self.ended());
        let frames = self.frames();
        let why: Vec<_> = frames.iter().filter(|f| f.kind == GOAWAY).map(Frame::error).collect();
        assert!(!why.is_empty() && why.iter().all(|why| *why == Some(error)), "{why:?}");
    }

    /// Waits until the relay answers a ping: all that was written before it is read.
    #[track_caller]
    pub(crate) fn is_in_step(&mut self) {
        let mark = *b"in step?";
        self.write(&frame(PING, 0, 0, &mark)).unwrap();
        self.wait_for("the ping is answered", |frame| frame.kind == PING && frame.payload == mark);
    }
}

impl Drop for RawHttp2 {
    fn drop(&mut self) {
        // The reader holds the socket too; it may be closed already.
        let _closed = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn read_frame(from: &mut TcpStream) -> io::Result<Frame> {
    let mut head = [0; 9];
    from.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    from.read_exact(&mut payload)?;
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    Ok(Frame { kind: head[3], stream, payload })
}
