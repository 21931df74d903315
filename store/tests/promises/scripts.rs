//! What commands do, as transcripts in `testdata/`: a line that starts with `>` is said, the
//! lines below it are what came back. `UPDATE=1` writes what came back into the files.
//!
//! ```text
//! > at 5000                                the shard's clock, in ms
//! > put k a=text:hi t=f32[2]:zeros         fields: text:, fill:LENGTH, DTYPE[SHAPE]:zeros
//! > patch k set:a=text:x del:b write:a@3=text:yz append:a=fill:5 append:a<9=text:z
//! > delete k    > drop    > sweep LIMIT    > get k    > census    > usage    > purge
//! > begin k U asks=N     > part k U @3=text:abc    > abort k U    the upload named U
//! > finish k U a=3 t=f32[2]:8 crc=text:abc         fields: LENGTH, DTYPE[SHAPE]:LENGTH
//! > put k a~5000=text:hi    > patch k set:a~5000=text:x expire:a~9000 expire:a~never
//! ```
//! Writes take `if=absent|v1.0|w5`, `ttl=keep|never|MS|+MS|keep+MS`, `id=NAME`, `asks=N`
//! (fingerprint), `writer=N`, `model=NAME@N`, `max=BYTES`, `inline=BYTES`, `answer=TEXT`. Commands
//! joined by `&&` ride in one entry. A name with `~MS` is of a field that expires by itself. `+MS`
//! counts from the entry's time. `> sweep LIMIT REQUESTS` also limits the requests remembered.

use std::path::Path;

use bytes::Bytes;
use statehouse_store::{
    Command, Condition, DType, Delete, Edit, Expiry, Field, FieldType, ModelTag, Patch, Payload,
    Put, PutUpload, Reply, RequestTag, Sweep, Upload, UploadStep, UploadedField, Value, When,
    Write,
};

use crate::support::{Node, USERS, write};

macro_rules! scripts {
    ($($name:ident)*) => { $(
        #[test]
        fn $name() {
            check(concat!("testdata/", stringify!($name), ".txt"));
        }
    )* };
}

scripts! { conditions edits tensors limits repeats expiry field_expiry collections uploads usage }

fn check(path: &str) {
    let script = std::fs::read_to_string(Path::new(path)).unwrap();
    let mut session = Session { node: Node::new(), time_ms: 1_000 };
    let mut transcript = String::new();
    for line in script.lines() {
        if let Some(said) = line.strip_prefix("> ") {
            transcript += &format!("{line}\n");
            for answer in session.say(said) {
                transcript += &format!("{answer}\n");
            }
        } else if line.is_empty() || line.starts_with('#') {
            transcript += &format!("{line}\n");
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &transcript).unwrap();
    }
    assert!(transcript == script, "{path}: expected\n{script}\nbut it went\n{transcript}");
}

struct Session {
    node: Node,
    time_ms: u64,
}

