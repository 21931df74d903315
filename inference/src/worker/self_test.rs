//! The trial runs of a model that is being loaded: that it runs at all, has its batch axes where
//! the manifest says, and answers a row as if no other were beside it.
//!
//! What a model is made for only its maker knows. A manifest that says what each input may be tried
//! with (`[[input]] trial`) is taken at its word: results must be there, and finite. Of made-up
//! numbers, which need not mean anything to the model, one row with results will do, and what is
//! not finite is a warning.

use crate::batch::{RowPeak, rows_within, scatter};
use crate::device::Runner;
use crate::error::Error;
use crate::manifest::NotFinite;
use crate::model::{Model, Tried};
use crate::onnx::fault::Fault;
use crate::tensor::{DType, Tensor};
use crate::trial;

/// How far a row's result may differ when it runs beside others: devices choose kernels by batch
/// size, and some round as coarsely as TF32.
const NEIGHBOUR_TOLERANCE: f64 = 1e-2;
/// Seed of the trial inputs.
const SEED: u64 = 1;
/// How long axes are tried whose lengths neither the graph nor the manifest says.
const LENGTHS: [usize; 9] = [1, 2, 3, 4, 8, 16, 32, 64, 128];
/// What would help where a trial failed.
const SAY: &str = "say in model.toml what it may be tried with: [[input]] name, trial";

/// What a self-test came to.
pub struct Tested {
    /// With the shapes of its outputs, its largest batch, and what to be warned of.
    pub model: Model,
    /// A row that it has results for.
    pub row: Vec<Tensor>,
    /// Rows of such a size that may run together.
    pub rows_max: usize,
}

/// The rows of each graph output.
type Outputs = Vec<Vec<Tensor>>;

/// Runs trial rows from the initial state, alone and together.
pub fn self_test(model: Model, runner: &mut dyn Runner, bytes_max: usize) -> Result<Tested, Error> {
    let mut first = None;
    for length in LENGTHS {
        match with_length(&model, runner, length, bytes_max) {
            Err(Error::Run { step, fault: Fault::Shape(reason), .. })
                if !model.is_of_fixed_shape() =>
            {
                // Another length may fit.
                first.get_or_insert((step, reason));
            }
            Err(Error::Run { step, fault, .. }) => return Err(failed(format!("{step}: {fault}"))),
            Err(Error::Internal { reason }) => return Err(failed(reason)),
            other => return other,
        }
    }
    let (step, reason) = first.unwrap_or_default();
    Err(failed(format!("{step}: {reason} (tried with axes of {LENGTHS:?}; {SAY})")))
}

/// Rows that have results, and these, unless they are large.
#[derive(Default)]
struct Passed {
    rows: Vec<Vec<Tensor>>,
    alone: Vec<Outputs>,
}

fn failed(reason: String) -> Error {
    Error::SelfTest { output: String::new(), reason }
}

fn with_length(
    model: &Model,
    runner: &mut dyn Runner,
    length: usize,
    bytes_max: usize,
) -> Result<Tested, Error> {
    // Of a model that is tried as it says, nothing may fail.
    let said = model.inputs().iter().all(|input| input.trial.is_some());
    let mut warnings = computed_as_f32(model);
    let mut rows_max = model.limits().batch_rows_max;
    let mut passed = Passed::default();
    let mut peak = RowPeak::default();
    let (mut shapes, mut fault) = (None, None);
    for row in trial::rows(model, length, SEED)? {
        let row_bytes = row.iter().map(|tensor| tensor.data.len()).sum();
        rows_max = rows_within(bytes_max, peak.needs(row_bytes), rows_max);
        match run(model, runner, &[&row]) {
            Ok(outputs) => {
                peak = peak.or_more(RowPeak { row_bytes, peak_bytes: runner.peak_bytes() });
                rows_max = rows_within(bytes_max, peak.needs(row_bytes), rows_max);
                check_finite(model, &outputs, said, &mut warnings)?;
                shapes.get_or_insert_with(|| shapes_of(&outputs));
                // Large results are not kept: they would not be compared.
                passed.alone.extend((rows_max > 1).then_some(outputs));
                passed.rows.push(row);
            }
            Err(Error::Run { step, fault: of_row, .. }) if of_row.is_of_one_row() && !said => {
                fault.get_or_insert(format!("{step}: {of_row}"));
            }
            Err(other) => return Err(other),
        }
    }
    let Some(shapes) = shapes else {
        let fault = fault.unwrap_or_default();
        return Err(failed(format!("{fault} (for each row that was made up; {SAY})")));
    };
    warnings.extend(fault.map(|fault| format!("{fault} (for a made-up row; {SAY})")));
    check_together(model, runner, &passed, rows_max)?;
    let fixed = if model.is_of_fixed_shape() { rows_max } else { usize::MAX };
    let model = model.tried(Tried { shapes, rows_max: fixed, peak, warnings });
    Ok(Tested { model, row: passed.rows.swap_remove(0), rows_max })
}

