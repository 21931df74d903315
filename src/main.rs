//! The `statehouse` binary: a node and its command line.

/// One allocator for the process and RocksDB alike, so that memory is counted once.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    statehouse::cli::run()
}
