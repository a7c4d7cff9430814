//! `NIfTI` in and out, held against nibabel; PNG and TIFF in.

use std::path::{Path, PathBuf};

use cdal::codec::{self, Case, CodecError, nifti};
use ndarray::Array3;
use tempfile::tempdir;

use crate::scripts::run_python;

fn only(path: &Path) -> Case {
    codec::read(path).unwrap().remove(0)
}

fn pattern(case: &Case) -> Array3<u8> {
    let (_, slices, rows, columns) = case.volume.samples.dim();
    Array3::from_shape_fn((slices, rows, columns), |(k, j, i)| ((k * 7 + j * 3 + i) % 5) as u8)
}

/// Writes a mask for the image, reads it back and has nibabel compare it.
fn check_mask(image: &Path, case: &Case) {
    let folder = tempdir().unwrap();
    let mask = pattern(case);
    let (path, values) = (folder.path().join("mask.nii.gz"), folder.path().join("values"));
    let bytes = nifti::encode_mask(&case.source, case.volume.geometry.as_ref(), &mask).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(&values, mask.iter().copied().collect::<Vec<u8>>()).unwrap();
    assert_eq!(nifti::read_mask(&path).unwrap(), mask);
    assert_eq!(only(&path).volume.geometry, case.volume.geometry);
    run_python("check_nifti.py", &[image, &path, &values]);
}

#[test]
fn every_kind_of_volume_reads_as_nibabel_reads_it_and_its_mask_fits() {
    let folder = tempdir().unwrap();
    if run_python("make_nifti.py", &[folder.path()]).is_none() {
        return;
    }
    let mut images: Vec<PathBuf> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .collect();
    images.sort();
    assert_eq!(images.len(), 25);
    for image in images {
        let case = only(&image);
        let values = std::fs::read(folder.path().join(format!("{}.f32", case.name))).unwrap();
        let expected: Vec<f32> = values
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(
            case.volume.samples.iter().copied().collect::<Vec<_>>(),
            expected,
            "{}",
            case.name
        );
        // RAS (10, -20, 30) is LPS (-10, 20, 30); the first axis runs against R.
        let grid = case.volume.geometry.unwrap();
        let near = |a: [f64; 3], b: [f64; 3]| (0..3).all(|i| (a[i] - b[i]).abs() < 1e-5);
        assert!(near(grid.origin, [-10.0, 20.0, 30.0]), "{}: {grid:?}", case.name);
        assert!(near(grid.spacing, [0.5, 0.75, 3.0]), "{}: {grid:?}", case.name);
        let (sin, cos) = 0.4_f64.sin_cos();
        assert!(near(grid.direction[0], [cos, sin, 0.0]), "{}: {grid:?}", case.name);
        assert!(near(grid.direction[1], [sin, -cos, 0.0]), "{}: {grid:?}", case.name);
        check_mask(&image, &case);
    }
}

#[test]
fn masks_of_real_volumes_keep_their_affine() {
    let folders = std::env::var_os("CDAL_SAMPLES").unwrap_or_default();
    let mut read = 0;
    for folder in std::env::split_paths(&folders) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten().take(5) {
            let path = entry.path();
            if path.to_string_lossy().ends_with(".nii.gz") {
                check_mask(&path, &only(&path));
                read += 1;
            }
        }
    }
    println!("{read} volumes of CDAL_SAMPLES");
}

