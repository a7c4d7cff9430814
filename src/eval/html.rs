//! The report as one page that needs nothing else: tables, a plot of Dice, pictures of the worst and best cases.

use std::fmt::Write;

use super::{CaseReport, Failure, Gallery, Picture, Report, summary::Statistic};
use crate::domain::Label;
use crate::page::{self, base64, escape, number};

/// A case below this share of the mean Dice is marked.
const LOW: f64 = 0.9;

/// The page. `labels` give the colours.
#[must_use]
pub fn page(report: &Report, gallery: &Gallery, labels: &[Label]) -> String {
    let model = &report.model;
    let title = format!("{} {} on {}", model.name, model.version, report.data.folder);
    let mut html = String::new();
    // Writing to a string does not fail.
    let _ = write_body(&mut html, report, gallery, labels);
    page::page(&title, &html)
}

fn write_body(
    html: &mut String,
    report: &Report,
    gallery: &Gallery,
    labels: &[Label],
) -> std::fmt::Result {
    write!(html, "<p>Cases: {}", report.cases.len())?;
    if let Some(split) = &report.data.split {
        write!(html, ", the split <b>{}</b> of {}", escape(&split.name), escape(&split.file))?;
    }
    write!(
        html,
        "; time-steps {}, votes {}, seed {}, {:.0} ms a case. cdal {}, model <code>{}</code>.</p>",
        report.steps,
        report.votes,
        report.seed,
        report.summary.milliseconds,
        escape(&report.software_version),
        escape(&report.model.digest)
    )?;
    if !report.failed.is_empty() {
        write!(html, "<h2>Failed cases</h2><p>They count in no mean.</p><ul>")?;
        for Failure { case, reason } in &report.failed {
            write!(html, "<li><b>{}</b>: {}</li>", escape(case), escape(reason))?;
        }
        html.push_str("</ul>");
    }
    summary(html, report, labels)?;
    plot(html, report, labels)?;
    html.push_str("<h2>Worst cases</h2>");
    gallery.worst().iter().try_for_each(|picture| figure(html, picture))?;
    if !gallery.best().is_empty() {
        html.push_str("<h2>Best cases</h2>");
        gallery.best().iter().rev().try_for_each(|picture| figure(html, picture))?;
    }
    cases(html, report, labels)?;
    html.push_str(
        "<h2>Definitions</h2><p>As in MONAI: Dice and IoU leave out cases whose truth does not hold the label; \
         HD95 is the larger of the two directed 95th percentiles of the distance between surface voxels, left out \
         where either mask is empty. Intervals are 95 % percentile bootstraps over cases.</p>",
    );
    Ok(())
}

fn summary(html: &mut String, report: &Report, labels: &[Label]) -> std::fmt::Result {
    let unit = report.hd95_unit.name();
    write!(
        html,
        "<h2>Summary</h2><table><thead><tr><th>Label<th>Dice<th>IoU<th>HD95, {unit}<th>Cases\
         <th>Missed<th>Invented</thead><tbody>"
    )?;
    let row = |html: &mut String, means: [&Statistic; 3]| {
        for (statistic, digits) in means.into_iter().zip([4, 4, 2]) {
            write!(html, "<td>{}", number(statistic.mean, digits))?;
            if let (Some(low), Some(high)) = (statistic.low, statistic.high) {
                write!(html, " <span class=\"interval\">{low:.digits$}–{high:.digits$}</span>")?;
            }
        }
        Ok(())
    };
    for label in &report.summary.labels {
        write!(
            html,
            "<tr><td>{}{}",
            page::swatch(&colour(labels, label.value)),
            escape(&label.name)
        )?;
        let means = &label.means;
        row(html, [&means.dice, &means.iou, &means.hd95])?;
        let (missed, invented) = (label.missed, label.invented);
        write!(html, "<td>{}<td>{missed}<td>{invented}", means.dice.values)?;
    }
    if report.summary.labels.len() > 1 {
        html.push_str("<tr><th>Mean of labels");
        let means = &report.summary.mean;
        row(html, [&means.dice, &means.iou, &means.hd95])?;
        html.push_str("<td><td><td>");
    }
    html.push_str("</tbody></table>");
    if report.hd95_unit != super::Unit::Mm {
        html.push_str(
            "<p><small>Images without a pixel spacing: their distances are in pixels.</small></p>",
        );
    }
    Ok(())
}

