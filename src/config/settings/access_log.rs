//! The `access_log` section.

use crate::access_log::{Format, JOURNAL, Output, SYSLOG, Settings};

use super::super::problem::suggestion;
use super::super::reader::Field;
use super::{Log, path, regional_path};

/// Reads `off`, or `{ output: stderr, format: json, sample: 10% }`. Without a `format`, the lines have the format of the log.
pub(super) fn read_access_log(field: Option<&Field<'_>>, log: Log, local: &str) -> Option<Option<Settings>> {
    let standard = if log.json { Format::Json } else { Format::Text };
    let Some(field) = field else {
        return Some(Some(Settings { output: Output::Stderr, format: standard, sample: 1.0 }));
    };
    if !field.is_section() {
        let mistake = |_: &str| "write `off`, or a section such as `{ output: stderr, format: json }`".to_owned();
        return field.word_or(&[("off", ())], mistake).map(|()| None);
    }
    let section = field.section()?;
    let output = section.optional("output").map_or(Some(Output::Stderr), |field| read_output(&field, local));
    let format = section.optional("format").map_or(Some(standard), |field| read_format(&field));
    let sample = section.optional("sample").map_or(Some(100), |field| field.percent());
    section.finish();
    Some(Some(Settings { output: output?, format: format?, sample: f32::from(sample?) / 100.0 }))
}

/// Reads `stderr`, `stdout`, `syslog`, `journal`, `{ file: PATH }`, `{ syslog: SOCKET }` or `{ journal: SOCKET }`.
fn read_output(field: &Field<'_>, local: &str) -> Option<Output> {
    if !field.is_section() {
        let outputs = [("stderr", 0), ("stdout", 1), ("syslog", 2), ("journal", 3)];
        return Some(match field.word(&outputs)? {
            0 => Output::Stderr,
            1 => Output::Stdout,
            2 => Output::Syslog(SYSLOG.into()),
            _ => Output::Journal(JOURNAL.into()),
        });
    }
    let section = field.section()?;
    let file = section.optional("file").map(|field| regional_path(&field, local).map(Output::File));
    let syslog = section.optional("syslog").map(|field| path(&field).map(Output::Syslog));
    let journal = section.optional("journal").map(|field| path(&field).map(Output::Journal));
    section.finish();
    match [file, syslog, journal].into_iter().flatten().collect::<Vec<_>>()[..] {
        [ref only] => only.clone(),
        _ => field.report("name one output: `stderr`, `stdout`, `syslog`, `journal`, or `{ file: PATH }`"),
    }
}

/// Reads `text`, `json`, `combined` or `{ template: TEXT }`.
fn read_format(field: &Field<'_>) -> Option<Format> {
    if !field.is_section() {
        return match field.word(&[("text", 0), ("json", 1), ("combined", 2)])? {
            0 => Some(Format::Text),
            1 => Some(Format::Json),
            _ => Some(Format::Combined),
        };
    }
    let section = field.section()?;
    let template = section.required("template", "write a line such as `{time} {client} {status}`");
    section.finish();
    let template = template?;
    Format::template(template.text()?)
        .or_else(|name| {
            match &*name {
                "{" | "}" => {
                    template.report("a brace has no counterpart; write the names of fields in braces, such as `{status}`")
                }
                name => template.report(format!("there is no field `{name}`{}", suggestion(name, Format::names()))),
            }
            .ok_or(())
        })
        .ok()
}
