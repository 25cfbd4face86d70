//! Responses of a route without an app server.

use http::StatusCode;
use http::header::HeaderValue;

use super::super::reader::Field;
use super::message::read_template;
use crate::proxy::actions::{FixedResponse, Redirection, Template};

/// Reads `redirect: URL`, or `redirect: { to: URL, status: 301 }`.
pub(super) fn read_redirect(field: &Field<'_>) -> Option<Redirection> {
    if !field.is_section() {
        return Some(Redirection { status: StatusCode::FOUND, to: read_target(field)? });
    }
    let section = field.section()?;
    let to = section.required("to", "write the target, such as `https://www.example.com{uri}`");
    let to = to.and_then(|field| read_target(&field));
    let statuses = [301, 302, 303, 307, 308].map(|code| (code, StatusCode::from_u16(code).expect("a status of redirects")));
    let status = section.optional("status").map_or(Some(StatusCode::FOUND), |field| {
        let text = field.text()?;
        let found = statuses.iter().find(|(code, _)| code.to_string() == text).map(|(_, status)| *status);
        found.or_else(|| field.report(format!("`{text}` is not a status of redirects; write 301, 302, 303, 307 or 308")))
    });
    section.finish();
    Some(Redirection { status: status?, to: to? })
}

fn read_target(field: &Field<'_>) -> Option<Template> {
    let text = field.text()?;
    let is_path = text.starts_with('/') || (text.starts_with("{path}") && text != "{path}");
    let is_url = ["http://", "https://", "{scheme}://"].iter().any(|beginning| text.starts_with(beginning));
    if !is_path && !is_url {
        return field.report(format!("`{text}` is not a valid target; begin it with `/`, `http://` or `https://`"));
    }
    read_template(field)
}

/// Reads `respond: 204`, or `respond: { status: 200, body: "…", type: text/html }`.
pub(super) fn read_respond(field: &Field<'_>) -> Option<FixedResponse> {
    const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
    if !field.is_section() {
        let text = field.text()?;
        if text.parse::<u32>().is_err() {
            return field.report(format!("`{text}` is not a status; write one such as `404`, or `{{ body: \"…\" }}` for a text"));
        }
        return Some(FixedResponse { status: read_status(field)?, body: None, content_type: PLAIN });
    }
    let section = field.section()?;
    let status = section.optional("status").map_or(Some(StatusCode::OK), |field| read_status(&field));
    let body = section.optional("body").map(|field| (read_template(&field), field));
    let content_type = section.optional("type").map_or(Some(PLAIN), |field| {
        let text = field.text()?;
        let value = HeaderValue::from_str(text).ok().filter(|_| text.contains('/'));
        value.or_else(|| field.report(format!("`{text}` is not a media type; write one such as `text/html; charset=utf-8`")))
    });
    section.finish();
    let (status, body) = (status?, body.map_or(Some(None), |(body, field)| body.map(|body| Some((body, field)))));
    let body = body?;
    let takes_no_body = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
    if let (Some((_, field)), true) = (&body, takes_no_body) {
        return field.report(format!("a response with status {} has no body; remove it", status.as_u16()));
    }
    Some(FixedResponse { status, body: body.map(|(body, _)| body), content_type: content_type? })
}

fn read_status(field: &Field<'_>) -> Option<StatusCode> {
    field.number(200, 599).and_then(|code| StatusCode::from_u16(code as u16).ok())
}
