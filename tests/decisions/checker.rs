//! A second implementation of the routing decision, to be compared with the program on random policies and situations.
//!
//! This file is written from the design document alone (DESIGN.md, sections 1, 2, 4 and 5) and shares no code with the
//! program. It is a table walk: plain loops over routes, classes, homes and regions, in the order of the checks. It
//! favours clarity over speed, and it does no I/O. Start at [`judge`]; the input and output types come first.
//!
//! INVARIANT: every region, jurisdiction and class number in a `World` or a `Situation` is an index into the vector of
//! that name in the `World`. The functions index without checking.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// An operator's network: address, prefix length, home region, and the country if the operator states one.
pub type Network = (IpAddr, u8, usize, Option<String>);

/// The policy, the user table and the state of the databases.
#[derive(Clone, Debug)]
pub struct World {
    /// The region that judges.
    pub local: usize,
    pub regions: Vec<Region>,
    /// The countries of each jurisdiction (ISO codes).
    pub jurisdictions: Vec<Vec<String>>,
    pub classes: Vec<Class>,
    /// The routes in the operator's order; the first that matches decides.
    pub routes: Vec<Route>,
    pub networks: Vec<Network>,
    /// The region of each listed country.
    pub countries: Vec<(String, usize)>,
    /// The region of each listed continent code.
    pub continents: Vec<(String, usize)>,
    /// The treatment of a country that no table names.
    pub otherwise: Otherwise,
    /// The region for addresses without a known country; `None` passes to the next step of the chain.
    pub unknown: Option<usize>,
    /// The directory: user key to home region and the user's own jurisdiction column.
    pub users: BTreeMap<String, (usize, Option<usize>)>,
    pub directory_available: bool,
    /// The setting `users.token.others: refuse`.
    pub refuses_other_credentials: bool,
    /// The GeoIP database is older than its `max_age`.
    pub geoip_stale: bool,
    /// Days since 1970-01-01.
    pub today: i32,
    /// The continent code and the centre (latitude, longitude in degrees) of each country.
    pub country_facts: BTreeMap<String, (String, Option<(f32, f32)>)>,
}

#[derive(Clone, Debug)]
pub struct Region {
    pub jurisdiction: usize,
    /// Latitude and longitude in degrees.
    pub at: (f32, f32),
    pub has_url: bool,
    pub has_gateway: bool,
    /// The services that the region has.
    pub services: Vec<usize>,
}

#[derive(Clone, Debug)]
pub enum Otherwise {
    Nearest,
    Region(usize),
    Next,
}

