//! What a STOW-RS server may answer, and what becomes of the delivery (PS3.18 section 10.5.3).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use cdal::deliver::Config;
use cdal::spool::{self, DeliveryState, Desk, Letter};
use serde_json::{Value, json};

use crate::support::daemon::{Running, settings};
use crate::support::dicom::series;
use crate::support::http::post_files;
use crate::support::wait_for;
use crate::support::worker::Stand;

const JSON: &str = "application/dicom+json";
const XML: &str = "application/dicom+xml";

/// Status, media type and body.
type Answer = (u16, &'static str, String);

fn stored() -> Value {
    let instance = json!({ "00081155": { "vr": "UI", "Value": ["2.25.1"] } });
    json!({
        "00081190": { "vr": "UR", "Value": ["http://archive/studies/1"] },
        "00081199": { "vr": "SQ", "Value": [instance] },
    })
}

fn failed(reason: u16) -> Value {
    let instance = json!({
        "00081155": { "vr": "UI", "Value": ["2.25.1"] },
        "00081197": { "vr": "US", "Value": [reason] },
    });
    json!({ "00081190": { "vr": "UR" }, "00081198": { "vr": "SQ", "Value": [instance] } })
}

fn failed_xml(sequence: &str, reason: u16) -> String {
    format!(
        "<?xml version=\"1.0\"?><NativeDicomModel xmlns=\"http://dicom.nema.org/PS3.19/models/NativeDICOM\">\
         <DicomAttribute tag=\"{sequence}\" vr=\"SQ\"><Item number=\"1\"><DicomAttribute tag=\"00081197\" vr=\"US\">\
         <Value number=\"1\">{reason}</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>"
    )
}

/// Takes one request; gives its head.
fn take(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.to_ascii_lowercase();
    let length = length.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let mut body = vec![0; length.trim().parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    Some(head)
}

/// Answers in turn, the last one again and again.
fn server(answers: Vec<Answer>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/dicom-web/studies", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let last = answers.last().expect("an answer").clone();
        let mut answers = answers.into_iter();
        for mut stream in listener.incoming().flatten() {
            let Some(head) = take(&stream) else { continue };
            assert!(head.starts_with("POST /dicom-web/studies HTTP/1.1\r\n"), "{head}");
            let (status, media_type, body) = answers.next().unwrap_or_else(|| last.clone());
            let head = format!(
                "HTTP/1.1 {status} Answer\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
        }
    });
    url
}

/// Delivers one object to a server that gives `answers`, until `enough` of what became of it.
fn delivered(answers: &[Answer], enough: impl Fn(&Letter) -> bool) -> Letter {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    let destination = Config::stow("archive", &server(answers.to_vec()));
    let worker = Stand { compute: Duration::ZERO };
    let daemon = Running::start(settings(&spool, vec![destination]), worker);
    let images = series(folder.path(), "a", 1);
    let to = daemon.daemon().http_address().unwrap();
    assert_eq!(post_files(to, "related", &images).status, 202);
    let desk = Desk::open(spool::Config::new(&spool)).unwrap();
    let all = [DeliveryState::Pending, DeliveryState::Sent, DeliveryState::Dead];
    wait_for("the delivery's fate", || {
        desk.letters(&all, None).unwrap().into_iter().find(|letter| enough(letter))
    })
}

fn is_settled(letter: &Letter) -> bool {
    letter.state != DeliveryState::Pending
}

fn has_failed(letter: &Letter) -> bool {
    letter.reason.is_some()
}

#[track_caller]
fn sent_after(attempts: u32, answers: &[Answer]) {
    let letter = delivered(answers, is_settled);
    assert_eq!((letter.state, letter.attempts), (DeliveryState::Sent, attempts), "{letter:?}");
}

#[track_caller]
fn dead_because(words: &str, answers: &[Answer]) {
    let letter = delivered(answers, is_settled);
    assert_eq!(letter.state, DeliveryState::Dead, "{letter:?}");
    assert!(letter.reason.as_ref().unwrap().contains(words), "{letter:?}");
}

#[track_caller]
fn waits_because(words: &str, answers: &[Answer]) {
    let letter = delivered(answers, has_failed);
    assert_eq!(letter.state, DeliveryState::Pending, "{letter:?}");
    assert!(letter.reason.as_ref().unwrap().contains(words), "{letter:?}");
}

fn answer(status: u16, body: &Value) -> Answer {
    (status, JSON, body.to_string())
}

#[test]
fn a_200_that_names_the_instance_is_delivered() {
    sent_after(1, &[answer(200, &stored())]);
}

#[test]
fn a_200_without_a_body_is_delivered() {
    sent_after(1, &[(200, "text/plain", String::new())]);
}

#[test]
fn a_204_is_delivered() {
    sent_after(1, &[(204, "text/plain", String::new())]);
}

#[test]
fn a_200_with_a_page_for_people_is_delivered() {
    sent_after(1, &[(200, "text/html", "<html>ok</html>".to_owned())]);
}

#[test]
fn a_200_with_more_than_an_answer_holds_is_delivered() {
    sent_after(1, &[(200, "text/plain", "x".repeat(2 << 20))]);
}

#[test]
fn a_202_with_a_warning_is_delivered() {
    let mut warned = stored();
    warned["00081199"]["Value"][0]["00081196"] = json!({ "vr": "US", "Value": [0xB000] });
    sent_after(1, &[answer(202, &warned)]);
}

#[test]
fn a_failure_in_json_counts_under_a_200() {
    dead_because("C000", &[answer(200, &failed(0xC000))]);
}

#[test]
fn a_failure_in_xml_counts_under_a_202() {
    dead_because("C000", &[(202, XML, failed_xml("00081198", 0xC000))]);
}

#[test]
fn a_failure_of_an_instance_without_readable_uids_counts() {
    dead_because("C000", &[(200, XML, failed_xml("0008119A", 0xC000))]);
}

#[test]
fn a_failure_in_a_list_of_data_sets_counts() {
    dead_because("0122", &[(409, JSON, json!([failed(0x0122)]).to_string())]);
}

#[test]
fn a_failure_in_json_counts_whatever_the_server_calls_it() {
    dead_because("A900", &[(200, "text/plain", failed(0xA900).to_string())]);
}

#[test]
fn an_instance_that_is_there_already_is_delivered() {
    sent_after(1, &[answer(409, &failed(0x0111))]);
}

#[test]
fn azures_word_for_an_instance_that_is_there_already_is_delivered() {
    sent_after(1, &[answer(409, &failed(45070))]);
}

#[test]
fn googles_words_for_an_instance_that_is_there_already_are_delivered() {
    let mut exists = failed(272);
    let words = json!({ "vr": "LT", "Value": ["already exists"] });
    exists["00081198"]["Value"][0]["00090097"] = words;
    sent_after(1, &[answer(409, &exists)]);
}

#[test]
fn a_409_that_says_in_plain_text_that_the_instance_exists_is_delivered() {
    sent_after(1, &[(409, "text/plain", "Instance already exists".to_owned())]);
}

#[test]
fn a_processing_failure_that_does_not_pass_becomes_a_dead_letter_that_says_where_to_look() {
    dead_because("may be stored already", &[answer(409, &failed(272))]);
}

#[test]
fn out_of_resources_is_tried_again() {
    sent_after(2, &[answer(409, &failed(0xA700)), answer(200, &stored())]);
}

#[test]
fn a_503_is_tried_again() {
    sent_after(2, &[(503, "text/plain", "busy".to_owned()), answer(200, &stored())]);
}

#[test]
fn a_401_waits_and_says_what_to_check() {
    waits_because("401 Unauthorized; check url and token", &[(401, "text/plain", "no".to_owned())]);
}

#[test]
fn a_307_waits_and_says_what_to_set() {
    waits_because("set url to it", &[(307, "text/plain", String::new())]);
}

#[test]
fn a_415_is_a_dead_letter_with_its_status() {
    dead_because("415 Unsupported Media Type", &[(415, "text/plain", "no".to_owned())]);
}
