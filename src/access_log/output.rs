//! Where the access log is written to.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// An output of the access log.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Output {
    #[default]
    Stderr,
    Stdout,
    /// A file, to which lines are appended.
    File(PathBuf),
    /// A syslog daemon on this machine (RFC 3164), with facility `local7` and severity `info`.
    Syslog(PathBuf),
    /// The journal of systemd.
    Journal(PathBuf),
}

impl Output {
    /// The file to which lines are appended.
    pub fn file(&self) -> Option<&Path> {
        if let Self::File(file) = self { Some(file) } else { None }
    }
}

/// The sockets of the usual daemons.
pub const SYSLOG: &str = "/dev/log";
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// Facility `local7`, severity `info`.
const PRIORITY: u8 = 23 * 8 + 6;

/// Writes whole lines.
pub trait Sink: Send {
    /// Writes one or more lines, each with its line feed.
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;

    /// Opens the output again, after its file was renamed.
    fn reopen(&mut self) -> io::Result<()>;
}

impl Output {
    /// Opens the output.
    pub fn open(&self) -> io::Result<Box<dyn Sink>> {
        Ok(match self {
            Self::Stderr => Box::new(Stream(io::stderr())),
            Self::Stdout => Box::new(Stream(io::stdout())),
            Self::File(path) => Box::new(Appender { path: path.clone(), file: append(path)? }),
            Self::Syslog(path) => Box::new(Datagrams::open(path, syslog_prefix())?),
            Self::Journal(path) => {
                let prefix = "SYSLOG_IDENTIFIER=domicile\nPRIORITY=6\nMESSAGE=".to_owned();
                Box::new(Datagrams::open(path, prefix)?)
            }
        })
    }
}

impl fmt::Display for Output {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => out.write_str("stderr"),
            Self::Stdout => out.write_str("stdout"),
            Self::File(path) | Self::Syslog(path) | Self::Journal(path) => write!(out, "{}", path.display()),
        }
    }
}

fn syslog_prefix() -> String {
    format!("<{PRIORITY}>domicile[{}]: ", std::process::id())
}

/// A stream that stays open.
pub struct Stream<W>(pub W);

impl<W: Write + Send> Sink for Stream<W> {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.0.write_all(lines)?;
        self.0.flush()
    }

    fn reopen(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Appender {
    path: PathBuf,
    file: File,
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Sink for Appender {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.file.write_all(lines)
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        Ok(())
    }
}

/// A socket that takes one line at a time.
struct Datagrams {
    path: PathBuf,
    prefix: String,
    socket: UnixDatagram,
    message: Vec<u8>,
}

impl Datagrams {
    fn open(path: &Path, prefix: String) -> io::Result<Self> {
        Ok(Self { path: path.into(), prefix, socket: connect(path)?, message: Vec::new() })
    }

    fn send(&mut self, line: &[u8]) -> io::Result<()> {
        self.message.clear();
        self.message.extend_from_slice(self.prefix.as_bytes());
        self.message.extend_from_slice(line);
        // The journal ignores a field that does not end in a line feed; syslog daemons remove it.
        self.message.push(b'\n');
        if self.socket.send(&self.message).is_ok() {
            return Ok(());
        }
        // The daemon may have started again, with a new socket.
        self.socket = connect(&self.path)?;
        self.socket.send(&self.message).map(|_| ())
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

impl Sink for Datagrams {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.send(line)?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.socket = connect(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renamed_file_is_left_when_the_output_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, rotated) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let mut sink = Output::File(path.clone()).open().unwrap();
        sink.write(b"one\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        sink.write(b"two\n").unwrap();
        sink.reopen().unwrap();
        sink.write(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_daemon_gets_each_line_as_a_datagram_also_after_it_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let receive = |daemon: &UnixDatagram| {
            let mut space = [0; 200];
            let length = daemon.recv(&mut space).unwrap();
            String::from_utf8(space[..length].to_vec()).unwrap()
        };
        let mut sink = Output::Syslog(path.clone()).open().unwrap();
        sink.write(b"one\ntwo\n").unwrap();
        assert_eq!(receive(&daemon), format!("<190>domicile[{}]: one\n", std::process::id()));
        assert!(receive(&daemon).ends_with(": two\n"));
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        assert!(sink.write(b"lost\n").is_err());
        let daemon = UnixDatagram::bind(&path).unwrap();
        sink.write(b"three\n").unwrap();
        assert!(receive(&daemon).ends_with(": three\n"));
        let mut journal = Output::Journal(path).open().unwrap();
        journal.write(b"four\n").unwrap();
        assert_eq!(receive(&daemon), "SYSLOG_IDENTIFIER=domicile\nPRIORITY=6\nMESSAGE=four\n");
    }
}
