//! `statehouse write`, `read`: states of any size, from files and into files.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use statehouse_client::v1::field::Value;
use statehouse_client::{Source, StateStream, WriteError, v1};

use super::expiry::FieldTtls;
use super::output::print_json;
use super::state::{Query, Target, Write, warn, warning_json};
use super::{Remote, field, npy, text};

/// What `write` takes.
#[derive(Debug, clap::Args)]
pub struct WriteArgs {
    #[command(flatten)]
    target: Target,
    /// NAME=@file.npy or NAME=@file of any size, or a value as `put` takes it.
    #[arg(required = true)]
    fields: Vec<String>,
    /// Names the upload: run again with the same one, it goes on where it broke off.
    #[arg(long)]
    upload_id: Option<String>,
    #[command(flatten)]
    field_ttls: FieldTtls,
    #[command(flatten)]
    write: Write,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `write`.
pub async fn write(args: WriteArgs) -> anyhow::Result<()> {
    if args.write.request_id.is_some() {
        bail!("a write is recognised by its --upload-id: --request-id is not given");
    }
    let mut fields = Vec::new();
    let mut source = Files::default();
    for text in &args.fields {
        let (header, segment) = field_of(text)?;
        fields.push(header);
        source.0.push(segment);
    }
    args.field_ttls.write(&mut fields)?;
    let header = v1::WriteHeader {
        collection: args.target.collection.clone(),
        key: args.target.key(),
        fields,
        options: Some(args.write.options()),
        upload_id: args.upload_id.clone().unwrap_or_default().into(),
        offset: 0,
    };
    let bytes = source.0.iter().map(Segment::bytes).sum();
    let bar = progress_bar(bytes, args.remote.json);
    let client = args.remote.connect().await?;
    let written = client.write(header, &mut source, |sent| bar.set_position(sent)).await;
    bar.finish_and_clear();
    let written = written.map_err(|error| match error {
        WriteError::Refused(error) => anyhow::Error::from(error),
        other => other.into(),
    })?;
    let version = written.version.context("a version")?;
    warn(written.size_warning);
    if args.remote.json {
        let repeated = written.repeated_request;
        let warning = warning_json(written.size_warning);
        print_json(&json!({
            "version": version,
            "bytes": bytes,
            "repeated": repeated,
            "size_warning": warning,
        }));
    } else if written.repeated_request {
        println!("version {version} (this upload was complete before)");
    } else {
        println!("version {version}, {}", text::show_bytes(bytes));
    }
    Ok(())
}

/// A field's header, and where its bytes are.
fn field_of(text: &str) -> anyhow::Result<(v1::FieldHeader, Segment)> {
    let (name, value) =
        text.split_once('=').with_context(|| format!("expected NAME=VALUE, got {text:?}"))?;
    let (name, dtype, shape, segment) = match value.strip_prefix('@') {
        Some(path) => {
            let (dtype, shape, segment) =
                file_of(Path::new(path)).with_context(|| format!("read {path}"))?;
            (name.to_owned(), dtype, shape, segment)
        }
        None => {
            let field = field::parse(text)?;
            let (dtype, shape, data) = match field.value.context("a value")? {
                Value::Tensor(tensor) => (tensor.dtype, tensor.shape, tensor.data),
                Value::Bytes(bytes) => (v1::DataType::Unspecified as i32, Vec::new(), bytes),
            };
            (field.name, dtype, shape, Segment::Bytes(data))
        }
    };
    let bytes = segment.bytes();
    Ok((v1::FieldHeader { name, dtype, shape, bytes, expiry: None }, segment))
}

fn file_of(path: &Path) -> anyhow::Result<(i32, Vec<u64>, Segment)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if path.extension().is_none_or(|extension| extension != "npy") {
        let start = 0;
        return Ok((
            v1::DataType::Unspecified as i32,
            Vec::new(),
            Segment::File { file, start, len },
        ));
    }
    let mut front = vec![0; npy::HEADER_BYTES_MAX.min(len as usize)];
    file.read_exact_at(&mut front, 0)?;
    let npy::Header { dtype, shape, data_at } = npy::header(&front)?;
    let start = data_at as u64;
    Ok((dtype as i32, shape, Segment::File { file, start, len: len - start }))
}

/// A field's bytes.
enum Segment {
    Bytes(Bytes),
    File { file: File, start: u64, len: u64 },
}

impl Segment {
    fn bytes(&self) -> u64 {
        match self {
            Segment::Bytes(bytes) => bytes.len() as u64,
            Segment::File { len, .. } => *len,
        }
    }

