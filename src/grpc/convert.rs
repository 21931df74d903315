//! Between the protocol's messages and the use cases' own types: the only place that knows both.

mod expiry;
mod stream;

use std::time::{Duration, Instant};

use bytes::Bytes;
use statehouse_cluster::catalog::{Collection, Missing, Settings};
use statehouse_inference::Tensor;
use statehouse_proto::v1;
use statehouse_store::{
    Condition, Edit, Field, FieldRange, Part, Selection, Value, When, WholeState,
};

use crate::dtype;
use crate::failure::{Failure, Reason};
use crate::score::{Mode, ScoreQuery, Scored};
use crate::states::{
    DeleteCommand, Freshness, GetQuery, PatchCommand, PutCommand, SizeWarning, StateKey,
    WriteOptions, Written,
};

pub use stream::{check_whole, fields_of, read_header, upload, uploaded, uploaded_fields};

/// The largest state of a collection that names none, in bytes.
pub const STATE_BYTES_MAX_DEFAULT: u64 = 1 << 30;

/// The inline limit of a collection that names none, in bytes.
pub const INLINE_BYTES_MAX_DEFAULT: u32 = 16 << 10;

/// The largest inline limit, in bytes.
const INLINE_BYTES_MAX_MAX: u32 = 64 << 10;

/// What is kept is copied up to so many bytes.
const COPIED_BYTES_MAX: usize = 64 << 10;

type Result<T> = std::result::Result<T, Failure>;

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::InvalidRequest, message)
}

pub fn get_query(request: v1::GetRequest) -> Result<GetQuery> {
    Ok(GetQuery {
        freshness: freshness(request.consistency, request.max_lag_ms)?,
        target: StateKey { collection: request.collection, key: request.key },
        selection: selection(request.fields)?,
    })
}

pub fn freshness(consistency: i32, max_lag_ms: u64) -> Result<Freshness> {
    match v1::Consistency::try_from(consistency) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => {
            Ok(Freshness::Linearizable)
        }
        Ok(v1::Consistency::Bounded) => {
            Ok(Freshness::Bounded { lag_max: Duration::from_millis(max_lag_ms) })
        }
        Err(_) => Err(invalid(format!("consistency {consistency} is not known"))),
    }
}

/// A lag in whole milliseconds, never less than it is.
pub fn lag_ms(lag: Duration) -> u64 {
    lag.as_nanos().div_ceil(1_000_000) as u64
}

/// No fields: all.
pub fn selection(fields: Vec<v1::FieldSelector>) -> Result<Selection> {
    if fields.is_empty() {
        return Ok(Selection::all());
    }
    Ok(Selection::fields(fields.into_iter().map(selector).collect::<Result<_>>()?))
}

fn selector(selector: v1::FieldSelector) -> Result<FieldRange> {
    let v1::FieldSelector { name, offset, length, first_row, rows } = selector;
    let part = match (offset.or(length), first_row.or(rows)) {
        (None, None) => Part::Whole,
        (Some(_), None) => Part::Bytes { offset: offset.unwrap_or(0), len: length },
        (None, Some(_)) => Part::Rows { first: first_row.unwrap_or(0), count: rows },
        (Some(_), Some(_)) => {
            return Err(invalid(format!("field {name:?} is read by bytes or by rows, not both")));
        }
    };
    Ok(FieldRange { name, part })
}

pub fn state(found: WholeState) -> v1::StoredState {
    let (model, model_version) = found.model.map_or_else(Default::default, |m| (m.name, m.version));
    v1::StoredState {
        version: found.version,
        fields: found.fields.into_iter().map(field_out).collect(),
        expires_at_ms: found.expires_at_ms,
        model,
        model_version,
    }
}

fn field_out(field: Field) -> v1::Field {
    let value = match field.value {
        Value::Bytes(bytes) => v1::field::Value::Bytes(bytes),
        Value::Tensor { dtype, shape, data } => v1::field::Value::Tensor(v1::Tensor {
            dtype: dtype::to_proto(dtype) as i32,
            shape,
            data,
        }),
    };
    // Of what is stored this is a time; only what is about to be written counts from its entry.
    let expiry = field.expires.map(|when| match when {
        When::At(at_ms) => v1::field::Expiry::ExpiresAtMs(at_ms),
        When::After(ttl_ms) => v1::field::Expiry::TtlMs(ttl_ms),
    });
    v1::Field { name: field.name, value: Some(value), expiry }
}

fn field_in(field: v1::Field) -> Result<Field> {
    let value = match field.value {
        Some(v1::field::Value::Bytes(bytes)) => Value::Bytes(kept(bytes)),
        Some(v1::field::Value::Tensor(tensor)) => Value::Tensor {
            dtype: dtype_in(&field.name, tensor.dtype)?,
            shape: tensor.shape,
            data: kept(tensor.data),
        },
        None => {
            return Err(invalid(format!("field {:?} needs a tensor or bytes", field.name)));
        }
    };
    let expires = expiry::of_field(&field.name, field.expiry)?;
    Ok(Field { name: field.name, value, expires })
}