/// A user's jurisdiction.
#[derive(PartialEq, Clone, Debug)]
pub enum User {
    Named(usize),
    /// The country is known, and no jurisdiction lists it.
    Elsewhere,
    /// The country is not known well enough for residency.
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Class {
    pub name: String,
    pub stays: Stays,
    pub needs: Evidence,
    pub carried_by: Carriers,
    pub transfers: Vec<Transfer>,
    pub report_only: bool,
}

#[derive(Clone, Debug)]
pub enum Stays {
    Home,
    In(Vec<usize>),
    Anywhere,
}

#[derive(Clone, Debug)]
pub enum Carriers {
    Anyone,
    Only(Vec<usize>),
    Nobody,
}

/// An exception to where a class stays.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub from: User,
    pub to: Vec<usize>,
    /// The last day on which the transfer holds, in days since 1970-01-01.
    pub until: i32,
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy, Debug)]
pub enum Evidence {
    Inferred,
    Asserted,
    Recorded,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub host: Host,
    /// `None`: every method.
    pub methods: Option<Vec<&'static str>>,
    pub segments: Vec<Segment>,
    /// The pattern ends in `/**`.
    pub open_ended: bool,
    pub class: usize,
    pub service: usize,
    pub chain: Vec<Step>,
    /// The token claim that the `Token` step reads.
    pub claim: Option<String>,
    /// Values of the `{user}` segment that mean the caller, for example `me`.
    pub aliases: Vec<String>,
    /// The setting `failover reads: nearest`.
    pub reads_fail_over: bool,
    /// The value that the header field `x-variant` must have.
    pub variant: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Host {
    Any,
    Exact(String),
    /// `*.domain`: every subdomain at any depth, but not the domain itself.
    Below(String),
}

#[derive(Clone, Debug)]
pub enum Segment {
    Literal(String),
    /// `{user}`: matches one non-empty segment.
    User,
}

#[derive(Clone, Debug)]
pub enum Step {
    Directory,
    Token,
    GeoIp,
    Latency,
    Region(usize),
    Refuse,
}

/// How well the caller's key is proven.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone, Copy, Debug)]
pub enum Proof {
    Claimed,
    /// Only a peer states that the key is proven.
    Vouched,
    Proven,
}

#[derive(PartialEq, Eq, Clone, Copy, Debug)]
pub enum Credential {
    Absent,
    Verified,
    Unverifiable,
    /// A credential that the proxy does not read: Basic, opaque keys.
    Unread,
}

/// One request, with everything that was looked up for it.
#[derive(Clone, Debug)]
pub struct Situation {
    /// The peer region that sent the request; `None` for a client.
    pub peer: Option<usize>,
    pub host: String,
    /// The canonical path; a trailing slash means the same as none.
    pub path: String,
    /// For a preflight, the method that it asks about.
    pub method: &'static str,
    /// A CORS preflight: it carries no credentials and so names no caller.
    pub is_preflight: bool,
    /// The request asks to open a tunnel.
    pub is_upgrade: bool,
    /// The header field `x-variant`.
    pub variant: Option<String>,
    pub client: IpAddr,
    /// The GeoIP database's finding for the client's address.
    pub country: Option<String>,
    pub caller: Option<(String, Proof)>,
    /// The claims of a verified token.
    pub token: Option<BTreeMap<String, String>>,
    pub credential: Credential,
    /// The home hint from our sealed cookie, already bound to the caller.
    pub hint: Option<Hint>,
    /// The peer's statement; ignored in a client's request.
    pub statement: Option<Statement>,
    /// Further classes claimed for the message.
    pub labels: Vec<String>,
    /// Regions that accept no requests.
    pub down: Vec<usize>,
    /// Regions that accept requests again after they were down.
    pub recovering: Vec<usize>,
    /// Regions and services of which no app server is up there.
    pub down_services: Vec<(usize, usize)>,
    /// All regions in the order of their cost to reach, cheapest first.
    pub nearest: Vec<usize>,
}

impl Situation {
    /// A read changes nothing, so that it may fail over and be repeated. A tunnel is never a read.
    pub fn is_read(&self) -> bool {
        matches!(self.method, "GET" | "HEAD") && !self.is_upgrade
    }
}

#[derive(Clone, Debug)]
pub struct Hint {
    pub user: String,
    pub home: usize,
    pub jurisdiction: Option<usize>,
    /// The hint was issued from the user table that is in use.
    pub is_current: bool,
}

#[derive(Clone, Debug)]
pub struct Statement {
    pub home: Option<usize>,
    pub evidence: Option<Evidence>,
    pub country: Option<String>,
    pub classes: Vec<String>,
}

#[derive(PartialEq, Eq, Clone, Debug)]
pub enum Outcome {
    Proceed(Vec<usize>),
    Redirect(usize),
    Refuse(&'static str),
}

#[derive(Clone, Debug)]
pub struct Judgement {
    pub outcome: Outcome,
    /// The outcome would break a rule if report-only classes were enforced. Always false for a refusal.
    pub reported: bool,
}

/// Decides what happens to the request. This is the function that the comparison calls.
pub fn judge(world: &World, situation: &Situation) -> Judgement {
    match judge_until_refused(world, situation) {
        Ok(judgement) => judgement,
        Err(code) => Judgement { outcome: Outcome::Refuse(code), reported: false },
    }
}

/// The limits of a request, before the health of regions is considered.
pub struct Limits {
    /// `None`: no region owns the request.
    pub owner: Option<usize>,
    /// The regions that may process the request.
    pub clearance: Vec<usize>,
    /// The regions that may carry the request, those of the clearance among them.
    pub carriers: Vec<usize>,
    /// How well the home of the first user is known.
    pub evidence: Evidence,
    /// The path names a user whom the directory does not have, and the caller's record is judged as well.
    pub judges_two_users: bool,
}

/// The limits of the request; `None` if it is refused before they are known.
pub fn limits(world: &World, situation: &Situation) -> Option<Limits> {
    let request = request_of(world, situation).ok()?;
    let homes = homes_of(&request).ok()?;
    let enforced = enforced_classes(&request.classes);
    let clearance = cleared_regions(&request, &enforced, &homes);
    let mut carriers = Vec::new();
    for region in 0..world.regions.len() {
        if may_carry(world, region, &clearance, &enforced) {
            carriers.push(region);
        }
    }
    let Home { region: owner, evidence, .. } = homes[0];
    Some(Limits { owner, clearance, carriers, evidence, judges_two_users: homes.len() > 1 })
}

/// Whether the request depends on the directory alone: its chain asks the directory first, the request names a user, no hint
/// replaces the lookup, and the request is not a read of data that stays anywhere. `None` if the request is refused before the
/// program walks its chain.
pub fn needs_directory(world: &World, situation: &Situation) -> Option<bool> {
    let request = request_of(world, situation).ok()?;
    let asks_first = matches!(request.route.chain.first(), Some(Step::Directory));
    let subject = subject_of(&request).map(|(key, _)| key);
    let is_hinted = situation.hint.as_ref().is_some_and(|hint| Some(hint.user.as_str()) == subject);
    let may_go_on = situation.is_read() && all_stay_anywhere(&request.classes);
    Some(asks_first && subject.is_some() && !is_hinted && !may_go_on)
}

/// A refusal code.
type Code = &'static str;

/// The request after its route, its path and its classes are known.
struct Request<'a> {
    world: &'a World,
    situation: &'a Situation,
    route: &'a Route,
    /// The user that the path names; `None` without a `{user}` segment, and for an alias.
    path_user: Option<String>,
    classes: Vec<&'a Class>,
}

/// A region that owns the request, or the finding that no region owns it.
struct Home {
    /// `None`: no region owns the request.
    region: Option<usize>,
    evidence: Evidence,
    user: User,
}

/// The lines are in the order of the checks. The first check that fails gives the code of the refusal.
fn judge_until_refused(world: &World, situation: &Situation) -> Result<Judgement, Code> {
    let request = request_of(world, situation)?;
    let homes = homes_of(&request)?;
    let enforced = enforced_classes(&request.classes);
    let clearance = cleared_regions(&request, &enforced, &homes);
    check_clearance(&request, &clearance, &enforced, &homes)?;
    if !clearance.iter().any(|region| has_service(&request, *region)) {
        return Err("failover.service_missing");
    }

    let owner = homes[0].region;
    let outcome = match situation.peer {
        None => outcome_for_client(&request, owner, &clearance, &enforced)?,
        Some(peer) => outcome_for_peer(&request, peer, owner, &clearance, &enforced)?,
    };
    let reported = is_only_reported(&request, &homes, &outcome);
    Ok(Judgement { outcome, reported })
}

fn request_of<'a>(world: &'a World, situation: &'a Situation) -> Result<Request<'a>, Code> {
    let path = segments_of(&situation.path);
    let route = matching_route(world, situation, &path).ok_or("route.none")?;
    let path_user = user_named_by_path(route, &path)?;
    let classes = classes_of_message(world, situation, route)?;
    check_credential(world, situation, &classes)?;
    Ok(Request { world, situation, route, path_user, classes })
}

// Check 1: the route.

/// Splits a path at `/`. One trailing slash adds no segment; a doubled slash adds an empty one.
fn segments_of(path: &str) -> Vec<&str> {
    let below_root = path.strip_prefix('/').unwrap_or(path);
    let mut segments: Vec<&str> = below_root.split('/').collect();
    if segments.last() == Some(&"") {
        segments.pop();
    }
    segments
}

fn matching_route<'a>(world: &'a World, situation: &Situation, path: &[&str]) -> Option<&'a Route> {
    world.routes.iter().find(|route| {
        let takes_method = route.methods.as_ref().is_none_or(|methods| methods.contains(&situation.method));
        let has_variant = route.variant.is_none() || route.variant == situation.variant;
        takes_method && has_variant && host_matches(&route.host, &situation.host) && route_matches(route, path)
    })
}

