//! What a STOW-RS server answers (PS3.18 section 10.5.3 and annex I): which instances it stored, which it did not, and
//! why. In the DICOM JSON model (PS3.18 annex F) and as Native DICOM Model (PS3.19 annex A): written as the client asks for
//! it, by `http`; read as the server sent it, whatever it calls it, by `deliver`.

use std::fmt::Write;

use roxmltree::{Document, Node};
use serde_json::{Map, Value, json};

use crate::domain::SopReference;

pub const JSON: &str = "application/dicom+json";
pub const XML: &str = "application/dicom+xml";

/// Of every instance in a request, what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    pub stored: Vec<SopReference>,
    /// Each with its Failure Reason (table I.2-2).
    pub failed: Vec<(SopReference, u16)>,
    /// Failure Reasons of what has no readable UIDs.
    pub nameless: Vec<u16>,
}

struct Attribute {
    tag: &'static str,
    keyword: &'static str,
    content: Content,
}

/// UIDs and numbers alone: nothing in it has to be escaped.
enum Content {
    Uid(String),
    Number(u16),
    /// A URL that there is none of: what was stored here cannot be fetched from here.
    NoUrl,
    Items(Vec<Vec<Attribute>>),
}

impl Answer {
    #[must_use]
    pub fn json(&self) -> String {
        as_json(&self.attributes()).to_string()
    }

    #[must_use]
    pub fn xml(&self) -> String {
        let mut text = String::from(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <NativeDicomModel xmlns=\"http://dicom.nema.org/PS3.19/models/NativeDICOM\">",
        );
        write_xml(&mut text, &self.attributes());
        text + "</NativeDicomModel>\n"
    }

    /// Store Instances Response Module (table I.1-1), in order of tags; sequences are there where they have items.
    fn attributes(&self) -> Vec<Attribute> {
        let attribute = |tag, keyword, content| Attribute { tag, keyword, content };
        let url = || attribute("00081190", "RetrieveURL", Content::NoUrl);
        let reason = |reason| attribute(FAILURE_REASON, "FailureReason", Content::Number(reason));
        let reference = |SopReference { sop_class_uid, sop_instance_uid }: &SopReference| {
            let uid = |uid: &crate::domain::Uid| Content::Uid(uid.to_string());
            [
                attribute("00081150", "ReferencedSOPClassUID", uid(sop_class_uid)),
                attribute("00081155", "ReferencedSOPInstanceUID", uid(sop_instance_uid)),
            ]
        };
        let failed = self.failed.iter().map(|(object, why)| {
            reference(object).into_iter().chain([reason(*why)]).collect::<Vec<_>>()
        });
        let stored = self
            .stored
            .iter()
            .map(|object| reference(object).into_iter().chain([url()]).collect::<Vec<_>>());
        let nameless = self.nameless.iter().map(|why| vec![reason(*why)]);
        let sequences = [
            (FAILED_SOP_SEQUENCE, "FailedSOPSequence", failed.collect::<Vec<_>>()),
            ("00081199", "ReferencedSOPSequence", stored.collect()),
            (OTHER_FAILURES_SEQUENCE, "OtherFailuresSequence", nameless.collect()),
        ];
        let sequences = sequences.into_iter().filter(|(.., items)| !items.is_empty());
        let sequences =
            sequences.map(|(tag, keyword, items)| attribute(tag, keyword, Content::Items(items)));
        [url()].into_iter().chain(sequences).collect()
    }
}

impl Content {
    fn vr(&self) -> &'static str {
        match self {
            Self::Uid(_) => "UI",
            Self::Number(_) => "US",
            Self::NoUrl => "UR",
            Self::Items(_) => "SQ",
        }
    }
}

fn as_json(attributes: &[Attribute]) -> Value {
    let mut object = Map::new();
    for Attribute { tag, content, .. } in attributes {
        let vr = content.vr();
        let value = match content {
            Content::Uid(uid) => json!({ "vr": vr, "Value": [uid] }),
            Content::Number(number) => json!({ "vr": vr, "Value": [number] }),
            Content::NoUrl => json!({ "vr": vr }),
            Content::Items(items) => {
                let items: Vec<_> = items.iter().map(|item| as_json(item)).collect();
                json!({ "vr": vr, "Value": items })
            }
        };
        object.insert((*tag).to_owned(), value);
    }
    Value::Object(object)
}

