//! What a STOW-RS server answers (PS3.18 section 10.5.3 and annex I): which instances it stored, which it did not, and
//! why. In the DICOM JSON model (PS3.18 annex F) and as Native DICOM Model (PS3.19 annex A), in which a client asks for it.

use std::fmt::Write;

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
        let reason = |reason| attribute("00081197", "FailureReason", Content::Number(reason));
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
            ("00081198", "FailedSOPSequence", failed.collect::<Vec<_>>()),
            ("00081199", "ReferencedSOPSequence", stored.collect()),
            ("0008119A", "OtherFailuresSequence", nameless.collect()),
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
}