fn host_matches(pattern: &Host, host: &str) -> bool {
    match pattern {
        Host::Any => true,
        Host::Exact(name) => name == host,
        Host::Below(domain) => host.ends_with(&format!(".{domain}")),
    }
}

fn route_matches(route: &Route, path: &[&str]) -> bool {
    let length_fits = if route.open_ended { path.len() >= route.segments.len() } else { path.len() == route.segments.len() };
    if !length_fits {
        return false;
    }
    for (pattern, segment) in route.segments.iter().zip(path) {
        let matches = match pattern {
            Segment::Literal(literal) => literal == segment,
            Segment::User => !segment.is_empty(),
        };
        if !matches {
            return false;
        }
    }
    true
}

// Check 2: the user that the path names.

/// The decoded `{user}` segment, or `None` if the route has no such segment or the segment is an alias for the caller.
fn user_named_by_path(route: &Route, path: &[&str]) -> Result<Option<String>, Code> {
    for (pattern, segment) in route.segments.iter().zip(path) {
        if matches!(pattern, Segment::User) {
            let key = decoded_key(segment).ok_or("request.malformed_user")?;
            let is_alias = route.aliases.contains(&key);
            return Ok(if is_alias { None } else { Some(key) });
        }
    }
    Ok(None)
}

/// Decodes a path segment to a usable key: UTF-8, 1 to 256 bytes, without control characters.
fn decoded_key(segment: &str) -> Option<String> {
    let key = String::from_utf8(percent_decoded(segment)?).ok()?;
    let has_usable_length = (1..=256).contains(&key.len());
    let has_control_character = key.chars().any(char::is_control);
    if has_usable_length && !has_control_character { Some(key) } else { None }
}

/// Replaces each `%XX` by its byte. `None` if a `%` is not followed by two hexadecimal digits.
fn percent_decoded(segment: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = hexadecimal_digit(bytes.next()?)?;
            let low = hexadecimal_digit(bytes.next()?)?;
            decoded.push(high * 16 + low);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

fn hexadecimal_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

// Check 3: the classes.

/// Every class claimed for the message: by the route, by the peer, and by the labels.
fn classes_of_message<'a>(world: &'a World, situation: &Situation, route: &Route) -> Result<Vec<&'a Class>, Code> {
    let mut classes = vec![&world.classes[route.class]];
    if let Some(statement) = statement_of_peer(situation) {
        for name in &statement.classes {
            classes.push(class_named(world, name).ok_or("residency.class_unknown")?);
        }
    }
    for name in &situation.labels {
        classes.push(class_named(world, name).ok_or("residency.class_unknown")?);
    }
    Ok(classes)
}

fn class_named<'a>(world: &'a World, name: &str) -> Option<&'a Class> {
    world.classes.iter().find(|class| class.name == name)
}

/// A statement counts only if a peer sent the request: section 5 removes our own headers from all other requests.
fn statement_of_peer(situation: &Situation) -> Option<&Statement> {
    match situation.peer {
        Some(_) => situation.statement.as_ref(),
        None => None,
    }
}

fn all_stay_anywhere(classes: &[&Class]) -> bool {
    classes.iter().all(|class| matches!(class.stays, Stays::Anywhere))
}

// Check 4: the credential.

fn check_credential(world: &World, situation: &Situation, classes: &[&Class]) -> Result<(), Code> {
    if all_stay_anywhere(classes) {
        return Ok(());
    }
    match situation.credential {
        Credential::Absent | Credential::Verified => Ok(()),
        Credential::Unverifiable => Err("token.unverified"),
        Credential::Unread if world.refuses_other_credentials => Err("token.other_credential"),
        Credential::Unread => Ok(()),
    }
}

// Checks 5 to 7: the user whose record counts, the hint, and the second user.

/// The result of looking up a user's home.
enum HomeLookup {
    NoKey,
    /// The directory was asked and does not have the user.
    Absent,
    Unavailable,
    Found(Home),
}

/// The homes that are judged. The first one owns the request; the list is never empty.
fn homes_of(request: &Request) -> Result<Vec<Home>, Code> {
    let home_of_second_user = home_of_second_user(request)?;
    let found_by_chain = home_found_by_chain(request)?;
    Ok(match home_of_second_user {
        Some(home_of_caller) => vec![home_of_caller, found_by_chain],
        None => vec![found_by_chain],
    })
}

/// The home of the caller, if the path names another user who has no record: a recorded home, or else the home that the
/// caller's token claims.
fn home_of_second_user(request: &Request) -> Result<Option<Home>, Code> {
    let Some(path_user) = &request.path_user else {
        return Ok(None);
    };
    let caller = request.situation.caller.as_ref();
    let asks_directory = request.route.chain.iter().any(|step| matches!(step, Step::Directory));
    if asks_directory {
        match home_of_subject(request) {
            HomeLookup::Absent => {}
            HomeLookup::NoKey | HomeLookup::Unavailable | HomeLookup::Found(_) => return Ok(None),
        }
        if let Some((key, proof)) = caller
            && key != path_user
            && let Some(home) = home_in_directory(request.world, key, *proof)
        {
            return Ok(Some(home));
        }
    }
    let names_its_caller = caller.is_some_and(|(key, proof)| key == path_user && *proof == Proof::Proven);
    if names_its_caller { Ok(None) } else { home_claimed_by_token(request) }
}