/// What outlives its call by a place in a log. A small part of what came in one piece of memory
/// with other messages must not keep all of that.
fn kept(bytes: Bytes) -> Bytes {
    match bytes.len() <= COPIED_BYTES_MAX {
        true => Bytes::copy_from_slice(&bytes),
        false => bytes,
    }
}

fn dtype_in(name: &str, number: i32) -> Result<statehouse_store::DType> {
    dtype::from_proto(number).ok_or_else(|| {
        let message = format!("tensor {name:?} has no known dtype: {number}");
        Failure::new(Reason::InvalidTensor, message).with("field", name)
    })
}

pub fn put(request: v1::PutRequest) -> Result<PutCommand> {
    Ok(PutCommand {
        target: StateKey { collection: request.collection, key: request.key },
        fields: request.fields.into_iter().map(field_in).collect::<Result<_>>()?,
        options: options(request.options)?,
    })
}

pub fn patch(request: v1::PatchRequest) -> Result<PatchCommand> {
    Ok(PatchCommand {
        target: StateKey { collection: request.collection, key: request.key },
        edits: request.edits.into_iter().map(edit).collect::<Result<_>>()?,
        options: options(request.options)?,
    })
}

pub fn delete(request: v1::DeleteRequest) -> Result<DeleteCommand> {
    Ok(DeleteCommand {
        target: StateKey { collection: request.collection, key: request.key },
        options: options(request.options)?,
    })
}

fn edit(edit: v1::Edit) -> Result<Edit> {
    match edit.edit {
        Some(v1::edit::Edit::Set(field)) => Ok(Edit::Set(field_in(field)?)),
        Some(v1::edit::Edit::Remove(name)) => Ok(Edit::Remove { name }),
        Some(v1::edit::Edit::WriteRange(range)) => {
            let bytes = kept(range.data);
            Ok(Edit::WriteRange { name: range.field, offset: range.offset, bytes })
        }
        Some(v1::edit::Edit::Append(append)) => {
            let (bytes, max_bytes) = (kept(append.data), append.max_bytes);
            Ok(Edit::Append { name: append.field, bytes, max_bytes })
        }
        Some(v1::edit::Edit::Expire(v1::edit::Expire { field: name, expiry })) => {
            let when = expiry::changed(&name, expiry)?;
            Ok(Edit::Expire { name, when })
        }
        None => Err(invalid("an edit is one of set, remove, write_range, append or expire")),
    }
}

fn options(options: Option<v1::WriteOptions>) -> Result<WriteOptions> {
    use v1::write_options::Condition as If;
    let options = options.unwrap_or_default();
    let condition = match options.condition {
        None => Condition::Any,
        Some(If::IfVersion(0)) => {
            return Err(invalid("if_version 0 is no version: use if_absent"));
        }
        Some(If::IfVersion(version)) => Condition::Version(version),
        Some(If::IfAbsent(true)) => Condition::Absent,
        Some(If::IfAbsent(false)) => return Err(invalid("if_absent is true or not given")),
    };
    let expiry = expiry::of_state(options.expiry)?;
    Ok(WriteOptions { condition, expiry, request_id: options.request_id })
}

pub fn written(written: Written) -> v1::WriteResponse {
    let Written { version, repeated, warning } = written;
    let size_warning = warning.map(size_warning);
    v1::WriteResponse { version, repeated_request: repeated, size_warning }
}

fn size_warning(warning: SizeWarning) -> v1::SizeWarning {
    let SizeWarning { state_bytes, state_bytes_warn } = warning;
    v1::SizeWarning { state_bytes, state_bytes_warn }
}

pub fn score_query(request: v1::ScoreRequest, deadline: Option<Instant>) -> Result<ScoreQuery> {
    let mode = match v1::ScoreMode::try_from(request.mode) {
        Ok(v1::ScoreMode::Unspecified | v1::ScoreMode::Peek) => Mode::Peek,
        Ok(v1::ScoreMode::Step) => Mode::Step,
        Err(_) => return Err(invalid(format!("mode {} is neither PEEK nor STEP", request.mode))),
    };
    let freshness = freshness(request.consistency, request.max_lag_ms)?;
    if mode == Mode::Step && freshness != Freshness::Linearizable {
        return Err(invalid("a STEP is always linearizable: BOUNDED belongs to a PEEK"));
    }
    Ok(ScoreQuery {
        freshness,
        model: request.model,
        model_version: request.model_version,
        target: StateKey { collection: request.collection, key: request.key },
        inputs: request.inputs.into_iter().map(input).collect::<Result<_>>()?,
        mode,
        request_id: request.request_id,
        outputs: request.outputs,
        deadline,
    })
}

fn input(input: v1::NamedTensor) -> Result<(String, Tensor)> {
    let tensor =
        input.tensor.ok_or_else(|| invalid(format!("input {:?} needs a tensor", input.name)))?;
    let dtype = dtype::to_inference(dtype_in(&input.name, tensor.dtype)?);
    let shape = tensor.shape.iter().map(|axis| *axis as usize).collect();
    let tensor = Tensor::new(dtype, shape, tensor.data).map_err(|error| {
        Failure::new(Reason::InvalidTensor, format!("input {:?}: {error}", input.name))
            .with("input", &input.name)
    })?;
    Ok((input.name, tensor))
}

