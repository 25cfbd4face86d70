//! The command line, with one file per subcommand.
//!
//! Promises: an error is reported on standard error, with what to do next, and the exit code is 1; for wrong usage it is 2.
//! Never: panics on bad input.

mod audit;
mod certificates;
mod check;
mod control;
mod demo;
mod explain;
mod log;
mod replay;
mod run;
mod schema;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// A geo-routing reverse proxy that enforces data residency rules.
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
    /// Check a configuration and show what it allows.
    Check(check::Options),
    /// Show where a request would go, and why. All regions count as up; `/explain` on the admin address uses the live state.
    Explain(explain::Options),
    /// Judge the requests of a file of test cases, and compare the decisions with the expected ones.
    Test(test::Options),
    /// Judge the requests of an access log under a configuration: whose home moves, which are newly refused or carried.
    Replay(replay::Options),
    /// Print the JSON schema of the configuration, for editors.
    Schema(schema::Options),
    /// Read the ledger: verify it, find lines, sum it up, show what is held about a user.
    Audit(audit::Options),
    /// Show the state of the running process.
    Status(control::StatusOptions),
    /// Reload the configuration and all files of the running process.
    Reload(control::ReloadOptions),
    /// Drain an upstream of the running process, or change its weight.
    Upstream(control::UpstreamOptions),
    /// Drain a region.
    Region(control::RegionOptions),
    /// Change the level of the running process's log for a time.
    Log(control::LogOptions),
    /// Run a demo: three regions in one process.
    Demo(demo::Options),
    /// Create test certificates for several regions; not for production.
    Certificates(certificates::Options),
}

/// The configuration of a source tree, or else that of an installed package.
fn default_config() -> PathBuf {
    let installed = std::path::Path::new("/etc/domicile/domicile.yaml");
    let own = PathBuf::from("config/domicile.yaml");
    if !own.exists() && installed.exists() { installed.to_owned() } else { own }
}

/// The configuration file and the local region.
#[derive(Args)]
struct Source {
    /// The configuration file; `-` reads standard input (not for `run`).
    #[arg(short, long, global = true, default_value_os_t = default_config(), env = "DOMICILE_CONFIG")]
    config: PathBuf,
    /// The local region; overrides the file's `region:`.
    #[arg(long, global = true, env = "DOMICILE_REGION")]
    region: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Run(options) => run::run(options),
        Verb::Check(options) => check::run(&options),
        Verb::Explain(options) => explain::run(options),
        Verb::Test(options) => test::run(&options),
        Verb::Replay(options) => replay::run(&options),
        Verb::Schema(options) => schema::run(&options),
        Verb::Audit(options) => audit::run(&options),
        Verb::Status(options) => control::status(&options),
        Verb::Reload(options) => control::reload(&options),
        Verb::Upstream(options) => control::upstream(&options),
        Verb::Region(options) => control::region(&options),
        Verb::Log(options) => control::log(&options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Certificates(options) => certificates::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            use std::io::Write;
            // A closed standard error is no reason for another exit code.
            let _ = writeln!(std::io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output. A closed pipe is not an error, because readers such as `head` close it early.
fn say(text: &str) -> Result<(), String> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("cannot write to standard output: {error}")),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The result of a subcommand: an exit code, or a message for standard error.
type Outcome = Result<ExitCode, String>;
