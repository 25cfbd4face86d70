//! Reads and proves the assertions of a configuration.

use std::net::{IpAddr, Ipv4Addr};

use crate::decision::policy::Policy;
use crate::decision::policy::route::RouteId;
use crate::engine::explain::Query;
use crate::model::day::Day;
use crate::model::jurisdiction::Jurisdiction;
use crate::model::region::{RegionId, RegionSet};
use crate::model::user::Evidence;
use crate::prove::{self, About, Assertion, Claim, Kind, MAX_ASSERTIONS, Proven, Sources};

use crate::proxy::intake::KeySource;

use super::super::draft::PolicyDraft;
use super::super::problem::Problem;
use super::super::reader::{Field, Section};
use super::super::settings::Settings;

/// The assertions of a file, and where they stand.
#[derive(Default)]
pub struct Written<'n> {
    pub statements: Vec<(Assertion, Field<'n>)>,
    pub cases: Vec<AssertedCase>,
}

/// A statement about one request. It is judged with the user table and the GeoIP database, which are opened later.
#[derive(Clone)]
pub struct AssertedCase {
    /// The region that receives the request.
    pub at: RegionId,
    pub query: Query,
    /// `proceed REGION…`, `redirect REGION` or `refuse CODE`; or only the first region, or the code.
    pub expect: String,
    /// The mistake of a case that does not hold, without its message.
    pub place: Problem,
}

enum Statement {
    Of(Assertion),
    Case(Box<AssertedCase>),
}

/// Reads `assert: [{ never: { data: restricted, of: eu, processed_in: us } }]`; `None` if one cannot be read.
pub fn read<'n>(section: &Section<'n>, draft: &PolicyDraft<'n>) -> Option<Written<'n>> {
    let Some(field) = section.optional("assert") else { return Some(Written::default()) };
    let items = field.one_or_many();
    if items.len() > MAX_ASSERTIONS {
        return field.report(format!("there are more than {MAX_ASSERTIONS} assertions"));
    }
    let all: Vec<_> = items.into_iter().map(|item| (read_one(&item, draft), item)).collect();
    let mut written = Written::default();
    for (statement, item) in all {
        match statement? {
            Statement::Of(assertion) => written.statements.push((assertion, item)),
            Statement::Case(case) => written.cases.push(*case),
        }
    }
    Some(written)
}

fn read_one(item: &Field<'_>, draft: &PolicyDraft<'_>) -> Option<Statement> {
    let section = item.section()?;
    let (never, always, case) = (section.optional("never"), section.optional("always"), section.optional("case"));
    section.finish();
    match (never, always, case) {
        (Some(field), None, None) => read_statement(&field, draft, true).map(Statement::Of),
        (None, Some(field), None) => read_statement(&field, draft, false).map(Statement::Of),
        (None, None, Some(field)) => read_case(&field, draft).map(|case| Statement::Case(Box::new(case))),
        _ => item.report("write one of `never: { … }`, `always: { … }` and `case: { … }`"),
    }
}

/// Reads `{ from: 81.2.69.142, user: alice, request: GET https://a.test/account/1, expect: eu-west }`.
fn read_case(field: &Field<'_>, draft: &PolicyDraft<'_>) -> Option<AssertedCase> {
    let section = field.section()?;
    let request = section.required("request", "write a method and a URL, such as `GET https://api.example.com/account/1`");
    let expect = section.required("expect", "write the region that serves the request, or `redirect REGION` or `refuse CODE`");
    let from = section.optional("from").map_or(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), |field| {
        let text = field.text()?;
        text.parse().ok().or_else(|| field.report(format!("`{text}` is not a valid IP address")))
    });
    let at = section.optional("at").map_or(draft.local, |field| draft.region(&field));
    let text = |key| section.optional(key).and_then(|field| field.text().map(str::to_owned));
    let (user, day) = (text("user"), text("day"));
    let claimed = section.optional("claimed").map_or(Some(false), |field| field.flag());
    let down = section
        .optional("down")
        .map_or(Some(Vec::new()), |field| field.one_or_many().iter().map(|item| item.text().map(str::to_owned)).collect());
    section.finish();
    let (request, expect) = (request?, expect?.text()?);
    let (method, url) =
        request.text()?.split_once(' ').or_else(|| request.report("write a method and a URL, such as `GET /account/1`"))?;
    let query = Query {
        method: method.to_owned(),
        url: url.trim().to_owned(),
        ip: from?,
        user,
        claimed: claimed?,
        claims: Vec::new(),
        headers: Vec::new(),
        day,
        down: down?,
        json: false,
    };
    Some(AssertedCase { at: at?, query, expect: expect.to_owned(), place: field.problem() })
}