fn write_xml(text: &mut String, attributes: &[Attribute]) {
    for Attribute { tag, keyword, content } in attributes {
        let vr = content.vr();
        let inner = match content {
            Content::Uid(uid) => format!("<Value number=\"1\">{uid}</Value>"),
            Content::Number(number) => format!("<Value number=\"1\">{number}</Value>"),
            Content::NoUrl => String::new(),
            Content::Items(items) => {
                let mut inner = String::new();
                for (number, item) in (1..).zip(items) {
                    write!(inner, "<Item number=\"{number}\">").expect("a string takes it");
                    write_xml(&mut inner, item);
                    inner.push_str("</Item>");
                }
                inner
            }
        };
        let head = format!("tag=\"{tag}\" vr=\"{vr}\" keyword=\"{keyword}\"");
        write!(text, "<DicomAttribute {head}>{inner}</DicomAttribute>").expect("a string takes it");
    }
}

const FAILED_SOP_SEQUENCE: &str = "00081198";
const OTHER_FAILURES_SEQUENCE: &str = "0008119A";
const FAILURE_REASON: &str = "00081197";

/// What a server says of an instance that it did not store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Failure Reason, where there is a readable one.
    pub reason: Option<u16>,
    /// Words beside the reason say that the instance is there already.
    pub says_exists: bool,
}

/// Every failure that the body of an answer tells of; none where it is empty or of another kind.
#[must_use]
pub fn failures(body: &[u8]) -> Vec<Failure> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{FEFF}').trim();
    if text.starts_with(['{', '[']) {
        let answer: Value = serde_json::from_str(text).unwrap_or_default();
        // Some servers answer with a list of data sets, as in other services of PS3.18.
        let answers =
            if let Value::Array(answers) = &answer { answers.as_slice() } else { &[answer] };
        return answers.iter().flat_map(failures_in_json).collect();
    }
    // XML, alone or as a part of a multipart answer.
    let (Some(start), Some(end)) = (text.find('<'), text.rfind('>')) else { return Vec::new() };
    let document = text.get(start..=end).and_then(|text| Document::parse(text).ok());
    document.map(|document| failures_in_xml(&document)).unwrap_or_default()
}

/// Whether text from a server says that an instance is there already.
#[must_use]
pub fn says_exists(text: &str) -> bool {
    text.to_ascii_lowercase().contains("already exist")
}

fn is_failures(tag: &str) -> bool {
    [FAILED_SOP_SEQUENCE, OTHER_FAILURES_SEQUENCE].iter().any(|t| t.eq_ignore_ascii_case(tag))
}

fn failures_in_json(answer: &Value) -> Vec<Failure> {
    let attributes = answer.as_object().into_iter().flatten();
    let sequences = attributes.filter(|(tag, _)| is_failures(tag)).map(|(_, sequence)| sequence);
    let items = sequences.flat_map(|sequence| sequence["Value"].as_array().into_iter().flatten());
    items
        .map(|item| {
            let reason = &item[FAILURE_REASON]["Value"][0];
            let number = reason.as_u64().or_else(|| reason.as_str()?.trim().parse().ok());
            Failure {
                reason: number.and_then(|number| number.try_into().ok()),
                says_exists: says_exists(&item.to_string()),
            }
        })
        .collect()
}

