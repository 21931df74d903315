//! States and scores for people and as JSON.

use serde_json::{Map, Value as Json, json};
use statehouse_client::v1::{self, field::Expiry, field::Value};

use super::field::{dtype_name, elements};
use super::text::show_bytes;

/// Elements of a tensor that people are shown.
const ELEMENTS_SHOWN: usize = 8;

/// Bytes of an opaque field that people are shown.
const BYTES_SHOWN: usize = 48;

/// Prints pretty JSON.
pub fn print_json(json: &Json) {
    println!("{json:#}");
}

/// A state as JSON.
pub fn state_json(state: &v1::StoredState) -> Json {
    let fields: Map<String, Json> =
        state.fields.iter().map(|field| (field.name.clone(), field_json(field))).collect();
    let mut json = json!({ "version": state.version, "fields": fields });
    if let Some(at) = state.expires_at_ms {
        json["expires_at_ms"] = at.into();
    }
    if !state.model.is_empty() {
        json["model"] = json!({ "name": state.model, "version": state.model_version });
    }
    json
}

fn field_json(field: &v1::Field) -> Json {
    let mut json = field.value.as_ref().map_or(Json::Null, value_json);
    if let Some(at) = expires_at_ms(field) {
        json["expires_at_ms"] = at.into();
    }
    json
}

/// When a field of an answer expires.
fn expires_at_ms(field: &v1::Field) -> Option<u64> {
    match field.expiry? {
        Expiry::ExpiresAtMs(at_ms) => Some(at_ms),
        Expiry::TtlMs(_) => None,
    }
}

fn value_json(value: &Value) -> Json {
    match value {
        Value::Tensor(tensor) => tensor_json(tensor),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!({ "text": text }),
            Err(_) => json!({ "hex": hex(bytes) }),
        },
    }
}

/// A tensor as JSON.
pub fn tensor_json(tensor: &v1::Tensor) -> Json {
    json!({
        "dtype": dtype_name(tensor.dtype),
        "shape": tensor.shape,
        "data": elements(tensor),
    })
}

/// Prints a state for people.
pub fn print_state(state: &v1::StoredState) {
    let written_by = match state.model.as_str() {
        "" => String::new(),
        model => format!(", stepped by {model}:{}", state.model_version),
    };
    let expiry = state.expires_at_ms.map_or(String::new(), |at| format!(", expires at {at} ms"));
    println!("version {}{written_by}{expiry}", state.version);
    let width = state.fields.iter().map(|field| field.name.len()).max().unwrap_or(0);
    for field in &state.fields {
        let shown = field.value.as_ref().map_or_else(String::new, show_value);
        let expiry =
            expires_at_ms(field).map_or(String::new(), |at| format!(", expires at {at} ms"));
        println!("  {:width$}  {shown}{expiry}", field.name);
    }
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Tensor(tensor) => show_tensor(tensor),
        Value::Bytes(bytes) => {
            let shown = &bytes[..bytes.len().min(BYTES_SHOWN)];
            let more = if bytes.len() > BYTES_SHOWN { "…" } else { "" };
            let text =
                std::str::from_utf8(shown).map_or_else(|_| hex(shown), |text| format!("{text:?}"));
            format!("bytes, {}: {text}{more}", show_bytes(bytes.len() as u64))
        }
    }
}

/// A tensor for people.
pub fn show_tensor(tensor: &v1::Tensor) -> String {
    let all = elements(tensor);
    let shown: Vec<String> = all.iter().take(ELEMENTS_SHOWN).map(Json::to_string).collect();
    let more = if all.len() > ELEMENTS_SHOWN { ", …" } else { "" };
    format!("{}{:?}: [{}{more}]", dtype_name(tensor.dtype), tensor.shape, shown.join(", "))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
