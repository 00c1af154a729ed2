//! MQTT in WebSocket frames (RFC 6455; MQTT 3.1.1 and 5.0, section 6).
//!
//! A frame: `FIN rsv(3) opcode(4)`, `MASK length(7)`, 2 or 8 bytes more of length where it is 126
//! or 127, 4 bytes of mask from the client, the payload. Binary frames carry MQTT's bytes; packets
//! may share frames and go over their ends (MQTT-6.0.0-2). What the client sends is unmasked while
//! it is copied into the connection's input, so no frame is ever held, and its length needs no
//! limit: that of an MQTT packet does. What goes out is one frame for all that waits, written from
//! where it lies.
//!
//! What it never does: take text (MQTT-6.0.0-1), extensions, or a second buffer.
//!
//! Invariant: a frame that has begun is finished before another begins; while answers to pings are
//! unsent nothing is read, so that they have a bound.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncWrite as _, ReadBuf};

use super::stream::{CHUNK_BYTES, Wire};

/// A client has closed in order.
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
/// Data of a kind that is not taken.
const UNSUPPORTED: u16 = 1003;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a client does that RFC 6455 or MQTT forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Fault {
    /// The status that it is closed with.
    status: u16,
    what: &'static str,
}

impl Fault {
    const fn protocol(what: &'static str) -> Self {
        Self { status: PROTOCOL_ERROR, what }
    }

    /// What the client did, where a stream's error is one of these.
    pub(crate) fn of(error: &io::Error) -> Option<&'static str> {
        error.get_ref()?.downcast_ref::<Self>().map(|fault| fault.what)
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}

/// A client's byte stream in frames.
pub(crate) struct WebSocket {
    wire: Wire,
    /// What came behind the head of the upgrade.
    early: Vec<u8>,
    reader: Reader,
    writer: Writer,
}

impl WebSocket {
    pub(crate) fn new(wire: Wire, early: Vec<u8>) -> Self {
        Self { wire, early, reader: Reader::default(), writer: Writer::default() }
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }

    pub(crate) fn into_wire(self) -> Wire {
        self.wire
    }

    /// Appends what the client has sent, of at most `most` bytes of the wire. `Ready(0)` is the end.
    pub(crate) fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        input: &mut Vec<u8>,
        most: usize,
    ) -> Poll<io::Result<usize>> {
        let before = input.len();
        loop {
            if self.writer.owes_answers() {
                if self.writer.left > 0 {
                    // They go behind the frame that waits for the socket; `poll_drain` is woken.
                    return Poll::Pending;
                }
                ready!(self.poll_drain(context, &mut Vec::new()))?;
            }
            if let Some(fault) = self.reader.fault {
                return Poll::Ready(Err(fault.into()));
            }
            if self.reader.closed {
                return Poll::Ready(Ok(0));
            }
            if self.early.is_empty() {
                let mut chunk = [MaybeUninit::uninit(); CHUNK_BYTES];
                let mut buffer =
                    ReadBuf::uninit(chunk.get_mut(..most.min(CHUNK_BYTES)).unwrap_or_default());
                ready!(self.wire.poll_take(context, &mut buffer))?;
                if buffer.filled().is_empty() {
                    return Poll::Ready(Ok(0));
                }
                self.reader.take(buffer.filled(), input, &mut self.writer.replies);
            } else {
                let later = self.early.split_off(most.min(self.early.len()));
                let early = std::mem::replace(&mut self.early, later);
                self.reader.take(&early, input, &mut self.writer.replies);
            }
            if input.len() > before {
                return Poll::Ready(Ok(input.len() - before));
            }
        }
    }

    /// Writes from the front of `out`, in a frame, until it is empty and flushed, or the socket is
    /// full.
    pub(crate) fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let mut written = 0;
        let result = self.poll_write_frames(context, out, &mut written);
        out.drain(..written);
        ready!(result)?;
        self.writer.staged = Vec::new();
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_write_frames(
        &mut self,
        context: &mut Context<'_>,
        out: &[u8],
        written: &mut usize,
    ) -> Poll<io::Result<()>> {
        loop {
            let rest = out.get(*written..).unwrap_or_default();
            if self.writer.left == 0 {
                self.writer.begin(rest.len());
            }
            let payload = rest.get(..self.writer.left).unwrap_or(rest);
            if self.writer.staged.is_empty() && payload.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // Together: header and payload are one segment, and one TLS record.
            let parts = [io::IoSlice::new(&self.writer.staged), io::IoSlice::new(payload)];
            let count = match ready!(Pin::new(&mut self.wire).poll_write_vectored(context, &parts))
            {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => count,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let head = count.min(self.writer.staged.len());
            self.writer.staged.drain(..head);
            self.writer.left -= count - head;
            *written += count - head;
        }
    }

    /// A Close frame is the last thing written, with the status of what the client did.
    pub(crate) fn say_close(&mut self) {
        // The client's own was answered when it came.
        if !self.reader.closed {
            let status = self.reader.fault.map_or(NORMAL, |fault| fault.status);
            frame(&mut self.writer.replies, CLOSE, &status.to_be_bytes());
        }
    }
}