    fn read(&self, offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        let bytes = (self.bytes() - offset).min(bytes_max as u64) as usize;
        match self {
            Segment::Bytes(all) => Ok(all.slice(offset as usize..offset as usize + bytes)),
            Segment::File { file, start, .. } => {
                let mut data = vec![0; bytes];
                file.read_exact_at(&mut data, start + offset)?;
                Ok(data.into())
            }
        }
    }
}

/// The bytes of all fields, one after another.
#[derive(Default)]
struct Files(Vec<Segment>);

impl Source for Files {
    async fn read(&mut self, mut offset: u64, bytes_max: usize) -> io::Result<Bytes> {
        for segment in &self.0 {
            if offset < segment.bytes() {
                return tokio::task::block_in_place(|| segment.read(offset, bytes_max));
            }
            offset -= segment.bytes();
        }
        Ok(Bytes::new())
    }
}

/// What `read` takes.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    #[command(flatten)]
    query: Query,
    /// A file for one field (.npy for a tensor with its type and shape, - for standard output), or
    /// a directory, made if need be, with a file for each.
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `read`.
pub async fn read(args: ReadArgs) -> anyhow::Result<()> {
    let mut stream = args.remote.connect().await?.open(args.query.request()?).await?;
    let header = stream.header().clone();
    let to_stdout = args.out == Path::new("-");
    let outs = outs(&header, &args.out)?;
    let bytes = header.fields.iter().map(|field| field.bytes).sum();
    let bar = progress_bar(bytes, args.remote.json);
    let saved = save(&mut stream, &outs, &bar).await;
    bar.finish_and_clear();
    saved?;
    if to_stdout {
        return Ok(());
    }
    if args.remote.json {
        let files = outs.iter().zip(&header.fields).map(|(out, field)| {
            json!({ "field": field.name, "bytes": field.bytes, "shape": field.shape,
                    "dtype": dtype_of(field), "file": out.to_string_lossy() })
        });
        print_json(&json!({ "version": header.version, "files": files.collect::<Vec<_>>() }));
    } else {
        println!("version {}", header.version);
        for (out, field) in outs.iter().zip(&header.fields) {
            println!("  {}  {}  {}", field.name, text::show_bytes(field.bytes), out.display());
        }
    }
    Ok(())
}

fn dtype_of(field: &v1::FieldHeader) -> &'static str {
    match field.dtype == v1::DataType::Unspecified as i32 {
        true => "bytes",
        false => field::dtype_name(field.dtype),
    }
}

/// A file for each field.
fn outs(header: &v1::ReadHeader, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if header.fields.len() == 1 && !out.is_dir() {
        return Ok(vec![out.to_owned()]);
    }
    if out == Path::new("-") {
        bail!("standard output takes one field, there are {}: name one", header.fields.len());
    }
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let file = |field: &v1::FieldHeader| {
        if field.name.contains(['/', '\0']) || field.name.starts_with('.') {
            bail!("field {:?} makes no file name: read it by itself", field.name);
        }
        let is_tensor = field.dtype != v1::DataType::Unspecified as i32;
        let extension =
            if is_tensor && npy::front(field.dtype, &[]).is_ok() { "npy" } else { "bin" };
        Ok(out.join(format!("{}.{extension}", field.name)))
    };
    header.fields.iter().map(file).collect()
}

async fn save(stream: &mut StateStream, outs: &[PathBuf], bar: &ProgressBar) -> anyhow::Result<()> {
    let headers = stream.header().fields.clone();
    let mut files = Vec::new();
    for (out, header) in outs.iter().zip(&headers) {
        let mut file: Box<dyn io::Write> = match out == Path::new("-") {
            true => Box::new(io::stdout().lock()),
            false => {
                let file = File::create(out).with_context(|| format!("make {}", out.display()))?;
                Box::new(file)
            }
        };
        let is_tensor = header.dtype != v1::DataType::Unspecified as i32;
        if is_tensor && out.extension().is_some_and(|extension| extension == "npy") {
            file.write_all(&npy::front(header.dtype, &header.shape)?)?;
        }
        files.push(file);
    }
    while let Some(chunk) = stream.next_chunk().await? {
        let file = files.get_mut(chunk.field as usize).context("a chunk of a known field")?;
        file.write_all(&chunk.data).context("write")?;
        bar.inc(chunk.data.len() as u64);
    }
    files.iter_mut().try_for_each(|file| file.flush().context("write"))
}

/// A bar for so many bytes on standard error; none for programs and for what is small.
fn progress_bar(bytes: u64, json: bool) -> ProgressBar {
    const SHOWN_FROM: u64 = 1 << 20;
    let bar = ProgressBar::new(bytes);
    if json || bytes < SHOWN_FROM {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well formed"));
    bar
}
