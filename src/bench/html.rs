//! The report as one page that needs nothing else: tables, and plots as inline SVG.

use std::fmt::Write;

use super::report::{Daemon, Point, Report};
use super::stats::{self, Estimate, Percentile};
use crate::engine::Placement;
use crate::page::{self, escape, number, swatch};

const WIDTH: f64 = 900.0;
/// Of the plots' areas.
const HEIGHT: f64 = 260.0;
/// Room for numbers to the left of a plot.
const LEFT: f64 = 60.0;
/// Of points and stages in turn (Okabe and Ito's, which the colour-blind can tell apart, and greys).
const COLOURS: [&str; 10] = [
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#777777",
    "#000000", "#bbbbbb",
];

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let what = if report.daemon.is_some() { "daemon" } else { "sampler" };
    let model = report.points.first().map_or("", |point| point.setting.model.as_str());
    let mut body = String::new();
    // Writing to a string does not fail.
    let _ = write_body(&mut body, report);
    page::page(&format!("Latency of the {what} with {model}"), &body)
}

fn write_body(html: &mut String, report: &Report) -> std::fmt::Result {
    let cases = report.points.iter().map(|point| point.latencies.len()).max().unwrap_or(0);
    write!(
        html,
        "<p>{cases} cases each after {} to warm up, {}. Input: {}.</p>",
        report.warm_up,
        escape(&report.load.to_string()),
        escape(&report.input.name)
    )?;
    percentile_table(html, report)?;
    percentile_plot(html, report)?;
    stage_plot(html, report)?;
    order_plot(html, report)?;
    if let Some(daemon) = &report.daemon {
        daemon_figures(html, daemon)?;
    }
    other_figures(html, report)?;
    fingerprint(html, report)?;
    html.push_str(
        "<h2>Definitions</h2><p>Percentiles are nearest ranks with 95 % intervals of order statistics; one is given \
         from as many cases on as MLPerf's early stopping asks for. In an open loop a latency counts from the \
         intended start. A run is not steady where the medians of its halves are more than 5 % apart and the \
         Mann-Whitney test finds p &lt; 0.01.</p>",
    );
    Ok(())
}

fn name(point: &Point) -> String {
    if point.name.is_empty() { "all cases".to_owned() } else { escape(&point.name) }
}

fn percentile_table(html: &mut String, report: &Report) -> std::fmt::Result {
    html.push_str("<h2>Latency, ms</h2><table><thead><tr><th>");
    for share in stats::SHARES {
        write!(html, "<th>p{}", share * 100.0)?;
    }
    html.push_str("<th>Cases<th>Cases/s<th>Steady</thead><tbody>");
    for (at, point) in report.points.iter().enumerate() {
        write!(html, "<tr><td>{}{}", swatch(colour(at)), name(point))?;
        for percentile in &point.percentiles {
            write!(html, "<td>{}", cell(percentile))?;
        }
        let steady = match &point.steadiness {
            None => "too few to tell".to_owned(),
            Some(found) if found.steady => "yes".to_owned(),
            Some(found) => format!("<b>no</b>: {:+.1} %", (found.ratio - 1.0) * 100.0),
        };
        let cases = point.latencies.len();
        write!(html, "<td>{cases}<td>{:.2}<td>{steady}", point.cases_per_second)?;
    }
    html.push_str("</tbody></table>");
    Ok(())
}

fn cell(percentile: &Percentile) -> String {
    let Percentile { value, low, high, needed, .. } = percentile;
    match value {
        None => format!("<span class=\"interval\">too few: {needed} needed</span>"),
        Some(value) => format!("{value:.2}{}", interval(*low, *high, 2)),
    }
}

fn interval(low: Option<f64>, high: Option<f64>, digits: usize) -> String {
    format!(" <span class=\"interval\">{}–{}</span>", number(low, digits), number(high, digits))
}

/// Latency by percentile, the way to 100 % stretched out: 90 %, 99 %, 99.9 % at equal distances.
fn percentile_plot(html: &mut String, report: &Report) -> std::fmt::Result {
    let longest = report.points.iter().map(|point| point.latencies.len()).max().unwrap_or(0);
    let decades = (longest.max(10) as f64).log10();
    let x = |over: f64| LEFT + -over.log10() / decades * (WIDTH - LEFT - 20.0);
    let top = report.points.iter().flat_map(|point| &point.latencies).copied().fold(0.0, f64::max);
    let y = |latency: f64| HEIGHT * (1.0 - latency / (1.05 * top).max(f64::MIN_POSITIVE));
    html.push_str("<h2>Latency by percentile</h2>");
    open_plot(html, top)?;
    for nines in 0..=decades as usize {
        let over = 0.1_f64.powi(nines as i32);
        page::tick(
            html,
            x(over),
            HEIGHT,
            &format!("{:.*} %", nines.saturating_sub(2), 100.0 * (1.0 - over)),
        )?;
    }
    for (at, point) in report.points.iter().enumerate() {
        let sorted = stats::sorted(&point.latencies);
        let mut path = String::new();
        for (rank, latency) in sorted.iter().enumerate() {
            let over = (sorted.len() - rank) as f64 / sorted.len() as f64;
            let to = if rank == 0 { 'M' } else { 'L' };
            write!(path, "{to}{:.1} {:.1}", x(over), y(*latency))?;
        }
        write!(
            html,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"><title>{}</title></path>",
            colour(at),
            name(point)
        )?;
    }
    html.push_str("</svg>");
    Ok(())
}

