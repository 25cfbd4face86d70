//! An open request is judged again when the day, the age of the GeoIP database, the user table or the policy changes. It ends
//! if its region may no longer process or carry the data, and otherwise stays open.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use domicile::audit::{Ledger, Pseudonyms, Settings, Tally, WorkerLedger};
use domicile::decision::facts::{Credential, Ingress};
use domicile::decision::policy::Policy;
use domicile::decision::policy::route::Method;
use domicile::decision::verdict::{Stop, Verdict};
use domicile::directory::{Answer, Directory, LookupFuture, RemoteTable};
use domicile::engine::facts::DIRECTORY_DEADLINE;
use domicile::engine::judge::judge;
use domicile::engine::permit::{Kind, Recorded, Registrar, Reported};
use domicile::engine::question::{Identity, Question};
use domicile::engine::recheck::{CLOCK_INTERVAL, Lease, Leases};
use domicile::engine::snapshot::{JudgingSnapshot, Moment};
use domicile::metrics::Metrics;
use domicile::model::country::CountryCode;
use domicile::model::outcome::Code;
use domicile::model::region::{RegionId, Registry};
use domicile::model::user::{Proof, Record};
use domicile::model::vitals::{Health, RegionVitals, TableVersion, Vitals};
use tokio::runtime::LocalRuntime;

use crate::case_book::{folder, load_policy, policy_at};
use crate::support::{Table, World, address_in, noon};

const USERS: &str = "user,home\nanna,dublin\nben,ashburn\nchika,tokyo\n";

/// One open request in dublin, with its permit and the inputs for judging it again.
struct Open {
    runtime: LocalRuntime,
    vitals: Arc<Vitals>,
    leases: Rc<Leases>,
    question: Rc<Question>,
    lease: Rc<Lease>,
    stop: Stop,
    ledger: WorkerLedger,
    folder: tempfile::TempDir,
}

/// The day before the Japanese transfer ends.
const DAY: &str = "2026-06-30";

/// A moment with a user table of its own, and the health of the regions.
fn moment_of(users: &str) -> (Moment, Vitals) {
    moment_under(users, |registry| policy_at("world.yaml", "dublin", registry))
}

fn moment_under(users: &str, policy: impl FnOnce(&mut Registry) -> Policy) -> (Moment, Vitals) {
    let mut registry = Registry::default();
    let policy = policy(&mut registry);
    let mut vitals = Vitals::unmeasured(policy.nearest_first());
    // tokyo is down, so that dublin serves the reads of Japanese users under the transfer.
    vitals.set(policy.find_region("tokyo").unwrap(), RegionVitals { health: Health::Down, ..RegionVitals::default() });
    let world = World::new(policy, &registry, &Table::Text(users.into()), false, noon(DAY), vitals.clone());
    (world.moment(), vitals)
}

impl Open {
    /// A request that is judged and not yet permitted.
    fn judged(path: &str, user: Option<&str>, country: &str) -> Self {
        Self::judged_at(moment_of(USERS), path, user, country)
    }

    fn judged_at((moment, vitals): (Moment, Vitals), path: &str, user: Option<&str>, country: &str) -> Self {
        let runtime = LocalRuntime::new().unwrap();
        let question = Rc::new(Question {
            ingress: Ingress::Client,
            method: Method::Get,
            host: "www.example.com".into(),
            path: path.into(),
            is_read: true,
            client: address_in(CountryCode::parse(country).unwrap()),
            fields: Default::default(),
            identity: Identity {
                caller: user.map(|user| (user.to_owned(), Proof::Proven)),
                credential: Credential::Absent,
                ..Identity::default()
            },
            is_preflight: false,
            ignores_hint: Default::default(),
            envelope: None,
        });
        let judged = Rc::new(runtime.block_on(judge(&question, &[], moment, &vitals)));
        let Verdict::Proceed(itinerary) = &judged.decision.verdict else { panic!("{:?}", judged.decision.verdict) };
        let stop = itinerary.stops()[0];
        let leases = Rc::new(Leases::default());
        let lease = leases.open(&question, judged);
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { directory: folder.path().join("ledger"), region: "eu-west".into() };
        let tally = Tally { lines: Arc::new(|_| ()), failures: Arc::new(|| panic!("the ledger failed")) };
        let ledger = WorkerLedger::of(Ledger::open(&settings, tally, false).unwrap());
        Self { runtime, vitals: Arc::new(vitals), leases, question, lease, stop, ledger, folder }
    }

    fn permit(&self) -> Result<(), Code> {
        self.permit_as(&Recorded::default(), Kind::Plain, (&self.lease, self.stop))
    }

