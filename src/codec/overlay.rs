//! A picture of a result for people: slices in grey or colour with the labels drawn over them.

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, Axis};

use super::CodecError;
use crate::domain::{Label, Segmentation, Volume};

/// Tiles of a montage at most; more slices are thinned out evenly.
const MAX_TILES: usize = 30;
/// Longer side of a tile, and of a picture that shows one slice, alone or beside others of it, pixels.
const TILE_SIDE: f64 = 256.0;
const SINGLE_SIDE: f64 = 1024.0;
const BESIDE_SIDE: f64 = 512.0;
const GAP: usize = 2;
/// Share of the label's colour inside its contour.
const FILL: f32 = 0.25;
/// Shares of the values below black and above white.
const CLIPPED: f64 = 0.005;

/// Draws `mask` ([D, H, W]) over `volume` as an RGB PNG: one picture for a single slice, else a montage
/// of the slices that hold a label with a neighbour on either side. Pixels are scaled to a visible size
/// and to their true aspect without smoothing, and shown as radiology shows them: the patient's left on
/// the right, anterior or superior on top.
///
/// # Errors
/// If `mask` is not the size of `volume`.
pub fn png(volume: &Volume, mask: &Array3<u8>, labels: &[Label]) -> Result<Vec<u8>, CodecError> {
    encode(&picture(volume, mask, labels)?)
}

/// As [`png`], as [height, width, RGB].
pub(super) fn picture(
    volume: &Volume,
    mask: &Array3<u8>,
    labels: &[Label],
) -> Result<Array3<u8>, CodecError> {
    draw(volume, &slices_to_show(mask), Layer::Labels(mask, labels), SINGLE_SIDE)
}

/// The same slices three times, as [`png`] draws them: the image alone, with the mask, with the votes' disagreement.
///
/// # Errors
/// As [`png`].
pub fn views(
    volume: &Volume,
    segmentation: &Segmentation,
    labels: &[Label],
) -> Result<[Vec<u8>; 3], CodecError> {
    let Segmentation { mask, agreement } = segmentation;
    let shown = slices_to_show(mask);
    let disagreement = disagreement(agreement);
    let view = |layer| encode(&draw(volume, &shown, layer, BESIDE_SIDE)?);
    Ok([
        view(Layer::Nothing)?,
        view(Layer::Labels(mask, labels))?,
        view(Layer::Heat(&disagreement))?,
    ])
}

/// From agreement [L, D, H, W] to [D, H, W]: 0 where all votes say the same of every label, 1 where they are split
/// evenly over one.
fn disagreement(agreement: &Array4<f32>) -> Array3<f32> {
    let split = |share: f32| 1.0 - (2.0 * share - 1.0).abs();
    agreement.map_axis(Axis(0), |shares| shares.iter().copied().map(split).fold(0.0, f32::max))
}

/// What is drawn over an image; arrays are [D, H, W].
#[derive(Clone, Copy)]
enum Layer<'a> {
    Nothing,
    Labels(&'a Array3<u8>, &'a [Label]),
    /// Values in [0, 1].
    Heat(&'a Array3<f32>),
}

impl Layer<'_> {
    fn shape(&self) -> Option<&[usize]> {
        match self {
            Self::Nothing => None,
            Self::Labels(mask, _) => Some(mask.shape()),
            Self::Heat(values) => Some(values.shape()),
        }
    }
}

/// From transparent through red to yellow.
fn heat(under: [f32; 3], value: f32) -> [u8; 3] {
    let value = value.clamp(0.0, 1.0);
    let over = [255.0, 255.0 * (2.0 * value - 1.0).max(0.0), 0.0];
    let share = (2.0 * value).min(1.0);
    std::array::from_fn(|channel| (under[channel] * (1.0 - share) + over[channel] * share) as u8)
}

/// Two masks as [`png`] draws one, both on the slices that hold a label in either, to be looked at side by side.
///
/// # Errors
/// As [`png`].
pub fn pair(
    volume: &Volume,
    masks: [&Array3<u8>; 2],
    labels: &[Label],
) -> Result<[Vec<u8>; 2], CodecError> {
    let mut either = masks[0].clone();
    if masks[1].dim() == either.dim() {
        either.zip_mut_with(masks[1], |a, &b| *a |= b);
    }
    let shown = slices_to_show(&either);
    let one = |mask| draw(volume, &shown, Layer::Labels(mask, labels), SINGLE_SIDE);
    Ok([encode(&one(masks[0])?)?, encode(&one(masks[1])?)?])
}