impl Session {
    fn say(&mut self, line: &str) -> Vec<String> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "at" => {
                self.time_ms = rest.parse().unwrap();
                vec![]
            }
            "get" => vec![self.get(rest)],
            "census" => {
                let census = self.node.shard.census().unwrap();
                vec![format!(
                    "states={} chunks={} requests={} expiries={} uploads={} garbage={}",
                    census.states,
                    census.chunks,
                    census.requests,
                    census.expiries,
                    census.uploads,
                    census.garbage
                )]
            }
            "usage" => self.usage(),
            "purge" => {
                self.node.purge_all();
                vec![]
            }
            _ => {
                let commands = line.split(" && ").map(|said| self.command(said)).collect();
                self.node.run_at(self.time_ms, commands).iter().map(show_reply).collect()
            }
        }
    }

    fn command(&self, said: &str) -> Command {
        let mut words = said.split(' ');
        let verb = words.next().unwrap();
        match verb {
            "drop" => return Command::DropCollection { collection: USERS },
            "sweep" => {
                let limit = words.next().unwrap().parse().unwrap();
                let requests_max = words.next().map(|word| word.parse().unwrap());
                let now_ms = self.time_ms;
                return Command::Sweep(Sweep { now_ms, limit, cursor: None, requests_max });
            }
            _ => {}
        }
        let mut write = write(words.next().unwrap());
        if let "begin" | "part" | "finish" | "abort" = verb {
            return upload(verb, write, &words.collect::<Vec<_>>());
        }
        let rest: Vec<&str> = words.filter(|word| !option(&mut write, word)).collect();
        match verb {
            "put" => {
                let fields = rest.iter().map(|word| field(word)).collect();
                Command::Put(Put { write, fields })
            }
            "patch" => {
                Command::Patch(Patch { write, edits: rest.iter().map(|word| edit(word)).collect() })
            }
            "delete" => Command::Delete(Delete { write }),
            other => panic!("no command {other:?}"),
        }
    }

    /// Totals and the largest states, once they are what a count of everything comes to.
    fn usage(&self) -> Vec<String> {
        assert_eq!(self.node.shard.audit_usage().unwrap(), None);
        let usage = self.node.reader.usage().unwrap();
        let mut shown: Vec<String> = usage
            .into_iter()
            .map(|(collection, it)| {
                let states = format!("{} states of {} bytes", it.states, it.state_bytes);
                let uploads = format!("{} uploads of {} bytes", it.uploads, it.upload_bytes);
                format!("collection {}: {states}, {uploads}", collection.0)
            })
            .collect();
        for state in self.node.reader.largest(None, 3).unwrap() {
            let expiry = state.expires_at_ms.map(|at_ms| format!(" expires={at_ms}"));
            let (key, expiry) = (String::from_utf8_lossy(&state.key), expiry.unwrap_or_default());
            shown.push(format!("large: {key} of {} bytes{expiry}", state.bytes));
        }
        if shown.is_empty() { vec!["nothing".into()] } else { shown }
    }

    fn get(&self, key: &str) -> String {
        let found = self.node.reader.get(USERS, key.as_bytes(), self.time_ms).unwrap();
        let Some(state) = found else { return "absent".into() };
        let mut shown = show_version(state.version);
        if let Some(at_ms) = state.expires_at_ms {
            shown += &format!(" expires={at_ms}");
        }
        if state.writer > 0 {
            shown += &format!(" writer={}", state.writer);
        }
        if let Some(model) = &state.model {
            shown += &format!(" model={}@{}", model.name, model.version);
        }
        for field in &state.fields {
            let bytes = self.node.reader.load(field, 0..field.bytes_len).unwrap();
            let place = match field.payload {
                Payload::Inline(_) => "",
                Payload::Blob(_) => "(blob)",
            };
            let value = field.field_type.clone().with(bytes);
            let until = field.expires_at_ms.map_or(String::new(), |at_ms| format!("~{at_ms}"));
            shown += &format!(" {}{until}={}{place}", field.name, show_value(&value));
        }
        shown
    }
}

/// A command of an upload. Streams are numbered by `writer=N`, from 1.
fn upload(verb: &str, mut write: Write, words: &[&str]) -> Command {
    let id = [words[0].as_bytes()[0]; 16];
    let rest: Vec<&str> =
        words[1..].iter().copied().filter(|word| !option(&mut write, word)).collect();
    let writer = std::mem::take(&mut write.writer).max(1);
    let step = match verb {
        "begin" => {
            let request = write.request;
            let fingerprint = request.map_or(0, |request| request.fingerprint);
            UploadStep::Begin { writer, fingerprint, request, idle_ms: 1_000 }
        }
        "part" => {
            let (offset, given) = rest[0].strip_prefix('@').unwrap().split_once('=').unwrap();
            let (offset, bytes) = (offset.parse().unwrap(), value(given).bytes().clone());
            let crc32 = crc32fast::hash(&bytes);
            UploadStep::Part { writer, offset, bytes, crc32, idle_ms: 1_000 }
        }
        "abort" => UploadStep::Abort,
        _ => {
            let (crc, fields): (Vec<&str>, _) =
                rest.into_iter().partition(|word| word.starts_with("crc="));
            let crc32 = crc.first().map(|word| crc32fast::hash(value(&word[4..]).bytes()));
            let fields = fields.into_iter().map(uploaded).collect();
            return Command::PutUpload(PutUpload { write, id, writer, fields, crc32 });
        }
    };
    Command::Upload(Upload { target: write.target, id, step })
}