/// What goes out.
#[derive(Default)]
struct Writer {
    /// Goes before all else: a header, or whole control frames.
    staged: Vec<u8>,
    /// Control frames that wait for the end of the frame under way.
    replies: Vec<u8>,
    /// Bytes of `out` that the frame under way still has.
    left: usize,
}

impl Writer {
    fn owes_answers(&self) -> bool {
        !self.replies.is_empty() || (self.left == 0 && !self.staged.is_empty())
    }

    /// Between two frames: answers first, then one frame for all that waits.
    fn begin(&mut self, waiting: usize) {
        self.staged.append(&mut self.replies);
        if waiting > 0 {
            header(&mut self.staged, BINARY, waiting);
            self.left = waiting;
        }
    }
}

fn header(out: &mut Vec<u8>, opcode: u8, len: usize) {
    out.push(0x80 | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((len as u64).to_be_bytes());
        }
    }
}

fn frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// What comes in, frame by frame and byte by byte.
#[derive(Default)]
pub(super) struct Reader {
    /// The header, as far as it has come.
    head: [u8; 14],
    head_len: usize,
    /// The frame whose header is complete.
    frame: Option<Frame>,
    /// The payload of a control frame, at most 125 bytes.
    control: Vec<u8>,
    /// The last binary frame was not the end of its message.
    unfinished: bool,
    /// The client has said Close.
    closed: bool,
    fault: Option<Fault>,
}

#[derive(Clone, Copy)]
struct Frame {
    opcode: u8,
    fin: bool,
    left: u64,
    /// Turned so that the next byte's part is the first.
    mask: [u8; 4],
}

impl Reader {
    /// Takes bytes of the wire apart: MQTT's go to `input`, answers to pings to `replies`. After a
    /// fault or Close nothing more is taken.
    pub(super) fn take(&mut self, mut bytes: &[u8], input: &mut Vec<u8>, replies: &mut Vec<u8>) {
        while !self.closed && self.fault.is_none() {
            let Some(frame) = &mut self.frame else {
                let Some((first, rest)) = bytes.split_first() else { return };
                bytes = rest;
                self.fault = self.take_head(*first).err();
                continue;
            };
            let len = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(len);
            let to = if frame.opcode >= CLOSE { &mut self.control } else { &mut *input };
            unmask(now, &mut frame.mask, to);
            frame.left -= len as u64;
            bytes = rest;
            if frame.left > 0 {
                return;
            }
            let ended = *frame;
            self.frame = None;
            if ended.opcode >= CLOSE {
                self.end_control(ended.opcode, replies);
            } else {
                self.unfinished = !ended.fin;
            }
        }
    }

    /// One more byte of a header.
    fn take_head(&mut self, byte: u8) -> Result<(), Fault> {
        if let Some(place) = self.head.get_mut(self.head_len) {
            *place = byte;
            self.head_len += 1;
        }
        let [first, second, ..] = self.head;
        if self.head_len == 2 {
            self.check(first, second)?;
        }
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.head_len < 2 + length_bytes + 4 {
            return Ok(());
        }
        let [_, _, length @ .., _, _, _, _] = self.head;
        let left = match length_bytes {
            0 => u64::from(second & 0x7f),
            2 => u64::from(u16::from_be_bytes([length[0], length[1]])),
            _ => u64::from_be_bytes(length),
        };
        if left >> 63 == 1 {
            return Err(Fault::protocol("a WebSocket frame of impossible length"));
        }
        let mask = self.head.get(2 + length_bytes..).and_then(<[u8]>::first_chunk);
        let mask = *mask.expect("a header has at most 14 bytes");
        self.head_len = 0;
        self.frame = Some(Frame { opcode: first & 0x0f, fin: first & 0x80 != 0, left, mask });
        Ok(())
    }

    fn check(&self, first: u8, second: u8) -> Result<(), Fault> {
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 {
            return Err(Fault::protocol(
                "a WebSocket frame of an extension that was not agreed on",
            ));
        }
        if second & 0x80 == 0 {
            return Err(Fault::protocol("a WebSocket frame of a client without a mask"));
        }
        match opcode {
            TEXT => Err(Fault {
                status: UNSUPPORTED,
                what: "a WebSocket text frame; MQTT goes in binary frames",
            }),
            BINARY if self.unfinished => {
                Err(Fault::protocol("a WebSocket message inside another one"))
            }
            CONTINUATION if !self.unfinished => {
                Err(Fault::protocol("a WebSocket continuation of nothing"))
            }
            BINARY | CONTINUATION => Ok(()),
            CLOSE | PING | PONG if fin && second & 0x7f <= 125 => Ok(()),
            CLOSE | PING | PONG => {
                Err(Fault::protocol("a WebSocket control frame that is too long or in parts"))
            }
            _ => Err(Fault::protocol("a WebSocket frame of a kind that there is not")),
        }
    }

    fn end_control(&mut self, opcode: u8, replies: &mut Vec<u8>) {
        let payload = std::mem::take(&mut self.control);
        match opcode {
            PING => frame(replies, PONG, &payload),
            CLOSE => {
                self.closed = true;
                // Its status, without its words (RFC 6455, 5.5.1).
                frame(replies, CLOSE, payload.get(..2).unwrap_or_default());
            }
            // An answer to a question that nobody asked.
            _ => {}
        }
    }
}

