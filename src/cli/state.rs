//! `statehouse get`, `put`, `patch`, `delete`: one state each.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde_json::json;
use statehouse_client::v1;
use statehouse_client::v1::{edit, field::Value, write_options};

use super::expiry::FieldTtls;
use super::output::{print_json, print_state, state_json};
use super::{Remote, field, npy, text};

/// Whose state.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// The collection.
    pub collection: String,
    /// The key, 1 to 512 bytes.
    key: String,
}

impl Target {
    /// The key's bytes.
    pub fn key(&self) -> Bytes {
        Bytes::copy_from_slice(self.key.as_bytes())
    }
}

/// What every write takes.
#[derive(Debug, clap::Args)]
pub struct Write {
    /// Only if the state's version is this one.
    #[arg(long, conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Only if there is no state.
    #[arg(long)]
    if_absent: bool,
    /// Expire after this long, such as 30s or 7d. Without it a put takes the collection's default
    /// or never expires, and a patch leaves the state's expiry as it is.
    #[arg(long, value_parser = text::duration)]
    ttl: Option<Duration>,
    /// Never expire, whatever the state or its collection's default says.
    #[arg(long, conflicts_with = "ttl")]
    never_expires: bool,
    /// An idempotency key: the same id twice has one effect and one answer.
    #[arg(long)]
    pub request_id: Option<String>,
}

impl Write {
    /// As requests say it.
    pub fn options(&self) -> v1::WriteOptions {
        use write_options::{Condition, Expiry};
        let absent = self.if_absent.then_some(Condition::IfAbsent(true));
        let ttl = self.ttl.map(|ttl| Expiry::TtlMs((ttl.as_millis() as u64).max(1)));
        let never = self.never_expires.then_some(Expiry::NeverExpires(true));
        v1::WriteOptions {
            condition: self.if_version.map(Condition::IfVersion).or(absent),
            expiry: ttl.or(never),
            request_id: self.request_id.clone().unwrap_or_default().into(),
        }
    }
}

/// What is read of which state.
#[derive(Debug, clap::Args)]
pub struct Query {
    #[command(flatten)]
    target: Target,
    /// A field to read, or bytes or rows of it: NAME, NAME@OFFSET+LENGTH or NAME#FIRST+ROWS.
    /// Repeat for more; none: all.
    #[arg(long = "field")]
    fields: Vec<String>,
    /// Read from any replica that lags by no more, such as 100ms; none: the newest state.
    #[arg(long, value_parser = text::duration)]
    max_lag: Option<Duration>,
}

impl Query {
    /// As a request says it.
    pub fn request(&self) -> anyhow::Result<v1::GetRequest> {
        let (consistency, max_lag_ms) = self.max_lag.map(bounded).unwrap_or_default();
        Ok(v1::GetRequest {
            collection: self.target.collection.clone(),
            key: self.target.key(),
            fields: self.fields.iter().map(|text| selector(text)).collect::<anyhow::Result<_>>()?,
            consistency,
            max_lag_ms,
        })
    }
}

/// What `get` takes.
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    #[command(flatten)]
    query: Query,
    /// Write the one field read to this file; a tensor as .npy if the name ends so.
    #[arg(long)]
    out: Option<std::path::PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `get`.
pub async fn get(args: GetArgs) -> anyhow::Result<()> {
    let answer = args.remote.connect().await?.read(args.query.request()?).await?;
    let state = answer.state.context("a state")?;
    if let Some(path) = &args.out {
        let [field] = &state.fields[..] else {
            bail!(
                "--out takes one field, the state has {}: name it with --field",
                state.fields.len()
            );
        };
        let npy = path.extension().is_some_and(|extension| extension == "npy");
        let data = match &field.value {
            Some(Value::Tensor(tensor)) if npy => npy::encode(tensor)?.into(),
            Some(value) => field::raw_bytes(value.clone()),
            None => bail!("field {:?} came without a value", field.name),
        };
        return std::fs::write(path, data).with_context(|| format!("write {}", path.display()));
    }
    if args.remote.json {
        let mut json = state_json(&state);
        if args.query.max_lag.is_some() {
            json["lag_ms"] = answer.lag_ms.into();
        }
        print_json(&json);
    } else {
        print_state(&state);
    }
    Ok(())
}

/// A read that may lag so much, as requests say it.
pub fn bounded(max_lag: Duration) -> (i32, u64) {
    (v1::Consistency::Bounded as i32, max_lag.as_millis() as u64)
}

/// A field, or a part of it: `NAME`, `NAME@OFFSET+LENGTH` or `NAME#FIRST+ROWS`.
pub fn selector(text: &str) -> anyhow::Result<v1::FieldSelector> {
    let Some(at) = text.find(['@', '#']) else {
        return Ok(v1::FieldSelector { name: text.to_owned(), ..Default::default() });
    };
    let (name, range) = (text[..at].to_owned(), &text[at + 1..]);
    let (first, count) = match range.split_once('+') {
        Some((first, count)) => (first, Some(count.parse().context("LENGTH or ROWS")?)),
        None => (range, None),
    };
    let first = first.parse().context("expected NAME@OFFSET+LENGTH or NAME#FIRST+ROWS")?;
    let by_bytes = text[at..].starts_with('@');
    let selector = v1::FieldSelector { name, ..Default::default() };
    Ok(match by_bytes {
        true => v1::FieldSelector { offset: Some(first), length: count, ..selector },
        false => v1::FieldSelector { first_row: Some(first), rows: count, ..selector },
    })
}