/// A field of an upload: its length, or a tensor and its length.
fn uploaded(word: &str) -> UploadedField {
    let (name, given) = word.split_once('=').unwrap();
    let (name, expires) = expiring(name);
    let (field_type, bytes) = match given.split_once(':') {
        None => (FieldType::Bytes, given),
        Some((tensor, bytes)) => (value(&format!("{tensor}:zeros")).field_type(), bytes),
    };
    let bytes = bytes.parse().unwrap();
    UploadedField { name: name.into(), field_type, bytes, expires }
}

/// Takes a word into the write if it is one of its options.
fn option(write: &mut Write, word: &str) -> bool {
    let Some((name, value)) = word.split_once('=') else { return false };
    match name {
        "if" => {
            write.condition = match value.split_at(1) {
                ("v", version) => Condition::Version(parse_version(version)),
                ("w", writer) => Condition::Writer(writer.parse().unwrap()),
                _ => Condition::Absent,
            }
        }
        "ttl" => {
            write.expiry = match (value, value.split_once('+')) {
                ("keep", _) => Expiry::Keep,
                ("never", _) => Expiry::Never,
                (_, Some(("", ttl_ms))) => Expiry::After(ttl_ms.parse().unwrap()),
                (_, Some((_, ttl_ms))) => Expiry::KeepOrAfter(ttl_ms.parse().unwrap()),
                (at_ms, None) => Expiry::At(at_ms.parse().unwrap()),
            }
        }
        "id" => {
            let mut id = [0; 16];
            id[..value.len()].copy_from_slice(value.as_bytes());
            write.request = Some(RequestTag { id, fingerprint: 0 });
        }
        "asks" => write.request.as_mut().unwrap().fingerprint = value.parse().unwrap(),
        "writer" => write.writer = value.parse().unwrap(),
        "model" => {
            let (name, version) = value.split_once('@').unwrap();
            let version = version.parse().unwrap();
            write.model = Some(ModelTag { name: name.into(), version });
        }
        "max" => write.limits.state_bytes_max = value.parse().unwrap(),
        "inline" => write.limits.inline_bytes_max = value.parse().unwrap(),
        "answer" => write.answer = Bytes::copy_from_slice(value.as_bytes()),
        _ => return false,
    }
    true
}

fn edit(word: &str) -> Edit {
    let (verb, rest) = word.split_once(':').unwrap();
    if verb == "set" {
        return Edit::Set(field(rest));
    }
    if verb == "expire" {
        let (name, when) = expiring(rest);
        return Edit::Expire { name: name.into(), when };
    }
    let (target, given) = rest.split_once('=').unwrap_or((rest, "text:"));
    let bytes = value(given).bytes().clone();
    match (verb, target.split_once(['@', '<'])) {
        ("del", _) => Edit::Remove { name: target.into() },
        ("write", Some((name, offset))) => {
            Edit::WriteRange { name: name.into(), offset: offset.parse().unwrap(), bytes }
        }
        ("append", Some((name, max))) => {
            Edit::Append { name: name.into(), bytes, max_bytes: Some(max.parse().unwrap()) }
        }
        ("append", None) => Edit::Append { name: target.into(), bytes, max_bytes: None },
        _ => panic!("no edit {word:?}"),
    }
}

fn field(word: &str) -> Field {
    let (name, given) = word.split_once('=').unwrap();
    let (name, expires) = expiring(name);
    Field { name: name.into(), value: value(given), expires }
}

/// A name, and when its field expires.
fn expiring(word: &str) -> (&str, Option<When>) {
    let Some((name, when)) = word.split_once('~') else { return (word, None) };
    let when = match (when, when.strip_prefix('+')) {
        ("never", _) => None,
        (_, Some(ttl_ms)) => Some(When::After(ttl_ms.parse().unwrap())),
        (at_ms, None) => Some(When::At(at_ms.parse().unwrap())),
    };
    (name, when)
}