/// The key of the user whose record is looked up: the path's user if there is one, else the caller.
fn subject_of<'a>(request: &'a Request) -> Option<(&'a str, Proof)> {
    if let Some(key) = &request.path_user {
        return Some((key, Proof::Proven));
    }
    let (key, proof) = request.situation.caller.as_ref()?;
    Some((key, *proof))
}

/// Combines the directory and the hint. Meaningful only for a route whose chain has the `Directory` step.
fn home_of_subject(request: &Request) -> HomeLookup {
    let Some((key, proof)) = subject_of(request) else {
        return HomeLookup::NoKey;
    };
    let hint = request.situation.hint.as_ref().filter(|hint| hint.user == key);
    if let Some(hint) = hint {
        let hint_suffices = request.classes.iter().all(|class| class.needs <= Evidence::Asserted);
        let spares_directory = hint.is_current && hint_suffices;
        if spares_directory || !request.world.directory_available {
            return HomeLookup::Found(home_in_hint(request.world, hint));
        }
    }
    if !request.world.directory_available {
        return HomeLookup::Unavailable;
    }
    match home_in_directory(request.world, key, proof) {
        Some(home) => HomeLookup::Found(home),
        None => HomeLookup::Absent,
    }
}

fn home_in_hint(world: &World, hint: &Hint) -> Home {
    recorded_home(world, hint.home, hint.jurisdiction, Evidence::Asserted)
}

fn home_in_directory(world: &World, key: &str, proof: Proof) -> Option<Home> {
    let (region, column) = world.users.get(key)?;
    let evidence = match proof {
        Proof::Proven => Evidence::Recorded,
        Proof::Vouched => Evidence::Asserted,
        Proof::Claimed => Evidence::Inferred,
    };
    Some(recorded_home(world, *region, *column, evidence))
}

/// The user's jurisdiction is the record's own column, else the jurisdiction of the home region.
fn recorded_home(world: &World, region: usize, column: Option<usize>, evidence: Evidence) -> Home {
    let jurisdiction = column.unwrap_or(world.regions[region].jurisdiction);
    Home { region: Some(region), evidence, user: User::Named(jurisdiction) }
}

// Check 8: the chain.

fn home_found_by_chain(request: &Request) -> Result<Home, Code> {
    for step in &request.route.chain {
        let found = match step {
            Step::Directory => directory_step(request)?,
            Step::Token => token_step(request)?,
            Step::GeoIp => region_by_geoip(request).map(|region| inferred_home(request, Some(region))),
            Step::Latency => Some(inferred_home(request, None)),
            Step::Region(region) => Some(inferred_home(request, Some(*region))),
            Step::Refuse => return Err("home.unresolved"),
        };
        if let Some(home) = found {
            return Ok(home);
        }
    }
    Err("home.unresolved")
}

fn directory_step(request: &Request) -> Result<Option<Home>, Code> {
    match home_of_subject(request) {
        HomeLookup::NoKey | HomeLookup::Absent => Ok(None),
        HomeLookup::Found(home) => Ok(Some(home)),
        HomeLookup::Unavailable => {
            let may_go_on = request.situation.is_read() && all_stay_anywhere(&request.classes);
            if may_go_on { Ok(None) } else { Err("directory.unavailable") }
        }
    }
}

/// A token speaks for its holder, and for nobody else whom the path names.
fn token_step(request: &Request) -> Result<Option<Home>, Code> {
    match &request.path_user {
        Some(named) if request.situation.caller != Some((named.clone(), Proof::Proven)) => Ok(None),
        Some(_) | None => home_claimed_by_token(request),
    }
}

/// Reads the route's claim of the verified token. The claim names a region as `r0`, `r1` and so on.
fn home_claimed_by_token(request: &Request) -> Result<Option<Home>, Code> {
    let asks_token = request.route.chain.iter().any(|step| matches!(step, Step::Token));
    let (Some(token), Some(claim), true) = (&request.situation.token, &request.route.claim, asks_token) else {
        return Ok(None);
    };
    let Some(name) = token.get(claim) else {
        return Ok(None);
    };
    for (number, region) in request.world.regions.iter().enumerate() {
        if *name == format!("r{number}") {
            let user = User::Named(region.jurisdiction);
            return Ok(Some(Home { region: Some(number), evidence: Evidence::Asserted, user }));
        }
    }
    Err("home.unknown_region")
}

/// A home that is a guess, or no home at all: the user's jurisdiction follows from the country, never from the region.
fn inferred_home(request: &Request, region: Option<usize>) -> Home {
    Home { region, evidence: Evidence::Inferred, user: user_by_country(request.world, request.situation) }
}

fn region_by_geoip(request: &Request) -> Option<usize> {
    let (world, situation) = (request.world, request.situation);
    if let Some(statement) = statement_of_peer(situation)
        && statement.evidence == Some(Evidence::Inferred)
        && statement.home.is_some()
    {
        return statement.home;
    }
    if let Some((_, _, region, _)) = longest_matching_network(world, situation.client) {
        return Some(*region);
    }
    match country_of_client(world, situation) {
        Some((country, _)) => region_of_country(world, country),
        None => world.unknown,
    }
}

fn region_of_country(world: &World, country: &str) -> Option<usize> {
    if let Some((_, region)) = world.countries.iter().find(|(listed, _)| listed == country) {
        return Some(*region);
    }
    if let Some((continent, _)) = world.country_facts.get(country)
        && let Some((_, region)) = world.continents.iter().find(|(listed, _)| listed == continent)
    {
        return Some(*region);
    }
    match world.otherwise {
        Otherwise::Nearest => region_nearest_to_country(world, country),
        Otherwise::Region(region) => Some(region),
        Otherwise::Next => None,
    }
}

