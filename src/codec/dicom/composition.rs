//! What a series is made of: its stacks of slices, its single pictures, and what is no part of either.
//!
//! Everything that reads a series asks here: `cdal segment`, the daemon and the watched folder. Pure: headers in, places
//! out. What holds always: every frame is in exactly one stack, a single picture, or left out with the reason; a stack's
//! planes lie on its grid within [`tolerance`]; whatever cannot be told is a [`Misfit`] that names the frame.

use std::collections::BTreeMap;
use std::fmt;

use super::stack::{self, arrange, most_common};
use super::traits::STACK_ID;
use crate::domain::Geometry;

pub use super::stack::{Plane, tolerance};
pub use super::traits::{TRAITS, Trait, Traits};

/// Planes of one series that are inclined by at least this to the stack are scouts, degrees.
const SCOUT_DEGREES: f64 = 30.0;
/// A stack is what lies one way, if it has at least so many slices, and so many for every image that lies another way.
const LEAST_STACK: usize = 3;
const CLEAR_MAJORITY: usize = 2;

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    At(Plane),
    /// A projection or a capture: it lies nowhere in the patient.
    Nowhere,
    /// A slice of which an attribute is missing or no value of its kind.
    Unreadable(&'static str),
}

/// One frame of a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub place: Place,
    /// Rows and columns.
    pub size: [usize; 2],
    pub channels: usize,
    pub frame_of_reference: Option<String>,
    /// Its `ImageType` says LOCALIZER.
    pub is_localizer: bool,
    pub traits: Traits,
}

/// Members are named by their index in what [`compose`] was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    pub stacks: Vec<Stack>,
    /// Single pictures, which lie nowhere.
    pub pictures: Vec<usize>,
    pub left_out: Vec<(usize, Reason)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// Members in the order of their slices.
    pub order: Vec<usize>,
    pub geometry: Geometry,
    /// What tells it from the other stacks; empty for the only one.
    pub part: Part,
}

/// Values of traits that all slices of a stack share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part(Vec<(Trait, Option<String>)>);

impl Part {
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.is_empty()
    }

    /// For the end of a name: letters, digits, `.`, `+`, `-` and `_` alone.
    #[must_use]
    pub fn suffix(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".+-".contains(c) { c } else { '_' };
        self.0.iter().fold(String::new(), |name, (distinction, value)| {
            let value: String = value.as_deref().unwrap_or("none").chars().map(plain).collect();
            format!("{name}-{}-{value}", distinction.word)
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (distinction, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let value = value.as_deref().unwrap_or("absent");
            write!(f, "{comma}{} {value}", distinction.keyword)?;
        }
        Ok(())
    }
}

/// Why a frame belongs to no stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Its `ImageType` says LOCALIZER.
    Localizer,
    /// It lies across the stack, as scouts do.
    Across,
    /// It lies nowhere, beside slices that lie somewhere.
    Unplaced,
}

/// Why frames form no stacks. `member` is the culprit as far as the others can tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Misfit {
    Unreadable {
        member: usize,
        attribute: &'static str,
    },
    NotOrthonormal {
        member: usize,
    },
    OutOfReach {
        member: usize,
    },
    Differs {
        member: usize,
        other: usize,
        attribute: &'static str,
    },
    Orientation {
        member: usize,
        other: usize,
        degrees: f64,
    },
    /// `varying`: the traits that differ and yet do not tell the volumes apart.
    Duplicate {
        member: usize,
        other: usize,
        varying: Vec<&'static str>,
    },
    /// A volume that has fewer slices than another at the same place.
    Incomplete {
        member: usize,
        part: Part,
        found: usize,
        expected: usize,
    },
    Uneven {
        member: usize,
        other: usize,
        gap: f64,
        usual: f64,
    },
    Astray {
        member: usize,
        other: usize,
        distance: f64,
    },
    Sheared {
        member: usize,
        degrees: f64,
    },
}

