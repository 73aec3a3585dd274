//! Damage to files: bytes, lines and the structure of each format.

use std::io::{Read, Write};

use polars::prelude::*;

/// A larger file says nothing new.
const MAX_BYTES: usize = 64 << 10;
/// SplitMix64 (Steele, Lea and Flood 2014).
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(super) fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Pieces that the formats give a meaning to.
const PIECES: [&[u8]; 60] = [
    b"\"",
    b"\"\"",
    b"\\\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[{",
    b"}]",
    b",",
    b":",
    b";",
    b"\t",
    b"|",
    b"\n",
    b"\r\n",
    b"\r",
    b"\n\n",
    b" ",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e309",
    b"1e-400",
    b"99999999999999999999999",
    b"0.1",
    b"NaN",
    b"prompt",
    b"completion",
    b"\"prompt\":",
    b"\"completion\":\"",
    b"\"text\":",
    b"\"messages\":[",
    b"\"conversations\":[",
    b"{\"role\":\"user\",\"content\":\"a\"}",
    b"{\"from\":\"gpt\",\"value\":\"b\"}",
    b"\"instruction\":",
    b"\"input\":",
    b"\"output\":",
    b"\"question\":\"",
    b"\"answer\":\"",
    b"PAR1",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"PK\x03\x04",
    b"%PDF",
    b"../",
    b"\"rfilename\":",
];

/// Damages bytes in one of the ways in which files are damaged.
fn damage(bytes: &mut Vec<u8>, random: &mut Random, others: &[Vec<u8>]) {
    let at = random.below(bytes.len() + 1);
    let end = at + random.below((bytes.len() - at).min(64) + 1);
    match random.below(14) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => drop(bytes.drain(at..end)),
        3 => bytes.truncate(at),
        4 | 5 => drop(bytes.splice(at..at, random.one(&PIECES).iter().copied())),
        6 => drop(bytes.splice(at..end, random.one(&PIECES).iter().copied())),
        7 => {
            let copy = bytes[at..end].to_vec();
            let times = 1 + random.below(8);
            drop(bytes.splice(at..at, copy.repeat(times)));
        }
        8 => {
            // Lines change places, are doubled or go.
            let mut lines: Vec<Vec<u8>> =
                bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
            let (a, b) = (random.below(lines.len()), random.below(lines.len()));
            match random.below(3) {
                0 => lines.swap(a, b),
                1 => lines.insert(a, lines[b].clone()),
                _ => drop(lines.remove(a)),
            }
            *bytes = lines.join(&b'\n');
        }
        9 => {
            // A piece of another file.
            let other = &others[random.below(others.len())];
            let from = random.below(other.len() + 1);
            let to = from + random.below((other.len() - from).min(256) + 1);
            drop(bytes.splice(at..at, other[from..to].iter().copied()));
        }
        10 => {
            // A number of a binary format.
            let value =
                [0u32, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX]
                    [random.below(10)];
            let width = 1 << random.below(3);
            for (place, byte) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()).take(width) {
                *place = byte;
            }
        }
        11 => {
            // Brackets that go deep.
            let (open, depth) =
                (random.one(&[&b"["[..], b"{\"a\":", b"[{\"a\":["]), 1 << random.below(9));
            drop(bytes.splice(at..at, open.repeat(depth)));
        }
        12 => {
            // One of the fields of a line goes, or stands twice.
            let field =
                bytes[at..].split(|byte| b",:\n".contains(byte)).next().unwrap_or_default().len();
            let piece = bytes[at..at + field].to_vec();
            match random.below(2) {
                0 => drop(bytes.drain(at..at + field)),
                _ => drop(bytes.splice(at..at, [piece, b",".to_vec()].concat())),
            }
        }
        _ => bytes.rotate_left(at),
    }
    bytes.truncate(MAX_BYTES);
}

fn damaged(seed: &[u8], random: &mut Random, others: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 << random.below(4) {
        damage(&mut bytes, random, others);
    }
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of columns of any type, so that damage falls into every part of the format.
fn parquet(random: &mut Random) -> Vec<u8> {
    let rows = random.below(12);
    let mut columns = Vec::new();
    for name in ["prompt", "completion", "text", "question", "answer", "messages", "n"] {
        if random.below(3) == 0 {
            continue;
        }
        let texts: Vec<Option<String>> = (0..rows)
            .map(|row| {
                (random.below(5) > 0)
                    .then(|| random.one(&["a", "ß🙂", "", "longer text"]).repeat(row))
            })
            .collect();
        let numbers: Vec<Option<i64>> =
            (0..rows).map(|_| (random.below(5) > 0).then(|| random.next() as i64)).collect();
        columns.push(match random.below(6) {
            0 => Column::new(name.into(), numbers),
            1 => Column::new(
                name.into(),
                numbers.iter().map(|n| n.map(|n| n as f64)).collect::<Vec<_>>(),
            ),
            2 => Column::new(
                name.into(),
                numbers.iter().map(|n| n.map(|n| n % 2 == 0)).collect::<Vec<_>>(),
            ),
            3 => {
                let lists = texts.iter().map(|text| Series::new("".into(), [text.clone()]));
                Column::new(name.into(), lists.collect::<Vec<_>>())
            }
            _ => Column::new(name.into(), texts),
        });
    }
    let mut bytes = Vec::new();
    let compression = [
        ParquetCompression::Uncompressed,
        ParquetCompression::Snappy,
        ParquetCompression::Zstd(None),
    ];
    let written = DataFrame::new(rows, columns).and_then(|mut frame| {
        ParquetWriter::new(&mut bytes)
            .with_compression(compression[random.below(3)])
            .with_row_group_size(Some(1 + random.below(6)))
            .finish(&mut frame)
    });
    written.map(|_| bytes).unwrap_or_else(|_| b"PAR1PAR1".to_vec())
}

/// The next file of a kind: of the structure where that is what is wanted, then its bytes.
pub(super) fn next(
    kind: &str,
    random: &mut Random,
    seeds: &[Vec<u8>],
    plain: &[Vec<u8>],
) -> Vec<u8> {
    let seed = &seeds[random.below(seeds.len())];
    match kind {
        "gz" | "zst" if random.below(3) > 0 => {
            let mut inner = Vec::new();
            let read = match kind {
                "gz" => flate2::read::MultiGzDecoder::new(seed.as_slice())
                    .take(1 << 20)
                    .read_to_end(&mut inner),
                _ => zstd::stream::read::Decoder::new(seed.as_slice())
                    .and_then(|decoder| decoder.take(1 << 20).read_to_end(&mut inner)),
            };
            if read.is_err() && inner.is_empty() {
                inner.clone_from(&plain[random.below(plain.len())]);
            }
            let inner = damaged(&inner, random, plain);
            let mut bytes = if kind == "gz" {
                gzip(&inner)
            } else {
                zstd::encode_all(inner.as_slice(), 1).unwrap()
            };
            if random.below(4) == 0 {
                damage(&mut bytes, random, seeds);
            }
            bytes
        }
        "parquet" => {
            let mut bytes = if random.below(3) == 0 { parquet(random) } else { seed.clone() };
            for _ in 0..1 + random.below(3) {
                // The index at the end says what the rest is.
                let kept = if random.below(2) == 0 { bytes.len() / 2 } else { 0 };
                let mut rest = bytes.split_off(kept);
                damage(&mut rest, random, seeds);
                bytes.extend(rest);
            }
            if random.below(4) > 0 && bytes.len() > 8 {
                let end = bytes.len() - 4;
                bytes[end..].copy_from_slice(b"PAR1");
            }
            bytes
        }
        _ => damaged(seed, random, plain),
    }
}
