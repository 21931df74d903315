//! The `statehouse` binary: a node and its command line.

/// One allocator for the process and RocksDB alike, so that memory is counted once.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc is told at its start: freed pages go back within a second, by a thread of its own,
/// so that the process has what its parts hold and little more; and few arenas, each of which keeps
/// some.
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8; 70] =
    b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,narenas:4\0";

fn main() {
    statehouse::cli::run()
}
