//! Damaged files: no panic, no hang, no memory beyond reason, whatever bytes come in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cdal::codec;
use dicom_dictionary_std::uids;
use tempfile::tempdir;

use crate::scripts::run_tool;
use crate::synthetic as made;

/// `CDAL_DAMAGE_ROUNDS` asks for more.
const ROUNDS: u64 = 500;

/// A generator of its own, so that a round that fails can be run again by its number.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Changes, removes, repeats or cuts a few bytes; lengths and counts are drawn towards their extremes.
pub(crate) fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][random.below(6)],
            2 => {
                let end = (at + 4).min(bytes.len());
                bytes[at..end].fill([0, 0xff][random.below(2)]);
            }
            3 => drop(bytes.drain(at..(at + random.below(40)).min(bytes.len()))),
            4 => {
                let copy = bytes[at..(at + random.below(200)).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
}

fn survive(name: &str, original: &Path) {
    let folder = tempdir().unwrap();
    let extension = original.extension().unwrap_or_default();
    let path = folder.path().join("damaged").with_extension(extension);
    let whole = std::fs::read(original).unwrap();
    let rounds = std::env::var("CDAL_DAMAGE_ROUNDS").ok().and_then(|text| text.parse().ok());
    let (mut read, mut refused) = (0, 0);
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let mut bytes = whole.clone();
        damage(&mut bytes, &mut Random(round));
        std::fs::write(&path, &bytes).unwrap();
        let began = Instant::now();
        match std::panic::catch_unwind(|| codec::read(&path).is_ok()) {
            Ok(true) => read += 1,
            Ok(false) => refused += 1,
            Err(cause) => panic!("{name}: round {round} panics: {cause:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: round {round} hangs");
    }
    println!("{name}: {read} read, {refused} refused");
}

#[test]
fn damaged_dicom_files() {
    let folder = tempdir().unwrap();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(1));
    survive("explicit", &plain);
    let implicit = uids::IMPLICIT_VR_LITTLE_ENDIAN;
    survive("implicit", &made::write_as(folder.path(), "i.dcm", made::slice(1), implicit));
    survive("enhanced", &made::write(folder.path(), "e.dcm", made::enhanced(&[1, 0])));
}

#[test]
fn damaged_compressed_dicom_files() {
    let folder = tempdir().unwrap();
    let plain = made::write(folder.path(), "plain.dcm", made::slice(1));
    for (tool, option) in
        [("dcmcjpeg", "+e1"), ("dcmcrle", "+un"), ("gdcmconv", "--j2k"), ("gdcmconv", "--jpeg")]
    {
        let packed = folder.path().join("packed.dcm");
        if run_tool(tool, &[option.as_ref(), &plain, &packed]).is_some() {
            survive(&format!("{tool} {option}"), &packed);
        }
    }
}

#[test]
fn damaged_volumes_and_rasters() {
    let folder = tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let mask = ndarray::Array3::<u8>::ones((3, 4, 5));
    let packed = codec::nifti::encode_mask(&codec::Source::Raster, None, &mask).unwrap();
    std::fs::write(path("volume.nii.gz"), &packed).unwrap();
    survive("nii.gz", &path("volume.nii.gz"));
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(packed.as_slice());
    std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
    std::fs::write(path("volume.nii"), plain).unwrap();
    survive("nii", &path("volume.nii"));

    let pixels: Vec<u8> = (0..30 * 20 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let mut encoder = png::Encoder::new(std::fs::File::create(path("image.png")).unwrap(), 30, 20);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    survive("png", &path("image.png"));

    for (name, compression) in [
        ("lzw.tif", tiff::encoder::Compression::Lzw),
        ("plain.tif", tiff::encoder::Compression::Uncompressed),
    ] {
        let file = std::fs::File::create(path(name)).unwrap();
        let mut encoder =
            tiff::encoder::TiffEncoder::new(file).unwrap().with_compression(compression);
        encoder.write_image::<tiff::encoder::colortype::RGB8>(30, 20, &pixels).unwrap();
        drop(encoder);
        survive(name, &path(name));
    }
}