/// The nearest region of the country's own jurisdiction, or of all regions if no region's jurisdiction lists the
/// country. Of equally distant regions, the first wins. `None` for a country without a centre.
fn region_nearest_to_country(world: &World, country: &str) -> Option<usize> {
    let (_, centre) = world.country_facts.get(country)?;
    let centre = (*centre)?;
    let mut candidates = Vec::new();
    for (number, region) in world.regions.iter().enumerate() {
        if lists_country(&world.jurisdictions[region.jurisdiction], country) {
            candidates.push(number);
        }
    }
    if candidates.is_empty() {
        candidates = (0..world.regions.len()).collect();
    }
    let mut nearest: Option<(usize, f64)> = None;
    for number in candidates {
        let distance = great_circle_angle(world.regions[number].at, centre);
        if nearest.is_none_or(|(_, least)| distance < least) {
            nearest = Some((number, distance));
        }
    }
    nearest.map(|(number, _)| number)
}

/// The great-circle distance as an angle in radians, by the haversine formula.
fn great_circle_angle(one: (f32, f32), other: (f32, f32)) -> f64 {
    let (latitude_one, longitude_one) = (f64::from(one.0).to_radians(), f64::from(one.1).to_radians());
    let (latitude_other, longitude_other) = (f64::from(other.0).to_radians(), f64::from(other.1).to_radians());
    let north = ((latitude_other - latitude_one) / 2.0).sin();
    let east = ((longitude_other - longitude_one) / 2.0).sin();
    let haversine = north * north + latitude_one.cos() * latitude_other.cos() * east * east;
    // Rounding can lift the value above 1 for antipodes, where `asin` is not defined.
    2.0 * haversine.sqrt().min(1.0).asin()
}

/// If a network is listed twice, the first entry wins.
fn longest_matching_network(world: &World, client: IpAddr) -> Option<&Network> {
    let mut longest: Option<(&Network, u32)> = None;
    for network in &world.networks {
        let (address, prefix, _, _) = network;
        let prefix = mapped_prefix(*address, *prefix);
        let contains = first_bits(mapped_address(*address), prefix) == first_bits(mapped_address(client), prefix);
        if contains && longest.is_none_or(|(_, length)| prefix > length) {
            longest = Some((network, prefix));
        }
    }
    longest.map(|(network, _)| network)
}

/// The address in IPv4-mapped form (`::ffff:a.b.c.d`) if it is IPv4.
fn mapped_address(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn mapped_prefix(address: IpAddr, prefix: u8) -> u32 {
    match address {
        IpAddr::V4(_) => 96 + u32::from(prefix),
        IpAddr::V6(_) => u32::from(prefix),
    }
}

fn first_bits(address: u128, count: u32) -> u128 {
    if count == 0 { 0 } else { address >> (128 - count) }
}

/// The source of the client's country.
#[derive(PartialEq)]
enum CountrySource {
    Peer,
    Operator,
    Database,
}

fn country_of_client<'a>(world: &'a World, situation: &'a Situation) -> Option<(&'a str, CountrySource)> {
    // A peer that states no country has found none that it trusts, so our own database is not asked.
    if let Some(statement) = statement_of_peer(situation) {
        return statement.country.as_ref().map(|country| (country.as_str(), CountrySource::Peer));
    }
    if let Some((_, _, _, Some(country))) = longest_matching_network(world, situation.client) {
        return Some((country, CountrySource::Operator));
    }
    let country = situation.country.as_ref()?;
    Some((country, CountrySource::Database))
}

fn user_by_country(world: &World, situation: &Situation) -> User {
    let Some((country, source)) = country_of_client(world, situation) else {
        return User::Unknown;
    };
    if source == CountrySource::Database && world.geoip_stale {
        return User::Unknown;
    }
    for (number, countries) in world.jurisdictions.iter().enumerate() {
        if lists_country(countries, country) {
            return User::Named(number);
        }
    }
    User::Elsewhere
}

fn lists_country(countries: &[String], country: &str) -> bool {
    countries.iter().any(|listed| listed == country)
}

// Check 9: the clearance.

/// Report-only classes clear every region and let every region carry, so the enforced checks ignore them.
fn enforced_classes<'a>(classes: &[&'a Class]) -> Vec<&'a Class> {
    classes.iter().copied().filter(|class| !class.report_only).collect()
}

/// The regions that every class admits for every home.
fn cleared_regions(request: &Request, classes: &[&Class], homes: &[Home]) -> Vec<usize> {
    let mut cleared = Vec::new();
    for region in 0..request.world.regions.len() {
        let mut is_admitted = true;
        for class in classes {
            for home in homes {
                if !admits(request, class, home, region) {
                    is_admitted = false;
                }
            }
        }
        if is_admitted {
            cleared.push(region);
        }
    }
    cleared
}

fn admits(request: &Request, class: &Class, home: &Home, region: usize) -> bool {
    let world = request.world;
    let jurisdiction = world.regions[region].jurisdiction;
    let may_process = stays_within(&class.stays, &home.user, jurisdiction)
        || is_transferred(&class.transfers, &home.user, jurisdiction, world.today);
    may_process && home.evidence >= needed_evidence(request, class)
}

/// A preflight names no caller, so that anything but a record of the path's user is a guess about somebody.
fn needed_evidence(request: &Request, class: &Class) -> Evidence {
    let may_be_anywhere = matches!(class.stays, Stays::Anywhere);
    if request.situation.is_preflight && !may_be_anywhere { Evidence::Recorded } else { class.needs }
}

fn stays_within(stays: &Stays, user: &User, jurisdiction: usize) -> bool {
    match stays {
        Stays::Home => *user == User::Named(jurisdiction),
        Stays::In(jurisdictions) => jurisdictions.contains(&jurisdiction),
        Stays::Anywhere => true,
    }
}

