//! Sequences under value representation UN (PS3.5 section 6.2.2): what archives make of private
//! sequences when they turn Implicit VR into Explicit VR. Their content stays Implicit VR, which the
//! parser underneath does not know; it reads on as Explicit VR and fails.

const UNDEFINED: u32 = u32::MAX;
const ITEM: [u8; 4] = [0xfe, 0xff, 0x00, 0xe0];
const ITEM_END: [u8; 4] = [0xfe, 0xff, 0x0d, 0xe0];
const SEQUENCE_END: [u8; 4] = [0xfe, 0xff, 0xdd, 0xe0];

/// Gives every UN element of undefined length in `data` (Explicit VR Little Endian) its true length, so
/// that it is taken as opaque bytes. Where the data set is damaged the rest is left as it stands.
pub(super) fn close(data: &mut [u8]) {
    let mut at = 0;
    // Items of encapsulated pixel data hold bytes, all others hold elements.
    let mut in_fragments = false;
    while let Some(head) = data.get(at..at + 8) {
        let tag = [head[0], head[1], head[2], head[3]];
        if tag[..2] == ITEM[..2] {
            let length = u32_at(data, at + 4).unwrap_or(0);
            at += 8;
            if in_fragments && tag == ITEM {
                at = at.saturating_add(length as usize);
            }
            in_fragments &= tag != SEQUENCE_END;
            continue;
        }
        let vr = [head[4], head[5]];
        if !is_long(vr) {
            at += 8 + usize::from(u16::from_le_bytes([head[6], head[7]]));
            continue;
        }
        let Some(length) = u32_at(data, at + 8) else { return };
        let value = at + 12;
        match (&vr, length) {
            (b"SQ", _) => at = value,
            (b"UN", UNDEFINED) => {
                let Some(end) = end_of_implicit_sequence(data, value) else { return };
                let Ok(known) = u32::try_from(end - value) else { return };
                data[at + 8..value].copy_from_slice(&known.to_le_bytes());
                at = end;
            }
            (_, UNDEFINED) => {
                in_fragments = true;
                at = value;
            }
            _ => at = value.saturating_add(length as usize),
        }
    }
}

/// Value representations with a 32-bit length in Explicit VR (PS3.5 table 7.1-1).
pub(super) fn is_long(vr: [u8; 2]) -> bool {
    const LONG: [&[u8; 2]; 13] =
        [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"];
    LONG.contains(&&vr)
}

/// Position behind the delimiter of the sequence whose first item stands at `at`.
fn end_of_implicit_sequence(data: &[u8], mut at: usize) -> Option<usize> {
    let mut open = 1_usize;
    while open > 0 {
        let tag: [u8; 4] = data.get(at..at + 4)?.try_into().ok()?;
        let length = u32_at(data, at + 4)?;
        at += 8;
        match (tag, length) {
            (ITEM_END | SEQUENCE_END, _) => open -= 1,
            (_, UNDEFINED) => open += 1,
            _ => at = at.checked_add(length as usize)?,
        }
    }
    (at <= data.len()).then_some(at)
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (0009,1000) UN with one item, of undefined or known length, that holds two short elements and a
    /// nested sequence.
    fn unknown_sequence(item: u32) -> Vec<u8> {
        let mut bytes = b"\x09\x00\x00\x10UN\0\0\xff\xff\xff\xff".to_vec();
        let nested = [ITEM.as_slice(), &[0; 4], &SEQUENCE_END, &[0; 4]].concat();
        let content =
            [b"\x09\x00\x01\x10\x04\0\0\0ABCD\x09\x00\x02\x10\xff\xff\xff\xff".as_slice(), &nested]
                .concat();
        let length = if item == UNDEFINED { item } else { content.len() as u32 };
        bytes.extend([ITEM.as_slice(), &length.to_le_bytes(), &content].concat());
        if item == UNDEFINED {
            bytes.extend([ITEM_END.as_slice(), &[0; 4]].concat());
        }
        bytes.extend([SEQUENCE_END.as_slice(), &[0; 4]].concat());
        bytes
    }

    #[test]
    fn unknown_sequences_get_their_true_length() {
        for item in [UNDEFINED, 0] {
            let one = unknown_sequence(item);
            let mut data = [b"\x08\x00\x60\x00CS\x02\0MR".as_slice(), &one, &one].concat();
            close(&mut data);
            let first = u32_at(&data, 10 + 8).unwrap();
            assert_eq!(first as usize, one.len() - 12);
            assert_eq!(u32_at(&data, 10 + one.len() + 8), Some(first));
        }
    }

    #[test]
    fn fragments_and_known_lengths_are_left_alone() {
        let mut fragment = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff".to_vec();
        fragment.extend([ITEM.as_slice(), &12_u32.to_le_bytes()].concat());
        fragment.extend(b"\x09\x00\x00\x10UN\0\0\xff\xff\xff\xff");
        fragment.extend([SEQUENCE_END.as_slice(), &[0; 4]].concat());
        let mut data = fragment.clone();
        close(&mut data);
        assert_eq!(data, fragment);
    }

    #[test]
    fn damaged_data_ends_the_search() {
        let whole = unknown_sequence(UNDEFINED);
        for length in 0..whole.len() {
            let mut cut = whole[..length].to_vec();
            close(&mut cut);
            assert_eq!(cut, whole[..length]);
        }
    }
}