pub fn scored(scored: Scored) -> v1::ScoreResponse {
    v1::ScoreResponse {
        outputs: scored.outputs.into_iter().map(output).collect(),
        state_version: scored.state_version,
        model_version: scored.model_version,
        from_initial_state: scored.from_initial_state,
        repeated_request: scored.repeated,
        batch_rows: scored.ran.batch_rows,
        queue_us: scored.ran.queued.as_micros() as u32,
        run_us: scored.ran.took.as_micros() as u32,
        lag_ms: lag_ms(scored.lag),
        size_warning: scored.warning.map(size_warning),
    }
}

fn output((name, tensor): (String, Tensor)) -> v1::NamedTensor {
    let tensor = v1::Tensor {
        dtype: dtype::to_proto(dtype::to_store(tensor.dtype)) as i32,
        shape: tensor.shape.iter().map(|axis| *axis as u64).collect(),
        data: tensor.data,
    };
    v1::NamedTensor { name, tensor: Some(tensor) }
}

pub fn settings(settings: Option<v1::CollectionSettings>) -> Result<Settings> {
    let settings = settings.unwrap_or_default();
    let missing = match v1::MissingState::try_from(settings.missing) {
        Ok(v1::MissingState::Unspecified | v1::MissingState::Error) => Missing::Error,
        Ok(v1::MissingState::Empty) => Missing::Empty,
        Err(_) => return Err(invalid(format!("missing {} is not known", settings.missing))),
    };
    let state_bytes_max = state_bytes_max(settings.state_bytes_max)?;
    if settings.state_bytes_warn > state_bytes_max {
        return Err(invalid(format!(
            "state_bytes_warn is at most state_bytes_max, {state_bytes_max}, got {}",
            settings.state_bytes_warn
        )));
    }
    Ok(Settings {
        state_bytes_max,
        inline_bytes_max: inline_bytes_max(settings.inline_bytes_max)?,
        default_ttl_ms: default_ttl_ms(settings.default_ttl_ms),
        missing,
        pinned: settings.pinned,
        state_bytes_warn: settings.state_bytes_warn,
    })
}

/// What an update makes of a collection's settings.
pub fn settings_change(
    request: &v1::UpdateCollectionRequest,
) -> Result<impl Fn(&mut Settings) + use<>> {
    let state_bytes_max = request.state_bytes_max.map(state_bytes_max).transpose()?;
    let inline_bytes_max = request.inline_bytes_max.map(inline_bytes_max).transpose()?;
    let default_ttl_ms = request.default_ttl_ms.map(default_ttl_ms);
    let (pinned, state_bytes_warn) = (request.pinned, request.state_bytes_warn);
    Ok(move |settings: &mut Settings| {
        settings.state_bytes_max = state_bytes_max.unwrap_or(settings.state_bytes_max);
        settings.inline_bytes_max = inline_bytes_max.unwrap_or(settings.inline_bytes_max);
        settings.default_ttl_ms = default_ttl_ms.unwrap_or(settings.default_ttl_ms);
        settings.pinned = pinned.unwrap_or(settings.pinned);
        settings.state_bytes_warn = state_bytes_warn.unwrap_or(settings.state_bytes_warn);
    })
}

fn state_bytes_max(bytes: u64) -> Result<u64> {
    if bytes > STATE_BYTES_MAX_DEFAULT {
        let message = format!("state_bytes_max is at most {STATE_BYTES_MAX_DEFAULT}, got {bytes}");
        return Err(invalid(message));
    }
    Ok(or_default(bytes, STATE_BYTES_MAX_DEFAULT))
}

fn inline_bytes_max(bytes: u32) -> Result<u32> {
    if bytes > INLINE_BYTES_MAX_MAX {
        let message = format!("inline_bytes_max is at most {INLINE_BYTES_MAX_MAX}, got {bytes}");
        return Err(invalid(message));
    }
    Ok(or_default(bytes, INLINE_BYTES_MAX_DEFAULT))
}

fn default_ttl_ms(ttl_ms: u64) -> Option<u64> {
    (ttl_ms > 0).then_some(ttl_ms)
}

fn or_default<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

pub fn collection(collection: &Collection) -> v1::Collection {
    let missing = match collection.settings.missing {
        Missing::Error => v1::MissingState::Error,
        Missing::Empty => v1::MissingState::Empty,
    };
    v1::Collection {
        name: collection.name.clone(),
        settings: Some(v1::CollectionSettings {
            state_bytes_max: collection.settings.state_bytes_max,
            inline_bytes_max: collection.settings.inline_bytes_max,
            default_ttl_ms: collection.settings.default_ttl_ms.unwrap_or(0),
            missing: missing as i32,
            pinned: collection.settings.pinned,
            state_bytes_warn: collection.settings.state_bytes_warn,
        }),
        id: collection.id.0,
        created_at_ms: collection.created_at_ms,
    }
}
