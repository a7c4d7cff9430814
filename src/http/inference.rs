//! The Open Inference Protocol, version 2 (KServe), over HTTP, with its binary tensor extension.
//!
//! One model; one input, `image` [C, D, H, W] of any datatype with numbers, values as acquired, taken to lie on the model's
//! own grid; outputs `mask` [D, H, W] (label values) and `agreement` [L, D, H, W] (share of the votes for each label).
//! `parameters` may hold `votes` and `seed`. A member that is `null` counts as not given.
//! Nothing of it is kept: whoever needs a promise uses `POST /v1/cases`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use ndarray::Array4;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::body::Reading;
use super::model::{Ask, Description, InferError};
use super::problem::{self, Problem, Segments};
use super::routes::Shared;
use super::serve::blocking;
use super::tensor::{Data, Datatype};
use crate::codec::MAX_SAMPLES;
use crate::domain::{Segmentation, Volume};

/// Length of the JSON before the binary tensors of a body.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

const INPUT: &str = "image";
const MASK: &str = "mask";
const AGREEMENT: &str = "agreement";

pub(super) async fn server() -> Response<Body> {
    let about = json!({
        "name": "cdal", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"],
    });
    problem::json(StatusCode::OK, &about)
}

pub(super) async fn live() -> Response<Body> {
    problem::json(StatusCode::OK, &json!({ "live": true }))
}

pub(super) async fn ready(State(shared): State<Shared>) -> Result<Response<Body>, Problem> {
    if shared.context.model.is_none() || !(shared.context.vitals)().serving {
        return Err(Problem::unavailable("the server does not take requests now"));
    }
    Ok(problem::json(StatusCode::OK, &json!({ "ready": true })))
}

pub(super) async fn model_ready(
    State(shared): State<Shared>,
    Segments(path): Segments<ModelPath>,
) -> Result<Response<Body>, Problem> {
    let Description { name, .. } = described(&shared, &path)?;
    ready(State(shared)).await?;
    Ok(problem::json(StatusCode::OK, &json!({ "name": name, "ready": true })))
}

/// `{model}`, or `{model}` and `{version}`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    model: String,
    version: Option<String>,
}

pub(super) async fn model(
    State(shared): State<Shared>,
    Segments(path): Segments<ModelPath>,
) -> Result<Response<Body>, Problem> {
    let Description { name, version, channels, labels, .. } = described(&shared, &path)?;
    let tensor = |name: &str, datatype: &str, shape: Value| json!({ "name": name, "datatype": datatype, "shape": shape });
    let about = json!({
        "name": name,
        "versions": [version],
        "platform": "cdal_onnx",
        "inputs": [tensor(INPUT, "FP32", json!([channels, -1, -1, -1]))],
        "outputs": [
            tensor(MASK, "UINT8", json!([-1, -1, -1])),
            tensor(AGREEMENT, "FP32", json!([labels.len(), -1, -1, -1])),
        ],
    });
    Ok(problem::json(StatusCode::OK, &about))
}

/// The model, if it is the one that is asked for.
fn described(shared: &Shared, path: &ModelPath) -> Result<Description, Problem> {
    let unknown = |error: String| Problem::new(StatusCode::NOT_FOUND, "not_found", error);
    let Some(model) = &shared.context.model else {
        return Err(unknown("this server has no model for inference".to_owned()));
    };
    let about = model.describe();
    let is_version = path.version.as_ref().is_none_or(|version| *version == about.version);
    if path.model != about.name || !is_version {
        let Description { name, version, .. } = about;
        return Err(unknown(format!("the only model is {name:?}, version {version:?}")));
    }
    Ok(about)
}

#[derive(Debug, Deserialize)]
struct Asked {
    id: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: Parameters,
    inputs: Vec<Tensor>,
    #[serde(default, deserialize_with = "null_as_default")]
    outputs: Vec<Output>,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    votes: Option<usize>,
    seed: Option<u64>,
    /// All outputs that say nothing themselves.
    #[serde(default, deserialize_with = "null_as_default")]
    binary_data_output: bool,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: TensorParameters,
    data: Option<Data>,
}

#[derive(Debug, Default, Deserialize)]
struct TensorParameters {
    binary_data_size: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: OutputParameters,
}

#[derive(Debug, Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
}

