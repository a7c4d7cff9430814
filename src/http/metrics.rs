//! `GET /metrics`: what the process counted, and how things stand.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::accept::Accept;
use super::problem::Problem;
use super::routes::Shared;
use super::serve::blocking;
use super::{Context, Description};
use crate::spool::{Count, SpoolError};
use crate::telemetry::{exposition, label, metrics, sensors};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Whole = Family<Labels, Gauge>;
type Real = Family<Labels, Gauge<f64, AtomicU64>>;

pub(super) async fn get(
    State(shared): State<Shared>,
    headers: HeaderMap,
) -> Result<Response<Body>, Problem> {
    let context = Arc::clone(&shared.context);
    let encode = async {
        let gauges = blocking(move || gauges(&context)).await?;
        Ok::<_, SpoolError>(Bytes::from(metrics().encode(&gauges)))
    };
    let text = shared.metrics.get(encode).await?;
    let (media_type, text) = if wants_open_metrics(&headers) {
        (OPEN_METRICS, text)
    } else {
        (CLASSIC, exposition::classic(&String::from_utf8_lossy(&text)).into())
    };
    let mut response = Response::new(Body::from(text));
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "Accept"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// Only who names OpenMetrics, and wants the classic text no more than that, gets it. Who accepts neither gets the classic
/// text, as from other programs that Prometheus asks.
fn wants_open_metrics(headers: &HeaderMap) -> bool {
    let accept = Accept::of(headers);
    // A range may ask for ways of escaping names; these names need none.
    let open = accept.wants(
        "application/openmetrics-text",
        &[("version", "1.0.0"), ("escaping", "allow-utf-8"), ("escaping", "underscores")],
    );
    let classic = accept.wants(
        "text/plain",
        &[("version", "0.0.4"), ("escaping", "allow-utf-8"), ("escaping", "underscores")],
    );
    let open = open.filter(|wanted| wanted.by_name);
    open.is_some_and(|open| classic.is_none_or(|classic| open.quality >= classic.quality))
}

/// A registry of this moment.
fn gauges(context: &Context) -> Result<Registry, SpoolError> {
    let mut registry = Registry::with_prefix("cdal");
    let vitals = (context.vitals)();
    let serving = Gauge::<i64>::default();
    serving.set(vitals.serving.into());
    registry.register("serving", "1 while requests are taken, 0 while draining", serving);
    let working = Gauge::<i64>::default();
    working.set(vitals.working.is_some().into());
    registry.register("working", "1 while a case is computed", working);

    let Count { received, ready, running, quarantined, .. } = context.spool.count()?;
    let jobs = Whole::default();
    for (state, count) in [
        ("received", received),
        ("ready", ready),
        ("running", running),
        ("quarantined", quarantined),
    ] {
        jobs.get_or_create(&vec![("state", state.to_owned())]).set(count.cast_signed());
    }
    registry.register("spool_jobs", "Jobs that are not done, by state", jobs);
    let deliveries = Whole::default();
    let known = vitals.destinations.into_iter().map(|(name, _)| (name, 0, 0));
    let counted = context.spool.destinations()?;
    let counted = counted.into_iter().map(|found| (found.destination, found.pending, found.dead));
    for (destination, pending, dead) in known.chain(counted) {
        for (state, count) in [("pending", pending), ("dead", dead)] {
            let labels = vec![("destination", destination.clone()), ("state", state.to_owned())];
            deliveries.get_or_create(&labels).set(count.cast_signed());
        }
    }
    let help = "Deliveries that are not done, by destination and state";
    registry.register("spool_deliveries", help, deliveries);
    let free = Gauge::<i64>::default();
    free.set(context.spool.usage()?.free_bytes.cast_signed());
    registry.register_with_unit("spool_free", "Free disk space of the spool", Unit::Bytes, free);

    if let Some(shared) = &context.shared {
        let reached = Gauge::<i64>::default();
        reached.set(shared.is_reached().into());
        let help = "1 while the server of the queue that devices share answers";
        registry.register("shared_reached", help, reached);
        let unreplicated = Gauge::<i64>::default();
        unreplicated.set(context.spool.unreplicated_bytes()?.cast_signed());
        let help = "Objects for the shared queue that are only on this device";
        registry.register_with_unit("unreplicated", help, Unit::Bytes, unreplicated);
    }

    if let Some(updates) = context.updates.as_ref().and_then(|updates| updates.describe()) {
        let phase = Whole::default();
        phase.get_or_create(&vec![("phase", updates.phase)]).set(1);
        registry.register("update_phase", "Where the device is in an update", phase);
        let bad = Gauge::<i64>::default();
        bad.set(updates.is_bad.into());
        let help = "1 in safe mode, or while the repository is not believed or out of reach";
        registry.register("update_trouble", help, bad);
    }

    let (celsius, watts) = (Real::default(), Real::default());
    for sensor in sensors::read(Path::new("/sys")) {
        let labels = vec![("sensor", label(&sensor.name))];
        match sensor.reading {
            sensors::Reading::Celsius(value) => celsius.get_or_create(&labels).set(value),
            sensors::Reading::Watts(value) => watts.get_or_create(&labels).set(value),
        };
    }
    let help = "Temperatures that the kernel shows";
    registry.register_with_unit("device_temperature", help, Unit::Celsius, celsius);
    let help = "Powers that the kernel shows";
    registry.register_with_unit("device_power", help, Unit::Other("watts".into()), watts);
    if let Some(bytes) = resident_bytes() {
        let resident = Gauge::<i64>::default();
        resident.set(bytes);
        registry.register_with_unit("resident", "Memory of this process", Unit::Bytes, resident);
    }

    let mut build: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    if let Some(model) = &context.model {
        let Description { name, version, digest, revision, engine, .. } = model.describe();
        let engines = Whole::default();
        let of = vec![
            ("provider", engine.provider),
            ("wanted", engine.wanted),
            ("progress", engine.progress.to_owned()),
        ];
        engines.get_or_create(&of).set(1);
        registry.register("engine", "Who runs the model, and whether that is to change", engines);
        build.extend([
            ("model", name),
            ("model_version", version),
            ("model_digest", digest),
            ("configuration", revision),
        ]);
    }
    registry.register("build", "What is running", Info::new(build));
    Ok(registry)
}

fn resident_bytes() -> Option<i64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let open = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            wants_open_metrics(&headers)
        };
        assert!(!wants_open_metrics(&HeaderMap::new()));
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            // Prometheus 3 and Prometheus 2.
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "application/openmetrics-text; version=0.0.1,application/openmetrics-text;version=\"1.0.0\"",
        ] {
            assert!(open(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "text/plain",
            "application/*",
            "application/json",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text; version=0.0.1",
            "application/openmetrics-text;q=0.2,text/plain;q=0.5",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
             text/plain;version=0.0.4;q=0.3",
        ] {
            assert!(!open(accept), "{accept}");
        }
    }
}