/// Appends `bytes` unmasked, and turns the mask on.
fn unmask(bytes: &[u8], mask: &mut [u8; 4], to: &mut Vec<u8>) {
    let start = to.len();
    to.extend_from_slice(bytes);
    for four in to.get_mut(start..).unwrap_or_default().chunks_mut(4) {
        for (byte, mask) in four.iter_mut().zip(&*mask) {
            *byte ^= mask;
        }
    }
    mask.rotate_left(bytes.len() % 4);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_frame(fin: bool, opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(&mut bytes, opcode, payload.len());
        bytes[0] = u8::from(fin) << 7 | opcode;
        bytes[1] |= 0x80;
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    struct Took {
        input: Vec<u8>,
        replies: Vec<u8>,
        reader: Reader,
    }

    /// Taken in pieces of these lengths, over and over.
    fn take(mut bytes: &[u8], pieces: &[usize]) -> Took {
        let (mut input, mut replies) = (Vec::new(), Vec::new());
        let mut reader = Reader::default();
        for len in pieces.iter().cycle() {
            let (piece, rest) = bytes.split_at((*len).min(bytes.len()));
            reader.take(piece, &mut input, &mut replies);
            bytes = rest;
            if bytes.is_empty() {
                break;
            }
        }
        Took { input, replies, reader }
    }

    const MASK: [u8; 4] = [0x12, 0x00, 0xff, 0x81];

    #[test]
    fn every_fault_has_its_status() {
        let good = client_frame(true, BINARY, b"ab", MASK);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (name, bytes, status, says) in [
            ("text", client_frame(true, TEXT, b"ab", MASK), 1003, "text"),
            ("text in parts", client_frame(false, TEXT, b"ab", MASK), 1003, "text"),
            ("no mask", with(1, 2), 1002, "without a mask"),
            ("compressed", with(0, 0xc2), 1002, "extension"),
            ("kind 3", with(0, 0x83), 1002, "kind"),
            ("kind 11", with(0, 0x8b), 1002, "kind"),
            ("continuation", with(0, 0x80), 1002, "continuation of nothing"),
            ("ping in parts", client_frame(false, PING, b"", MASK), 1002, "control"),
            ("long ping", client_frame(true, PING, &[0; 126], MASK), 1002, "control"),
            ("2^63", b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0".to_vec(), 1002, "length"),
            (
                "a message in a message",
                [client_frame(false, BINARY, b"a", MASK), good.clone()].concat(),
                1002,
                "inside",
            ),
        ] {
            for pieces in [1, 3, 1000] {
                let fault =
                    take(&bytes, &[pieces]).reader.fault.unwrap_or_else(|| panic!("{name}"));
                assert_eq!(fault.status, status, "{name}");
                assert!(fault.what.contains(says), "{name}: {fault}");
            }
        }
    }

    #[test]
    fn pings_are_answered_between_the_parts_of_a_message_and_close_ends_it() {
        let bytes = [
            client_frame(false, BINARY, b"ab", MASK),
            client_frame(true, PING, b"here?", MASK),
            client_frame(true, PONG, b"x", MASK),
            client_frame(true, CONTINUATION, b"c", MASK),
            client_frame(true, CLOSE, b"\x03\xe9going away", MASK),
            client_frame(true, BINARY, b"too late", MASK),
        ]
        .concat();
        for pieces in [1, 2, 5, 1000] {
            let took = take(&bytes, &[pieces]);
            assert_eq!((took.input.as_slice(), took.reader.fault), (&b"abc"[..], None));
            assert_eq!(took.replies, b"\x8a\x05here?\x88\x02\x03\xe9");
            assert!(took.reader.closed);
        }
    }

    proptest! {
        #[test]
        fn however_frames_are_cut_the_bytes_are_the_same(
            parts in prop::collection::vec((any::<bool>(), 0_usize..400, any::<[u8; 4]>()), 1..8),
            pieces in prop::collection::vec(1_usize..300, 1..5),
        ) {
            let (mut bytes, mut expected, mut inside) = (Vec::new(), Vec::new(), false);
            for (fin, len, mask) in parts {
                let payload: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).expect("< 251")).collect();
                let opcode = if inside { CONTINUATION } else { BINARY };
                bytes.extend(client_frame(fin, opcode, &payload, mask));
                expected.extend(payload);
                inside = !fin;
            }
            let took = take(&bytes, &pieces);
            prop_assert_eq!(took.reader.fault, None);
            prop_assert_eq!(took.input, expected);
            prop_assert_eq!(took.reader.unfinished, inside);
        }

        #[test]
        fn no_bytes_make_it_panic_or_hold_more_than_they_are(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            piece in 1_usize..100,
        ) {
            let took = take(&bytes, &[piece]);
            prop_assert!(took.input.len() <= bytes.len());
            prop_assert!(took.replies.len() <= bytes.len());
            prop_assert!(took.reader.control.len() <= 125);
        }
    }
}
