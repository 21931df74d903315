//! What was encoded is decoded the same; whatever else comes in is refused, never a panic.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statehouse_store::{
    Body, CollectionId, Command, CommandBatch, Condition, DType, Delete, Edit, Entry, Expiry,
    Field, FieldType, ModelTag, Patch, Put, PutUpload, RequestTag, Sweep, UploadStep,
    UploadedField, Value, When, Write,
};

use crate::support::{
    bytes_field, expiring, finish, noise, part, patch, pick, put, seed, upload, uploaded, write,
};

fn full_write(key: &str) -> Write {
    Write {
        condition: Condition::Version(1 << 20),
        request: Some(RequestTag { id: [9; 16], fingerprint: 77 }),
        expiry: Expiry::At(123_456),
        writer: 42,
        model: Some(ModelTag { name: "gru".into(), version: 3 }),
        answer: Bytes::from_static(b"answer"),
        ..write(key)
    }
}

fn every_command() -> Vec<Command> {
    let tensor = |dtype: DType| {
        let (shape, data) = (vec![2, 3], noise(1, 6 * dtype.size_bytes()));
        Field::new(format!("t-{dtype}"), Value::Tensor { dtype, shape, data })
    };
    let with = |condition, expiry| Write { condition, expiry, ..write("k") };
    vec![
        Command::Put(Put {
            write: full_write("key"),
            fields: DType::ALL.map(tensor).into_iter().collect(),
        }),
        Command::Patch(Patch {
            write: with(Condition::Absent, Expiry::Never),
            edits: vec![
                Edit::Set(bytes_field("a", &b"xyz"[..])),
                Edit::Remove { name: "b".into() },
                Edit::WriteRange { name: "c".into(), offset: 9, bytes: noise(2, 40) },
                Edit::Append { name: "d".into(), bytes: noise(3, 5), max_bytes: Some(100) },
                Edit::Append { name: "e".into(), bytes: Bytes::new(), max_bytes: None },
            ],
        }),
        Command::Delete(Delete { write: with(Condition::Writer(5), Expiry::Keep) }),
        Command::DropCollection { collection: CollectionId(u64::MAX) },
        sweep(Some(Bytes::from_static(b"c")), None),
        sweep(None, None),
        upload("k", 1, begin_with(None)),
        upload("k", 1, begin_with(Some(RequestTag { id: [8; 16], fingerprint: 7 }))),
        part("k", 1, 9, noise(4, 30)),
        upload("k", 1, UploadStep::Abort),
        finish("k", 1, vec![uploaded("a", 3)]),
        Command::PutUpload(PutUpload {
            write: full_write("key"),
            id: [2; 16],
            writer: 3,
            fields: DType::ALL.map(tensor_of).into_iter().collect(),
            crc32: Some(5),
        }),
    ]
}

/// Commands that say of fields when they expire, each alone enough for the newer format.
fn expiring_commands() -> Vec<Command> {
    let uploaded = UploadedField { expires: Some(When::At(9)), ..uploaded("a", 3) };
    let expire = |when| Edit::Expire { name: "a".into(), when };
    vec![
        Command::Put(Put {
            write: write("k"),
            fields: vec![bytes_field("a", "x"), expiring("b", noise(5, 40), u64::MAX)],
        }),
        patch("k", vec![Edit::Set(expiring("a", "y", 1))]),
        patch("k", vec![expire(Some(When::At(7)))]),
        patch("k", vec![expire(None)]),
        finish("k", 1, vec![uploaded]),
    ]
}

/// Commands that count from the entry's time or limit what is remembered, each alone enough for
/// the newest format.
fn relative_commands() -> Vec<Command> {
    let with = |expiry| Write { expiry, ..write("k") };
    let after = Some(When::After(u64::MAX));
    let field = Field { expires: after, ..bytes_field("a", "x") };
    let uploaded = UploadedField { expires: after, ..uploaded("a", 3) };
    vec![
        Command::Put(Put { write: with(Expiry::After(5)), fields: vec![] }),
        Command::Patch(Patch { write: with(Expiry::KeepOrAfter(5)), edits: vec![] }),
        Command::Delete(Delete { write: with(Expiry::After(5)) }),
        Command::Put(Put { write: write("k"), fields: vec![field.clone()] }),
        patch("k", vec![Edit::Set(field)]),
        patch("k", vec![Edit::Expire { name: "a".into(), when: after }]),
        finish("k", 1, vec![uploaded]),
        sweep(None, Some(9)),
    ]
}

fn sweep(cursor: Option<Bytes>, requests_max: Option<u64>) -> Command {
    Command::Sweep(Sweep { now_ms: 5, limit: 6, cursor, requests_max })
}

fn begin_with(request: Option<RequestTag>) -> UploadStep {
    UploadStep::Begin { writer: 5, fingerprint: 6, request, idle_ms: 7 }
}

fn tensor_of(dtype: DType) -> UploadedField {
    let (name, shape) = (format!("t-{dtype}"), vec![2, 3]);
    let bytes = 6 * dtype.size_bytes() as u64;
    let field_type = FieldType::Tensor { dtype, shape };
    UploadedField { name, field_type, bytes, expires: None }
}

fn every_entry() -> Vec<Entry> {
    let commands = CommandBatch { time_ms: 99, commands: every_command() };
    let mixed = expiring_commands().into_iter().chain(every_command());
    let mixed = mixed.chain(relative_commands()).collect();
    let bodies = [
        Body::Blank,
        Body::Membership(Bytes::from_static(b"1,2,3")),
        Body::Commands(commands),
        Body::Commands(CommandBatch { time_ms: 99, commands: mixed }),
    ];
    bodies.map(entry).into_iter().collect()
}

