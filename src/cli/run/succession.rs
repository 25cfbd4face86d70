//! Handover to a successor: starts the binary at this process's path with this process's sockets, and waits until it serves.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::app::App;

/// Environment variable of a process that takes over from a running process: the number of users in that process's table, so that
/// a table that has lost its users in between is not taken.
const SUCCESSOR: &str = "DOMICILE_SUCCESSOR";

/// The line that a successor prints when it serves; its standard output is a pipe to its predecessor.
const SERVING: &str = "serving";

/// Maximum time until a successor serves; a large user table takes seconds to load.
const SERVING_TIMEOUT: Duration = Duration::from_secs(120);

/// The number of users of the running process from which this process takes over; `None` for a process without predecessor.
pub(super) fn predecessor_user_count() -> Option<usize> {
    std::env::var(SUCCESSOR).ok().map(|users| users.parse().unwrap_or_default())
}

/// Reports to the predecessor that this process serves.
pub(super) fn report() {
    // If printing fails, the predecessor has already exited and needs no report.
    let _ = super::super::say(&format!("{SERVING}\n"));
}

/// Starts the binary that is now at this process's path, with the same arguments and sockets, and waits until it serves. After
/// an error this process serves as before.
pub(super) async fn start(app: &App) -> Result<u32, String> {
    let mut arguments = std::env::args_os();
    let mut command = Command::new(arguments.next().ok_or("the path of this program is unknown")?);
    command.args(arguments).env(SUCCESSOR, app.user_count().to_string()).stdout(Stdio::piped());
    let mut candidate = Candidate { app, child: None, serves: false };
    let sockets = app.share(&mut command).map_err(|error| format!("cannot hand over the sockets: {error}"))?;
    let child = command.spawn().map_err(|error| format!("cannot start the binary: {error}"))?;
    drop(sockets);
    let process = candidate.child.insert(child);
    let pid = process.id();
    let output = process.stdout.take().expect("its standard output is a pipe");
    let first_line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map(|_| line)
    });
    match tokio::time::timeout(SERVING_TIMEOUT, first_line).await {
        Ok(Ok(Ok(line))) if line.trim() == SERVING => {
            candidate.serves = true;
            Ok(pid)
        }
        Ok(_) => Err("the successor exited before it served; see its messages in the log above".into()),
        Err(_) => Err(format!("the successor did not serve within {} s and was killed", SERVING_TIMEOUT.as_secs())),
    }
}

/// A successor that does not serve yet. Dropping it kills the process and ends the sharing of the ledger.
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
            // An error means that the process has already exited.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.app.keep();
    }
}
