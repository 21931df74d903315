//! What a request calls, as far as its messages come and go in other ways.

use tonic::codegen::http;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Many calls come, and one answer goes on as long as they do.
    Pipeline,
    /// A state comes as a stream.
    Write,
    /// A state goes as a stream, which sees to it itself that it is taken.
    Read,
    /// One message comes, and one goes.
    Call,
}

impl Path {
    /// Of a request.
    pub fn of(uri: &http::Uri) -> Path {
        match uri.path() {
            "/statehouse.v1.Pipeline/Run" => Path::Pipeline,
            "/statehouse.v1.State/Write" => Path::Write,
            "/statehouse.v1.State/Read" => Path::Read,
            _ => Path::Call,
        }
    }

    /// Whether many messages come, each of which waits for its room.
    pub fn brings_many(self) -> bool {
        matches!(self, Path::Pipeline | Path::Write)
    }
}