    fn permit_as(&self, recorded: &Recorded, kind: Kind, (lease, stop): (&Lease, Stop)) -> Result<(), Code> {
        let (metrics, pseudonyms, reported) = (Metrics::new().worker(), Pseudonyms::ephemeral(), Reported::default());
        let registrar = Registrar {
            ledger: Some(&self.ledger),
            pseudonyms: &pseudonyms,
            metrics: &metrics,
            request_id: "lease",
            reported: &reported,
            recorded,
            kind,
        };
        self.runtime.block_on(registrar.permit(lease, stop, ())).map(drop)
    }

    /// The same request after its permit, which lets dublin process it.
    fn permitted(path: &str, user: Option<&str>, country: &str) -> Self {
        let open = Self::judged(path, user, country);
        open.permit().unwrap();
        open
    }

    /// Judges all open requests again. Returns whether this request is still open, and checks that `poll_ended` agrees.
    fn is_open_under(&self, moment: Moment) -> bool {
        self.runtime.block_on(self.leases.renew_all(&moment, &self.vitals));
        let end = self.lease.poll_ended(&Context::from_waker(Waker::noop()));
        assert_eq!(end == Poll::Ready(()), self.lease.has_ended());
        assert!(self.lease.is_current(&moment) || self.lease.has_ended());
        !self.lease.has_ended()
    }

    /// The same policy and tables on another day, with a current or a stale GeoIP database.
    fn on(&self, day: &str, geoip_is_stale: bool) -> Moment {
        Moment { geoip_is_stale, ..Moment::at(self.lease.judged().moment.snapshot.clone(), noon(day)) }
    }

    fn with_users(&self, users: &str) -> Moment {
        moment_of(users).0
    }

