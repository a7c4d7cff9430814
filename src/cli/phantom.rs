use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use super::ExitStatus;
use crate::{
    codec::{Source, dicom, nifti},
    durable::write_whole,
    phantom::phantom,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where `images/` and `labels/` go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the first case
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many cases, seeds counting up
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Of the images; labels are NIfTI masks
    #[arg(long, value_enum, default_value_t = Format::Dicom)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A folder of MR Image Storage files for each case
    Dicom,
    Nifti,
}

/// # Errors
/// If a file cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitStatus> {
    let (images, labels) = (args.out.join("images"), args.out.join("labels"));
    let make = |folder: &PathBuf| {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: cannot be made", folder.display()))
    };
    make(&images)?;
    make(&labels)?;
    for seed in args.seed..args.seed + args.count {
        let name = format!("phantom-{seed:05}");
        let case = phantom(seed);
        let geometry = case.volume.geometry.as_ref();
        let image = match args.format {
            Format::Dicom => {
                let folder = images.join(&name);
                make(&folder)?;
                let series = dicom::encode_mr_series(&case.volume, seed)?;
                for (number, bytes) in series.iter().enumerate() {
                    write_whole(&folder.join(format!("{:03}.dcm", number + 1)), bytes)?;
                }
                folder
            }
            Format::Nifti => {
                let path = images.join(format!("{name}.nii.gz"));
                let values = case.volume.samples.index_axis(ndarray::Axis(0), 0);
                write_whole(&path, &nifti::encode_image(geometry, values)?)?;
                path
            }
        };
        let label = nifti::encode_mask(&Source::Raster, geometry, &case.truth)?;
        write_whole(&labels.join(format!("{name}.nii.gz")), &label)?;
        out!("{}", image.display())?;
    }
    Ok(ExitStatus::Done)
}
