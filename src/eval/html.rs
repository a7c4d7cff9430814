//! The report as one page that needs nothing else: tables, a plot of Dice, pictures of the worst and best cases.

use std::fmt::Write;

use super::{CaseReport, Gallery, Picture, Report, summary::Statistic};
use crate::domain::Label;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}\
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #888}\
.low{background:#fde8e4}small,.interval{color:#666}.pair{display:flex;gap:1rem;flex-wrap:wrap}\
figure{margin:0;flex:1 1 20rem}img{max-width:100%}code{word-break:break-all}\
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";
/// A case below this share of the mean Dice is marked.
const LOW: f64 = 0.9;

/// The page. `labels` give the colours.
#[must_use]
pub fn page(report: &Report, gallery: &Gallery, labels: &[Label]) -> String {
    let mut html = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut html, report, gallery, labels);
    html
}

fn write_page(
    html: &mut String,
    report: &Report,
    gallery: &Gallery,
    labels: &[Label],
) -> std::fmt::Result {
    let model = &report.model;
    let title = format!("{} {} on {}", model.name, model.version, report.data.folder);
    let title = escape(&title);
    write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>Cases: {}",
        report.cases.len()
    )?;
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
        escape(&model.digest)
    )?;
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
         where either mask is empty. Intervals are 95 % percentile bootstraps over cases.</p></html>\n",
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
        write!(html, "<tr><td>{}{}", swatch(labels, label.value), escape(&label.name))?;
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
        let at = x(dice);
        write!(
            html,
            "<path d=\"M{at:.1} 0V{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"middle\" fill=\"#666\">{dice:.2}</text>",
            height - 20.0,
            height - 5.0
        )?;
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
        let name = format!("{}{}", swatch(labels, label.value), escape(&label.name));
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

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.digits$}"))
}

fn colour(labels: &[Label], value: u8) -> String {
    let [red, green, blue] =
        labels.iter().find(|label| label.value == value).map_or([0; 3], |label| label.colour);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn swatch(labels: &[Label], value: u8) -> String {
    format!("<span class=\"swatch\" style=\"background:{}\"></span>", colour(labels, value))
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
        safe
    })
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            let six = word >> (18 - 6 * n) & 63;
            text.push(if n <= three.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_gives_the_examples_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