/// Every case as a dot, from the first to the last.
fn order_plot(html: &mut String, report: &Report) -> std::fmt::Result {
    let longest = report.points.iter().map(|point| point.latencies.len()).max().unwrap_or(0);
    let top = report.points.iter().flat_map(|point| &point.latencies).copied().fold(0.0, f64::max);
    html.push_str("<h2>Latency in the order of the cases</h2>");
    open_plot(html, top)?;
    for (at, point) in report.points.iter().enumerate() {
        for (number, latency) in point.latencies.iter().enumerate() {
            let x = LEFT + (number as f64 + 0.5) / longest as f64 * (WIDTH - LEFT - 20.0);
            let y = HEIGHT * (1.0 - latency / (1.05 * top));
            write!(
                html,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"{}\" fill-opacity=\".6\"/>",
                colour(at)
            )?;
        }
    }
    html.push_str("</svg>");
    Ok(())
}

/// An SVG with a grid of latencies up to `top` ms.
fn open_plot(html: &mut String, top: f64) -> std::fmt::Result {
    let height = HEIGHT + 24.0;
    write!(html, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" width=\"100%\">")?;
    let step = round_step(top);
    let mut latency = 0.0;
    while latency <= top {
        let y = HEIGHT * (1.0 - latency / (1.05 * top).max(f64::MIN_POSITIVE));
        write!(
            html,
            "<path d=\"M{LEFT} {y:.1}H{WIDTH}\" stroke=\"#eee\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"end\" fill=\"#666\">{latency} ms</text>",
            LEFT - 6.0,
            y + 4.0
        )?;
        latency += step;
    }
    Ok(())
}

/// 1, 2 or 5 times a power of ten, so that about five steps reach `top`.
fn round_step(top: f64) -> f64 {
    let rough = (top / 5.0).max(1e-3);
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power)
}

