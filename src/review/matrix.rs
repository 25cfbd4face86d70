//! The regions that may process and carry the data of each class, by the jurisdiction of its user.

use std::fmt::Write;

use serde::Serialize;

use crate::decision::policy::class::ClassId;
use crate::decision::policy::route::Route;
use crate::decision::policy::rule::{Carriers, Mode, ResidencyRule, Stays};
use crate::decision::policy::{DataClass, Policy};
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;

use super::{listed, names, reach, step_name};

/// A policy as a table, in words.
#[derive(Serialize)]
pub struct Matrix {
    /// The local region and its jurisdiction.
    pub region: String,
    pub jurisdiction: String,
    pub policy: String,
    /// How credentials are treated that this process does not read.
    pub credentials: &'static str,
    pub classes: Vec<ClassRows>,
    pub routes: Vec<RouteRow>,
}

/// A data class: its rule, and where its data may be.
#[derive(Serialize)]
pub struct ClassRows {
    pub name: String,
    pub rule: String,
    pub rows: Vec<Row>,
    pub transfers: Vec<String>,
}

/// The regions for the users of one jurisdiction.
#[derive(Serialize)]
pub struct Row {
    pub users: String,
    pub processed_in: Vec<String>,
    /// The regions whose proxies may carry the data, with those that may process it.
    pub carried_by: Vec<String>,
}

/// A route, and the steps that find the home of its requests.
#[derive(Serialize)]
pub struct RouteRow {
    pub name: String,
    pub data: String,
    pub home: Vec<String>,
    pub service: Option<String>,
}

impl Matrix {
    /// The matrix of a policy on a day. `verifies_tokens` is whether the configuration has `users.token`.
    pub fn of(policy: &Policy, verifies_tokens: bool, today: Day) -> Self {
        let local = policy.region(policy.local);
        Self {
            region: local.name.to_string(),
            jurisdiction: policy.jurisdiction_name(Jurisdiction::Named(local.jurisdiction)).to_owned(),
            policy: policy.hash.to_string(),
            credentials: credentials(policy, verifies_tokens),
            classes: policy.class_ids().map(|class| class_rows(policy, class, today)).collect(),
            routes: route_rows(policy),
        }
    }

    /// The matrix as text, with one paragraph per data class.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "region {} (jurisdiction {}), {}, policy {}",
            self.region,
            self.jurisdiction,
            match self.routes.len() {
                1 => "1 route".to_owned(),
                count => format!("{count} routes"),
            },
            self.policy
        );
        let _ = writeln!(out, "{}", self.credentials);
        for class in &self.classes {
            let _ = writeln!(out, "\n{}: {}", class.name, class.rule);
            let _ = writeln!(out, "  {:<14} {:<40} may be carried through", "user is in", "may be processed in");
            for row in &class.rows {
                let (processed, carried) = (listed(&row.processed_in), listed(&row.carried_by));
                let _ = writeln!(out, "  {:<14} {processed:<40} {carried}", row.users);
            }
            for transfer in &class.transfers {
                let _ = writeln!(out, "  {transfer}");
            }
        }
        out
    }
}

fn class_rows(policy: &Policy, class: ClassId, today: Day) -> ClassRows {
    let data = policy.class(class);
    let row = |user| {
        let reach = reach::of(policy, class, user, today);
        let users = policy.jurisdiction_name(user).to_owned();
        Row { users, processed_in: names(policy, reach.processed), carried_by: names(policy, reach.carried) }
    };
    ClassRows {
        name: data.name.to_string(),
        rule: rule_in_words(policy, &data.rule).join("; "),
        rows: policy.user_jurisdictions().map(row).collect(),
        transfers: transfers(policy, data, today),
    }
}

fn transfers(policy: &Policy, data: &DataClass, today: Day) -> Vec<String> {
    let transfers = data.rule.transfers.iter().map(|transfer| {
        let state = if today <= transfer.until { "holds until the end of" } else { "EXPIRED after" };
        let (from, to) = (policy.jurisdiction_name(transfer.from), policy.jurisdiction_names(transfer.to));
        format!("transfer from {from} to {to}: {}, {state} {}", transfer.grounds(), transfer.until)
    });
    transfers.collect()
}

fn route_rows(policy: &Policy) -> Vec<RouteRow> {
    let row = |route: &Route| RouteRow {
        name: route.name.to_string(),
        data: policy.class(route.class).name.to_string(),
        home: route.chain.iter().map(|step| step_name(policy, *step)).collect(),
        service: route.service.map(|service| policy.service_name(service).to_owned()),
    };
    policy.routes.all().iter().map(row).collect()
}

const fn credentials(policy: &Policy, verifies_tokens: bool) -> &'static str {
    if !verifies_tokens {
        "credentials are forwarded unread, because no tokens are verified (`users.token`): the app servers may identify another user \
         than Domicile does"
    } else if policy.refuses_unread_credentials {
        "requests with other credentials than tokens (Basic, API keys) are refused, unless their data may be anywhere"
    } else {
        "requests with other credentials than tokens (Basic, API keys) are judged without them: the app servers may identify \
         another user than Domicile does (`users.token.others: ignore`)"
    }
}

/// A rule in words.
pub(super) fn rule_in_words(policy: &Policy, rule: &ResidencyRule) -> Vec<String> {
    let stays = match rule.stays {
        Stays::Home => "stays in the user's jurisdiction".into(),
        Stays::In(set) => format!("stays in {}", policy.jurisdiction_names(set)),
        Stays::Anywhere => "may be anywhere".into(),
    };
    let carried = match rule.carried_by {
        Carriers::Anyone => "may be carried through any region".into(),
        Carriers::Only(set) => format!("may be carried through {}", policy.jurisdiction_names(set)),
        Carriers::Nobody => "may not be carried through other regions".into(),
    };
    let mode = match rule.mode {
        Mode::Enforce => None,
        Mode::Report => Some("REPORT ONLY: nothing is refused"),
    };
    vec![stays, format!("needs a home that is {} or better", rule.needs.as_str()), carried]
        .into_iter()
        .chain(mode.map(str::to_owned))
        .collect()
}