/// Image, truth, result and the votes' disagreement side by side, a row for each of a few slices, as an RGB PNG.
///
/// # Errors
/// As [`png`].
pub fn panels(
    volume: &Volume,
    truth: &Array3<u8>,
    found: &Segmentation,
    labels: &[Label],
) -> Result<Vec<u8>, CodecError> {
    const ROWS: usize = 4;
    let mut either = truth.clone();
    if found.mask.dim() == either.dim() {
        either.zip_mut_with(&found.mask, |a, &b| *a |= b);
    }
    let disagreement = disagreement(&found.agreement);
    let layers = [
        Layer::Nothing,
        Layer::Labels(truth, labels),
        Layer::Labels(&found.mask, labels),
        Layer::Heat(&disagreement),
    ];
    let shown = thin(slices_to_show(&either), ROWS);
    let tiles = shown.iter().flat_map(|&slice| layers.map(|layer| (slice, layer))).collect();
    let side = if truth.dim().0 == 1 { BESIDE_SIDE } else { TILE_SIDE };
    encode(&montage(volume, tiles, layers.len(), side)?)
}

/// One layer over the slices `shown`, as near to a square as they go; the longer side of a case's only slice is `single`.
fn draw(
    volume: &Volume,
    shown: &[usize],
    layer: Layer<'_>,
    single: f64,
) -> Result<Array3<u8>, CodecError> {
    let side = if volume.samples.dim().1 == 1 { single } else { TILE_SIDE };
    let across = (1..=shown.len()).find(|n| n * n >= shown.len()).unwrap_or(1);
    montage(volume, shown.iter().map(|&slice| (slice, layer)).collect(), across, side)
}