pub(super) async fn infer(
    State(shared): State<Shared>,
    Segments(path): Segments<ModelPath>,
    request: Request,
) -> Result<Response<Body>, Problem> {
    let about = described(&shared, &path)?;
    let Ok(place) = Arc::clone(&shared.inferences).try_acquire_owned() else {
        return Err(Problem::unavailable("too many inferences at once; try again"));
    };
    let json_length = request.headers().get(&JSON_LENGTH).map(|value| {
        value.to_str().ok().and_then(|text| text.parse::<usize>().ok()).ok_or_else(|| {
            Problem::bad_request("Inference-Header-Content-Length is not a whole number")
        })
    });
    let json_length = json_length.transpose()?;
    let limit = shared.config.max_tensor_bytes;
    let is_large = "the request is larger than http.max_tensor_bytes; send the image to /v1/cases";
    let body = Reading::new(request.into_body(), &shared.config).text(limit, is_large).await?;
    let context = Arc::clone(&shared.context);
    blocking(move || {
        let _place = place;
        let (head, tail) = match json_length {
            Some(length) => body
                .split_at_checked(length)
                .ok_or_else(|| Problem::bad_request("the JSON is shorter than its header says"))?,
            None => body.split_at(body.len()),
        };
        let asked: Asked = serde_json::from_slice(head).map_err(|error| {
            Problem::bad_request(format!("the inference request cannot be read: {error}"))
        })?;
        let volume = volume(&asked.inputs, tail)?;
        let wanted = wanted(&asked)?;
        let Parameters { votes, seed, .. } = asked.parameters;
        if votes.is_some_and(|votes| !(1..=1000).contains(&votes)) {
            return Err(Problem::bad_request("parameter votes must be from 1 to 1000"));
        }
        let model = context.model.as_ref().expect("it was described above");
        let found = model.infer(&volume, Ask { votes, seed }).map_err(|error| match error {
            InferError::Refused(reason) => Problem::bad_request(reason),
            InferError::Failed(reason) => {
                tracing::error!(reason, "an inference failed");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", reason)
            }
        })?;
        Ok(answer(&about, asked.id, &found, &wanted))
    })
    .await
}

/// The image, from the JSON or from the bytes behind it.
fn volume(inputs: &[Tensor], tail: &[u8]) -> Result<Volume, Problem> {
    let [tensor] = inputs else {
        return Err(Problem::bad_request(format!("give one input, {INPUT:?}")));
    };
    let wrong = |what: &str| Problem::bad_request(format!("input {:?}: {what}", tensor.name));
    if tensor.name != INPUT {
        return Err(wrong("is not known; the only input is \"image\""));
    }
    let &[c, d, h, w] = tensor.shape.as_slice() else {
        return Err(wrong("its shape must be [channels, slices, rows, columns]"));
    };
    let count = tensor.shape.iter().try_fold(1_usize, |product, &side| product.checked_mul(side));
    let count = match count {
        Some(count) if count > 0 && count as u64 <= MAX_SAMPLES => count,
        _ => return Err(wrong("its shape is empty or too large")),
    };
    let values = match (&tensor.data, tensor.parameters.binary_data_size) {
        (None, Some(size)) => {
            let expected = count * tensor.datatype.bytes();
            if size != tail.len() || size != expected {
                return Err(wrong(&format!(
                    "binary_data_size is {size}, the body has {} bytes behind the JSON, shape and datatype need {expected}",
                    tail.len()
                )));
            }
            tensor.datatype.read(tail)
        }
        (Some(data), None) => data.values(tensor.datatype, &tensor.shape, count),
        _ => return Err(wrong("give either data or parameters.binary_data_size")),
    };
    let values = values.map_err(|problem| wrong(&problem))?;
    let samples = Array4::from_shape_vec([c, d, h, w], values).expect("the number was checked");
    let nominal_range = (tensor.datatype == Datatype::Uint8).then_some((0.0, 255.0));
    Ok(Volume { samples, geometry: None, nominal_range })
}

/// Outputs by name, and whether as bytes; all of them if none is named.
fn wanted(asked: &Asked) -> Result<Vec<(&'static str, bool)>, Problem> {
    let all_binary = asked.parameters.binary_data_output;
    if asked.outputs.is_empty() {
        return Ok([MASK, AGREEMENT].map(|name| (name, all_binary)).to_vec());
    }
    let known = |output: &Output| {
        let name = [MASK, AGREEMENT].into_iter().find(|name| *name == output.name);
        let name = name
            .ok_or_else(|| Problem::bad_request(format!("there is no output {:?}", output.name)))?;
        Ok((name, output.parameters.binary_data.unwrap_or(all_binary)))
    };
    asked.outputs.iter().map(known).collect()
}

fn answer(
    about: &Description,
    id: Option<String>,
    found: &Segmentation,
    wanted: &[(&'static str, bool)],
) -> Response<Body> {
    let mut tail = Vec::new();
    let mut outputs = Vec::new();
    for &(name, binary) in wanted {
        let (datatype, shape, start) = match name {
            MASK => ("UINT8", found.mask.shape(), tail.len()),
            _ => ("FP32", found.agreement.shape(), tail.len()),
        };
        let mut output = json!({ "name": name, "datatype": datatype, "shape": shape });
        if binary {
            match name {
                MASK => tail.extend(found.mask.iter()),
                _ => tail.extend(found.agreement.iter().flat_map(|value| value.to_le_bytes())),
            }
            output["parameters"] = json!({ "binary_data_size": tail.len() - start });
        } else {
            output["data"] = match name {
                MASK => found.mask.iter().copied().map(Value::from).collect(),
                _ => found.agreement.iter().copied().map(Value::from).collect(),
            };
        }
        outputs.push(output);
    }
    let mut head = json!({
        "model_name": about.name, "model_version": about.version, "outputs": outputs,
    });
    if let Some(id) = id {
        head["id"] = id.into();
    }
    let mut response = problem::json(StatusCode::OK, &head);
    if wanted.iter().any(|(_, binary)| *binary) {
        let head = head.to_string().into_bytes();
        let headers = response.headers_mut();
        headers.insert(JSON_LENGTH, head.len().into());
        let value = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, value);
        *response.body_mut() = Body::from([head, tail].concat());
    }
    response
}
