//! The `watchbell` command.

fn main() -> std::process::ExitCode {
    watchbell::cli::main()
}
