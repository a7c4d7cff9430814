//! A data set as it stands in the file: elements in order of their tags, each with its stored bytes, its items or its
//! fragments. What the bytes mean is asked through the accessors in `attributes`, by nothing else.
//!
//! Values share the bytes of the file; [`DataSet::detached`] gives them up.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use dicom_core::dictionary::{DataDictionary, VirtualVr};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::{StandardDataDictionary, tags};

use super::character_set::CharacterSet;

#[derive(Clone)]
pub(in crate::codec) struct DataSet {
    /// Sorted by tag, each tag once.
    elements: Vec<Element>,
    context: Arc<Context>,
}

/// What the values of a data set mean depends on besides themselves. Items take it over from what they stand in.
#[derive(Clone)]
pub(super) struct Context {
    /// The file, for errors.
    pub(super) path: Arc<Path>,
    pub(super) characters: Arc<CharacterSet>,
    /// From `PixelRepresentation`: whether attributes of US or SS are signed.
    pub(super) signed: Option<bool>,
}

#[derive(Clone)]
pub(super) struct Element {
    pub(super) tag: Tag,
    /// As it was written; `None` in Implicit VR, and where what was written is none.
    pub(super) declared: Option<VR>,
    pub(super) big_endian: bool,
    pub(super) value: Value,
}

#[derive(Clone)]
pub(super) enum Value {
    Bytes(Bytes),
    Items(Vec<DataSet>),
    Fragments(Fragments),
    /// A sequence whose bytes are no items, or an element that stands twice with different values.
    Unreadable(&'static str),
}

/// Encapsulated pixel data (PS3.5 section A.4).
#[derive(Clone)]
pub(super) struct Fragments {
    /// Basic Offset Table: 32-bit little-endian numbers; may be empty.
    pub(super) offsets: Bytes,
    pub(super) parts: Vec<Bytes>,
    /// Whether a sequence delimiter stands behind the last one. Without it the data may have been cut.
    pub(super) closed: bool,
}

impl DataSet {
    /// Of elements in the order in which they stood. `context` is that of what the data set stands in.
    pub(super) fn new(mut elements: Vec<Element>, context: &Arc<Context>) -> Self {
        elements.sort_by_key(|element| element.tag);
        elements.dedup_by(|later, earlier| {
            let twice = later.tag == earlier.tag;
            if twice && !same(&later.value, &earlier.value) {
                earlier.value = Value::Unreadable("stands twice, with different values");
            }
            twice
        });
        Self { elements, context: Arc::clone(context) }
    }

    pub(super) fn get(&self, tag: Tag) -> Option<&Element> {
        let at = self.elements.binary_search_by_key(&tag, |element| element.tag).ok()?;
        Some(&self.elements[at])
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = Tag> + '_ {
        self.elements.iter().map(|element| element.tag)
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// Gives the data set and the items in it their context, once `outer` is known.
    pub(super) fn settle(&mut self, outer: &Arc<Context>) {
        self.context = Arc::clone(outer);
        let own = self.own_context();
        if let Some(own) = own {
            self.context = Arc::new(own);
        }
        for element in &mut self.elements {
            if let Value::Items(items) = &mut element.value {
                for item in items {
                    item.settle(&self.context);
                }
            }
        }
    }

    /// `None` where it is that of what the data set stands in.
    fn own_context(&self) -> Option<Context> {
        let characters = match self.get(tags::SPECIFIC_CHARACTER_SET).map(|found| &found.value) {
            Some(Value::Bytes(bytes)) => Some(Arc::new(CharacterSet::new(bytes))),
            _ => None,
        };
        let signed = self.number(tags::PIXEL_REPRESENTATION).ok().flatten().map(|n| n == 1.0);
        if characters.is_none() && signed.is_none() {
            return None;
        }
        Some(Context {
            path: Arc::clone(&self.context.path),
            characters: characters.unwrap_or_else(|| Arc::clone(&self.context.characters)),
            signed: signed.or(self.context.signed),
        })
    }

    /// Without the pixels, and with bytes of its own instead of a part of the file's.
    pub(super) fn detached(mut self) -> Self {
        self.elements.retain(|element| element.tag != tags::PIXEL_DATA);
        for element in &mut self.elements {
            match &mut element.value {
                Value::Bytes(bytes) => *bytes = Bytes::copy_from_slice(bytes),
                Value::Items(items) => {
                    *items = std::mem::take(items).into_iter().map(Self::detached).collect();
                }
                Value::Fragments(_) | Value::Unreadable(_) => {}
            }
        }
        self.elements.retain(|element| !matches!(element.value, Value::Fragments(_)));
        self
    }
}

fn same(one: &Value, other: &Value) -> bool {
    matches!((one, other), (Value::Bytes(one), Value::Bytes(other)) if one == other)
}

/// The attribute's own value representation, from the dictionary (PS3.6); `None` for private ones.
pub(super) fn own_vr(tag: Tag) -> Option<VirtualVr> {
    let entry = StandardDataDictionary.by_tag(tag).filter(|_| tag.group().is_multiple_of(2));
    entry.map(|entry| entry.vr)
}

/// An attribute as errors name it: keyword and tag.
pub(super) fn name(tag: Tag) -> String {
    let Tag(group, element) = tag;
    match StandardDataDictionary.by_tag(tag) {
        Some(entry) if group % 2 == 0 => format!("{} ({group:04X},{element:04X})", entry.alias),
        _ if group % 2 == 1 => format!("the private element ({group:04X},{element:04X})"),
        _ => format!("the element ({group:04X},{element:04X})"),
    }
}
