//! A small HTTP client: one request on one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use cdal::{codec, domain, tls};
use ndarray::Array2;
use serde_json::Value;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::PATIENCE;

pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Of a problem.
    pub fn json_code(&self) -> Option<String> {
        let problem: Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["code"].as_str()?.to_owned())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

pub fn request(to: SocketAddr, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut stream = connect(to);
    stream.write_all(&head(method, path, headers, body)).unwrap();
    let _ = stream.write_all(body); // a refusal may come before the end
    read(&mut stream)
}

/// The same over TLS; why not, where the handshake fails.
pub fn request_tls(
    to: SocketAddr,
    tls: &tls::Client,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &[u8],
) -> Result<Answer, String> {
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(tls::client(tls).expect("credentials"), name).unwrap();
    let mut stream = StreamOwned::new(session, connect(to));
    stream.write_all(&head(method, path, headers, body)).map_err(|error| error.to_string())?;
    let _ = stream.write_all(body);
    // With TLS 1.3 a refused certificate is told after the handshake.
    let mut first = [0];
    stream.read_exact(&mut first).map_err(|error| error.to_string())?;
    Ok(read(&mut first.as_slice().chain(stream)))
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn head(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|header| header.starts_with(name));
    let mut lines = vec![format!("{method} {path} HTTP/1.1"), "Connection: close".to_owned()];
    if !given("Host:") {
        lines.push("Host: localhost".to_owned());
    }
    if !given("Transfer-Encoding:") {
        lines.push(format!("Content-Length: {}", body.len()));
    }
    lines.extend(headers.iter().map(|header| (*header).to_owned()));
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

/// Reads one answer to the end of the connection.
pub fn read(stream: &mut impl Read) -> Answer {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes); // a reset after the answer is no matter
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no answer: {ended:?}, {bytes:?}"));
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Answer { status: status.expect("a status"), headers, body: bytes[end + 4..].to_vec() }
}

pub fn get(to: SocketAddr, path: &str) -> Answer {
    request(to, "GET", path, &[], &[])
}

pub fn post(to: SocketAddr, path: &str, body: &[u8]) -> Answer {
    request(to, "POST", path, &[], body)
}

/// Posts files as `multipart/<kind>`.
pub fn post_files(to: SocketAddr, kind: &str, files: &[impl AsRef<Path>]) -> Answer {
    let mut body = Vec::new();
    for file in files {
        let name = file.as_ref().file_name().unwrap().to_string_lossy();
        let head = match kind {
            "related" => "Content-Type: application/dicom".to_owned(),
            _ => format!("Content-Disposition: form-data; name=\"f\"; filename=\"{name}\""),
        };
        body.extend(format!("--edge\r\n{head}\r\n\r\n").bytes());
        body.extend(std::fs::read(file).unwrap());
        body.extend(b"\r\n");
    }
    body.extend(b"--edge--\r\n");
    let content_type = format!("Content-Type: multipart/{kind}; boundary=\"edge\"");
    request(to, "POST", "/v1/cases", &[&content_type], &body)
}

/// A small picture as a PNG file; another one for each seed.
pub fn picture(seed: u8) -> Vec<u8> {
    let mask = Array2::from_shape_fn((9, 7), |(row, column)| seed ^ (row * 7 + column) as u8);
    let code = domain::Code { value: "1".into(), scheme: "99X".into(), meaning: "x".into() };
    let label = |value| domain::Label {
        value,
        name: "x".into(),
        colour: [255, 0, 0],
        category: code.clone(),
        kind: code.clone(),
    };
    codec::mask_png::encode(mask.view(), &[label(1), label(2)]).unwrap()
}
