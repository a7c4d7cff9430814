//! What is counted and timed. One set for the process, as with logging: `metrics().…` wherever something happens.
//!
//! Gauges of what lies in a spool are not here: they are read from it when somebody asks.

use std::sync::LazyLock;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Gives every variant of an enum its label value.
macro_rules! labels {
    ($name:ident: $($variant:ident = $label:literal),+ $(,)?) => {
        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),+];

            fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label),+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                EncodeLabelValue::encode(&self.label(), encoder)
            }
        }
    };
}

/// Part of a case's way from the last byte in to the destination's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From ready to claimed by the worker.
    Queue,
    /// All of the worker's time: the stages from `Decode` to `Encode` and what lies between them.
    Compute,
    Decode,
    Prepare,
    Condition,
    Denoise,
    Assemble,
    Encode,
    /// From the end of the computation to the last destination's word.
    Deliver,
}

labels!(Stage: Queue = "queue", Compute = "compute", Decode = "decode", Prepare = "prepare",
    Condition = "condition", Denoise = "denoise", Assemble = "assemble", Encode = "encode", Deliver = "deliver");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStage {
    stage: Stage,
}

/// How a job ended, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobOutcome {
    Done,
    Retried,
    Failed,
}

labels!(JobOutcome: Done = "done", Retried = "retried", Failed = "failed");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    outcome: JobOutcome,
}

/// How an object came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Dicom,
    Http,
    Folder,
}

labels!(Way: Dicom = "dicom", Http = "http", Folder = "folder");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWay {
    way: Way,
}

/// What came of one attempt to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivered {
    Sent,
    /// The destination will say whether it commits to keep it.
    Taken,
    Later,
    Unreachable,
    Never,
}

labels!(Delivered: Sent = "sent", Taken = "taken", Later = "later", Unreachable = "unreachable", Never = "never");

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDelivery {
    destination: String,
    outcome: Delivered,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDestination {
    destination: String,
}

/// Why a DICOM association was rejected, or its connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Address,
    CallingAeTitle,
    CalledAeTitle,
    /// Version, application context or PDU length.
    Protocol,
    TooMany,
    LowDisk,
}

impl Rejected {
    const ALL: [Self; 6] = [
        Self::Address,
        Self::CallingAeTitle,
        Self::CalledAeTitle,
        Self::Protocol,
        Self::TooMany,
        Self::LowDisk,
    ];

    fn reason(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::CallingAeTitle => "calling_ae_title",
            Self::CalledAeTitle => "called_ae_title",
            Self::Protocol => "protocol",
            Self::TooMany => "too_many",
            Self::LowDisk => "low_disk",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRejection {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    status: u16,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// Statuses that HTTP answers commonly have.
const STATUSES: &[u16] = &[
    200, 202, 204, 304, 400, 401, 403, 404, 405, 406, 408, 409, 410, 412, 413, 415, 417, 421, 422,
    500, 501, 503, 507,
];

/// Every counter and histogram of the process. What is not named by a configuration is there from the start, with 0: a rate
/// is known only of what was there before.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    stages: Times<OfStage>,
    jobs: Family<OfJob, Counter>,
    objects: Family<OfWay, Counter>,
    deliveries: Family<OfDelivery, Counter>,
    delivery_seconds: Times<OfDestination>,
    delivered_bytes: Family<OfDestination, Counter>,
    requests: Family<OfStatus, Counter>,
    rejections: Family<OfRejection, Counter>,
}

/// The process's metrics.
#[must_use]
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

/// 1 ms to 131 s, each twice the one before.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("cdal");
        let stages = Times::new_with_constructor(times as fn() -> Histogram);
        let delivery_seconds = Times::new_with_constructor(times as fn() -> Histogram);
        let (jobs, objects, deliveries) = Default::default();
        let (delivered_bytes, requests) = Default::default();
        let rejections = Family::<OfRejection, Counter>::default();
        for rejected in Rejected::ALL {
            // There from the start: a rate needs the zero before the first event.
            let _ = rejections.get_or_create(&OfRejection { reason: rejected.reason() });
        }
        let metrics = |registry: &mut Registry| {
            let help = "Time of each stage of a case; queue and compute apart";
            registry.register_with_unit("stage", help, Unit::Seconds, Clone::clone(&stages));
            registry.register("jobs", "Jobs by how they ended", Clone::clone(&jobs));
            registry.register("objects", "Objects taken in", Clone::clone(&objects));
            registry.register("deliveries", "Attempts to deliver", Clone::clone(&deliveries));
            let help = "Time of each attempt to deliver";
            let copy = Clone::clone(&delivery_seconds);
            registry.register_with_unit("delivery", help, Unit::Seconds, copy);
            let help = "Bytes that destinations confirmed";
            let copy = Clone::clone(&delivered_bytes);
            registry.register_with_unit("delivered", help, Unit::Bytes, copy);
            registry.register("http_requests", "HTTP answers", Clone::clone(&requests));
            let help = "DICOM associations that were rejected";
            registry.register("associations_rejected", help, Clone::clone(&rejections));
        };
        metrics(&mut registry);
        let metrics = Self {
            registry,
            stages,
            jobs,
            objects,
            deliveries,
            delivery_seconds,
            delivered_bytes,
            requests,
            rejections,
        };
        metrics.begin();
        metrics
    }

