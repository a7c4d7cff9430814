//! What a JPEG or JPEG 2000 frame says of itself, read before a decoder may allocate for it.
//!
//! Rows, Columns and `BitsAllocated` of the data set and the frame's own header can disagree; decoders
//! believe the latter, their callers the former.

/// Size and sample format of one compressed frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) components: usize,
    /// Bits per sample.
    pub(super) precision: u16,
    pub(super) process: Process,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Process {
    /// Discrete cosine transform.
    JpegLossy(ColourHints),
    JpegLossless,
    Jpeg2000,
}

/// By what a decoder that has no data set guesses whether three components are RGB or YCbCr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColourHints {
    /// Offsets of the component identifiers in the frame and scan headers, component by component.
    identifiers: Vec<usize>,
    /// Whether the stream itself (JFIF or Adobe marker) says YCbCr.
    marked_ycbcr: bool,
}

/// Whether a fragment is the first of a frame: JPEG, JPEG-LS or JPEG 2000.
pub(super) fn begins(fragment: &[u8]) -> bool {
    matches!(
        fragment,
        [0xff, 0xd8, 0xff, ..] | [0xff, 0x4f, 0xff, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', ..]
    )
}

/// Reads the header of a frame. `None` if it is neither JPEG nor JPEG 2000 or is cut off.
pub(super) fn inspect(bytes: &[u8]) -> Option<Frame> {
    match bytes {
        [0xff, 0xd8, ..] => jpeg(bytes),
        [0xff, 0x4f, ..] => jpeg2000(bytes),
        // A JP2 container is not allowed in DICOM, but some writers put one.
        [0, 0, 0, 12, b'j', b'P', ..] => {
            let start = bytes.windows(4).position(|w| w == [0xff, 0x4f, 0xff, 0x51])?;
            jpeg2000(&bytes[start..])
        }
        _ => None,
    }
}

/// The frame with component identifiers that a decoder takes for RGB, where the data set says RGB and
/// the stream does not contradict it.
pub(super) fn marked_rgb(bytes: &[u8], hints: &ColourHints) -> Option<Vec<u8>> {
    if hints.marked_ycbcr || !hints.identifiers.len().is_multiple_of(3) {
        return None;
    }
    let mut bytes = bytes.to_vec();
    for (index, &at) in hints.identifiers.iter().enumerate() {
        bytes[at] = b"RGB"[index % 3];
    }
    Some(bytes)
}

fn jpeg(bytes: &[u8]) -> Option<Frame> {
    let mut at = 2;
    let mut marked_ycbcr = false;
    let mut frame: Option<Frame> = None;
    let mut identifiers = Vec::new();
    loop {
        while *bytes.get(at)? != 0xff || *bytes.get(at + 1)? == 0xff {
            at += 1;
        }
        let marker = bytes[at + 1];
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            at += 2;
            continue;
        }
        let length = usize::from(be16(bytes, at + 2)?);
        let content = at + 4;
        match marker {
            0xe0 if bytes.get(content..)?.starts_with(b"JFIF") => marked_ycbcr = true,
            0xee if bytes.get(content..)?.starts_with(b"Adobe") => {
                marked_ycbcr = *bytes.get(content + 11)? == 1;
            }
            // Every start of frame but DHT (C4), JPG (C8) and DAC (CC), which share the range.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let components = usize::from(*bytes.get(content + 5)?);
                identifiers.extend((0..components).map(|c| content + 6 + 3 * c));
                let lossless = matches!(marker, 0xc3 | 0xc7 | 0xcb | 0xcf);
                frame = Some(Frame {
                    rows: usize::from(be16(bytes, content + 1)?),
                    columns: usize::from(be16(bytes, content + 3)?),
                    components,
                    precision: u16::from(*bytes.get(content)?),
                    process: if lossless {
                        Process::JpegLossless
                    } else {
                        Process::JpegLossy(ColourHints {
                            identifiers: Vec::new(),
                            marked_ycbcr: false,
                        })
                    },
                });
            }
            0xda => {
                let components = usize::from(*bytes.get(content)?);
                identifiers.extend((0..components).map(|c| content + 1 + 2 * c));
                let mut frame = frame?;
                bytes.get(*identifiers.last()?)?;
                if let Process::JpegLossy(hints) = &mut frame.process {
                    *hints = ColourHints { identifiers, marked_ycbcr };
                }
                return Some(frame);
            }
            _ => {}
        }
        at += 2 + length.max(2);
    }
}

fn jpeg2000(bytes: &[u8]) -> Option<Frame> {
    // SIZ follows SOC at once (ISO 15444-1 A.5.1): Xsiz, Ysiz, XOsiz, YOsiz, four tile fields, Csiz, Ssiz.
    if bytes.get(2..4)? != [0xff, 0x51] {
        return None;
    }
    let columns = be32(bytes, 8)?.checked_sub(be32(bytes, 16)?)?;
    let rows = be32(bytes, 12)?.checked_sub(be32(bytes, 20)?)?;
    Some(Frame {
        rows: rows as usize,
        columns: columns as usize,
        components: usize::from(be16(bytes, 40)?),
        precision: u16::from(*bytes.get(42)? & 0x7f) + 1,
        process: Process::Jpeg2000,
    })
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start of frame (baseline, 8 bits, 3 rows, 5 columns, components 1 2 3) and start of scan.
    fn colour_jpeg(app: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8];
        bytes.extend_from_slice(app);
        bytes.extend_from_slice(&[0xff, 0xc0, 0, 17, 8, 0, 3, 0, 5, 3]);
        bytes.extend_from_slice(&[1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]);
        bytes.extend_from_slice(&[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]);
        bytes
    }

    #[test]
    fn jpeg_size_and_precision_come_from_its_frame_header() {
        let frame = inspect(&colour_jpeg(&[])).unwrap();
        assert_eq!((frame.rows, frame.columns, frame.components, frame.precision), (3, 5, 3, 8));
    }

    #[test]
    fn rgb_is_marked_unless_the_stream_says_ycbcr() {
        let hints = |bytes: &[u8]| match inspect(bytes).unwrap().process {
            Process::JpegLossy(hints) => hints,
            other => panic!("{other:?}"),
        };
        let plain = colour_jpeg(&[]);
        let marked = marked_rgb(&plain, &hints(&plain)).unwrap();
        assert_eq!(marked.iter().filter(|b| b"RGB".contains(b)).count(), 6);
        let jfif = colour_jpeg(b"\xff\xe0\0\x06JFIF");
        assert!(marked_rgb(&jfif, &hints(&jfif)).is_none());
    }

    #[test]
    fn cut_headers_are_not_a_frame() {
        let whole = colour_jpeg(&[]);
        for length in 0..whole.len() - 8 {
            assert!(inspect(&whole[..length]).is_none(), "{length}");
        }
    }
}
