//! The matrix as one HTML page.

use std::fmt::Write;

use crate::page::{self, escaped, table};

use super::listed;
use super::matrix::{ClassRows, Matrix};

/// The matrix of a file as one HTML page. `proof` is the result of the proof, and `broken` are the counter-examples.
pub fn render(matrix: &Matrix, file: &str, proof: &str, broken: &[String]) -> String {
    let mut out = format!(
        "<p class=\"note\">{}: region {}, policy {}. {}.</p>\n",
        escaped(file),
        escaped(&matrix.region),
        escaped(&matrix.policy),
        escaped(matrix.credentials)
    );
    let _ = writeln!(out, "<h2>Proof</h2>\n<p>{}</p>", escaped(proof));
    for story in broken {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(story));
    }
    matrix.classes.iter().for_each(|class| out += &class_part(class));
    let routes: Vec<_> = matrix
        .routes
        .iter()
        .map(|route| [route.name.clone(), route.data.clone(), route.home.join(", "), route.service.clone().unwrap_or_default()])
        .collect();
    out += "<h2>Routes</h2>\n";
    out += &table(&["route", "data", "home by", "service"], routes.iter().map(|row| &row[..]));
    page::page("Who may process and who may carry what", &out)
}

fn class_part(class: &ClassRows) -> String {
    let rows: Vec<_> =
        class.rows.iter().map(|row| [row.users.clone(), listed(&row.processed_in), listed(&row.carried_by)]).collect();
    let mut out = format!("<h2>{}</h2>\n<p>{}</p>\n", escaped(&class.name), escaped(&class.rule));
    out += &table(&["user is in", "may be processed in", "may be carried through"], rows.iter().map(|row| &row[..]));
    for transfer in &class.transfers {
        let _ = writeln!(out, "<p>{}</p>", escaped(transfer));
    }
    out
}