/// A little-endian float volume of 4 x 3 x 2 voxels of 1 mm, with `change` made to its bytes.
fn volume(change: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let mut bytes = vec![0; 352];
    bytes[..4].copy_from_slice(&348_i32.to_le_bytes());
    for (axis, size) in [3_i16, 4, 3, 2, 1, 1, 1, 1].into_iter().enumerate() {
        bytes[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&size.to_le_bytes());
        bytes[76 + 4 * axis..80 + 4 * axis].copy_from_slice(&1_f32.to_le_bytes());
    }
    bytes[70..72].copy_from_slice(&16_i16.to_le_bytes());
    bytes[72..74].copy_from_slice(&32_i16.to_le_bytes());
    bytes[108..112].copy_from_slice(&352_f32.to_le_bytes());
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes.extend((0..24_u16).flat_map(|value| f32::from(value).to_le_bytes()));
    change(&mut bytes);
    let folder = tempdir().unwrap();
    let path = folder.path().join("volume.nii");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_plain_volume_without_forms_has_its_sizes() {
    let (_folder, path) = volume(|_| {});
    let case = only(&path);
    assert_eq!(case.volume.samples[[0, 1, 2, 3]], 23.0);
    assert_eq!(case.volume.geometry.unwrap().spacing, [1.0; 3]);
}

#[test]
fn damaged_and_unfit_volumes_are_refused() {
    let fault = |change: &dyn Fn(&mut Vec<u8>)| {
        let (_folder, path) = volume(change);
        codec::read(&path).unwrap_err()
    };
    let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| {
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    let cut = fault(&|bytes| bytes.truncate(400));
    assert!(matches!(cut, CodecError::Truncated { needed: 448, present: 400, .. }), "{cut}");
    let nan = fault(&|bytes| put(bytes, 352 + 4 * 23, &f32::NAN.to_le_bytes()));
    assert!(matches!(nan, CodecError::NotFinite { slice: 1, row: 2, column: 3, .. }), "{nan}");
    let huge = fault(&|bytes| {
        for axis in 1..4 {
            put(bytes, 40 + 2 * axis, &30_000_i16.to_le_bytes());
        }
    });
    assert!(matches!(huge, CodecError::TooLarge { .. }), "{huge}");
    let series = fault(&|bytes| {
        put(bytes, 40, &4_i16.to_le_bytes());
        put(bytes, 48, &2_i16.to_le_bytes());
    });
    assert!(series.to_string().contains("more than one volume"), "{series}");
    let complex = fault(&|bytes| put(bytes, 70, &32_i16.to_le_bytes()));
    assert!(matches!(complex, CodecError::Unsupported { .. }), "{complex}");
    let sheared = fault(&|bytes| {
        put(bytes, 254, &1_i16.to_le_bytes());
        for (at, value) in [(280, 1_f32), (284, 0.2), (300, 1.0), (320, 1.0)] {
            put(bytes, at, &value.to_le_bytes());
        }
    });
    assert!(matches!(sheared, CodecError::Sheared { .. }), "{sheared}");
}

#[test]
fn a_small_gzip_that_declares_much_is_refused_before_memory_is_taken() {
    use std::io::Write;
    let (folder, path) = volume(|bytes| {
        for axis in 1..4 {
            bytes[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&800_i16.to_le_bytes());
        }
    });
    let packed = folder.path().join("bomb.nii.gz");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&std::fs::read(path).unwrap()).unwrap();
    std::fs::write(&packed, encoder.finish().unwrap()).unwrap();
    let error = codec::read(&packed).unwrap_err();
    assert!(matches!(error, CodecError::Truncated { .. }), "{error}");
}

fn write_png(path: &Path, colour: png::ColorType, depth: png::BitDepth, data: &[u8]) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), 2, 2);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == png::ColorType::Indexed {
        encoder.set_palette(vec![10, 20, 30, 40, 50, 60]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
}

#[test]
fn png_of_every_colour_type_reads_as_grey_or_rgb() {
    use png::{BitDepth, ColorType};
    let folder = tempdir().unwrap();
    let path = folder.path().join("image.png");
    let read = |colour, depth, data: &[u8]| {
        write_png(&path, colour, depth, data);
        let volume = only(&path).volume;
        let values: Vec<f32> = volume.samples.iter().copied().collect();
        (volume.samples.dim().0, values, volume.nominal_range.unwrap().1)
    };
    let grey = (1, vec![1.0, 2.0, 3.0, 4.0], 255.0);
    assert_eq!(read(ColorType::Grayscale, BitDepth::Eight, &[1, 2, 3, 4]), grey);
    let with_alpha = [1, 9, 2, 9, 3, 9, 4, 9];
    assert_eq!(read(ColorType::GrayscaleAlpha, BitDepth::Eight, &with_alpha), grey);
    let wide = (1, vec![257.0, 2.0, 3.0, 4.0], 65535.0);
    assert_eq!(read(ColorType::Grayscale, BitDepth::Sixteen, &[1, 1, 0, 2, 0, 3, 0, 4]), wide);
    let bits = (1, vec![255.0, 0.0, 0.0, 255.0], 255.0);
    assert_eq!(read(ColorType::Grayscale, BitDepth::One, &[0x80, 0x40]), bits);
    let planes = vec![1.0, 4.0, 7.0, 10.0, 2.0, 5.0, 8.0, 11.0, 3.0, 6.0, 9.0, 12.0];
    let rgb: Vec<u8> = (1..=12).collect();
    assert_eq!(read(ColorType::Rgb, BitDepth::Eight, &rgb), (3, planes.clone(), 255.0));
    let rgba: Vec<u8> = rgb.chunks(3).flat_map(|p| [p[0], p[1], p[2], 99]).collect();
    assert_eq!(read(ColorType::Rgba, BitDepth::Eight, &rgba), (3, planes, 255.0));
    let palette = vec![10.0, 40.0, 40.0, 10.0, 20.0, 50.0, 50.0, 20.0, 30.0, 60.0, 60.0, 30.0];
    assert_eq!(read(ColorType::Indexed, BitDepth::Eight, &[0, 1, 1, 0]), (3, palette, 255.0));
}

#[test]
fn tiff_of_the_common_kinds_reads_as_grey_or_rgb() {
    use tiff::encoder::{Compression, TiffEncoder, colortype};
    let folder = tempdir().unwrap();
    let path = folder.path().join("image.tif");
    let file = || std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let first = |path: &Path| only(path).volume.samples.iter().copied().collect::<Vec<f32>>();

    let mut encoder = TiffEncoder::new(file()).unwrap().with_compression(Compression::Lzw);
    encoder.write_image::<colortype::RGB8>(2, 1, &[1, 2, 3, 4, 5, 6]).unwrap();
    drop(encoder);
    assert_eq!(first(&path), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);

    let mut encoder = TiffEncoder::new(file()).unwrap();
    encoder.write_image::<colortype::Gray16>(2, 1, &[1, 60_000]).unwrap();
    drop(encoder);
    assert_eq!(first(&path), [1.0, 60_000.0]);
    assert_eq!(only(&path).volume.nominal_range, Some((0.0, 65535.0)));

    let mut encoder = TiffEncoder::new(file()).unwrap();
    encoder.write_image::<colortype::Gray32Float>(2, 1, &[0.5, f32::INFINITY]).unwrap();
    drop(encoder);
    let error = codec::read(&path).unwrap_err();
    assert!(matches!(error, CodecError::NotFinite { column: 1, .. }), "{error}");

    let mut encoder = TiffEncoder::new(file()).unwrap();
    encoder.write_image::<colortype::Gray8>(2, 1, &[1, 2]).unwrap();
    encoder.write_image::<colortype::Gray8>(2, 1, &[3, 4]).unwrap();
    drop(encoder);
    let error = codec::read(&path).unwrap_err();
    assert!(error.to_string().contains("several pages"), "{error}");
}
