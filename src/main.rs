//! The command `elman`: trains recurrent networks on text, writes with them, looks into them.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