fn value(given: &str) -> Value {
    let (kind, rest) = given.split_once(':').unwrap();
    match kind {
        "text" => Value::Bytes(Bytes::copy_from_slice(rest.as_bytes())),
        "fill" => Value::Bytes(fill(rest.parse().unwrap())),
        tensor => {
            let (dtype, shape) = tensor.trim_end_matches(']').split_once('[').unwrap();
            let dtype = *DType::ALL.iter().find(|known| known.to_string() == dtype).unwrap();
            let axes = shape.split('x').filter(|axis| !axis.is_empty());
            let shape: Vec<u64> = axes.map(|axis| axis.parse().unwrap()).collect();
            let len = match rest {
                "zeros" => shape.iter().product::<u64>() as usize * dtype.size_bytes(),
                len => len.parse().unwrap(),
            };
            Value::Tensor { dtype, shape, data: Bytes::from(vec![0; len]) }
        }
    }
}

/// Digits that say where they stand.
fn fill(len: usize) -> Bytes {
    (0..len).map(|at| b'0' + (at % 10) as u8).collect()
}

fn show_value(value: &Value) -> String {
    let bytes = value.bytes();
    match value {
        Value::Tensor { dtype, shape, .. } => {
            let axes: Vec<String> = shape.iter().map(u64::to_string).collect();
            format!("{dtype}[{}]:{} bytes", axes.join("x"), bytes.len())
        }
        Value::Bytes(bytes) if bytes.len() <= 40 => {
            format!("{:?}", String::from_utf8_lossy(bytes))
        }
        Value::Bytes(bytes) => {
            let edge = |range| String::from_utf8_lossy(&bytes[range]).into_owned();
            let (head, tail) = (edge(0..6), edge(bytes.len() - 6..bytes.len()));
            format!("{head}..{tail} ({} bytes)", bytes.len())
        }
    }
}

fn show_reply(reply: &Reply) -> String {
    let again = |repeated: &bool| if *repeated { " again" } else { "" };
    match reply {
        Reply::Written { version, answer, repeated, bytes: _ } => {
            let answer = String::from_utf8_lossy(answer);
            let answer = if answer.is_empty() { String::new() } else { format!(" {answer:?}") };
            format!("written {}{answer}{}", show_version(*version), again(repeated))
        }
        Reply::Deleted { version, existed, repeated } => {
            let nothing = if *existed { "" } else { " nothing" };
            format!("deleted{nothing} {}{}", show_version(*version), again(repeated))
        }
        Reply::Conflict { current: None } => "conflict: absent".into(),
        Reply::Conflict { current: Some(version) } => {
            format!("conflict: {}", show_version(*version))
        }
        Reply::NotFound => "not found".into(),
        Reply::FieldNotFound { name } => format!("no field {name}"),
        Reply::RangePastEnd { name, bytes, end } => {
            format!("range past end: {end} of {bytes} in {name}")
        }
        Reply::FieldMismatch { name, expected } => format!("mismatch: {name}: expected {expected}"),
        Reply::TooLarge { bytes, max } => format!("too large: {bytes} of {max}"),
        Reply::RequestIdReused => "request id reused".into(),
        Reply::Dropped => "dropped".into(),
        Reply::Swept { states, fields, uploads } => {
            let more = |count: &u64, what| match count {
                0 => String::new(),
                count => format!(" and {count} {what}"),
            };
            format!("swept {states}{}{}", more(fields, "fields"), more(uploads, "uploads"))
        }
        Reply::Uploaded { bytes } => format!("uploaded {bytes}"),
        Reply::UploadAborted => "aborted".into(),
        Reply::UploadNotFound => "no such upload".into(),
        Reply::UploadTaken => "taken over".into(),
        Reply::UploadMismatch => "begun for something else".into(),
        Reply::UploadIncomplete { bytes, expected } => format!("incomplete: {bytes} of {expected}"),
        Reply::UploadCorrupt { .. } => "corrupt".into(),
        Reply::TooManyParts { max } => format!("more than {max} parts"),
        Reply::TooManyUploads { max } => format!("more than {max} uploads"),
    }
}

fn show_version(version: u64) -> String {
    format!("{}.{}", version >> 16, version & 0xffff)
}

fn parse_version(version: &str) -> u64 {
    let (index, position) = version.split_once('.').unwrap();
    index.parse::<u64>().unwrap() << 16 | position.parse::<u64>().unwrap()
}
