//! Ties a model's inputs and outputs to a request and to the fields of a state. Pure.

use statehouse_inference::{LoadedModel, StateSpec, Tensor};
use statehouse_store::{Field, Value, When, WholeState};

use super::{Mode, ScoreQuery};
use crate::dtype;
use crate::failure::{Failure, Reason};
use crate::states;

/// What a run starts from.
pub struct Base {
    /// 0: there was no state.
    pub version: u64,
    /// In the model's order, one row each.
    pub states: Vec<Tensor>,
    /// When the field of each expires by itself.
    pub expires: Vec<Option<When>>,
    /// There was no state, so the model's initial one is used.
    pub initial: bool,
}

/// A hash of everything that a step asks.
pub fn fingerprint(query: &ScoreQuery) -> u64 {
    let mode = match query.mode {
        Mode::Peek => b"peek",
        Mode::Step => b"step",
    };
    states::fingerprint(mode, |hash| {
        hash.update(query.model.as_bytes());
        hash.update(&query.model_version.to_le_bytes());
        for (name, tensor) in &query.inputs {
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&(tensor.data.len() as u64).to_le_bytes());
            hash.update(&tensor.data);
        }
    })
}

/// The positions of the outputs asked for; all if none is named.
pub fn wanted_outputs(model: &LoadedModel, names: &[String]) -> Result<Vec<usize>, Failure> {
    if names.is_empty() {
        return Ok((0..model.outputs().len()).collect());
    }
    let position = |name: &String| {
        model.outputs().iter().position(|output| output.name == *name).ok_or_else(|| {
            let known: Vec<&str> = model.outputs().iter().map(|o| o.name.as_str()).collect();
            let message = format!(
                "model {:?} has no output {name:?}, it has {}",
                model.name(),
                known.join(", ")
            );
            Failure::new(Reason::InvalidInput, message).with("output", name)
        })
    };
    names.iter().map(position).collect()
}

/// The outputs asked for, by name.
pub fn outputs(model: &LoadedModel, wanted: &[usize], all: Vec<Tensor>) -> Vec<(String, Tensor)> {
    wanted.iter().map(|at| (model.outputs()[*at].name.clone(), all[*at].clone())).collect()
}

/// The fields that the model's states lie in; a state without one starts that field anew.
pub fn field_names(model: &LoadedModel) -> Vec<String> {
    model.states().iter().map(|state| state.field.clone()).collect()
}

/// The states to start from: the stored fields, or the model's initial ones where there are none
/// or they have expired.
pub fn base(model: &LoadedModel, found: Option<WholeState>) -> Result<Base, Failure> {
    let Some(found) = found else {
        let states: Vec<_> = model.states().iter().map(|state| state.initial.clone()).collect();
        let expires = vec![None; states.len()];
        return Ok(Base { version: 0, states, expires, initial: true });
    };
    let field = |spec: &StateSpec| found.fields.iter().find(|field| field.name == spec.field);
    let states = model
        .states()
        .iter()
        .map(|spec| match field(spec) {
            Some(field) => stored(spec, &field.value),
            None => Ok(spec.initial.clone()),
        })
        .collect::<Result<_, _>>()?;
    let expires = model.states().iter().map(|spec| field(spec).and_then(|it| it.expires)).collect();
    Ok(Base { version: found.version, states, expires, initial: false })
}

/// The fields that a step writes: each expires when what it replaces would have.
pub fn edits(
    model: &LoadedModel,
    states: &[Tensor],
    expires: &[Option<When>],
) -> impl Iterator<Item = Field> {
    model.states().iter().zip(states).zip(expires).map(|((spec, tensor), expires)| Field {
        expires: *expires,
        ..Field::new(spec.field.clone(), dtype::value_of(tensor))
    })
}

fn stored(spec: &StateSpec, value: &Value) -> Result<Tensor, Failure> {
    let Value::Tensor { dtype, shape, data } = value else {
        return Err(mismatch(spec, "opaque bytes"));
    };
    let dtype = dtype::to_inference(*dtype);
    let shape: Vec<usize> = shape.iter().map(|axis| *axis as usize).collect();
    if dtype != spec.dtype || !fits(&spec.row_shape, &shape) {
        return Err(mismatch(spec, &format!("{dtype} of shape {shape:?}")));
    }
    Tensor::new(dtype, shape, data.clone())
        .map_err(|error| mismatch(spec, &format!("a tensor that is damaged: {error}")))
}

fn fits(expected: &[Option<usize>], actual: &[usize]) -> bool {
    expected.len() == actual.len()
        && expected.iter().zip(actual).all(|(e, a)| e.is_none_or(|e| e == *a))
}

fn mismatch(spec: &StateSpec, found: &str) -> Failure {
    let shape: Vec<String> = spec
        .row_shape
        .iter()
        .map(|axis| axis.map_or("?".to_owned(), |axis| axis.to_string()))
        .collect();
    Failure::new(
        Reason::StateMismatch,
        format!(
            "field {:?} feeds input {:?}: expected {} of shape [{}], the state has {found}",
            spec.field,
            spec.input,
            spec.dtype,
            shape.join(", ")
        ),
    )
    .with("field", &spec.field)
}