/// What `put` takes.
#[derive(Debug, clap::Args)]
pub struct PutArgs {
    #[command(flatten)]
    target: Target,
    /// NAME=VALUE: JSON numbers (NAME:i64=[1,2] for another type), @file.npy, @file, text:… or
    /// hex:….
    #[arg(required = true)]
    fields: Vec<String>,
    #[command(flatten)]
    field_ttls: FieldTtls,
    #[command(flatten)]
    write: Write,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `put`.
pub async fn put(args: PutArgs) -> anyhow::Result<()> {
    let fields = args.fields.iter().map(|text| field::parse(text));
    let mut fields = fields.collect::<anyhow::Result<Vec<_>>>()?;
    args.field_ttls.put(&mut fields)?;
    let request = v1::PutRequest {
        collection: args.target.collection.clone(),
        key: args.target.key(),
        fields,
        options: Some(args.write.options()),
    };
    let written = args.remote.connect().await?.put(request).await?;
    print_written(&args.remote, written);
    Ok(())
}

/// What `patch` takes. Edits are done in the order: set, remove, write, append, expire.
#[derive(Debug, clap::Args)]
pub struct PatchArgs {
    #[command(flatten)]
    target: Target,
    /// Set a field: NAME=VALUE, as `put` takes it. Repeat for more.
    #[arg(long)]
    set: Vec<String>,
    /// Remove a field. Repeat for more.
    #[arg(long)]
    remove: Vec<String>,
    /// Overwrite bytes of a field: NAME@OFFSET=VALUE. Repeat for more.
    #[arg(long)]
    write: Vec<String>,
    /// Append to a field: NAME=VALUE. Repeat for more.
    #[arg(long)]
    append: Vec<String>,
    /// What appended fields may hold; more is dropped from their front.
    #[arg(long, value_parser = text::bytes)]
    max_bytes: Option<u64>,
    #[command(flatten)]
    field_ttls: FieldTtls,
    #[command(flatten)]
    options: Write,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `patch`.
pub async fn patch(args: PatchArgs) -> anyhow::Result<()> {
    let request = v1::PatchRequest {
        collection: args.target.collection.clone(),
        key: args.target.key(),
        edits: edits(&args)?,
        options: Some(args.options.options()),
    };
    let written = args.remote.connect().await?.patch(request).await?;
    print_written(&args.remote, written);
    Ok(())
}

fn edits(args: &PatchArgs) -> anyhow::Result<Vec<v1::Edit>> {
    let mut edits = Vec::new();
    for text in &args.set {
        edits.push(edit::Edit::Set(field::parse(text)?));
    }
    for name in &args.remove {
        edits.push(edit::Edit::Remove(name.clone()));
    }
    for text in &args.write {
        let (place, value) = text.split_once('=').context("expected NAME@OFFSET=VALUE")?;
        let (name, offset) = place.rsplit_once('@').context("expected NAME@OFFSET=VALUE")?;
        let offset = offset.parse().context("OFFSET")?;
        let (field, data) = named_bytes(&format!("{name}={value}"))?;
        edits.push(edit::Edit::WriteRange(edit::WriteRange { field, offset, data }));
    }
    for text in &args.append {
        let ((field, data), max_bytes) = (named_bytes(text)?, args.max_bytes);
        edits.push(edit::Edit::Append(edit::Append { field, data, max_bytes }));
    }
    edits.extend(args.field_ttls.edits());
    Ok(edits.into_iter().map(|edit| v1::Edit { edit: Some(edit) }).collect())
}

/// A field's name without its type, and its bytes.
fn named_bytes(text: &str) -> anyhow::Result<(String, Bytes)> {
    let v1::Field { name, value, .. } = field::parse(text)?;
    Ok((name, field::raw_bytes(value.context("a value")?)))
}

/// What `delete` takes.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    target: Target,
    /// Only if the state's version is this one.
    #[arg(long)]
    if_version: Option<u64>,
    /// An idempotency key.
    #[arg(long)]
    request_id: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `delete`.
pub async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let options = v1::WriteOptions {
        condition: args.if_version.map(write_options::Condition::IfVersion),
        expiry: None,
        request_id: args.request_id.clone().unwrap_or_default().into(),
    };
    let request = v1::DeleteRequest {
        collection: args.target.collection.clone(),
        key: args.target.key(),
        options: Some(options),
    };
    let deleted = args.remote.connect().await?.delete(request).await?;
    if args.remote.json {
        print_json(&json!({ "existed": deleted.existed }));
    } else {
        println!("{}", if deleted.existed { "deleted" } else { "there was none" });
    }
    Ok(())
}

/// Tells on standard error that a write left a large state.
pub fn warn(warning: Option<v1::SizeWarning>) {
    let Some(v1::SizeWarning { state_bytes, state_bytes_warn }) = warning else { return };
    let (bytes, warn) = (text::show_bytes(state_bytes), text::show_bytes(state_bytes_warn));
    eprintln!("warning: the state has {bytes}, its collection warns above {warn}");
}

/// The same for programs.
pub fn warning_json(warning: Option<v1::SizeWarning>) -> serde_json::Value {
    warning.map_or(
        serde_json::Value::Null,
        |it| json!({ "state_bytes": it.state_bytes, "state_bytes_warn": it.state_bytes_warn }),
    )
}

fn print_written(remote: &Remote, written: v1::WriteResponse) {
    let v1::WriteResponse { version, repeated_request, size_warning } = written;
    warn(size_warning);
    if remote.json {
        let warning = warning_json(size_warning);
        let repeated = repeated_request;
        print_json(&json!({ "version": version, "repeated": repeated, "size_warning": warning }));
    } else if repeated_request {
        println!("version {version} (this request id was answered before)");
    } else {
        println!("version {version}");
    }
}
