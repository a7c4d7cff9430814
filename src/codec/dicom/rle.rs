//! RLE Lossless (PS3.5 annex G).
//!
//! Written here because the decoder of the DICOM crates panics on damaged segment tables and knows no
//! 32-bit samples.

const HEADER: usize = 64;
const MAX_SEGMENTS: usize = 15;

/// Decodes one frame into interleaved little-endian samples of `width` bytes. `None` if the frame is
/// damaged or holds fewer pixels than `pixels`.
pub(super) fn decode(
    bytes: &[u8],
    pixels: usize,
    samples_per_pixel: usize,
    width: usize,
) -> Option<Vec<u8>> {
    let word = |index: usize| {
        let at = 4 * index;
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let segments = word(0)?;
    if segments != samples_per_pixel * width || segments > MAX_SEGMENTS || bytes.len() < HEADER {
        return None;
    }
    let mut out = vec![0; pixels * segments];
    for segment in 0..segments {
        let start = word(segment + 1)?;
        let end = if segment + 1 < segments { word(segment + 2)? } else { bytes.len() };
        // Segments go sample by sample, in each from the most significant byte down.
        let (sample, byte) = (segment / width, width - 1 - segment % width);
        let targets = out.iter_mut().skip(sample * width + byte).step_by(segments);
        unpack(bytes.get(start..end)?, targets, pixels)?;
    }
    Some(out)
}

/// `PackBits`: the first `count` bytes of a segment.
fn unpack<'a>(
    mut packed: &[u8],
    mut targets: impl Iterator<Item = &'a mut u8>,
    count: usize,
) -> Option<()> {
    let mut left = count;
    while left > 0 {
        let (&control, rest) = packed.split_first()?;
        packed = rest;
        match control {
            0..=127 => {
                let run = usize::from(control) + 1;
                let literal = packed.get(..run)?;
                packed = &packed[run..];
                for (&value, target) in literal.iter().zip(targets.by_ref().take(left)) {
                    *target = value;
                }
                left = left.saturating_sub(run);
            }
            128 => {}
            129..=255 => {
                let run = 257 - usize::from(control);
                let (&value, rest) = packed.split_first()?;
                packed = rest;
                for target in targets.by_ref().take(run.min(left)) {
                    *target = value;
                }
                left = left.saturating_sub(run);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(segments: &[&[u8]]) -> Vec<u8> {
        let mut header = vec![segments.len() as u32];
        let mut body = Vec::new();
        for segment in segments {
            header.push((HEADER + body.len()) as u32);
            body.extend_from_slice(segment);
        }
        header.resize(HEADER / 4, 0);
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(body);
        bytes
    }

    #[test]
    fn sixteen_bit_samples_are_joined_from_their_high_and_low_segments() {
        // Pixels 0x0102, 0x0103, 0x0104: the high bytes as a run, the low bytes as a literal.
        let bytes = frame(&[&[0xfe, 1], &[2, 2, 3, 4]]);
        assert_eq!(decode(&bytes, 3, 1, 2).unwrap(), [2, 1, 3, 1, 4, 1]);
    }

    #[test]
    fn colour_segments_are_interleaved() {
        let bytes = frame(&[&[1, 1, 2], &[1, 3, 4], &[1, 5, 6]]);
        assert_eq!(decode(&bytes, 2, 3, 1).unwrap(), [1, 3, 5, 2, 4, 6]);
    }

    #[test]
    fn damaged_frames_are_refused() {
        let bytes = frame(&[&[0xfe, 1], &[2, 2, 3, 4]]);
        assert!(decode(&bytes, 4, 1, 2).is_none(), "fewer pixels than declared");
        assert!(decode(&bytes[..60], 3, 1, 2).is_none(), "no table");
        let mut wild = bytes;
        wild[4..8].fill(0xff);
        assert!(decode(&wild, 3, 1, 2).is_none(), "segment out of the frame");
    }
}
