//! Tells a web server that a result is there, and where. The result itself is fetched from this daemon's HTTP, or comes
//! by another destination.

use serde_json::json;

use super::{HttpConfig, Outcome, http};
use crate::spool::Delivery;

pub(super) async fn send(config: &HttpConfig, delivery: &Delivery) -> Outcome {
    let Delivery { job, name, sha256, bytes, .. } = delivery;
    let body = json!({
        "event": "result",
        "job": job.as_str(),
        "name": name,
        "bytes": bytes,
        "sha256": sha256,
        "href": format!("/v1/jobs/{job}/results/{name}"),
    });
    let message = http::Message {
        content_type: "application/json".to_owned(),
        accept: "*/*",
        key: format!("{job}-{}", &sha256[..16]),
        body: body.to_string().into_bytes(),
    };
    match http::post(config, message).await {
        Ok((status, _)) => http::judge(status),
        Err(outcome) => outcome,
    }
}