/// Dice of every case as a dot, a line for each label, and the mean as a bar.
fn plot(html: &mut String, report: &Report, labels: &[Label]) -> std::fmt::Result {
    const WIDTH: f64 = 900.0;
    const LINE: f64 = 34.0;
    let all = || report.cases.iter().flat_map(|case| &case.labels).filter_map(|label| label.dice);
    let lowest = (all().fold(1.0, f64::min) * 10.0).floor() / 10.0;
    let lowest = lowest.min(0.9);
    let x = |dice: f64| 20.0 + (dice - lowest) / (1.0 - lowest) * (WIDTH - 40.0);
    let height = LINE * labels.len() as f64 + 24.0;
    write!(
        html,
        "<h2>Dice of each case</h2><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" width=\"100%\">"
    )?;
    for tick in 0..=5 {
        let dice = lowest + (1.0 - lowest) * f64::from(tick) / 5.0;
        page::tick(html, x(dice), height - 20.0, &format!("{dice:.2}"))?;
    }
    for (line, label) in report.summary.labels.iter().enumerate() {
        let y = LINE * (line as f64 + 0.5);
        let colour = colour(labels, label.value);
        for case in &report.cases {
            let Some(dice) = case.labels[line].dice else { continue };
            write!(
                html,
                "<circle cx=\"{:.1}\" cy=\"{y}\" r=\"5\" fill=\"{colour}\" fill-opacity=\".45\">\
                 <title>{} {}: {dice:.4}</title></circle>",
                x(dice),
                escape(&case.case),
                escape(&label.name)
            )?;
        }
        if let Some(mean) = label.means.dice.mean {
            let at = x(mean);
            write!(
                html,
                "<path d=\"M{at:.1} {:.1}v22\" stroke=\"#000\" stroke-width=\"2\"/>",
                y - 11.0
            )?;
        }
    }
    html.push_str("</svg>");
    Ok(())
}

fn figure(html: &mut String, picture: &Picture) -> std::fmt::Result {
    write!(
        html,
        "<h3>{} <small>Dice {:.4}</small></h3><div class=\"pair\">",
        escape(&picture.case),
        picture.score
    )?;
    for (what, bytes) in [("Result", &picture.result), ("Truth", &picture.truth)] {
        write!(
            html,
            "<figure><img alt=\"{what} of {}\" src=\"data:image/png;base64,{}\"><figcaption>{what}</figcaption></figure>",
            escape(&picture.case),
            base64(bytes)
        )?;
    }
    html.push_str("</div>");
    Ok(())
}

fn cases(html: &mut String, report: &Report, labels: &[Label]) -> std::fmt::Result {
    html.push_str("<h2>Cases</h2><table><thead><tr><th>Case");
    for label in &report.summary.labels {
        let name = format!("{}{}", page::swatch(&colour(labels, label.value)), escape(&label.name));
        write!(html, "<th>{name}<br>Dice<th>IoU<th>HD95")?;
    }
    html.push_str("<th>ms</thead><tbody>");
    let mean = report.summary.mean.dice.mean.unwrap_or(0.0);
    for case in &report.cases {
        let low = case.score.is_some_and(|score| score < LOW * mean);
        let CaseReport { labels, milliseconds, .. } = case;
        write!(html, "<tr{}><td>{}", if low { " class=\"low\"" } else { "" }, escape(&case.case))?;
        for label in labels {
            let (dice, iou) = (number(label.dice, 4), number(label.iou, 4));
            write!(html, "<td>{dice}<td>{iou}<td>{}", number(label.hd95, 2))?;
            if label.hd95.is_some() {
                write!(html, " {}", case.unit().name())?;
            }
        }
        write!(html, "<td>{milliseconds:.0}")?;
    }
    html.push_str("</tbody></table>");
    Ok(())
}

fn colour(labels: &[Label], value: u8) -> String {
    let [red, green, blue] =
        labels.iter().find(|label| label.value == value).map_or([0; 3], |label| label.colour);
    format!("#{red:02x}{green:02x}{blue:02x}")
}
