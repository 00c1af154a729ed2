//! The `watchbell` command.

// What one thread makes and another frees is most of our memory; glibc's arenas are slow at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    watchbell::cli::main()
}
