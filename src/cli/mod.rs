//! The command line: one file a verb.
//!
//! Promises: an error says what is wrong and what to do, on standard error, with exit code 1; misuse exits with 2. Never:
//! a panic on bad input.

mod certificates;
mod check;
mod demo;
mod explain;
mod run;
mod succession;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A geo-routing reverse proxy that keeps data where it belongs.
#[derive(Parser)]
#[command(name = "domicile", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve requests.
    Run(run::Options),
    /// Say whether a configuration is sound, and what it allows.
    Check(check::Options),
    /// Say where a request would go, and why.
    Explain(explain::Options),
    /// Run three regions in one process, to try things out.
    Demo(demo::Options),
    /// Make certificates for trying out several regions; not for production.
    Certificates(certificates::Options),
}

/// Which configuration, seen from which region.
#[derive(Args)]
struct Source {
    /// The configuration file.
    #[arg(short, long, default_value = "config/domicile.yaml", env = "DOMICILE_CONFIG")]
    config: PathBuf,
    /// The region this is, instead of the file's `region:`.
    #[arg(long, env = "DOMICILE_REGION")]
    region: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run(options) => run::run(options),
        Verb::Check(options) => check::run(&options),
        Verb::Explain(options) => explain::run(options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Certificates(options) => certificates::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output; a reader that has seen enough, as `head` has, is no error.
fn say(text: &str) -> Result<(), String> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("cannot print: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// How a verb ends: an exit code, or what to tell on standard error.
type Outcome = Result<ExitCode, String>;
