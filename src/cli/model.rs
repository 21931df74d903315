//! `statehouse model`: push, list, describe, activate, delete.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Subcommand;
use serde_json::{Value as Json, json};
use statehouse_client::v1;

use super::Remote;
use super::field::dtype_name;
use super::output::print_json;
use super::text::show_bytes;

/// The files of a model directory that are pushed; others stay.
const FILES: &[&str] = &["model.toml", "model.onnx", "model.safetensors"];

/// What `model` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Push a model directory as a new version.
    Push {
        /// Holds model.toml and model.onnx or model.safetensors.
        dir: PathBuf,
        /// Leave the active version as it is.
        #[arg(long)]
        no_activate: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// List all models.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Describe a model's versions, inputs and outputs.
    Describe {
        /// Which.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a version the one that unversioned scores use.
    Activate {
        /// MODEL:VERSION.
        model: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete MODEL:VERSION, or MODEL with all its versions.
    Delete {
        /// Which.
        model: String,
        #[command(flatten)]
        remote: Remote,
    },
}

/// Runs the subcommand.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Push { dir, no_activate, remote } => {
            let files = read_directory(&dir)?;
            let pushed = remote.connect().await?.push_model(files, !no_activate).await?;
            let model = pushed.model.unwrap_or_default();
            for warning in &pushed.warnings {
                eprintln!("warning: {warning}");
            }
            if remote.json {
                let warnings = &pushed.warnings;
                print_json(&json!({
                    "name": model.name, "version": pushed.version, "warnings": warnings,
                }));
            } else {
                let active = if no_activate { "" } else { ", active" };
                println!("{}:{}{active}", model.name, pushed.version);
            }
        }
        Action::List { remote } => {
            let client = remote.connect().await?;
            let listed = client.list_models().await?;
            if remote.json {
                print_json(&listed.iter().map(model_json).collect());
            } else {
                listed.iter().for_each(print_line);
            }
        }
        Action::Describe { name, remote } => {
            let client = remote.connect().await?;
            show(&remote, &client.describe_model(&name).await?);
        }
        Action::Activate { model, remote } => {
            let (name, version) = name_and_version(&model)?;
            let client = remote.connect().await?;
            show(&remote, &client.activate_model(&name, version).await?);
        }
        Action::Delete { model, remote } => {
            let (name, version) = name_and_version(&model)?;
            let client = remote.connect().await?;
            client.delete_model(&name, version).await?;
            if remote.json {
                print_json(&json!({ "deleted": model }));
            } else {
                println!("deleted {model}");
            }
        }
    }
    Ok(())
}

/// "gru:3" is version 3 of gru; "gru" is version 0, the active one.
pub fn name_and_version(text: &str) -> anyhow::Result<(String, u64)> {
    match text.split_once(':') {
        None => Ok((text.to_owned(), 0)),
        Some((name, version)) => {
            let version = version.parse().ok().filter(|version| *version > 0);
            let version =
                version.with_context(|| format!("expected MODEL:VERSION, got {text:?}"))?;
            Ok((name.to_owned(), version))
        }
    }
}

/// The files of a model directory.
pub fn read_directory(dir: &Path) -> anyhow::Result<Vec<(String, Bytes)>> {
    let mut files = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        match std::fs::read(&path) {
            Ok(data) => files.push(((*name).to_owned(), Bytes::from(data))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
    if !files.iter().any(|(name, _)| name == "model.toml") {
        bail!("{} has no model.toml", dir.display());
    }
    Ok(files)
}

fn show(remote: &Remote, model: &v1::Model) {
    if remote.json {
        print_json(&model_json(model));
        return;
    }
    print_line(model);
    for version in &model.versions {
        let loaded = match (version.loaded, version.load_error.as_str()) {
            (true, _) => String::new(),
            (false, "") => ", not loaded here".to_owned(),
            (false, error) => format!(", failed to load: {error}"),
        };
        println!("  :{} {} {}{loaded}", version.version, show_bytes(version.bytes), version.digest);
        for input in &version.inputs {
            println!("    input  {}  {}", input.name, show_spec(input.dtype, &input.shape));
        }
        for state in &version.states {
            println!(
                "    state  {}  {}  {} -> {}",
                state.field,
                show_spec(state.dtype, &state.shape),
                state.input,
                state.output
            );
        }
        for output in &version.outputs {
            println!("    output {}  {}", output.name, show_spec(output.dtype, &output.shape));
        }
    }
}

fn show_spec(dtype: i32, shape: &[i64]) -> String {
    let axes: Vec<String> = shape
        .iter()
        .map(|axis| if *axis < 0 { "?".to_owned() } else { axis.to_string() })
        .collect();
    format!("{}[{}]", dtype_name(dtype), axes.join(", "))
}

fn print_line(model: &v1::Model) {
    let active = match model.active_version {
        0 => "none active".to_owned(),
        version => format!(":{version} active"),
    };
    println!("{}  {} versions, {active}", model.name, model.versions.len());
}

fn model_json(model: &v1::Model) -> Json {
    let spec = |spec: &v1::TensorSpec| {
        let dtype = dtype_name(spec.dtype);
        json!({ "name": spec.name, "dtype": dtype, "shape": spec.shape })
    };
    let version = |version: &v1::ModelVersion| {
        json!({
            "version": version.version,
            "pushed_at_ms": version.pushed_at_ms,
            "bytes": version.bytes,
            "digest": version.digest,
            "loaded": version.loaded,
            "load_error": version.load_error,
            "batch_rows_max": version.batch_rows_max,
            "inputs": version.inputs.iter().map(spec).collect::<Vec<_>>(),
            "outputs": version.outputs.iter().map(spec).collect::<Vec<_>>(),
            "states": version.states.iter().map(|state| json!({
                "field": state.field,
                "input": state.input,
                "output": state.output,
                "dtype": dtype_name(state.dtype),
                "shape": state.shape,
            })).collect::<Vec<_>>(),
        })
    };
    json!({
        "name": model.name,
        "active_version": model.active_version,
        "versions": model.versions.iter().map(version).collect::<Vec<_>>(),
    })
}