    /// How the data went, in the order of the lines.
    fn ways(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("ledger/ledger.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["kind"] == "movement").map(|line| line["what"].as_str().unwrap().to_owned()).collect()
    }

    fn lines(&self) -> usize {
        let text = std::fs::read_to_string(self.folder.path().join("ledger/ledger.jsonl")).unwrap();
        text.lines().filter(|line| line.contains("\"processing\"")).count()
    }
}

#[test]
fn the_ledger_tells_a_failover_and_a_second_attempt_from_a_request() {
    for (kind, expected) in [
        (Kind::Plain, &["request", "failover", "retry"][..]),
        (Kind::Upgrade, &["upgrade", "upgrade", "upgrade"]),
        (Kind::Preflight, &["preflight", "preflight", "preflight"]),
    ] {
        // Seen from ashburn, both European regions are abroad.
        let at_ashburn = moment_under(USERS, |registry| policy_at("world.yaml", "ashburn", registry));
        let open = Open::judged_at(at_ashburn, "/billing/1", Some("chika"), "JP");
        let judged = open.lease.judged();
        let Verdict::Proceed(itinerary) = &judged.decision.verdict else { panic!("{:?}", judged.decision.verdict) };
        let abroad: Vec<_> = itinerary.stops().iter().filter(|stop| stop.region() != judged.moment.policy().local).collect();
        assert!(abroad.len() >= 2, "{:?}", judged.decision);
        let recorded = Recorded::default();
        // The peer did not own the request, so that it is judged anew.
        let again = open.leases.open(&open.question, Rc::clone(&judged));
        for (lease, stop) in [(&open.lease, abroad[0]), (&open.lease, abroad[1]), (&again, abroad[1])] {
            open.permit_as(&recorded, kind, (lease, *stop)).unwrap();
        }
        assert_eq!((open.ways(), recorded.lines()), (expected.iter().map(|way| (*way).to_owned()).collect(), 3));
    }
}

#[test]
fn a_transfer_that_ends_at_midnight_ends_what_is_open_under_it() {
    let open = Open::permitted("/billing/1", Some("chika"), "JP");
    assert!(open.is_open_under(open.on(DAY, false)), "the last day of the transfer");
    assert!(!open.is_open_under(open.on("2026-07-01", false)));
}

#[test]
fn a_geoip_database_that_becomes_too_old_ends_what_was_placed_by_it() {
    let guessed = Open::permitted("/profile/1", None, "IE");
    assert!(!guessed.is_open_under(guessed.on(DAY, true)));
    let recorded = Open::permitted("/profile/1", Some("anna"), "IE");
    assert!(recorded.is_open_under(recorded.on(DAY, true)), "a record does not depend on the database");
}

#[test]
fn a_user_who_moves_away_or_disappears_ends_what_is_open() {
    for (users, is_open) in [
        (USERS, true),
        ("user,home\nanna,dublin\nben,tokyo\n", true),
        ("user,home\nanna,ashburn\nben,ashburn\n", false),
        ("user,home\nben,ashburn\n", false),
        // dublin may process her data, and her home may not.
        ("user,home,jurisdiction\nanna,ashburn,eu\n", false),
    ] {
        let open = Open::permitted("/account/1", Some("anna"), "IE");
        assert_eq!(open.is_open_under(open.with_users(users)), is_open, "{users}");
    }
}

#[test]
fn a_region_that_may_no_longer_carry_the_data_ends_what_it_carries() {
    let open = Open::permitted("/users/ben/orders/1", None, "IE");
    assert_ne!(open.stop.region(), open.lease.judged().moment.policy().local, "ashburn processes it, and dublin carries it");
    let text = std::fs::read_to_string(folder().join("policies/world.yaml")).unwrap();
    let strict = text.replace(
        "personal:   { stays: home, needs: inferred, carried_by: [eu, us] }",
        "personal:   { stays: home, needs: inferred, carried_by: [us] }",
    );
    for (text, is_open) in [(&text, true), (&strict, false)] {
        let file = open.folder.path().join("policy.yaml");
        std::fs::write(&file, text).unwrap();
        let moment = moment_under(USERS, |registry| load_policy(&file, "dublin", registry)).0;
        assert_eq!(open.is_open_under(moment), is_open);
    }
    assert_ne!(text, strict);
}

#[test]
fn a_request_that_would_need_a_line_under_the_new_rules_ends_without_it() {
    // dublin forwards ben's request to ashburn, and needs no line for data that may be anywhere.
    let open = Open::permitted("/catalog/1", Some("ben"), "US");
    assert_ne!(open.stop.region(), open.lease.judged().moment.policy().local);
    let ledger = std::fs::read_to_string(open.folder.path().join("ledger/ledger.jsonl")).unwrap();
    assert!(!ledger.contains("\"kind\":\"movement\""), "{ledger}");
    let text = std::fs::read_to_string(folder().join("policies/world.yaml")).unwrap();
    let catalog = "match: { path: \"/catalog/**\" },              data: public,  ";
    assert!(text.contains(catalog));
    for (text, is_open) in [(text.clone(), true), (text.replace(catalog, &catalog.replace("public,", "personal,")), false)] {
        let file = open.folder.path().join("policy.yaml");
        std::fs::write(&file, text).unwrap();
        let moment = moment_under(USERS, |registry| load_policy(&file, "dublin", registry)).0;
        assert_eq!(open.is_open_under(moment), is_open, "both rules clear ashburn for ben, and dublin as carrier");
    }
    // With its line written, the request stays open under the same rules.
    let recorded = Open::permitted("/users/ben/orders/1", None, "US");
    assert!(recorded.is_open_under(moment_of(USERS).0));
}

#[test]
fn a_forwarded_request_that_comes_to_depend_on_a_transfer_ends() {
    // The line that dublin wrote for the crossing to ashburn names no legal basis.
    for (users, is_open) in
        [("user,home,jurisdiction\nben,ashburn,us\n", true), ("user,home,jurisdiction\nben,ashburn,jp\n", false)]
    {
        let open = Open::permitted("/billing/1", Some("ben"), "US");
        assert_ne!(open.stop.region(), open.lease.judged().moment.policy().local);
        assert_eq!(open.is_open_under(open.with_users(users)), is_open, "{users}");
        let judged = open.lease.judged();
        assert!(judged.decision.trail.is_cleared(open.stop.region()), "a transfer lets ashburn process a Japanese user's data");
    }
}

#[test]
fn both_users_of_a_request_are_judged_again() {
    // The path names a user without a record, and the caller has one.
    let open = Open::permitted("/users/zoe/orders/1", Some("anna"), "IE");
    assert!(!open.is_open_under(open.with_users("user,home\nanna,dublin\nzoe,tokyo\n")), "the user of the path");
    let open = Open::permitted("/users/zoe/orders/1", Some("anna"), "IE");
    assert!(!open.is_open_under(open.with_users("user,home\nanna,tokyo\nben,ashburn\n")), "the caller");
}

#[test]
fn a_request_that_no_region_processes_yet_does_not_end_and_gets_no_permit() {
    let open = Open::judged("/billing/1", Some("chika"), "JP");
    assert!(open.is_open_under(open.on("2026-07-01", false)), "no region processes the request yet");
    assert_eq!(open.permit(), Err(Code::NoLongerCleared), "its stop was cleared for the day before");
    assert_eq!(open.lines(), 0);
}

#[test]
fn one_judgement_writes_one_line_however_often_its_region_is_tried() {
    let open = Open::permitted("/billing/1", Some("chika"), "JP");
    open.permit().unwrap();
    assert_eq!(open.lines(), 1);
    assert!(open.is_open_under(open.with_users("user,home\nanna,dublin\nchika,tokyo\n")));
    open.permit().unwrap();
    assert_eq!(open.lines(), 2, "a new judgement writes a new line");
    open.lease.leave();
    assert!(open.is_open_under(open.on("2026-07-01", false)), "after an attempt no region processes the request");
}

#[test]
fn an_ended_lease_stays_ended() {
    let open = Open::permitted("/account/1", Some("anna"), "IE");
    assert!(!open.is_open_under(open.with_users("user,home\nben,ashburn\n")));
    assert!(!open.is_open_under(open.with_users(USERS)), "the original table is restored");
    assert_eq!(open.permit(), Err(Code::NoLongerCleared));
}

/// A user table outside of the process, which responds as the test says.
struct Remote(fn() -> LookupFuture<'static>);

impl RemoteTable for Remote {
    fn find<'a>(&'a self, _: &'a str) -> LookupFuture<'a> {
        (self.0)()
    }

    fn version(&self) -> TableVersion {
        TableVersion::default()
    }

    fn user_count(&self) -> usize {
        1
    }
}

/// The same moment with another user table.
fn with_remote(moment: &Moment, respond: fn() -> LookupFuture<'static>) -> Moment {
    let (policy, before) = (policy_at("world.yaml", "dublin", &mut Registry::default()), &moment.snapshot);
    let snapshot = JudgingSnapshot {
        policy,
        slashes: before.slashes,
        geoip: before.geoip.clone(),
        geoip_max_age: None,
        directory: Some(Arc::new(Directory::Remote(Box::new(Remote(respond))))),
    };
    Moment { snapshot: Arc::new(snapshot), ..moment.clone() }
}

#[test]
fn open_requests_do_not_wait_for_each_other_while_a_directory_hangs() {
    let open = Open::permitted("/account/1", Some("anna"), "IE");
    let more: Vec<_> = (0..100).map(|_| open.leases.open(&open.question, open.lease.judged())).collect();
    let hanging = with_remote(&open.lease.judged().moment, || Box::pin(std::future::pending()));
    let elapsed = open.runtime.block_on(async {
        tokio::time::pause();
        let started = tokio::time::Instant::now();
        open.leases.renew_all(&hanging, &open.vitals).await;
        started.elapsed()
    });
    assert!(open.lease.has_ended(), "the home of anna cannot be looked up");
    assert!(more.iter().all(|lease| lease.is_current(&hanging)), "all were judged again");
    assert!(elapsed >= DIRECTORY_DEADLINE && elapsed < 2 * DIRECTORY_DEADLINE, "{elapsed:?}");
}

#[test]
fn a_request_whose_new_judgement_panics_ends_and_no_other() {
    let open = Open::permitted("/account/1", Some("anna"), "IE");
    let other = Open::permitted("/catalog/1", None, "IE");
    let question = Rc::clone(&other.question);
    let unaffected = open.leases.open(&question, other.lease.judged());
    let panicking = with_remote(&open.lease.judged().moment, || panic!("the directory panics"));
    assert!(!open.is_open_under(panicking));
    assert!(!unaffected.has_ended(), "its route asks no directory");
}

#[test]
fn an_older_renewal_does_not_replace_a_newer_one() {
    let open = Open::judged("/account/1", Some("anna"), "IE");
    let slow = with_remote(&open.lease.judged().moment, || {
        Box::pin(async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            Answer::Absent
        })
    });
    let newest = open.with_users(USERS);
    open.runtime.block_on(async {
        let (older, newer) = (open.lease.renew(&slow, &open.vitals), open.lease.renew(&newest, &open.vitals));
        tokio::join!(older, newer);
    });
    assert!(open.lease.is_current(&newest));
}

#[test]
fn labels_are_judged_under_the_newest_moment() {
    let slow = with_remote(&moment_of(USERS).0, || {
        Box::pin(async {
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            Answer::Found(Record { home: RegionId::new(0).unwrap(), jurisdiction: None })
        })
    });
    let open = Open::judged_at((slow, moment_of(USERS).1), "/account/1", Some("anna"), "IE");
    open.permit().unwrap();
    let newest = open.with_users(USERS);
    let labels = ["restricted".into()];
    let may_leave = open.runtime.block_on(async {
        tokio::join!(open.lease.add_labels(&labels, &open.vitals), open.lease.renew(&newest, &open.vitals)).0
    });
    assert!(may_leave && open.lease.is_current(&newest), "the older judgement does not replace the newer one");
}

/// The times after which a change takes effect are stated in the documentation.
#[test]
fn the_documented_times_are_those_of_the_program() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/threat-model.md");
    let text = std::fs::read_to_string(file).unwrap();
    let clock = format!("within {} s", CLOCK_INTERVAL.as_secs());
    for change in ["a transfer expires", "the GeoIP database exceeds"] {
        let row = text.lines().find(|line| line.contains(change)).unwrap();
        assert_eq!(row.matches(&clock).count(), 2, "{row}");
    }
    let deadline = format!("at most {} s for each lookup", DIRECTORY_DEADLINE.as_secs());
    assert!(text.contains(&deadline), "{deadline}");
}
