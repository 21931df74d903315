//! Libraries in C that a test loads into a node before all others, to stand between it and the
//! operating system.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A library that processes load first.
pub struct Preload {
    library: PathBuf,
}

impl Preload {
    /// Compiles a library of that name from C code, in a directory.
    pub fn compile(dir: &Path, name: &str, code: &str) -> Preload {
        let (source, library) = (dir.join(format!("{name}.c")), dir.join(format!("lib{name}.so")));
        std::fs::write(&source, code).unwrap();
        // The C compiler that builds RocksDB builds this too.
        let mut compile = Command::new("cc");
        compile.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let out = compile.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Preload { library }
    }

    /// The variable that has a process load it.
    pub fn env(&self) -> (String, String) {
        ("LD_PRELOAD".to_owned(), self.library.display().to_string())
    }
}