fn read_statement(field: &Field<'_>, draft: &PolicyDraft<'_>, is_never: bool) -> Option<Assertion> {
    let section = field.section()?;
    let about = read_about(&section, draft);
    let within = |key| section.optional(key).map(|field| (inside(&field, draft), field));
    let claims = [
        within("processed_in")
            .map(|(regions, _)| regions.map(|set| if is_never { Claim::NeverIn(set) } else { Claim::AlwaysIn(set) })),
        section
            .optional("served_by")
            .map(|field| named(&field, draft).map(|set| if is_never { Claim::NeverIn(set) } else { Claim::AlwaysIn(set) })),
        within("carried_by").map(|(regions, field)| match is_never {
            true => regions.map(Claim::NeverCarriedBy),
            false => {
                field.report("this is not possible with `always`; write `never: { carried_by: … }` with the other jurisdictions")
            }
        }),
        section.optional("outcome").map(|field| match is_never {
            true => field.word(&[("proceed", Claim::NeverProceeds), ("redirect", Claim::NeverRedirects)]),
            false => field.report("this is not possible with `always`: any request is refused when all regions are down"),
        }),
    ];
    section.finish();
    let mut claims = claims.into_iter().flatten();
    match (claims.next(), claims.next()) {
        (Some(claim), None) => Some(Assertion { about: about?, claim: claim? }),
        _ => field.report("an assertion has one of `processed_in`, `served_by`, `carried_by` and `outcome`"),
    }
}

fn read_about(section: &Section<'_>, draft: &PolicyDraft<'_>) -> Option<About> {
    let data = section.optional("data").map(|field| draft.class(&field));
    let of = section.optional("of").map(|field| match field.text()? {
        "elsewhere" => Some(Jurisdiction::Elsewhere),
        "unknown" => Some(Jurisdiction::Unknown),
        _ => draft.jurisdiction(&field).map(Jurisdiction::Named),
    });
    let route = section.optional("route").map(|field| {
        let name = field.text()?;
        let position = draft.routes.iter().position(|found| found.route.as_ref().is_some_and(|route| *route.name == *name));
        position.map(RouteId::new).or_else(|| field.report(format!("there is no route `{name}`")))
    });
    let evidence =
        section.optional("evidence").map(|field| field.word(&Evidence::ALL.map(|evidence| (evidence.as_str(), evidence))));
    let kind = section.optional("request").map(|field| field.word(&Kind::ALL.map(|kind| (kind.as_str(), kind))));
    Some(About {
        data: data.map_or(Some(None), |found| found.map(Some))?,
        of: of.map_or(Some(None), |found| found.map(Some))?,
        route: route.map_or(Some(None), |found| found.map(Some))?,
        evidence: evidence.map_or(Some(None), |found| found.map(Some))?,
        kind: kind.map_or(Some(None), |found| found.map(Some))?,
    })
}

/// The regions in the jurisdictions that a field names.
fn inside(field: &Field<'_>, draft: &PolicyDraft<'_>) -> Option<RegionSet> {
    let wanted = draft.jurisdiction_set(field, &[])?;
    let regions =
        draft.regions.iter().filter(|found| found.region.as_ref().is_some_and(|region| wanted.contains_id(region.jurisdiction)));
    let regions: RegionSet = regions.map(|found| found.id).collect();
    if regions.is_empty() { field.report("no region is in these jurisdictions") } else { Some(regions) }
}

/// The regions that a field names.
fn named(field: &Field<'_>, draft: &PolicyDraft<'_>) -> Option<RegionSet> {
    field.one_or_many().iter().map(|item| draft.region(item)).collect()
}

/// The sources of facts that the other settings allow.
pub fn sources(settings: &Settings) -> Sources {
    Sources {
        claimed_keys: settings.intake.keys.iter().any(|key| matches!(key, KeySource::Cookie(_))),
        hints: settings.seal.is_some(),
        places: settings.geoip.is_some(),
        old_places: settings.geoip.as_ref().is_some_and(|geoip| geoip.max_age.is_some()),
    }
}

/// Proves the assertions, and reports those that do not hold. Without assertions, there is no proof.
pub fn prove(written: &[(Assertion, Field<'_>)], policy: &Policy, settings: &Settings, today: Day) -> Option<Proven> {
    if written.is_empty() {
        return None;
    }
    let assertions: Vec<_> = written.iter().map(|(assertion, _)| assertion.clone()).collect();
    let proven = prove::prove(policy, &assertions, sources(settings), today);
    for (statement, story) in &proven.broken {
        if let Some((_, field)) = statement.and_then(|index| written.get(index)) {
            field.report::<()>(format!("this assertion does not hold: {story}"));
        }
    }
    Some(proven)
}
