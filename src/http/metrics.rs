//! `GET /metrics`: what the process counted, and how things stand.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, header};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::problem::Problem;
use super::routes::Shared;
use super::serve::blocking;
use super::{Context, Description};
use crate::spool::{Count, DestinationReport, SpoolError};
use crate::telemetry::{metrics, sensors};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Whole = Family<Labels, Gauge>;
type Real = Family<Labels, Gauge<f64, AtomicU64>>;

pub(super) async fn get(State(shared): State<Shared>) -> Result<Response<Body>, Problem> {
    let context = Arc::clone(&shared.context);
    let gauges = blocking(move || gauges(&context)).await?;
    let mut response = Response::new(Body::from(metrics().encode(&gauges)));
    let value = HeaderValue::from_static(OPEN_METRICS);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    Ok(response)
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
    for DestinationReport { destination, pending, dead, .. } in context.spool.destinations()? {
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
        let labels = vec![("sensor", sensor.name)];
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
