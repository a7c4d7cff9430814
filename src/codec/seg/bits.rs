/// Packs frames of a BINARY segmentation (PS3.5 section 8.1.1): pixels least significant bit first,
/// frames following each other without padding, the whole padded to an even number of bytes.
pub(super) fn pack(pixels: impl ExactSizeIterator<Item = bool>) -> Vec<u8> {
    let mut bytes = vec![0; pixels.len().div_ceil(16) * 2];
    for (index, pixel) in pixels.enumerate() {
        bytes[index / 8] |= u8::from(pixel) << (index % 8);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_run_on_inside_a_byte() {
        // Two frames of five pixels: the second begins at bit 5.
        let pixels = [true, false, false, false, true, true, true, false, false, true];
        assert_eq!(pack(pixels.into_iter()), [0b0111_0001, 0b10]);
        assert_eq!(pack([true; 17].into_iter()), [0xff, 0xff, 1, 0]);
    }

    proptest! {
        #[test]
        fn every_pixel_is_found_at_its_bit(pixels in prop::collection::vec(any::<bool>(), 0..200)) {
            let packed = pack(pixels.iter().copied());
            prop_assert_eq!(packed.len() % 2, 0);
            prop_assert!(packed.len() * 8 < pixels.len() + 16);
            let bits = packed.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
            let (found, padding): (Vec<_>, Vec<_>) =
                bits.enumerate().partition(|(index, _)| *index < pixels.len());
            prop_assert!(found.iter().map(|(_, bit)| *bit).eq(pixels.iter().copied()));
            prop_assert!(padding.iter().all(|(_, bit)| !bit));
        }
    }
}