/// Mean time of each stage, end to end.
fn stage_plot(html: &mut String, report: &Report) -> std::fmt::Result {
    const LINE: f64 = 34.0;
    let whole = |point: &Point| point.stages.iter().map(|stage| stage.mean.max(0.0)).sum::<f64>();
    let longest = report.points.iter().map(whole).fold(f64::MIN_POSITIVE, f64::max);
    let mut names: Vec<&str> = Vec::new();
    for stage in report.points.iter().flat_map(|point| &point.stages) {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    html.push_str("<h2>Where the time goes</h2><p>");
    for (at, name) in names.iter().enumerate() {
        write!(html, "{}{} &ensp;", swatch(colour(at)), escape(name))?;
    }
    let height = LINE * report.points.len() as f64;
    write!(html, "</p><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" width=\"100%\">")?;
    for (line, point) in report.points.iter().enumerate() {
        let mut x = 0.0;
        for stage in &point.stages {
            let width = stage.mean.max(0.0) / longest * WIDTH;
            let at = names.iter().position(|name| *name == stage.name).unwrap_or(0);
            write!(
                html,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\">\
                 <title>{}, {}: {:.3} ms</title></rect>",
                LINE * line as f64,
                LINE - 6.0,
                colour(at),
                name(point),
                escape(&stage.name),
                stage.mean
            )?;
            x += width;
        }
    }
    html.push_str("</svg><table><thead><tr><th>Median, ms");
    names.iter().try_for_each(|name| write!(html, "<th>{}", escape(name)))?;
    html.push_str("</thead><tbody>");
    for point in &report.points {
        write!(html, "<tr><td>{}", name(point))?;
        for name in &names {
            let stage = point.stages.iter().find(|stage| stage.name == *name);
            write!(html, "<td>{}", number(stage.map(|stage| stage.median), 3))?;
        }
    }
    html.push_str("</tbody></table>");
    Ok(())
}

fn daemon_figures(html: &mut String, daemon: &Daemon) -> std::fmt::Result {
    write!(
        html,
        "<h2>The daemon</h2><table><tbody><tr><td>Address<td>{}<tr><td>Associations at once<td>{}",
        escape(&daemon.address),
        daemon.associations
    )?;
    let row = |html: &mut String, what: &str, estimate: Option<Estimate>| match estimate {
        None => Ok(()),
        Some(Estimate { value, low, high }) => {
            write!(html, "<tr><td>{what}<td>{value:.3}{}", interval(low, high, 3))
        }
    };
    row(html, "Over the model's compute, ms", daemon.over_model)?;
    row(html, "Over the bare sampler, ms", daemon.over_bare)?;
    row(html, "Throughput by the sampler's own", daemon.throughput_share)?;
    if let Some(sync) = daemon.disk_sync {
        write!(html, "<tr><td>A synced write of 4 KiB, ms<td>{sync:.2}")?;
    }
    if let Some(growth) = daemon.memory_growth {
        write!(
            html,
            "<tr><td>Growth of memory in 1,000 cases, MiB<td>{:.2}",
            growth / f64::from(1 << 20)
        )?;
    }
    html.push_str("</tbody></table>");
    let Some(last) = daemon.memory.last() else { return Ok(()) };
    let most = daemon.memory.iter().map(|memory| memory.resident_bytes).max().unwrap_or(1) as f64;
    let height = 140.0;
    write!(
        html,
        "<h3>Memory of the daemon, up to {:.0} MiB</h3><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" width=\"100%\">",
        most / f64::from(1 << 20),
        height + 24.0
    )?;
    let mut path = format!("M0 {height}");
    for memory in &daemon.memory {
        let x = memory.cases as f64 / last.cases as f64 * (WIDTH - 30.0);
        let y = height * (1.0 - memory.resident_bytes as f64 / (1.05 * most));
        write!(path, "L{x:.1} {y:.1}")?;
    }
    page::tick(html, WIDTH - 30.0, height, &format!("{} cases", last.cases))?;
    write!(
        html,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/></svg>",
        colour(0)
    )
}

fn other_figures(html: &mut String, report: &Report) -> std::fmt::Result {
    html.push_str("<h2>Besides</h2><table><tbody>");
    if let Some(cold) = &report.cold_start {
        write!(html, "<tr><td>Start of a process to its first mask, ms<td>{:.0}", cold.median)?;
    }
    if let Some(idle) = &report.after_idle {
        let seconds = idle.idle_seconds;
        write!(html, "<tr><td>After {seconds} s of idling, ms<td>{:.2}", idle.median)?;
    }
    let mebibytes = report.peak_memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
    write!(html, "<tr><td>Peak memory, MiB<td>{}", number(mebibytes, 0))?;
    match &report.energy {
        None => html.push_str("<tr><td>Energy<td>the board does not report it"),
        Some(energy) => {
            let (joules, source) = (energy.joules, escape(&energy.source));
            write!(html, "<tr><td>Energy, J ({source})<td>{joules:.1}")?;
        }
    }
    html.push_str("</tbody></table>");
    Ok(())
}

fn fingerprint(html: &mut String, report: &Report) -> std::fmt::Result {
    html.push_str("<h2>What was measured where</h2><table><tbody>");
    let machine = &report.machine;
    let governor = machine.governor.as_deref().unwrap_or("not shown");
    let mut row = |what: &str, said: &str| {
        write!(html, "<tr><td>{what}<td style=\"text-align:left\">{}", escape(said))
    };
    row(
        "Processor",
        &format!("{}, {} cores, governor {governor}", machine.processor, machine.cores),
    )?;
    row("Memory", &format!("{} MiB", machine.memory_bytes >> 20))?;
    machine.gpus.iter().try_for_each(|gpu| row("GPU", gpu))?;
    row("Kernel", &machine.kernel)?;
    row("cdal", &report.software_version)?;
    row("ONNX Runtime", &report.runtime)?;
    row("Input, SHA-256", &report.input.sha256)?;
    for point in &report.points {
        let of = &point.setting;
        let threads = of
            .threads
            .map_or_else(|| "threads chosen by the runtime".to_owned(), |n| format!("{n} threads"));
        row(
            if point.name.is_empty() { "Model" } else { &point.name },
            &format!(
                "{} {} ({}), {} time-steps, {} votes, stop {}, {}, {threads}",
                of.model,
                of.model_version,
                of.model_digest,
                of.steps,
                of.votes,
                of.stop,
                of.provider
            ),
        )?;
        for Placement { graph, provider, nodes, .. } in &of.nodes {
            row(&format!("Nodes of {graph}"), &format!("{nodes} by {provider}"))?;
        }
    }
    html.push_str("</tbody></table>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::report;
    use super::*;

    #[test]
    fn a_page_needs_nothing_else_and_says_what_too_few_cases_do_not() {
        let html = page(&report(1, 1.0));
        assert!(html.contains("too few: 662 needed"), "p99 of 200");
        assert!(html.contains("&lt;i&gt;"), "names cannot become markup");
        for part in ["<svg", "decode", "step t=0"] {
            assert!(html.contains(part), "{part}");
        }
        for outside in ["http://", "https://", "<script", "src="] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([3.0, 11.0, 26.0, 240.0].map(round_step), [1.0, 5.0, 10.0, 50.0]);
    }
}
