//! The executable.

fn main() -> std::process::ExitCode {
    aryeo_relay::cli::main()
}