fn entry(body: Body) -> Entry {
    Entry::new(1 << 40, 12, body)
}

#[test]
fn an_entry_is_written_in_the_oldest_format_that_can_say_it() {
    let format_of = |commands| {
        let commands = CommandBatch { time_ms: 99, commands };
        entry(Body::Commands(commands)).encode()[0]
    };
    assert_eq!(format_of(every_command()), 1);
    for command in expiring_commands() {
        assert_eq!(format_of(vec![command.clone()]), 2, "{command:?}");
        assert_eq!(format_of([every_command(), vec![command]].concat()), 2);
    }
    for command in relative_commands() {
        assert_eq!(format_of(vec![command.clone()]), 3, "{command:?}");
        assert_eq!(format_of([vec![command], expiring_commands()].concat()), 3);
    }
}

#[test]
fn a_batch_made_absolute_is_read_by_older_nodes() {
    let commands = [every_command(), expiring_commands(), relative_commands()].concat();
    let batch = CommandBatch { time_ms: 1_000, commands }.made_absolute();
    assert_eq!(entry(Body::Commands(batch)).encode()[0], 2);
    let brief = Command::Put(Put {
        write: Write { expiry: Expiry::After(50), ..write("k") },
        fields: vec![Field { expires: Some(When::After(7)), ..bytes_field("a", "x") }],
    });
    let batch = CommandBatch { time_ms: 1_000, commands: vec![brief] }.made_absolute();
    let Command::Put(put) = &batch.commands[0] else { panic!("a put stays one") };
    assert_eq!(
        (put.write.expiry, put.fields[0].expires),
        (Expiry::At(1_050), Some(When::At(1_007)))
    );
}

#[test]
fn an_older_format_says_nothing_of_what_only_a_newer_one_can() {
    for command in relative_commands() {
        let commands = CommandBatch { time_ms: 99, commands: vec![command.clone()] };
        let mut bytes = entry(Body::Commands(commands)).encode().to_vec();
        for format in 1..=2 {
            bytes[0] = format;
            assert!(Entry::decode(bytes.clone().into()).is_err(), "{format}: {command:?}");
        }
    }
}

#[test]
fn an_entry_of_format_1_is_read_and_written_as_ever() {
    let bytes: &[&[u8]] = &[
        &[1, 5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[2, 99, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        // A put: whose, no condition, no request, expiry kept, no writer, no model, its limits.
        &[0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, b'k', 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0],
        // Its one field.
        &[1, 0, 1, b'f', 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i'],
    ];
    let bytes = Bytes::from(bytes.concat());
    let commands = CommandBatch { time_ms: 99, commands: vec![put("k", "hi")] };
    let entry = Entry::new(5, 3, Body::Commands(commands));
    assert_eq!(entry.encode(), bytes);
    assert_eq!(Entry::decode(bytes), Ok(entry));
}

#[test]
fn every_entry_survives_a_round_trip() {
    for entry in every_entry() {
        assert_eq!(Entry::decode(entry.encode()), Ok(entry));
    }
}

#[test]
fn every_truncation_is_refused() {
    for entry in every_entry() {
        let bytes = entry.encode();
        for len in 0..bytes.len() {
            assert!(Entry::decode(bytes.slice(..len)).is_err(), "{len} of {}", bytes.len());
        }
    }
}

#[test]
fn bytes_behind_an_entry_are_refused() {
    for entry in every_entry() {
        let mut bytes = entry.encode().to_vec();
        bytes.push(0);
        assert!(Entry::decode(bytes.into()).is_err());
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut bytes = every_entry()[0].encode().to_vec();
    bytes[0] = 4;
    let refused = Entry::decode(bytes.into()).unwrap_err();
    assert_eq!(refused.to_string(), "expected a supported format number at byte 1");
}

#[test]
fn flipped_bits_are_read_or_refused_but_never_a_panic() {
    let mut random = StdRng::seed_from_u64(seed());
    let entries: Vec<Vec<u8>> = every_entry().iter().map(|it| it.encode().to_vec()).collect();
    for _ in 0..20_000 {
        let mut bytes = entries[pick(&mut random, 0..entries.len())].clone();
        for _ in 0..pick(&mut random, 1..4) {
            let at = pick(&mut random, 0..bytes.len());
            bytes[at] = random.random();
        }
        if let Ok(entry) = Entry::decode(bytes.into()) {
            // Made anew: it has not seen the bytes.
            let made = Entry::new(entry.index, entry.term, entry.body.clone());
            let again = Entry::decode(made.encode());
            assert_eq!(again, Ok(entry), "what was read is read again the same");
        }
    }
}

#[test]
fn commands_out_of_bounds_are_named() {
    let named = |command: Command| command.check().unwrap_err().to_string();
    assert_eq!(
        named(Command::Delete(Delete { write: write("") })),
        "expected 1..=512 bytes of a key, found 0"
    );
    assert_eq!(
        named(Command::Delete(Delete { write: write(&"k".repeat(600)) })),
        "expected 1..=512 bytes of a key, found 600"
    );
    let fields = (0..1_025).map(|number| bytes_field(&number.to_string(), &b""[..])).collect();
    assert_eq!(
        named(Command::Put(Put { write: write("k"), fields })),
        "expected 0..=1024 fields, found 1025"
    );
    let answer = noise(1, (16 << 10) + 1);
    assert_eq!(
        named(Command::Delete(Delete { write: Write { answer, ..write("k") } })),
        "expected 0..=16384 bytes of an answer, found 16385"
    );
}
