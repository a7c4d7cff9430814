//! The classic text format of Prometheus (0.0.4), from OpenMetrics 1.0.
//!
//! The formats differ in what belongs to a family's name: a counter is `cdal_jobs` in OpenMetrics and its sample
//! `cdal_jobs_total`; the classic format knows the sample's name alone. It has no units and no type `info`.

use std::fmt::Write;

/// `open_metrics` as programs read it that know the classic format alone. It holds counters, gauges, histograms and infos,
/// without exemplars.
#[must_use]
pub fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(help) = line.strip_prefix("# HELP ") else {
            if !line.starts_with('#') {
                out.push_str(line);
                out.push('\n');
            }
            continue; // an end or a unit
        };
        let (name, help) = help.split_once(' ').unwrap_or((help, ""));
        let kind = lines.next_if(|line| line.starts_with("# TYPE "));
        let kind = kind.and_then(|line| line.rsplit(' ').next()).unwrap_or("untyped");
        let (suffix, kind) = match kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "unknown" => ("", "untyped"),
            kind => ("", kind),
        };
        // In OpenMetrics quotation marks are escaped in help texts, too.
        let help = help.replace("\\\"", "\"");
        write!(out, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n")
            .expect("writing to a string succeeds");
    }
    out
}

/// `text` as the value of a label: lower case, with `_` for everything but letters and digits.
#[must_use]
pub fn label(text: &str) -> String {
    let mut label = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_alphanumeric() {
            label.extend(c.to_lowercase());
        } else if !label.is_empty() && !label.ends_with('_') {
            label.push('_');
        }
    }
    label.truncate(label.trim_end_matches('_').len());
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_format_has_no_word_of_open_metrics() {
        let open = "# HELP cdal_jobs Jobs by \\\"how\\\" they ended.\n# TYPE cdal_jobs counter\n\
                    cdal_jobs_total{outcome=\"done\"} 2\n\
                    # HELP cdal_stage_seconds Time.\n# TYPE cdal_stage_seconds histogram\n\
                    # UNIT cdal_stage_seconds seconds\ncdal_stage_seconds_sum 0.5\n\
                    # HELP cdal_build What is running.\n# TYPE cdal_build info\n\
                    cdal_build_info{version=\"1\"} 1\n\
                    # HELP cdal_serving 1.\n# TYPE cdal_serving gauge\ncdal_serving 1\n# EOF\n";
        let expected = "# HELP cdal_jobs_total Jobs by \"how\" they ended.\n\
                        # TYPE cdal_jobs_total counter\ncdal_jobs_total{outcome=\"done\"} 2\n\
                        # HELP cdal_stage_seconds Time.\n# TYPE cdal_stage_seconds histogram\n\
                        cdal_stage_seconds_sum 0.5\n\
                        # HELP cdal_build_info What is running.\n# TYPE cdal_build_info gauge\n\
                        cdal_build_info{version=\"1\"} 1\n\
                        # HELP cdal_serving 1.\n# TYPE cdal_serving gauge\ncdal_serving 1\n";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn label_values_are_in_lower_snake_case() {
        assert_eq!(label("coretemp Package id 0"), "coretemp_package_id_0");
        assert_eq!(label("ina3221 VDD_IN"), "ina3221_vdd_in");
        assert_eq!(label(" (cpu-thermal) "), "cpu_thermal");
    }
}