fn is_transferred(transfers: &[Transfer], user: &User, jurisdiction: usize, today: i32) -> bool {
    for transfer in transfers {
        let holds_today = today <= transfer.until;
        if holds_today && transfer.from == *user && transfer.to.contains(&jurisdiction) {
            return true;
        }
    }
    false
}

fn check_clearance(request: &Request, clearance: &[usize], enforced: &[&Class], homes: &[Home]) -> Result<(), Code> {
    if clearance.is_empty() {
        let is_below = |home: &Home, class: &Class| home.evidence < needed_evidence(request, class);
        let is_too_weak = homes.iter().any(|home| enforced.iter().any(|class| is_below(home, class)));
        return Err(if is_too_weak { "residency.evidence_too_weak" } else { "residency.nowhere_cleared" });
    }
    match homes[0].region {
        Some(owner) if !clearance.contains(&owner) => Err("residency.home_not_cleared"),
        Some(_) | None => Ok(()),
    }
}

// Check 10: the carriers.

fn may_carry(world: &World, region: usize, clearance: &[usize], classes: &[&Class]) -> bool {
    clearance.contains(&region) || classes.iter().all(|class| lets_carry(class, world.regions[region].jurisdiction))
}

fn lets_carry(class: &Class, jurisdiction: usize) -> bool {
    match &class.carried_by {
        Carriers::Anyone => true,
        Carriers::Only(jurisdictions) => jurisdictions.contains(&jurisdiction),
        Carriers::Nobody => false,
    }
}

// Check 11: a client's request.

fn outcome_for_client(
    request: &Request,
    owner: Option<usize>,
    clearance: &[usize],
    enforced: &[&Class],
) -> Result<Outcome, Code> {
    let world = request.world;
    let itinerary = itinerary_of(request, owner, clearance)?;
    let is_reachable = |region: usize| region == world.local || world.regions[region].has_gateway;
    let mut reachable = Vec::new();
    for stop in &itinerary {
        if is_reachable(*stop) {
            reachable.push(*stop);
        }
    }
    // An unowned request may skip unreachable regions. An owned request may not skip its first stop, because another region
    // would then serve it although the first one accepts requests.
    let may_start = if owner.is_none() { !reachable.is_empty() } else { is_reachable(itinerary[0]) };
    if may_start && may_carry(world, world.local, clearance, enforced) {
        return Ok(Outcome::Proceed(reachable));
    }
    for stop in itinerary {
        // The client has already reached the local region, so a redirect to it would be a loop.
        let may_be_target = stop != world.local && (owner.is_none() || owner == Some(stop));
        if may_be_target && world.regions[stop].has_url {
            return Ok(Outcome::Redirect(stop));
        }
    }
    Err("residency.carrier_not_cleared")
}

/// The cleared regions to try, in order. Never empty.
fn itinerary_of(request: &Request, owner: Option<usize>, clearance: &[usize]) -> Result<Vec<usize>, Code> {
    let situation = request.situation;
    let mut order = Vec::new();
    if let Some(home) = owner {
        let may_leave_home = situation.is_read() && request.route.reads_fail_over;
        if !may_leave_home {
            if !has_service(request, home) {
                return Err("failover.service_missing");
            }
            return if is_down(request, home) { Err("failover.home_down") } else { Ok(vec![home]) };
        }
        order.push(home);
    }
    for region in &situation.nearest {
        if owner != Some(*region) {
            order.push(*region);
        }
    }
    order.retain(|region| clearance.contains(region) && has_service(request, *region) && !is_down(request, *region));
    // A stable sort: recovering regions come last.
    order.sort_by_key(|region| situation.recovering.contains(region));
    if order.is_empty() { Err("failover.all_down") } else { Ok(order) }
}

fn has_service(request: &Request, region: usize) -> bool {
    request.world.regions[region].services.contains(&request.route.service)
}

/// Whether the region, or the service of the route in it, accepts no requests.
fn is_down(request: &Request, region: usize) -> bool {
    request.situation.down.contains(&region) || request.situation.down_services.contains(&(region, request.route.service))
}

// Check 12: a peer's request.

fn outcome_for_peer(
    request: &Request,
    peer: usize,
    owner: Option<usize>,
    clearance: &[usize],
    enforced: &[&Class],
) -> Result<Outcome, Code> {
    let local = request.world.local;
    if !may_carry(request.world, peer, clearance, enforced) {
        return Err("residency.carrier_not_cleared");
    }
    let is_owned_elsewhere = owner.is_some_and(|home| home != local);
    if is_owned_elsewhere && !request.situation.is_read() {
        return Err("peer.misdirected");
    }
    if !clearance.contains(&local) || !has_service(request, local) {
        return Err("peer.misdirected");
    }
    Ok(Outcome::Proceed(vec![local]))
}

// Report-only classes.