fn failures_in_xml(document: &Document<'_>) -> Vec<Failure> {
    // Some servers leave the namespace out, some the keyword: the tag is always there.
    let is = |node: &Node<'_, '_>, name: &str| node.tag_name().name() == name;
    let sequences = document.descendants().filter(|node| {
        is(node, "DicomAttribute") && node.attribute("tag").is_some_and(is_failures)
    });
    let items = sequences.flat_map(|sequence| sequence.children().filter(|node| is(node, "Item")));
    items
        .map(|item| {
            let reason = item
                .descendants()
                .find(|node| node.attribute("tag") == Some(FAILURE_REASON))
                .and_then(|node| node.descendants().find(|node| is(node, "Value")))
                .and_then(|value| value.text()?.trim().parse().ok());
            let mut words = item.descendants().filter_map(|node| node.text());
            Failure { reason, says_exists: words.any(says_exists) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Uid;

    #[test]
    fn every_instance_is_named_with_what_became_of_it() {
        let object = |uid: &str| SopReference {
            sop_class_uid: Uid::parse("1.2.840.10008.5.1.4.1.1.66.4").unwrap(),
            sop_instance_uid: Uid::parse(uid).unwrap(),
        };
        let answer = Answer {
            stored: vec![object("2.25.1")],
            failed: vec![(object("2.25.2"), 0xA700)],
            nameless: vec![0xC000],
        };
        let json: Value = serde_json::from_str(&answer.json()).unwrap();
        assert_eq!(json["00081190"], json!({ "vr": "UR" }));
        let failed = &json["00081198"]["Value"][0];
        assert_eq!(failed["00081155"]["Value"][0], "2.25.2");
        assert_eq!(failed["00081197"]["Value"][0], 0xA700);
        assert_eq!(json["00081199"]["Value"][0]["00081155"]["Value"][0], "2.25.1");
        assert_eq!(json["0008119A"]["Value"][0]["00081197"]["Value"][0], 0xC000);
        let empty: Value = serde_json::from_str(&Answer::default().json()).unwrap();
        assert_eq!(empty, json!({ "00081190": { "vr": "UR" } }), "no empty sequence");
        let xml = answer.xml();
        let told = "<DicomAttribute tag=\"00081197\" vr=\"US\" keyword=\"FailureReason\">\
                    <Value number=\"1\">42752</Value></DicomAttribute>";
        assert!(xml.contains(told), "{xml}");
        assert_eq!(xml.matches("<Item number=\"1\">").count(), 3);
    }

    fn failure(reason: u16) -> Failure {
        Failure { reason: Some(reason), says_exists: false }
    }

    #[test]
    fn what_is_written_is_read_back_in_either_form() {
        let object = SopReference {
            sop_class_uid: Uid::parse("1.2.840.10008.5.1.4.1.1.66.4").unwrap(),
            sop_instance_uid: Uid::parse("2.25.2").unwrap(),
        };
        let answer = Answer {
            stored: vec![object.clone()],
            failed: vec![(object, 0xA700)],
            nameless: vec![0xC000],
        };
        for text in [answer.json(), answer.xml()] {
            assert_eq!(failures(text.as_bytes()), [failure(0xA700), failure(0xC000)], "{text}");
        }
        assert_eq!(failures(Answer::default().json().as_bytes()), []);
    }

    #[test]
    fn failures_are_found_in_what_servers_make_of_the_standard() {
        let item = json!({ "00081197": { "vr": "US", "Value": [49152] } });
        let json = json!({ "00081198": { "vr": "SQ", "Value": [item] } });
        let text = json!([{ "0008119a": { "Value": [{ "00081197": { "Value": ["272"] } }] } }]);
        let xml = "<?xml version=\"1.0\"?>\n<n:NativeDicomModel xmlns:n=\"urn:x\"><n:DicomAttribute tag=\"00081198\">\
                   <n:Item number=\"1\"><n:DicomAttribute tag=\"00081197\"><n:Value number=\"1\"> 49152 </n:Value>\
                   </n:DicomAttribute></n:Item></n:DicomAttribute></n:NativeDicomModel>";
        let part = format!("--b\r\nContent-Type: application/dicom+xml\r\n\r\n{xml}\r\n--b--\r\n");
        let marked = format!("\u{FEFF}{json}");
        for (body, reason) in [
            (json.to_string(), 49152),
            (json!([json]).to_string(), 49152),
            (text.to_string(), 272),
            (xml.to_owned(), 49152),
            (part, 49152),
            (marked, 49152),
        ] {
            assert_eq!(failures(body.as_bytes()), [failure(reason)], "{body}");
        }
    }

    #[test]
    fn a_body_that_tells_of_no_failure_has_none() {
        let empty =
            json!({ "00081198": { "vr": "SQ" }, "00081199": { "Value": [{}] } }).to_string();
        let none = json!({ "00081198": { "vr": "SQ", "Value": [] } }).to_string();
        for body in
            ["", "ok", "<html>ok</html>", "<p>ok", "[]", "null", "{", "<", "><", &empty, &none]
        {
            assert_eq!(failures(body.as_bytes()), [], "{body}");
        }
        assert_eq!(failures(&[0xFF, b'{', 0]), []);
    }

    #[test]
    fn words_that_the_instance_exists_are_heard_in_either_form() {
        let words = "SOP instance Already exists";
        let item =
            json!({ "00081197": { "Value": [272] }, "00090097": { "vr": "LT", "Value": [words] } });
        let json = json!({ "00081198": { "Value": [item] } }).to_string();
        let xml = format!(
            "<N><DicomAttribute tag=\"00081198\"><Item><DicomAttribute tag=\"00000902\"><Value>{words}</Value>\
             </DicomAttribute></Item></DicomAttribute></N>"
        );
        assert_eq!(failures(json.as_bytes()), [Failure { reason: Some(272), says_exists: true }]);
        assert_eq!(failures(xml.as_bytes()), [Failure { reason: None, says_exists: true }]);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_answers_never_panic(body in "[\\[{<].{0,200}") {
            let _ = failures(body.as_bytes());
        }
    }
}
