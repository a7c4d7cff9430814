//! A peer that speaks PS3.8 in raw bytes, so that it may be as odd as real ones are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

pub const VERIFICATION: &str = "1.2.840.10008.1.1";
pub const IMPLICIT_VR_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";
pub const RELEASE: [u8; 10] = [5, 0, 0, 0, 0, 4, 0, 0, 0, 0];

/// An A-ASSOCIATE-RQ; what a test does not set is usual.
pub struct Request {
    pub version: u16,
    pub called: [u8; 16],
    pub calling: [u8; 16],
    pub application_context: &'static [u8],
    /// Abstract syntax and transfer syntaxes; identifiers are 1, 3, 5, ….
    pub contexts: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
    pub max_length: u32,
    /// Further items, beside the contexts.
    pub items: Vec<u8>,
    /// Further sub-items of each context.
    pub context_items: Vec<u8>,
    /// Further sub-items of the user information.
    pub user_items: Vec<u8>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            version: 1,
            called: *b"CDAL            ",
            calling: *b"SCANNER         ",
            application_context: b"1.2.840.10008.3.1.1.1",
            contexts: vec![context(VERIFICATION, &[IMPLICIT_VR_LITTLE_ENDIAN])],
            max_length: 16_384,
            items: Vec::new(),
            context_items: Vec::new(),
            user_items: Vec::new(),
        }
    }
}

pub fn context(abstract_syntax: &str, syntaxes: &[&str]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let syntaxes = syntaxes.iter().map(|syntax| syntax.as_bytes().to_vec());
    (abstract_syntax.as_bytes().to_vec(), syntaxes.collect())
}

pub fn item(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind, 0], &length[..], value].concat()
}

pub fn pdu(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, 0], &length[..], body].concat()
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([0; 2]);
        body.extend(self.called);
        body.extend(self.calling);
        body.extend([0; 32]);
        body.extend(item(0x10, self.application_context));
        body.extend(&self.items);
        for (id, (abstract_syntax, syntaxes)) in (1..=255).step_by(2).zip(&self.contexts) {
            let mut context = vec![id, 0, 0, 0];
            context.extend(&self.context_items);
            context.extend(item(0x30, abstract_syntax));
            context.extend(syntaxes.iter().flat_map(|syntax| item(0x40, syntax)));
            body.extend(item(0x20, &context));
        }
        let mut user = item(0x51, &self.max_length.to_be_bytes());
        user.extend(item(0x52, b"1.2.826.0.1.3680043.10.1234.1"));
        user.extend(&self.user_items);
        body.extend(item(0x50, &user));
        pdu(1, &body)
    }
}

/// One fragment in a P-DATA-TF PDU of its own; `control` is 1 for a command, 2 for the last.
pub fn fragment(context: u8, control: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len() + 2).unwrap().to_be_bytes();
    pdu(4, &[&length[..], &[context, control], data].concat())
}

pub struct Peer {
    pub stream: TcpStream,
}

impl Peer {
    pub fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Type and body of the next PDU; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 6];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).ok()?;
        Some((head[0], body))
    }

    /// Identifier and result of each context in the acceptance.
    pub fn associate(&mut self, request: &Request) -> Vec<(u8, u8)> {
        self.send(&request.encode());
        let (kind, body) = self.receive().expect("an answer to the request");
        assert_eq!(kind, 2, "no A-ASSOCIATE-AC: {body:?}");
        let (mut results, mut rest) = (Vec::new(), &body[68..]);
        while let [kind, _, l0, l1, after @ ..] = rest {
            let (value, after) = after.split_at(u16::from_be_bytes([*l0, *l1]).into());
            if *kind == 0x21 {
                results.push((value[0], value[2]));
            }
            rest = after;
        }
        results
    }

    /// A whole command, of as many fragments as it takes; each PDU is no longer than `limit`.
    pub fn command(&mut self, limit: usize) -> Vec<u8> {
        let mut command = Vec::new();
        loop {
            let (kind, body) = self.receive().expect("a PDU");
            assert_eq!(kind, 4, "no P-DATA-TF: {body:?}");
            assert!(body.len() <= limit, "a PDU of {} bytes, {limit} are allowed", body.len());
            let mut rest = body.as_slice();
            while let [l0, l1, l2, l3, _, control, after @ ..] = rest {
                let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize - 2;
                assert_eq!(control & 1, 1, "of a command");
                command.extend(&after[..length]);
                if control & 2 == 2 {
                    return command;
                }
                rest = &after[length..];
            }
        }
    }

    pub fn release(&mut self) {
        self.send(&RELEASE);
        assert_eq!(self.receive().map(|(kind, _)| kind), Some(6), "A-RELEASE-RP");
    }
}