/// Whether the outcome would break a rule if every report-only class were enforced. The local region does not carry a request
/// that it redirects, so a redirect breaks no rule about carriers.
fn is_only_reported(request: &Request, homes: &[Home], outcome: &Outcome) -> bool {
    let world = request.world;
    let strict = cleared_regions(request, &request.classes, homes);
    let owner_is_cleared = homes[0].region.is_none_or(|owner| strict.contains(&owner));
    match outcome {
        Outcome::Proceed(stops) => {
            let carrier = request.situation.peer.unwrap_or(world.local);
            let carrier_is_cleared = may_carry(world, carrier, &strict, &request.classes);
            !strict.contains(&stops[0]) || !owner_is_cleared || !carrier_is_cleared
        }
        Outcome::Redirect(target) => !strict.contains(target) || !owner_is_cleared,
        Outcome::Refuse(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EU: usize = 0;
    const US: usize = 1;

    fn class(name: &str, stays: Stays, needs: Evidence, carried_by: Carriers) -> Class {
        Class { name: name.into(), stays, needs, carried_by, transfers: Vec::new(), report_only: false }
    }

    /// Regions r0 and r2 are in the EU, r1 is in the US. `/public/**` is unowned; `/users/{user}` is personal.
    fn world() -> World {
        let region = |jurisdiction, at| Region { jurisdiction, at, has_url: true, has_gateway: true, services: vec![0] };
        let personal_chain = vec![Step::Directory, Step::GeoIp, Step::Refuse];
        let public = Route {
            host: Host::Any,
            methods: None,
            segments: vec![Segment::Literal("public".into())],
            open_ended: true,
            class: 0,
            service: 0,
            chain: vec![Step::Latency],
            claim: None,
            aliases: Vec::new(),
            reads_fail_over: false,
            variant: None,
        };
        let personal = Route {
            host: Host::Any,
            methods: None,
            segments: vec![Segment::Literal("users".into()), Segment::User],
            open_ended: true,
            class: 1,
            service: 0,
            chain: personal_chain,
            claim: Some("region".into()),
            aliases: vec!["me".into()],
            reads_fail_over: false,
            variant: None,
        };
        World {
            local: 0,
            regions: vec![region(EU, (50.0, 8.0)), region(US, (39.0, -77.0)), region(EU, (53.0, -6.0))],
            jurisdictions: vec![vec!["DE".into(), "IE".into()], vec!["US".into()]],
            classes: vec![
                class("public", Stays::Anywhere, Evidence::Inferred, Carriers::Anyone),
                class("personal", Stays::Home, Evidence::Recorded, Carriers::Nobody),
            ],
            routes: vec![public, personal],
            networks: Vec::new(),
            countries: Vec::new(),
            continents: Vec::new(),
            otherwise: Otherwise::Nearest,
            unknown: None,
            users: BTreeMap::from([("anna".into(), (0, None)), ("bob".into(), (1, None))]),
            directory_available: true,
            refuses_other_credentials: false,
            geoip_stale: false,
            today: 20_000,
            country_facts: BTreeMap::from([("IE".into(), ("EU".into(), Some((53.2, -8.1))))]),
        }
    }

    fn read_of(path: &str) -> Situation {
        Situation {
            peer: None,
            host: "www.example.com".into(),
            path: path.into(),
            method: "GET",
            is_preflight: false,
            is_upgrade: false,
            variant: None,
            client: IpAddr::from([192, 0, 2, 1]),
            country: None,
            caller: None,
            token: None,
            credential: Credential::Absent,
            hint: None,
            statement: None,
            labels: Vec::new(),
            down: Vec::new(),
            recovering: Vec::new(),
            down_services: Vec::new(),
            nearest: vec![0, 2, 1],
        }
    }

    fn hint(user: &str, home: usize, is_current: bool) -> Option<Hint> {
        Some(Hint { user: user.into(), home, jurisdiction: None, is_current })
    }

    fn outcome(world: &World, situation: &Situation) -> Outcome {
        judge(world, situation).outcome
    }

    #[test]
    fn one_trailing_slash_is_ignored_and_a_second_one_is_a_segment() {
        assert_eq!(segments_of("/"), Vec::<&str>::new());
        assert_eq!(segments_of("/a/b/"), vec!["a", "b"]);
        assert_eq!(segments_of("/a//"), vec!["a", ""]);
    }

    #[test]
    fn an_open_ended_route_matches_its_prefix_and_everything_below() {
        for path in ["/public", "/public/", "/public/a/b"] {
            assert_eq!(outcome(&world(), &read_of(path)), Outcome::Proceed(vec![0, 2, 1]), "{path}");
        }
        for path in ["/", "/publicity", "/users", "/users//x"] {
            assert_eq!(outcome(&world(), &read_of(path)), Outcome::Refuse("route.none"), "{path}");
        }
    }

    #[test]
    fn an_undecodable_user_is_malformed() {
        let too_long = format!("/users/{}", "a".repeat(257));
        for path in ["/users/%", "/users/%zz", "/users/%ff", "/users/a%00", "/users/a%C2%80", &too_long] {
            assert_eq!(outcome(&world(), &read_of(path)), Outcome::Refuse("request.malformed_user"), "{path}");
        }
        assert_eq!(decoded_key("b%C3%a9"), Some("b\u{e9}".into()));
    }

    #[test]
    fn a_recorded_user_is_served_at_home() {
        assert_eq!(outcome(&world(), &read_of("/users/anna")), Outcome::Proceed(vec![0]));
        let mut down = read_of("/users/anna");
        down.down = vec![0];
        assert_eq!(outcome(&world(), &down), Outcome::Refuse("failover.home_down"));
    }

    #[test]
    fn a_failed_over_read_visits_only_cleared_regions() {
        let mut world = world();
        world.routes[1].reads_fail_over = true;
        let mut situation = read_of("/users/anna");
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0, 2]));
        situation.down = vec![0, 2];
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("failover.all_down"));
        situation.method = "POST";
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("failover.home_down"));
    }

    #[test]
    fn a_region_that_may_not_carry_redirects_to_the_owner() {
        let mut world = world();
        assert_eq!(outcome(&world, &read_of("/users/bob")), Outcome::Redirect(1));
        world.regions[1].has_url = false;
        assert_eq!(outcome(&world, &read_of("/users/bob")), Outcome::Refuse("residency.carrier_not_cleared"));
    }

    #[test]
    fn a_claimed_key_is_weak_evidence_and_an_alias_means_the_caller() {
        let mut situation = read_of("/users/me");
        situation.caller = Some(("anna".into(), Proof::Claimed));
        assert_eq!(outcome(&world(), &situation), Outcome::Refuse("residency.evidence_too_weak"));
        situation.caller = Some(("anna".into(), Proof::Proven));
        assert_eq!(outcome(&world(), &situation), Outcome::Proceed(vec![0]));
    }

    #[test]
    fn a_dead_directory_never_falls_through_to_geoip() {
        let mut world = world();
        world.directory_available = false;
        let mut situation = read_of("/users/anna");
        situation.country = Some("IE".into());
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("directory.unavailable"));
        world.routes[1].class = 0;
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
        situation.method = "POST";
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("directory.unavailable"));
    }

    #[test]
    fn a_hint_answers_for_a_dead_directory_and_a_current_one_spares_it() {
        let mut world = world();
        world.classes[1].needs = Evidence::Asserted;
        let mut situation = read_of("/users/anna");
        situation.hint = hint("anna", 2, false);
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0]));
        situation.hint = hint("anna", 2, true);
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
        situation.hint = hint("anna", 2, false);
        world.directory_available = false;
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
        world.classes[1].needs = Evidence::Recorded;
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.evidence_too_weak"));
        situation.hint = hint("bob", 2, true);
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("directory.unavailable"));
    }

    #[test]
    fn a_guess_about_the_path_never_outranks_the_callers_record() {
        let mut world = world();
        world.classes[1].needs = Evidence::Inferred;
        world.classes[1].carried_by = Carriers::Anyone;
        let mut situation = read_of("/users/nobody");
        situation.country = Some("IE".into());
        situation.caller = Some(("anna".into(), Proof::Proven));
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0]));
        situation.caller = Some(("bob".into(), Proof::Proven));
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.nowhere_cleared"));
        situation.caller = Some(("stranger".into(), Proof::Proven));
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
    }

    #[test]
    fn an_unlisted_country_makes_nobody_a_resident_of_the_chosen_region() {
        let mut world = world();
        world.classes[1].needs = Evidence::Inferred;
        world.otherwise = Otherwise::Region(1);
        let mut situation = read_of("/users/me");
        situation.country = Some("BR".into());
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.nowhere_cleared"));
        world.classes[1].transfers = vec![Transfer { from: User::Elsewhere, to: vec![EU], until: 20_000 }];
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.home_not_cleared"));
        world.today = 20_001;
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.nowhere_cleared"));
    }

    #[test]
    fn a_stale_database_still_places_but_does_not_prove_a_jurisdiction() {
        let mut world = world();
        world.geoip_stale = true;
        world.classes[1].needs = Evidence::Inferred;
        let mut situation = read_of("/users/me");
        situation.country = Some("IE".into());
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.nowhere_cleared"));
        world.networks = vec![(IpAddr::from([192, 0, 2, 0]), 24, 2, Some("IE".into()))];
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
    }

    #[test]
    fn the_longest_prefix_wins_across_address_families() {
        let mut world = world();
        let any_ipv6 = IpAddr::from([0_u16; 8]);
        world.networks = vec![
            (IpAddr::from([10, 0, 0, 0]), 8, 0, None),
            ("::ffff:10.1.0.0".parse().expect("a valid address"), 112, 1, None),
            (any_ipv6, 0, 2, None),
        ];
        let region = |client| longest_matching_network(&world, client).map(|network| network.2);
        assert_eq!(region(IpAddr::from([10, 1, 2, 3])), Some(1));
        assert_eq!(region(IpAddr::from([10, 2, 2, 3])), Some(0));
        assert_eq!(region(IpAddr::from([192, 0, 2, 1])), Some(2));
    }

    #[test]
    fn a_token_names_a_region_exactly() {
        let mut world = world();
        world.classes[1].needs = Evidence::Asserted;
        world.routes[1].chain = vec![Step::Token];
        let mut situation = read_of("/users/me");
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("home.unresolved"));
        for (name, expected) in [
            ("r2", Outcome::Proceed(vec![2])),
            ("r02", Outcome::Refuse("home.unknown_region")),
            ("r3", Outcome::Refuse("home.unknown_region")),
        ] {
            situation.token = Some(BTreeMap::from([("region".into(), name.into())]));
            assert_eq!(outcome(&world, &situation), expected, "{name}");
        }
    }

    #[test]
    fn a_bad_credential_passes_only_with_data_that_stays_anywhere() {
        let mut world = world();
        let mut situation = read_of("/public");
        situation.credential = Credential::Unverifiable;
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0, 2, 1]));
        situation.labels = vec!["personal".into()];
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("token.unverified"));
        situation.credential = Credential::Unread;
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.evidence_too_weak"));
        world.refuses_other_credentials = true;
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("token.other_credential"));
        situation.labels.push("secret".into());
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.class_unknown"));
    }

    #[test]
    fn a_peers_request_stays_here_or_is_misdirected() {
        let mut world = world();
        world.classes[1].needs = Evidence::Inferred;
        let mut situation = read_of("/users/anna");
        situation.peer = Some(1);
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("residency.carrier_not_cleared"));
        situation.peer = Some(2);
        situation.down = vec![0];
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0]));
        world.local = 2;
        situation.peer = Some(0);
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![2]));
        situation.method = "POST";
        assert_eq!(outcome(&world, &situation), Outcome::Refuse("peer.misdirected"));
    }

    #[test]
    fn a_peers_inferred_home_and_country_are_taken_as_given() {
        let mut world = world();
        world.classes[1].needs = Evidence::Inferred;
        let mut situation = read_of("/users/me");
        situation.peer = Some(2);
        situation.country = Some("US".into());
        let statement =
            Statement { home: Some(0), evidence: Some(Evidence::Inferred), country: Some("DE".into()), classes: Vec::new() };
        situation.statement = Some(statement);
        assert_eq!(outcome(&world, &situation), Outcome::Proceed(vec![0]));
    }

    #[test]
    fn a_report_only_class_stops_nothing_and_is_reported() {
        let mut world = world();
        world.classes[1].report_only = true;
        let judgement = judge(&world, &read_of("/users/bob"));
        assert_eq!((judgement.outcome, judgement.reported), (Outcome::Proceed(vec![1]), true));
        let judgement = judge(&world, &read_of("/users/anna"));
        assert_eq!((judgement.outcome, judgement.reported), (Outcome::Proceed(vec![0]), false));
    }
}
