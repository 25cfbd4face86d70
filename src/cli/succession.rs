//! A new binary takes over: it is started with our sockets, and once it serves we drain.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::app::App;

/// Says to a process that it succeeds another, which still runs.
const SUCCESSOR: &str = "DOMICILE_SUCCESSOR";

/// What a successor says when it serves, on the standard output that is a pipe to its predecessor.
const SERVING: &str = "serving";

/// How long a successor may take: a large user table takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn is_successor() -> bool {
    std::env::var_os(SUCCESSOR).is_some()
}

/// Tells the predecessor that it may go.
pub(super) fn report() {
    // A predecessor that has gone already need not be told.
    let _ = super::say(&format!("{SERVING}\n"));
}

/// Starts the binary that now stands where ours stood, with our arguments and sockets, and waits until it serves. An error
/// means that nothing has changed.
pub(super) async fn start(app: &App) -> Result<u32, String> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(arguments.next().ok_or("this process does not know its own name")?);
    command.args(arguments).env(SUCCESSOR, "1").stdout(Stdio::piped());
    let mut candidate = Candidate { app, child: None, serves: false };
    let legacy = app.share(&mut command).map_err(|error| format!("the sockets cannot be left to it: {error}"))?;
    let child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    drop(legacy);
    let process = candidate.child.insert(child);
    let pid = process.id();
    let output = process.stdout.take().expect("its standard output is a pipe");
    let first_line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    match tokio::time::timeout(PATIENCE, first_line).await {
        Ok(Ok(Ok(line))) if line.trim() == SERVING => {
            candidate.serves = true;
            Ok(pid)
        }
        Ok(_) => Err("it ended before it served; what is wrong stands above".into()),
        Err(_) => Err(format!("it did not serve within {} s and was stopped", PATIENCE.as_secs())),
    }
}

/// A process that has yet to come to serve: until then it ends with the wait for it, and what was shared with it is ours again.
struct Candidate<'a> {
    app: &'a App,
    child: Option<Child>,
    serves: bool,
}

impl Drop for Candidate<'_> {
    fn drop(&mut self) {
        if self.serves {
            return;
        }
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.app.keep();
    }
}
