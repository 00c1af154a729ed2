//! gzip (RFC 1952) and zlib (RFC 1950) around a payload, taken off before a codec sees it.
//!
//! Never inflates more than [`Limits::bytes_max`] and one byte: a bomb is refused when it is that
//! large, whatever it announces. One gzip member and nothing behind it, so that the work is bound by
//! the bytes that come out.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::{GzDecoder, ZlibDecoder};
use serde::Deserialize;

use super::{Limits, Undecodable};

/// What is around a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Nothing.
    None,
    /// gzip where the payload begins as gzip does, else nothing. Bytes of a binary layout are never
    /// taken for gzip: any of them may be a reading.
    #[default]
    Auto,
    /// gzip (RFC 1952).
    Gzip,
    /// zlib (RFC 1950). It cannot be told from text: `x^` is how it begins.
    Zlib,
}

impl Compression {
    /// Every one, in the order of the declaration.
    pub const ALL: &[Self] = &[Self::None, Self::Auto, Self::Gzip, Self::Zlib];

    /// The word in rule files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Auto => "auto",
            Self::Gzip => "gzip",
            Self::Zlib => "zlib",
        }
    }
}

/// `bytes` without what is around them.
pub(super) fn inflate(
    how: Compression,
    bytes: &[u8],
    limits: Limits,
) -> Result<Cow<'_, [u8]>, Undecodable> {
    match how {
        Compression::None => Ok(bytes.into()),
        Compression::Auto if !bytes.starts_with(&[0x1f, 0x8b]) => Ok(bytes.into()),
        Compression::Auto | Compression::Gzip => {
            let mut left = bytes;
            let inflated = read(GzDecoder::new(&mut left), limits, "gzip")?;
            if left.is_empty() {
                Ok(inflated.into())
            } else {
                Err(Undecodable::NotInflated("gzip"))
            }
        }
        Compression::Zlib => {
            let mut left = bytes;
            let inflated = read(ZlibDecoder::new(&mut left), limits, "zlib")?;
            if left.is_empty() {
                Ok(inflated.into())
            } else {
                Err(Undecodable::NotInflated("zlib"))
            }
        }
    }
}

fn read(from: impl Read, limits: Limits, format: &'static str) -> Result<Vec<u8>, Undecodable> {
    let max = limits.bytes_max;
    let mut inflated = Vec::new();
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    // The decoder's words may hold what it read.
    let read = from.take(most).read_to_end(&mut inflated);
    if inflated.len() > max {
        return Err(Undecodable::Expands(max));
    }
    read.map_err(|_| Undecodable::NotInflated(format))?;
    Ok(inflated)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::{GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn check(how: Compression, bytes: &[u8], expected: Result<&[u8], Undecodable>) {
        let limits = Limits { bytes_max: 1_000, ..Limits::default() };
        let found = inflate(how, bytes, limits);
        assert_eq!(found.as_deref(), expected.as_ref().copied(), "{how:?} {bytes:?}");
    }

    #[test]
    fn what_is_compressed_is_inflated() {
        check(Compression::Auto, &gzip(b"21.5"), Ok(b"21.5"));
        check(Compression::Gzip, &gzip(b"21.5"), Ok(b"21.5"));
        check(Compression::Zlib, &zlib(b"21.5"), Ok(b"21.5"));
        check(Compression::Gzip, &gzip(b""), Ok(b""));
        check(Compression::None, &gzip(b"21.5"), Ok(&gzip(b"21.5")));
    }

    #[test]
    fn auto_takes_no_text_for_compressed() {
        check(Compression::Auto, b"x^2 + 1", Ok(b"x^2 + 1"));
        check(Compression::Auto, &zlib(b"21.5"), Ok(&zlib(b"21.5")));
        check(Compression::Auto, b"", Ok(b""));
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let (gzip, zlib) = (gzip(b"21.5"), zlib(b"21.5"));
        for bytes in [&gzip[..gzip.len() - 1], &gzip[..12], b"\x1f\x8b", b"21.5", b"", &zlib] {
            check(Compression::Gzip, bytes, Err(Undecodable::NotInflated("gzip")));
        }
        for bytes in [&zlib[..zlib.len() - 1], b"21.5", b"", &gzip] {
            check(Compression::Zlib, bytes, Err(Undecodable::NotInflated("zlib")));
        }
        let mut wrong = gzip.clone();
        wrong[12] ^= 1;
        check(Compression::Gzip, &wrong, Err(Undecodable::NotInflated("gzip")));
        let twice = [gzip.clone(), gzip].concat();
        check(Compression::Auto, &twice, Err(Undecodable::NotInflated("gzip")));
    }

    #[test]
    fn a_bomb_is_refused_and_not_inflated_whole() {
        check(Compression::Auto, &gzip(&[0; 1_000]), Ok(&[0; 1_000]));
        check(Compression::Auto, &gzip(&[0; 1_001]), Err(Undecodable::Expands(1_000)));
        let bomb = vec![0; 50_000_000];
        check(Compression::Auto, &gzip(&bomb), Err(Undecodable::Expands(1_000)));
        check(Compression::Zlib, &zlib(&bomb), Err(Undecodable::Expands(1_000)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for how in Compression::ALL {
                drop(inflate(*how, &bytes, Limits::default()));
            }
            bytes.splice(0..0, [0x1f, 0x8b, 8]);
            drop(inflate(Compression::Auto, &bytes, Limits::default()));
        }
    }
}