    fn begin(&self) {
        for &stage in Stage::ALL {
            drop(self.stages.get_or_create(&OfStage { stage }));
        }
        for &outcome in JobOutcome::ALL {
            drop(self.jobs.get_or_create(&OfJob { outcome }));
        }
        for &way in Way::ALL {
            drop(self.objects.get_or_create(&OfWay { way }));
        }
        for &status in STATUSES {
            drop(self.requests.get_or_create(&OfStatus { status }));
        }
    }

    /// There is a destination of this name: everything that can come of a delivery to it is counted from 0.
    pub fn destination(&self, name: &str) {
        let of = OfDestination { destination: name.to_owned() };
        drop(self.delivery_seconds.get_or_create(&of));
        drop(self.delivered_bytes.get_or_create(&of));
        for &outcome in Delivered::ALL {
            let of = OfDelivery { destination: name.to_owned(), outcome };
            drop(self.deliveries.get_or_create(&of));
        }
    }

    pub fn rejected(&self, why: Rejected) {
        self.rejections.get_or_create(&OfRejection { reason: why.reason() }).inc();
    }

    pub fn stage(&self, stage: Stage, time: Duration) {
        self.stages.get_or_create(&OfStage { stage }).observe(time.as_secs_f64());
    }

    pub fn job(&self, outcome: JobOutcome) {
        self.jobs.get_or_create(&OfJob { outcome }).inc();
    }

    pub fn object(&self, way: Way) {
        self.objects.get_or_create(&OfWay { way }).inc();
    }

    /// One attempt, successful or not.
    pub fn delivery(&self, destination: &str, outcome: Delivered, time: Duration, bytes: u64) {
        let of = OfDestination { destination: destination.to_owned() };
        self.delivery_seconds.get_or_create(&of).observe(time.as_secs_f64());
        if outcome == Delivered::Sent {
            self.delivered_bytes.get_or_create(&of).inc_by(bytes);
        }
        let of = OfDelivery { destination: of.destination, outcome };
        self.deliveries.get_or_create(&of).inc();
    }

    /// A destination committed to keep what it had taken before.
    pub fn committed(&self, destination: &str, outcome: Delivered, bytes: u64) {
        let of = OfDestination { destination: destination.to_owned() };
        if outcome == Delivered::Sent {
            self.delivered_bytes.get_or_create(&of).inc_by(bytes);
        }
        let of = OfDelivery { destination: of.destination, outcome };
        self.deliveries.get_or_create(&of).inc();
    }

    pub fn request(&self, status: u16) {
        self.requests.get_or_create(&OfStatus { status }).inc();
    }

    /// Everything here and in `gauges`, in the `OpenMetrics` text format.
    #[must_use]
    pub fn encode(&self, gauges: &Registry) -> String {
        let mut out = String::new();
        text::encode_registry(&mut out, &self.registry)
            .and_then(|()| text::encode_registry(&mut out, gauges))
            .and_then(|()| text::encode_eof(&mut out))
            .expect("writing to a string succeeds");
        out
    }
}