/// Slices with what is drawn over each, `across` in a row, the longer side of each `side` pixels.
fn montage(
    volume: &Volume,
    tiles: Vec<(usize, Layer<'_>)>,
    across: usize,
    side: f64,
) -> Result<Array3<u8>, CodecError> {
    let (channels, slices, rows, columns) = volume.samples.dim();
    let shapes = tiles.iter().filter_map(|(_, layer)| layer.shape());
    if let Some(shape) = shapes.into_iter().find(|shape| **shape != [slices, rows, columns]) {
        return Err(CodecError::Shape {
            what: "the mask's size",
            found: shape.to_vec(),
            expected: vec![slices, rows, columns],
        });
    }
    let (black, white) = display_range(volume, channels);
    let (tile_rows, tile_columns) = tile_size(volume, rows, columns, side);
    let down = tiles.len().div_ceil(across);
    let width = across * (tile_columns + GAP) - GAP;
    let height = down * (tile_rows + GAP) - GAP;
    let [flip_columns, flip_rows] = flips(volume);
    let mut picture = Array3::<u8>::zeros([height, width, 3]);
    for (tile, (slice, layer)) in tiles.into_iter().enumerate() {
        let top = tile / across * (tile_rows + GAP);
        let left = tile % across * (tile_columns + GAP);
        let image = volume.samples.index_axis(Axis(1), slice);
        let labels_here = match layer {
            Layer::Labels(mask, _) => {
                scale(&mask.index_axis(Axis(0), slice), tile_rows, tile_columns)
            }
            _ => ndarray::Array2::zeros([0, 0]),
        };
        for row in 0..tile_rows {
            for column in 0..tile_columns {
                let at = (row * rows / tile_rows, column * columns / tile_columns);
                let under = grey_or_colour(&image, at, black, white);
                let pixel = match layer {
                    Layer::Nothing => under.map(|value| value as u8),
                    Layer::Labels(_, labels) => blend(under, &labels_here, (row, column), labels),
                    Layer::Heat(values) => heat(under, values[[slice, at.0, at.1]]),
                };
                let row = if flip_rows { tile_rows - 1 - row } else { row };
                let column = if flip_columns { tile_columns - 1 - column } else { column };
                for (channel, value) in pixel.into_iter().enumerate() {
                    picture[[top + row, left + column, channel]] = value;
                }
            }
        }
    }
    Ok(picture)
}

/// Slices with a label and their neighbours; the middle one where there is none.
fn slices_to_show(mask: &Array3<u8>) -> Vec<usize> {
    let marked: Vec<bool> = mask.outer_iter().map(|slice| slice.iter().any(|&v| v != 0)).collect();
    let near = |k: usize| (k.saturating_sub(1)..=k + 1).any(|n| marked.get(n) == Some(&true));
    let shown: Vec<usize> = (0..marked.len()).filter(|&k| near(k)).collect();
    if shown.is_empty() { vec![marked.len() / 2] } else { thin(shown, MAX_TILES) }
}

/// At most `most` (at least 2), evenly among them.
fn thin(slices: Vec<usize>, most: usize) -> Vec<usize> {
    match slices.len() {
        n if n <= most => slices,
        n => (0..most).map(|tile| slices[tile * (n - 1) / (most - 1)]).collect(),
    }
}

/// Colour images keep their own range. Grey ones are stretched between percentiles: a nominal range can
/// be far wider than what was used of it.
fn display_range(volume: &Volume, channels: usize) -> (f32, f32) {
    if let (3, Some(range)) = (channels, volume.nominal_range) {
        return range;
    }
    let stride = volume.samples.len().div_ceil(1 << 20); // a million values say enough
    let mut values: Vec<f32> = volume.samples.iter().step_by(stride.max(1)).copied().collect();
    values.sort_by(f32::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    let (black, white) = (at(CLIPPED), at(1.0 - CLIPPED));
    if white > black { (black, white) } else { (black, black + 1.0) }
}

/// Whether columns and rows run against the way they are shown: x and y grow to the left and back of the
/// patient, which lie right and down in a picture; z grows upwards.
fn flips(volume: &Volume) -> [bool; 2] {
    let Some(geometry) = volume.geometry else { return [false, false] };
    let [columns, rows, _] = geometry.closest_axes();
    [columns, rows].map(|(axis, grows)| grows == (axis == 2))
}

/// Rows and columns of a tile whose longer side is `side`, with the aspect of the pixels.
fn tile_size(volume: &Volume, rows: usize, columns: usize, side: f64) -> (usize, usize) {
    let spacing = volume.geometry.map_or([1.0; 3], |geometry| geometry.spacing);
    let (height, width) = (rows as f64 * spacing[1], columns as f64 * spacing[0]);
    let factor = side / height.max(width);
    let pixels = |length: f64| (length * factor).round().clamp(1.0, side) as usize;
    (pixels(height), pixels(width))
}

fn scale(slice: &ArrayView2<'_, u8>, rows: usize, columns: usize) -> ndarray::Array2<u8> {
    let (from_rows, from_columns) = slice.dim();
    ndarray::Array2::from_shape_fn((rows, columns), |(row, column)| {
        slice[[row * from_rows / rows, column * from_columns / columns]]
    })
}

fn grey_or_colour(
    image: &ArrayView3<'_, f32>,
    (row, column): (usize, usize),
    black: f32,
    white: f32,
) -> [f32; 3] {
    let last = image.shape()[0] - 1;
    std::array::from_fn(|channel| {
        let value = image[[channel.min(last), row, column]];
        ((value - black) / (white - black) * 255.0).clamp(0.0, 255.0)
    })
}

/// The label's colour on its contour, a hint of it inside.
fn blend(
    under: [f32; 3],
    labels_here: &ndarray::Array2<u8>,
    (row, column): (usize, usize),
    labels: &[Label],
) -> [u8; 3] {
    let value = labels_here[[row, column]];
    let Some(label) = labels.iter().find(|label| label.value == value) else {
        return under.map(|v| v as u8);
    };
    let neighbours = [
        (row.wrapping_sub(1), column),
        (row + 1, column),
        (row, column.wrapping_sub(1)),
        (row, column + 1),
    ];
    let contour = neighbours.iter().any(|&at| labels_here.get(at) != Some(&value));
    let share = if contour { 1.0 } else { FILL };
    std::array::from_fn(|channel| {
        (under[channel] * (1.0 - share) + f32::from(label.colour[channel]) * share) as u8
    })
}

fn encode(picture: &Array3<u8>) -> Result<Vec<u8>, CodecError> {
    let failed = |error: png::EncodingError| CodecError::encode("overlay PNG", error.to_string());
    let (height, width, _) = picture.dim();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(failed)?;
    let pixels = picture.as_slice().expect("a fresh array is contiguous");
    writer.write_image_data(pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use ndarray::Array4;

    use super::*;
    use crate::domain::Code;

    fn red() -> Label {
        let code = Code { value: "1".into(), scheme: "99X".into(), meaning: "x".into() };
        Label {
            value: 1,
            name: "x".into(),
            colour: [255, 0, 0],
            category: code.clone(),
            kind: code,
        }
    }

    fn volume(slices: usize) -> Volume {
        let samples = Array4::from_shape_fn([1, slices, 50, 35], |(_, _, row, _)| row as f32);
        Volume { samples, geometry: None, nominal_range: None }
    }

    fn decoded(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        (reader.info().width, reader.info().height, pixels)
    }

    #[test]
    fn only_marked_slices_and_their_neighbours_are_shown() {
        let mut mask = Array3::zeros([12, 50, 35]);
        mask[[5, 20, 20]] = 1;
        mask[[6, 20, 20]] = 1;
        assert_eq!(slices_to_show(&mask), [4, 5, 6, 7]);
        let (width, height, pixels) = decoded(&super::png(&volume(12), &mask, &[red()]).unwrap());
        assert_eq!((width, height), (2 * 179 + 2, 2 * 256 + 2));
        assert!(pixels.chunks(3).any(|p| p == [255, 0, 0]), "a contour is drawn");
    }

    #[test]
    fn an_empty_mask_and_a_long_stack_give_a_picture_of_bounded_size() {
        let (width, height, _) =
            decoded(&super::png(&volume(1), &Array3::zeros([1, 50, 35]), &[red()]).unwrap());
        assert_eq!((width, height), (717, 1024));
        let full = Array3::ones([200, 50, 35]);
        assert_eq!(slices_to_show(&full).len(), MAX_TILES);
        assert!(super::png(&volume(200), &full, &[red()]).is_ok());
    }

    #[test]
    fn pictures_are_turned_the_way_radiology_looks_at_them() {
        let mut volume = volume(1);
        let mut turned = |right: [f64; 3], down: [f64; 3]| {
            let direction = [right, down, [0.0; 3]];
            volume.geometry =
                Some(crate::domain::Geometry { origin: [0.0; 3], direction, spacing: [1.0; 3] });
            flips(&volume)
        };
        let (x, y, z) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]);
        assert_eq!(turned(x, y), [false, false], "axial as scanners store it");
        assert_eq!(turned([-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]), [true, true], "axial in RAS");
        assert_eq!(turned(y, z), [false, true], "sagittal, feet on top");
    }

    #[test]
    fn disagreement_is_hot_where_votes_are_split_and_nowhere_else() {
        let mut agreement = Array4::zeros([2, 1, 50, 35]);
        agreement[[0, 0, 10, 10]] = 0.5;
        agreement[[1, 0, 20, 20]] = 1.0;
        let found = disagreement(&agreement);
        assert_eq!((found[[0, 10, 10]], found[[0, 20, 20]], found.sum()), (1.0, 0.0, 1.0));
        let mask = Array3::zeros([1, 50, 35]);
        let segmentation = Segmentation { mask, agreement };
        let views = views(&volume(1), &segmentation, &[red()]).unwrap();
        let yellow = |bytes: &[u8]| decoded(bytes).2.chunks(3).any(|p| p == [255, 255, 0]);
        assert_eq!(views.each_ref().map(|view| yellow(view)), [false, false, true]);
    }

    #[test]
    fn panels_show_image_truth_result_and_doubt_in_this_order() {
        let mut truth = Array3::zeros([9, 50, 35]);
        truth.slice_mut(ndarray::s![1..8, 10..20, 10..20]).fill(1);
        let found = Segmentation {
            mask: Array3::zeros([9, 50, 35]),
            agreement: Array4::from_elem([1, 9, 50, 35], 0.5),
        };
        let bytes = panels(&volume(9), &truth, &found, &[red()]).unwrap();
        let (width, height, pixels) = decoded(&bytes);
        assert_eq!((width, height), (4 * 181 - 2, 4 * 258 - 2), "four of nine slices");
        let has = |panel: u32, colour: [u8; 3]| {
            let inside = |at: usize| (at as u32 % width) / 181 == panel;
            pixels.chunks(3).enumerate().any(|(at, pixel)| inside(at) && pixel == colour)
        };
        assert_eq!([0, 1, 2, 3].map(|panel| has(panel, [255, 0, 0])), [false, true, false, false]);
        assert!(has(3, [255, 255, 0]));
        assert!(panels(&volume(8), &truth, &found, &[red()]).is_err());
    }

    #[test]
    fn a_mask_of_another_size_is_refused() {
        let found = super::png(&volume(1), &Array3::zeros([1, 50, 36]), &[red()]);
        assert!(matches!(found, Err(CodecError::Shape { .. })));
    }
}