/// Finds what `members`, the frames of one series, make up.
///
/// Localizers beside slices are left out, and so are images that lie across a clear majority or nowhere. Volumes at the
/// same place are a stack each, if one or two [`TRAITS`] tell them apart.
///
/// # Errors
/// If the rest forms no regular grid.
pub fn compose(members: &[Member]) -> Result<Composition, Misfit> {
    let mut left_out = Vec::new();
    let mut rest: Vec<usize> = (0..members.len()).collect();
    let mut leave = |rest: &mut Vec<usize>, reason: Reason, out: &dyn Fn(usize) -> bool| {
        left_out.extend(rest.iter().filter(|&&m| out(m)).map(|&m| (m, reason)));
        rest.retain(|&m| !out(m));
    };
    let lies_nowhere = |m: usize| members[m].place == Place::Nowhere;
    if rest.iter().all(|&m| lies_nowhere(m)) {
        return Ok(Composition { stacks: Vec::new(), pictures: rest, left_out });
    }
    let is_slice = |m: usize| !members[m].is_localizer && !lies_nowhere(m);
    if rest.iter().any(|&m| is_slice(m)) {
        leave(&mut rest, Reason::Localizer, &|m| members[m].is_localizer);
    }
    leave(&mut rest, Reason::Unplaced, &lies_nowhere);
    let planes = planes_of(members, &rest)?;

    let across = scouts(&planes);
    let stacks = Placed { members, planes: &planes, of: &rest };
    let everything: Vec<usize> = (0..rest.len()).collect();
    let only_localizers = rest.iter().all(|&m| members[m].is_localizer);
    let stacks = match stacks.stacks_by_id(&everything) {
        Some(stacks) if !only_localizers => stacks,
        _ => {
            let upright: Vec<usize> =
                everything.into_iter().filter(|at| !across.contains(at)).collect();
            let found = stacks.volumes(&upright)?;
            left_out.extend(across.iter().map(|&at| (rest[at], Reason::Across)));
            found
        }
    };
    left_out.sort_unstable();
    Ok(Composition { stacks, pictures: Vec::new(), left_out })
}

fn planes_of(members: &[Member], rest: &[usize]) -> Result<Vec<Plane>, Misfit> {
    let plane = |&member: &usize| match members[member].place {
        Place::At(plane) => Ok(plane),
        Place::Unreadable(attribute) => Err(Misfit::Unreadable { member, attribute }),
        Place::Nowhere => unreachable!("images that lie nowhere were left out"),
    };
    rest.iter().map(plane).collect()
}

/// Planes that lie across a clear majority.
fn scouts(planes: &[Plane]) -> Vec<usize> {
    let Some(main) = planes.get(most_common(planes, Plane::is_parallel)) else {
        return Vec::new();
    };
    let (with, against): (Vec<usize>, Vec<usize>) =
        (0..planes.len()).partition(|&at| planes[at].is_parallel(main));
    let clear = with.len() >= LEAST_STACK.max(CLEAR_MAJORITY * against.len());
    let all_across = against.iter().all(|&at| planes[at].inclination(main) >= SCOUT_DEGREES);
    if clear && all_across { against } else { Vec::new() }
}

/// Members that lie somewhere. Its functions take and give indices into `planes`, but for the stacks and misfits.
struct Placed<'a> {
    members: &'a [Member],
    planes: &'a [Plane],
    /// Which member each plane is of.
    of: &'a [usize],
}

/// Of a trait.
type Value = Option<String>;
/// Planes by the values of some traits.
type Groups = BTreeMap<Vec<Value>, Vec<usize>>;

