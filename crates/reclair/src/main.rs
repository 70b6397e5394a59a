//! The `reclair` program.

mod cli;

/// Large, short-lived buffers are the rule here; the system's allocator returns each to the kernel.
#[global_allocator]
static ALLOCATOR: kernels::Allocator = kernels::Allocator;

fn main() -> std::process::ExitCode {
    match cli::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
