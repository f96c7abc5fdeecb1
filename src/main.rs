//! `wiremesh`: one service network out of many GPU machines.

use std::process::ExitCode;

fn main() -> ExitCode {
    wiremesh::cli::main()
}