impl Placed<'_> {
    fn member(&self, at: usize) -> &Member {
        &self.members[self.of[at]]
    }

    /// The stacks that `StackID` names, if it names several and each is one.
    fn stacks_by_id(&self, all: &[usize]) -> Option<Vec<Stack>> {
        let groups = self.groups(all, &[STACK_ID]);
        if groups.len() < 2 || groups.keys().any(|values| values[0].is_none()) {
            return None;
        }
        if self.stack(all).is_ok() {
            return None;
        }
        let mut stacks = Vec::new();
        for (values, group) in &groups {
            for mut stack in self.volumes(group).ok()? {
                stack.part.0.insert(0, (TRAITS[STACK_ID], values[0].clone()));
                stacks.push(stack);
            }
        }
        Some(stacks)
    }

    /// One stack, or one for each volume at the same place.
    fn volumes(&self, all: &[usize]) -> Result<Vec<Stack>, Misfit> {
        self.check_alike(all)?;
        let misfit = match self.stack(all) {
            Ok(stack) => return Ok(vec![stack]),
            Err(misfit) => misfit,
        };
        let positional = matches!(
            misfit,
            Misfit::Duplicate { .. } | Misfit::Uneven { .. } | Misfit::Astray { .. }
        );
        if !positional {
            return Err(misfit);
        }
        let varying: Vec<usize> =
            (1..TRAITS.len()).filter(|&i| self.groups(all, &[i]).len() > 1).collect();
        let alone = varying.iter().map(|&i| vec![i]);
        let pairs = varying
            .iter()
            .enumerate()
            .flat_map(|(n, &i)| varying[n + 1..].iter().map(move |&j| vec![i, j]));
        let mut told = None;
        for chosen in alone.chain(pairs) {
            match self.split(all, &chosen) {
                Split::Volumes(stacks) => return Ok(stacks),
                Split::Faulty(misfit) => told = told.or(Some(misfit)),
                Split::No => {}
            }
        }
        let keywords = || varying.iter().map(|&i| TRAITS[i].keyword).collect();
        Err(told.unwrap_or(match misfit {
            Misfit::Duplicate { member, other, .. } => {
                Misfit::Duplicate { member, other, varying: keywords() }
            }
            misfit => misfit,
        }))
    }

    /// Members by the values of some traits.
    fn groups(&self, all: &[usize], chosen: &[usize]) -> Groups {
        let mut groups = Groups::new();
        for &at in all {
            let values = chosen.iter().map(|&i| self.member(at).traits[i].clone()).collect();
            groups.entry(values).or_default().push(at);
        }
        groups
    }

    /// Whether some traits tell the volumes at one place apart: each value has one slice at every place.
    fn split(&self, all: &[usize], chosen: &[usize]) -> Split {
        let groups = self.groups(all, chosen);
        if groups.len() < 2 || groups.len() * 2 > all.len() && groups.len() < all.len() {
            return Split::No;
        }
        let largest = groups.values().max_by_key(|group| group.len()).expect("there are groups");
        let mut stacks = Vec::new();
        for (values, group) in &groups {
            let part =
                Part(chosen.iter().map(|&i| TRAITS[i]).zip(values.iter().cloned()).collect());
            match self.stack(group) {
                Ok(stack) => stacks.push(Stack { part, ..stack }),
                // The values do not tell all volumes apart.
                Err(Misfit::Duplicate { .. }) => return Split::No,
                Err(misfit) if groups.values().all(|other| other.len() == largest.len()) => {
                    return Split::Faulty(misfit);
                }
                Err(_) => return self.incomplete(&groups, chosen),
            }
        }
        let same_place = |stack: &Stack| is_in_place(&stack.geometry, &stacks[0].geometry);
        if stacks.iter().all(|stack| stack.order.len() == largest.len() && same_place(stack)) {
            return Split::Volumes(by_value(stacks));
        }
        self.incomplete(&groups, chosen)
    }

    /// Names the volume that lacks slices, if all its places are among those of the fullest one.
    fn incomplete(&self, groups: &Groups, chosen: &[usize]) -> Split {
        self.lacking(groups, chosen).map_or(Split::No, Split::Faulty)
    }

    fn lacking(&self, groups: &Groups, chosen: &[usize]) -> Option<Misfit> {
        let fullest = groups.values().max_by_key(|group| group.len())?;
        if chosen.len() > 1 || fullest.len() < LEAST_STACK {
            return None;
        }
        let whole = self.stack(fullest).ok()?;
        let near = |a: &Plane, b: &Plane| {
            let squares = (0..3).map(|i| (a.position[i] - b.position[i]).powi(2));
            squares.sum::<f64>().sqrt() <= tolerance(whole.geometry.spacing)[0]
        };
        let is_among =
            |&at: &usize| fullest.iter().any(|&f| near(&self.planes[at], &self.planes[f]));
        if !groups.values().all(|group| group.iter().all(is_among)) {
            return None;
        }
        let (values, group) = groups.iter().find(|(_, group)| group.len() < fullest.len())?;
        Some(Misfit::Incomplete {
            member: self.of[group[0]],
            part: Part(chosen.iter().map(|&i| TRAITS[i]).zip(values.iter().cloned()).collect()),
            found: group.len(),
            expected: fullest.len(),
        })
    }

    /// What most members have is right, so that the others are named.
    fn check_alike(&self, all: &[usize]) -> Result<(), Misfit> {
        let differs = |attribute, alike: &dyn Fn(&Member, &Member) -> bool| {
            let common = all[most_common(all, |&a, &b| alike(self.member(a), self.member(b)))];
            match all.iter().find(|&&at| !alike(self.member(at), self.member(common))) {
                Some(&at) => {
                    let (member, other) = (self.of[at], self.of[common]);
                    Err(Misfit::Differs { member, other, attribute })
                }
                None => Ok(()),
            }
        };
        differs("Rows and Columns", &|a, b| a.size == b.size)?;
        differs("SamplesPerPixel", &|a, b| a.channels == b.channels)?;
        differs("FrameOfReferenceUID", &|a, b| a.frame_of_reference == b.frame_of_reference)
    }

    /// All of these as one stack.
    fn stack(&self, all: &[usize]) -> Result<Stack, Misfit> {
        let planes: Vec<Plane> = all.iter().map(|&at| self.planes[at]).collect();
        let member = |plane: usize| self.of[all[plane]];
        match arrange(&planes) {
            Ok((order, geometry)) => {
                let order = order.into_iter().map(member).collect();
                Ok(Stack { order, geometry, part: Part::default() })
            }
            Err(misfit) => Err(named(misfit, member)),
        }
    }
}