/// Inputs, states and outputs of more precision than numbers are computed with.
fn computed_as_f32(model: &Model) -> Vec<String> {
    let inputs = model.inputs().iter().map(|input| (&input.name, input.dtype));
    let states = model.states().iter().map(|state| (&state.input, state.dtype));
    let wide = inputs.chain(states).filter(|(_, dtype)| *dtype == DType::F64);
    let given = wide.map(|(name, _)| {
        format!("input '{name}' is f64, and computed as f32: above 16,777,216 units are lost")
    });
    let outputs = model.outputs().iter().filter(|output| output.dtype == DType::F64);
    let answered = outputs.map(|output| {
        format!("output '{}' is f64, and computed as f32: 7 digits of it at most", output.name)
    });
    given.chain(answered).collect()
}

fn shapes_of(outputs: &Outputs) -> Vec<Vec<usize>> {
    outputs.iter().map(|rows| rows[0].shape.clone()).collect()
}

/// The rows of each graph output.
fn run(model: &Model, runner: &mut dyn Runner, rows: &[&Vec<Tensor>]) -> Result<Outputs, Error> {
    let outputs = runner.run(trial::batch(model, rows))?;
    let bindings = model.graph_outputs().iter().zip(outputs);
    bindings
        .map(|(binding, output)| {
            scatter(&output, binding.batch_axis, rows.len(), rows.len()).ok_or_else(|| {
                let (axis, count, shape) = (binding.batch_axis, rows.len(), &output.shape);
                let reason =
                    format!("axis {axis} of {shape:?} is not the batch of {count}: set batch_axis");
                Error::SelfTest { output: binding.name.clone(), reason }
            })
        })
        .collect()
}

/// Refuses what is not finite where the manifest forbids it, or warns if the row was made up.
fn check_finite(
    model: &Model,
    outputs: &Outputs,
    said: bool,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    for (binding, rows) in model.graph_outputs().iter().zip(outputs) {
        let bad = rows.iter().find_map(Tensor::first_not_finite);
        let (NotFinite::Reject, Some(element)) = (binding.nan, bad) else { continue };
        let output = &binding.name;
        if said {
            let reason = format!(
                "element {element} is not finite for the manifest's trial (nan = \"allow\" accepts \
                 that)"
            );
            return Err(Error::SelfTest { output: output.clone(), reason });
        }
        let about = format!("output '{output}' is not finite for a made-up row");
        if !warnings.iter().any(|warning| warning.starts_with(&about)) {
            warnings.push(format!("{about}; {SAY}"));
        }
    }
    Ok(())
}

/// Runs the good rows together, as many as fit, at least one beside itself.
fn check_together(
    model: &Model,
    runner: &mut dyn Runner,
    passed: &Passed,
    rows_max: usize,
) -> Result<(), Error> {
    let Passed { rows: good, alone } = passed;
    if rows_max < 2 || alone.len() < good.len() {
        return Ok(());
    }
    let count = good.len().max(2).min(rows_max);
    let beside: Vec<usize> = (0..count).map(|at| at % good.len()).collect();
    let rows: Vec<&Vec<Tensor>> = beside.iter().map(|&at| &good[at]).collect();
    let together = run(model, runner, &rows)?;
    let alone: Vec<&Outputs> = beside.iter().map(|&at| &alone[at]).collect();
    check_independent(model, &alone, &together)
}

fn check_independent(model: &Model, alone: &[&Outputs], together: &Outputs) -> Result<(), Error> {
    for (position, binding) in model.graph_outputs().iter().enumerate() {
        for (row, batched) in together[position].iter().enumerate() {
            let single = &alone[row][position][0];
            // Whole numbers may be the winner of a tie, which rounding decides.
            if !DType::is_float(single.dtype) || close(single, batched) {
                continue;
            }
            let reason = "a row's result depends on the rows beside it: is batch_axis right?";
            return Err(Error::SelfTest { output: binding.name.clone(), reason: reason.into() });
        }
    }
    Ok(())
}

fn close(one: &Tensor, other: &Tensor) -> bool {
    one.shape == other.shape
        && one.to_f64().into_iter().zip(other.to_f64()).all(|(one, other)| {
            let scale = one.abs().max(1.0);
            (one - other).abs() <= NEIGHBOUR_TOLERANCE * scale
                || (!one.is_finite() && !other.is_finite())
        })
}