/// What some traits make of members.
enum Split {
    /// Volumes at one place, one for each value.
    Volumes(Vec<Stack>),
    /// Volumes at one place, one of them with a fault.
    Faulty(Misfit),
    No,
}

/// Whether two grids have their voxels at the same places.
fn is_in_place(a: &Geometry, b: &Geometry) -> bool {
    let [bound, _] = tolerance(b.spacing);
    let off: f64 = (0..3).map(|axis| (a.origin[axis] - b.origin[axis]).powi(2)).sum();
    off.sqrt() <= bound.max(1e-3) && (a.spacing[2] / b.spacing[2] - 1.0).abs() <= 0.1
}

/// In the order of their values as numbers, where they are.
fn by_value(mut stacks: Vec<Stack>) -> Vec<Stack> {
    stacks.sort_by(|a, b| {
        let pairs = a.part.0.iter().zip(&b.part.0);
        let orders = pairs.map(|((_, a), (_, b))| {
            let number = |value: &Value| value.as_ref().and_then(|text| text.parse::<f64>().ok());
            match (number(a), number(b)) {
                (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
                _ => a.cmp(b),
            }
        });
        orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    stacks
}

/// A stack's misfit, its planes named as members.
fn named(misfit: stack::Misfit, member: impl Fn(usize) -> usize) -> Misfit {
    match misfit {
        stack::Misfit::NotOrthonormal { plane } => Misfit::NotOrthonormal { member: member(plane) },
        stack::Misfit::OutOfReach { plane } => Misfit::OutOfReach { member: member(plane) },
        stack::Misfit::Spacing { plane, other } => {
            let (member, other) = (member(plane), member(other));
            Misfit::Differs { member, other, attribute: "PixelSpacing" }
        }
        stack::Misfit::Orientation { plane, other, degrees } => {
            Misfit::Orientation { member: member(plane), other: member(other), degrees }
        }
        stack::Misfit::Duplicate { plane, other } => {
            let (member, other) = (member(plane), member(other));
            Misfit::Duplicate { member, other, varying: Vec::new() }
        }
        stack::Misfit::Uneven { plane, other, gap, usual } => {
            Misfit::Uneven { member: member(plane), other: member(other), gap, usual }
        }
        stack::Misfit::Astray { plane, other, distance } => {
            Misfit::Astray { member: member(plane), other: member(other), distance }
        }
        stack::Misfit::Sheared { plane, degrees } => {
            Misfit::Sheared { member: member(plane), degrees }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AXIAL: [[f64; 3]; 2] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
    const CORONAL: [[f64; 3]; 2] = [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]];
    const SAGITTAL: [[f64; 3]; 2] = [[0.0, 1.0, 0.0], [0.0, 0.0, -1.0]];

    fn slice(z: f64) -> Member {
        turned(AXIAL, [-20.0, -30.0, z])
    }

    fn turned(orientation: [[f64; 3]; 2], position: [f64; 3]) -> Member {
        Member {
            place: Place::At(Plane { position, orientation, spacing: [1.0; 2], thickness: None }),
            size: [42, 37],
            channels: 1,
            frame_of_reference: Some("1.2".to_owned()),
            is_localizer: false,
            traits: Traits::default(),
        }
    }

    fn slices(count: usize) -> Vec<Member> {
        (0..count).map(|k| slice(2.0 * k as f64)).collect()
    }

    fn with(mut member: Member, keyword: &str, value: impl ToString) -> Member {
        let index = TRAITS.iter().position(|one| one.keyword == keyword).unwrap();
        member.traits[index] = Some(value.to_string());
        member
    }

    fn suffixes(composition: &Composition) -> Vec<String> {
        composition.stacks.iter().map(|stack| stack.part.suffix()).collect()
    }

    #[test]
    fn localizers_in_the_stack_s_series_are_left_out() {
        let scout = |orientation| Member { is_localizer: true, ..turned(orientation, [0.0; 3]) };
        let parallel = Member { is_localizer: true, ..slice(4.0) };
        let unreadable = Member {
            place: Place::Unreadable("ImagePositionPatient"),
            is_localizer: true,
            ..slice(0.0)
        };
        let mut members = vec![scout(CORONAL), scout(SAGITTAL), parallel, unreadable];
        members[1].size = [64, 64];
        members.extend(slices(23));
        let found = compose(&members).unwrap();
        assert_eq!(found.left_out, [0, 1, 2, 3].map(|member| (member, Reason::Localizer)));
        assert_eq!(found.stacks[0].order, (4..27).collect::<Vec<_>>());
    }

    #[test]
    fn unmarked_scouts_across_a_clear_majority_are_left_out() {
        let mut members = slices(6);
        members.insert(0, turned(CORONAL, [0.0; 3]));
        members.push(turned(SAGITTAL, [0.0; 3]));
        let found = compose(&members).unwrap();
        assert_eq!(found.left_out, [(0, Reason::Across), (7, Reason::Across)]);
        assert_eq!(found.stacks[0].order, (1..7).collect::<Vec<_>>());

        let mut members = slices(3);
        members.push(turned(CORONAL, [0.0; 3]));
        members.push(turned(SAGITTAL, [0.0; 3]));
        let found = compose(&members).unwrap_err();
        assert!(
            matches!(found, Misfit::Orientation { member: 3, .. }),
            "no clear majority: {found:?}"
        );
    }

    #[test]
    fn a_slice_that_is_slightly_turned_is_no_scout() {
        let (s, c) = 0.2_f64.sin_cos();
        let mut members = slices(9);
        members[0] = turned([[1.0, 0.0, 0.0], [0.0, c, s]], [-20.0, -30.0, 0.0]);
        let found = compose(&members).unwrap_err();
        assert!(matches!(found, Misfit::Orientation { member: 0, degrees, .. } if degrees > 11.0));
    }

    #[test]
    fn images_that_lie_nowhere_are_pictures_alone_and_left_out_beside_slices() {
        let picture = Member { place: Place::Nowhere, ..slice(0.0) };
        let found = compose(&[picture.clone(), picture.clone()]).unwrap();
        assert_eq!((found.pictures, found.stacks), (vec![0, 1], Vec::new()));
        let found = compose(&[slice(0.0), picture, slice(1.0)]).unwrap();
        assert_eq!(found.left_out, [(1, Reason::Unplaced)]);
        assert_eq!(found.stacks[0].order, [0, 2]);
    }

    #[test]
    fn a_slice_whose_plane_cannot_be_read_is_named() {
        let mut members = slices(3);
        members[1].place = Place::Unreadable("ImagePositionPatient");
        let expected = Misfit::Unreadable { member: 1, attribute: "ImagePositionPatient" };
        assert_eq!(compose(&members), Err(expected.clone()));
        assert_eq!(
            compose(&members[1..2]),
            Err(Misfit::Unreadable { member: 0, attribute: "ImagePositionPatient" })
        );
    }

    #[test]
    fn time_points_are_a_stack_each_by_the_attribute_that_tells_them_apart() {
        for keyword in
            ["TemporalPositionIdentifier", "AcquisitionNumber", "EchoTime", "AcquisitionTime"]
        {
            // Another number for each file, as AcquisitionTime often has, must not mislead.
            let members: Vec<Member> = (0..30)
                .map(|n| with(slice(2.0 * f64::from(n % 10)), keyword, 12 - n / 10))
                .enumerate()
                .map(|(n, member)| with(member, "DiffusionGradientOrientation", n))
                .collect();
            let found = compose(&members).unwrap();
            let word = TRAITS.iter().find(|one| one.keyword == keyword).unwrap().word;
            assert_eq!(suffixes(&found), [10, 11, 12].map(|value| format!("-{word}-{value}")));
            assert_eq!(found.stacks[0].order, (20..30).collect::<Vec<_>>());
            assert_eq!(found.stacks[0].part.to_string(), format!("{keyword} 10"));
        }
    }

    #[test]
    fn two_attributes_together_may_tell_volumes_apart() {
        let mut members = Vec::new();
        for (b, direction) in [
            ("0", None),
            ("1000", Some(r"1\0\0")),
            ("1000", Some(r"0\1\0")),
            ("2000", Some(r"1\0\0")),
        ] {
            for z in 0..4 {
                let member = with(slice(f64::from(z)), "DiffusionBValue", b);
                members.push(match direction {
                    Some(text) => with(member, "DiffusionGradientOrientation", text),
                    None => member,
                });
            }
        }
        let found = compose(&members).unwrap();
        let expected = [
            "-b-0-direction-none",
            "-b-1000-direction-0_1_0",
            "-b-1000-direction-1_0_0",
            "-b-2000-direction-1_0_0",
        ];
        assert_eq!(suffixes(&found), expected);
    }

    #[test]
    fn what_cannot_be_told_apart_names_what_varies() {
        let members: Vec<Member> =
            (0..12).map(|n| with(slice(f64::from(n / 2)), "EchoTime", n)).collect();
        match compose(&members).unwrap_err() {
            Misfit::Duplicate { member: 1, other: 0, varying } => assert_eq!(varying, ["EchoTime"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_time_point_that_lacks_slices_is_named_with_their_number() {
        let time = |n: usize| usize::from(n >= 6) + 1;
        let members: Vec<Member> = (0..10)
            .map(|n| with(slice((n % 6) as f64), "TemporalPositionIdentifier", time(n)))
            .collect();
        match compose(&members).unwrap_err() {
            Misfit::Incomplete { member: 6, part, found: 4, expected: 6 } => {
                assert_eq!(part.to_string(), "TemporalPositionIdentifier 2");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_missing_slice_stays_one_whatever_varies() {
        let mut members: Vec<Member> =
            (0..12).map(|n| with(slice(f64::from(n)), "AcquisitionNumber", n % 2)).collect();
        members.remove(5);
        let found = compose(&members).unwrap_err();
        assert!(matches!(found, Misfit::Uneven { member: 5, other: 4, .. }), "{found:?}");
    }

    #[test]
    fn stacks_that_are_named_may_lie_anywhere() {
        let other = |k: usize| turned(CORONAL, [0.0, 3.0 * k as f64, 0.0]);
        let mut members: Vec<Member> =
            (0..3).map(|k| with(slice(f64::from(k)), "StackID", 1)).collect();
        members.extend((0..4).map(|k| with(other(k), "StackID", 2)));
        let found = compose(&members).unwrap();
        assert_eq!(suffixes(&found), ["-stack-1", "-stack-2"]);
        assert_eq!(found.stacks[1].order, [3, 4, 5, 6]);
    }

    #[test]
    fn an_image_of_another_size_or_frame_of_reference_is_named_and_not_the_others() {
        let mut members = slices(5);
        members[0].size = [64, 64];
        let found = compose(&members).unwrap_err();
        assert!(matches!(found, Misfit::Differs { member: 0, attribute: "Rows and Columns", .. }));
        members[0] = Member { frame_of_reference: None, ..slice(0.0) };
        let found = compose(&members).unwrap_err();
        assert!(matches!(
            found,
            Misfit::Differs { member: 0, attribute: "FrameOfReferenceUID", .. }
        ));
    }

    proptest! {
        #[test]
        fn every_member_is_somewhere_and_every_plane_where_its_grid_says(
            planes in prop::collection::vec((0_usize..4, -3_i8..9, 0_usize..3, any::<bool>()), 1..14),
        ) {
            let directions = [AXIAL, AXIAL, CORONAL, SAGITTAL];
            let members: Vec<Member> = planes
                .iter()
                .map(|&(way, height, value, is_localizer)| {
                    let plane = turned(directions[way], [f64::from(height); 3]);
                    let member = if way == 1 { slice(f64::from(height)) } else { plane };
                    Member { is_localizer, ..with(member, "EchoNumbers", value) }
                })
                .collect();
            let Ok(found) = compose(&members) else { return Ok(()) };
            let stacked = found.stacks.iter().flat_map(|stack| stack.order.iter().copied());
            let mut all: Vec<usize> =
                stacked.chain(found.pictures.iter().copied()).chain(found.left_out.iter().map(|o| o.0)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..members.len()).collect::<Vec<_>>());
            for stack in &found.stacks {
                for (k, &member) in stack.order.iter().enumerate() {
                    let Place::At(plane) = members[member].place else { panic!("it lies nowhere") };
                    let at = stack.geometry.position(k as f64, 0.0, 0.0);
                    let [across, within] = tolerance(stack.geometry.spacing);
                    let off: f64 = (0..3).map(|a| (at[a] - plane.position[a]).powi(2)).sum();
                    prop_assert!(off.sqrt() <= across.hypot(within) + 1e-9);
                    prop_assert_eq!(plane.orientation, [stack.geometry.direction[0], stack.geometry.direction[1]]);
                }
            }
        }
    }
}
