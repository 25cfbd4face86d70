//! The fault catalogue: what is promised when a dependency fails, and the test that shows it.
//!
//! A new dependency or kind of fault does not compile before the catalogue names its test, and a test that is renamed or
//! removed does not leave the catalogue unnoticed.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use domicile::audit::{Direction, Ledger, Movement, Tally};
use domicile::config;
use domicile::decision::facts::Ingress;
use domicile::decision::policy::Policy;
use domicile::decision::policy::route::Method as RouteMethod;
use domicile::decision::verdict::Decision;
use domicile::directory::{Answer, Directory, LookupFuture, RemoteTable};
use domicile::engine::facts::DIRECTORY_DEADLINE;
use domicile::engine::judge::judge;
use domicile::engine::path::Slashes;
use domicile::engine::question::{Identity, Question};
use domicile::engine::snapshot::{JudgingSnapshot, Moment};
use domicile::geoip::GeoIp;
use domicile::model::day::Day;
use domicile::model::outcome::Code;
use domicile::model::region::{RegionId, Registry};
use domicile::model::user::{Proof, Record};
use domicile::model::vitals::{Health, PolicyHash, RegionVitals, TableVersion, Vitals};
use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt as _;

use crate::support::{Plan, RULES, TIMEOUT, World, eventually, get, post, runtime, try_send, whole};
use crate::{exits, failover, ledger, operation, peers};

macro_rules! kinds {
    ($name:ident: $($kind:ident),*) => {
        #[derive(Clone, Copy, Debug)]
        enum $name { $($kind),* }

        impl $name {
            const ALL: &'static [Self] = &[$(Self::$kind),*];
        }
    };
}

kinds!(Dependency: Directory, Ledger, Peer, GeoIp, Clock, Disk);
kinds!(Fault: Error, Hang, Garbage, Panic);

type Shown = &'static [fn()];

/// The tests that show what is promised.
fn shown_by(dependency: Dependency, fault: Fault) -> Shown {
    match dependency {
        Dependency::Directory => match fault {
            Fault::Error => &[
                a_directory_that_fails_refuses_what_it_decides_and_guesses_nothing,
                operation::a_changed_user_table_is_swapped_in_and_a_broken_one_is_not,
            ],
            Fault::Hang => &[a_directory_that_hangs_is_given_up_at_its_deadline, a_file_that_would_hang_its_reader_is_not_read],
            Fault::Garbage => &[
                a_directory_that_names_an_unknown_region_counts_as_failed,
                exits::a_user_table_that_lost_users_is_used_only_after_an_operator_accepts_the_loss,
            ],
            Fault::Panic => &[a_directory_that_panics_ends_one_request_and_no_other],
        },
        Dependency::Ledger => match fault {
            Fault::Error => &[
                ledger::a_full_disk_under_the_ledger_stops_what_needs_a_line_and_nothing_else,
                ledger::an_owner_that_cannot_record_gives_no_answer,
            ],
            Fault::Hang => &[a_ledger_that_hangs_holds_up_only_what_needs_a_line],
            Fault::Garbage => &[a_line_that_a_crash_cut_off_is_removed_at_the_start],
            Fault::Panic => &[a_ledger_whose_writer_has_died_refuses_every_line],
        },
        Dependency::Peer => match fault {
            Fault::Error => &[failover::a_region_that_vanishes_is_noticed_and_unowned_requests_move_on],
            Fault::Hang => &[a_peer_that_hangs_holds_up_only_its_own_users],
            Fault::Garbage => &[a_peer_that_sends_garbage_gets_no_request, peers::a_peer_that_negotiates_nothing_gets_no_http1],
            Fault::Panic => &[a_peer_that_dies_within_a_response_ends_it_as_incomplete],
        },
        Dependency::GeoIp => match fault {
            Fault::Error => &[a_geoip_database_that_is_gone_at_a_reload_stays_in_use],
            Fault::Hang => &[a_file_that_would_hang_its_reader_is_not_read],
            Fault::Garbage => &[operation::a_corrupt_geoip_database_is_not_swapped_in],
            Fault::Panic => &[a_damaged_geoip_database_never_panics],
        },
        Dependency::Clock => match fault {
            Fault::Error => &[a_clock_that_is_behind_the_geoip_database_counts_as_its_day],
            Fault::Hang => &[a_clock_that_stands_still_changes_nothing_and_stops_no_deadline],
            Fault::Garbage => &[a_clock_that_jumps_ahead_ends_transfers],
            Fault::Panic => &[the_most_extreme_times_neither_panic_nor_revive_a_transfer],
        },
        Dependency::Disk => match fault {
            Fault::Error => {
                &[a_pseudonym_key_that_cannot_be_written_refuses_the_start, ledger::an_owner_that_cannot_record_gives_no_answer]
            }
            Fault::Hang => &[a_ledger_that_hangs_holds_up_only_what_needs_a_line, a_file_that_would_hang_its_reader_is_not_read],
            Fault::Garbage => &[a_configuration_that_was_cut_off_changes_nothing],
            Fault::Panic => &[a_line_that_a_crash_cut_off_is_removed_at_the_start],
        },
    }
}

#[test]
fn every_fault_of_every_dependency_has_its_test() {
    let mut shown = 0;
    for dependency in Dependency::ALL {
        for fault in Fault::ALL {
            assert!(!shown_by(*dependency, *fault).is_empty(), "{dependency:?}: {fault:?}");
            shown += 1;
        }
    }
    assert_eq!(shown, 24);
}

// Judging with a directory of the test's own.

/// A directory that does what the test wants.
struct Scripted(Box<dyn Fn(&str) -> LookupFuture<'static> + Send + Sync>);

impl RemoteTable for Scripted {
    fn find<'a>(&'a self, key: &'a str) -> LookupFuture<'a> {
        (self.0)(key)
    }

    fn version(&self) -> TableVersion {
        TableVersion::default()
    }

    fn user_count(&self) -> usize {
        1
    }
}

fn scripted(find: impl Fn(&str) -> LookupFuture<'static> + Send + Sync + 'static) -> Directory {
    Directory::Remote(Box::new(Scripted(Box::new(find))))
}

/// A judging engine with the policy of a region of the scenarios, and no socket.
struct Engine {
    moment: Moment,
    vitals: Vitals,
}

impl Engine {
    fn new(rules: &str, directory: impl FnOnce(&Policy) -> Directory, now: SystemTime) -> Self {
        let plan = Plan { rules: [("eu-west", rules.to_owned())].into(), ..Plan::default() };
        let world = World::prepare(&plan);
        let mut registry = Registry::default();
        let loaded = config::load(&world.eu().config, None, &mut registry, Day::of(now)).unwrap();
        let vitals = Vitals::unmeasured(loaded.policy.nearest_first());
        let geoip = GeoIp::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb")).unwrap();
        let directory = Some(Arc::new(directory(&loaded.policy)));
        let snapshot = JudgingSnapshot {
            policy: loaded.policy,
            slashes: Slashes::Merge,
            geoip: Some(Arc::new(geoip)),
            geoip_max_age: None,
            directory,
        };
        Self { moment: Moment::live(Arc::new(snapshot), now), vitals }
    }

    /// Judges a read of `path` by a verified user.
    async fn judge(&self, path: &str, user: &str) -> Decision {
        let question = Question {
            ingress: Ingress::Client,
            method: RouteMethod::Get,
            host: "app.example.com".into(),
            path: path.into(),
            is_read: true,
            client: "91.64.0.1".parse().unwrap(),
            fields: Default::default(),
            identity: Identity { caller: Some((user.into(), Proof::Proven)), ..Identity::default() },
            is_preflight: false,
            ignores_hint: Default::default(),
            envelope: None,
        };
        judge(&question, &[], self.moment.clone(), &self.vitals).await.decision
    }
}

/// A runtime whose timers fire as soon as nothing else is left to do.
fn paused<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// A path whose route must know its user, and one whose route guesses by the address if the user is absent.
const RECORDED: [&str; 2] = ["/account/1", "/profile/1"];

#[test]
fn a_directory_that_fails_refuses_what_it_decides_and_guesses_nothing() {
    let engine = Engine::new(RULES, |_| scripted(|_| Box::pin(async { Answer::Unavailable })), SystemTime::now());
    paused(async {
        for path in RECORDED {
            assert_eq!(engine.judge(path, "alice").await.refusal(), Some(Code::DirectoryUnavailable), "{path}");
        }
        assert_eq!(engine.judge("/feed/1", "alice").await.refusal(), None, "this route does not ask the directory");
    });
}

#[test]
fn a_directory_that_hangs_is_given_up_at_its_deadline() {
    let engine = Engine::new(RULES, |_| scripted(|_| Box::pin(std::future::pending())), SystemTime::now());
    paused(async {
        let started = tokio::time::Instant::now();
        for path in RECORDED {
            assert_eq!(engine.judge(path, "alice").await.refusal(), Some(Code::DirectoryUnavailable), "{path}");
        }
        let waited = started.elapsed();
        assert!((2 * DIRECTORY_DEADLINE..3 * DIRECTORY_DEADLINE).contains(&waited), "one deadline for each: {waited:?}");
    });
}

#[test]
fn a_directory_that_names_an_unknown_region_counts_as_failed() {
    let find = |_: &str| -> LookupFuture<'static> {
        let home = RegionId::new(63).unwrap();
        Box::pin(async move { Answer::Found(Record { home, jurisdiction: None }) })
    };
    let engine = Engine::new(RULES, |_| scripted(find), SystemTime::now());
    for path in RECORDED {
        assert_eq!(paused(engine.judge(path, "alice")).refusal(), Some(Code::DirectoryUnavailable), "{path}");
    }
}

#[test]
fn a_directory_that_panics_ends_one_request_and_no_other() {
    let directory = |policy: &Policy| {
        let home = policy.find_region("eu-west").unwrap();
        scripted(move |key| {
            let is_alice = key == "alice";
            Box::pin(async move {
                assert!(is_alice, "this directory has a bug");
                Answer::Found(Record { home, jurisdiction: None })
            })
        })
    };
    let engine = Rc::new(Engine::new(RULES, directory, SystemTime::now()));
    paused(async {
        // As a worker does: every connection is a task of its own.
        let tasks = tokio::task::LocalSet::new();
        let judging = Rc::clone(&engine);
        let broken = tasks.spawn_local(async move { judging.judge("/account/1", "bob").await.refusal() });
        let judging = Rc::clone(&engine);
        let sound = tasks.spawn_local(async move { judging.judge("/account/1", "alice").await.refusal() });
        tasks
            .run_until(async {
                assert!(broken.await.unwrap_err().is_panic());
                assert_eq!(sound.await.unwrap(), None);
            })
            .await;
    });
}

#[test]
fn a_file_that_would_hang_its_reader_is_not_read() {
    let world = World::start();
    let own = world.folder.path().join("own.mmdb");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb"), &own).unwrap();
    replace_in(&world.eu().config, "geoip/country.mmdb", &own);
    world.eu().reload().unwrap();
    for file in ["users-eu-west.csv", "own.mmdb"] {
        let file = world.folder.path().join(file);
        // Opening a pipe waits for its writer, and there is none.
        std::fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        let error = world.eu().reload().unwrap_err();
        assert!(error.contains("this is not a regular file"), "{error}");
    }
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    assert_eq!(get(world.eu().http, "/profile/me", &[("x-forwarded-for", "91.64.0.1")]).text(), "eu-west");
}

/// Replaces the value in quotation marks that ends in `tail`.
fn replace_in(config: &Path, tail: &str, value: &Path) {
    let text = std::fs::read_to_string(config).unwrap();
    let end = text.find(tail).unwrap() + tail.len();
    let start = text[..end].rfind('"').unwrap() + 1;
    std::fs::write(config, format!("{}{}{}", &text[..start], value.display(), &text[end..])).unwrap();
}

#[test]
fn a_ledger_that_hangs_holds_up_only_what_needs_a_line() {
    let world = World::start();
    let file = world.folder.path().join("ledger-us-east/ledger.jsonl");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    assert_eq!(world.eu().upstream().seen().len(), 1);
    // The writer waits for this lock as it would wait for a disk that does not respond.
    let held = std::fs::File::open(&file).unwrap();
    held.lock().unwrap();
    let waiting = runtime().spawn(try_send(world.us().http, Method::GET, "/users/alice/orders/2", &[], whole("")));
    let answer = get(world.us().http, "/users/bob/orders/1", &[]);
    assert_eq!(answer.text(), "us-east", "a request at home needs no line");
    assert_eq!(post(world.us().http, "/users/bob/orders/1", &[], "x").text(), "us-east");
    let waited = runtime().block_on(async { tokio::time::timeout(TIMEOUT, waiting).await });
    let answer = waited.expect("the ledger is not waited for without end").unwrap().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "ledger.unavailable"));
    assert_eq!(world.eu().upstream().seen().len(), 1, "the owner has not seen the request without a line");
    assert!(world.us().sum_of("domicile_ledger_failures_total") >= 1.0);
    held.unlock().unwrap();
    eventually("the ledger works again", || get(world.us().http, "/users/alice/orders/3", &[]).status == StatusCode::OK);
}

#[test]
fn a_line_that_a_crash_cut_off_is_removed_at_the_start() {
    let mut world = World::prepare(&Plan::default());
    let folder = world.folder.path().join("ledger-us-east");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ledger.jsonl"), "{\"what\":\"cut o").unwrap();
    std::fs::write(folder.join("pseudonym.key"), "0".repeat(64)).unwrap();
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    world.wait_until_measured();
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    let lines: Vec<_> = world.us().ledger(&world).iter().map(|line| line["what"].as_str().unwrap().to_owned()).collect();
    assert_eq!(lines, ["request"], "every line is whole");
    let text = std::fs::read_to_string(folder.join("ledger.jsonl")).unwrap();
    assert!(text.lines().next().unwrap().contains("14 bytes of an incomplete line removed"), "{text}");
}

#[test]
fn a_ledger_whose_writer_has_died_refuses_every_line() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = domicile::audit::Settings { directory: scratch.path().into(), region: "eu-west".into() };
    // The callbacks run in the writer's thread.
    let tally = Tally { lines: Arc::new(|_| panic!("the writer has a bug")), failures: Arc::new(|| ()) };
    let ledger = Ledger::open(&settings, tally, false).unwrap();
    let movement = Movement {
        request: "1",
        direction: Direction::Request,
        from: "us-east",
        to: "eu-west",
        route: "orders",
        classes: vec!["personal"],
        user: None,
        jurisdiction: "eu",
        evidence: Some("recorded"),
        grounds: vec![],
        reported: false,
        rules: Vec::new(),
        policy: PolicyHash::default(),
    };
    for _ in 0..3 {
        let error = runtime().block_on(ledger.record(&movement)).unwrap_err().to_string();
        assert!(error.contains("the writer thread has ended"), "{error}");
    }
}

/// The server that us-east reaches at the gateway address of eu-west.
#[derive(Clone, Copy)]
pub enum Relay {
    /// Accepts connections and sends nothing.
    Silent,
    Garbage,
    /// Passes bytes on until it is told to break every connection.
    Through(SocketAddr),
    /// Passes bytes on until it is told to freeze. Then its connections stay open, and nothing passes.
    Freezing(SocketAddr),
}

/// A world in which us-east reaches eu-west by a relay; `cut` breaks the relay's connections.
pub fn behind_a_relay(relay: Relay, plan: &Plan) -> (World, Arc<tokio::sync::Notify>) {
    let mut world = World::prepare(plan);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = world.us().config.clone();
    let text = std::fs::read_to_string(&config).unwrap();
    let gateway = format!("gateway: \"https://{}\"", world.eu().peers);
    assert!(text.contains(&gateway));
    std::fs::write(&config, text.replace(&gateway, &format!("gateway: \"https://{address}\""))).unwrap();
    let relay = match relay {
        Relay::Through(_) => Relay::Through(world.eu().peers),
        Relay::Freezing(_) => Relay::Freezing(world.eu().peers),
        relay => relay,
    };
    let cut = Arc::new(tokio::sync::Notify::new());
    runtime().spawn(accept(listener, relay, Arc::clone(&cut)));
    for index in 0..world.regions.len() {
        world.start_region(index).unwrap();
    }
    (world, cut)
}

async fn accept(listener: std::net::TcpListener, relay: Relay, cut: Arc<tokio::sync::Notify>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let is_frozen = Arc::new(std::sync::atomic::AtomicBool::new(false));
    while let Ok((mut near, _)) = listener.accept().await {
        let (cut, is_frozen) = (Arc::clone(&cut), Arc::clone(&is_frozen));
        tokio::spawn(async move {
            match relay {
                Relay::Silent => std::future::pending().await,
                Relay::Garbage => {
                    let _ = near.write_all(&[0xff; 4096]).await;
                }
                Relay::Freezing(address) if !is_frozen.load(std::sync::atomic::Ordering::SeqCst) => {
                    let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => {
                            is_frozen.store(true, std::sync::atomic::Ordering::SeqCst);
                            std::future::pending().await
                        }
                    }
                }
                Relay::Freezing(_) => std::future::pending().await,
                Relay::Through(address) => {
                    let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = cut.notified() => {}
                    }
                }
            }
        });
    }
}

#[test]
fn a_peer_that_hangs_holds_up_only_its_own_users() {
    let rules = RULES.replace("latency: { every: 50ms, timeout: 5s,", "latency: { every: 50ms, timeout: 200ms,");
    let plan = Plan { rules: [("us-east", rules)].into(), ..Plan::default() };
    let (world, _) = behind_a_relay(Relay::Silent, &plan);
    world.us().wait_for_health("eu-west", "down");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).code(), "failover.all_down");
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east");
    assert_eq!(get(world.us().http, "/feed/1", &[]).text(), "us-east");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_peer_that_sends_garbage_gets_no_request() {
    let (world, _) = behind_a_relay(Relay::Garbage, &Plan::default());
    world.us().wait_for_health("eu-west", "down");
    assert_eq!(get(world.us().http, "/users/alice/orders/1", &[]).code(), "failover.all_down");
    assert_eq!(get(world.us().http, "/users/bob/orders/1", &[]).text(), "us-east");
    world.eu().upstream().assert_no_requests();
}

#[test]
fn a_peer_that_dies_within_a_response_ends_it_as_incomplete() {
    let plan = Plan { upstreams: Box::new(|_| vec![crate::support::Recorder::with(Arc::new(half))]), ..Plan::default() };
    let (world, cut) = behind_a_relay(Relay::Through(([127, 0, 0, 1], 0).into()), &plan);
    world.wait_until_measured();
    runtime().block_on(async {
        let stream = tokio::net::TcpStream::connect(world.us().http).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let ask = crate::support::request(Method::GET, "/users/alice/orders/1", "app.example.com", &[], whole(""));
        let mut answer = sender.send_request(ask).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let frame = http_body_util::BodyExt::frame(answer.body_mut()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "half");
        cut.notify_waiters();
        let rest = tokio::time::timeout(TIMEOUT, http_body_util::BodyExt::frame(answer.body_mut())).await.unwrap();
        assert!(rest.is_some_and(|rest| rest.is_err()), "the response does not end as if it were complete");
    });
    assert_eq!(get(world.us().http, "/users/bob/profile", &[]).status, StatusCode::FORBIDDEN, "the proxy goes on");
}

/// A response of unknown length that does not end.
fn half(
    _: http::Request<hyper::body::Incoming>,
    _: Arc<std::sync::Mutex<Vec<crate::support::RecordedRequest>>>,
) -> crate::support::Reply {
    let (sender, body) = crate::support::pieces();
    sender.send(hyper::body::Frame::data("half".into())).unwrap();
    runtime().spawn(async move { sender.closed().await });
    Box::pin(async move { http::Response::new(body) })
}

#[test]
fn a_geoip_database_that_is_gone_at_a_reload_stays_in_use() {
    let world = World::start();
    let own = world.folder.path().join("own.mmdb");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb"), &own).unwrap();
    replace_in(&world.eu().config, "geoip/country.mmdb", &own);
    world.eu().reload().unwrap();
    std::fs::remove_file(&own).unwrap();
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("the previous GeoIP database is kept"), "{error}");
    assert_eq!(get(world.eu().http, "/profile/me", &[("x-forwarded-for", "91.64.0.1")]).text(), "eu-west");
}

#[test]
fn a_damaged_geoip_database_never_panics() {
    let whole =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/geoip/GeoLite2-Country-Test.mmdb")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("damaged.mmdb");
    let (mut random, mut opened) = (fastrand::Rng::with_seed(7), 0);
    for _ in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        std::fs::write(&file, bytes).unwrap();
        if let Ok(geoip) = GeoIp::open(&file) {
            opened += 1;
            for octet in 0..=255 {
                let _ = geoip.place([octet, 2, 69, 142].into());
            }
        }
    }
    assert!((1..300).contains(&opened), "some damage is harmless, some is not: {opened}");
}

/// The rules of the scenarios, with a transfer of American data to Europe that ends on a day.
fn transfer_until(day: &str) -> String {
    assert!(RULES.contains("until: 2099-12-31"));
    RULES.replace("until: 2099-12-31", &format!("until: {day}"))
}

/// Whether eu-west may serve bob's reads while his home is down: only under the transfer.
fn is_transferred(rules: &str, now: SystemTime) -> bool {
    let directory = |policy: &Policy| {
        let home = policy.find_region("us-east").unwrap();
        scripted(move |_| Box::pin(async move { Answer::Found(Record { home, jurisdiction: None }) }))
    };
    let mut engine = Engine::new(rules, directory, now);
    let home = engine.moment.policy().find_region("us-east").unwrap();
    engine.vitals.set(home, RegionVitals { health: Health::Down, ..RegionVitals::default() });
    paused(engine.judge("/users/bob/orders/1", "bob")).refusal().is_none()
}

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_clock_that_is_behind_the_geoip_database_counts_as_its_day() {
    let built = GeoIp::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("geoip/country.mmdb")).unwrap().built();
    let (before, after) = (Day::of(built - 30 * DAY).to_string(), Day::of(built + 30 * DAY).to_string());
    for clock in [UNIX_EPOCH - DAY, UNIX_EPOCH, UNIX_EPOCH + DAY] {
        assert!(!is_transferred(&transfer_until(&before), clock), "a transfer that had ended is not revived");
        assert!(is_transferred(&transfer_until(&after), clock));
    }
}

#[test]
fn a_clock_that_jumps_ahead_ends_transfers() {
    let rules = transfer_until(&Day::of(SystemTime::now() + 30 * DAY).to_string());
    assert!(is_transferred(&rules, SystemTime::now()));
    assert!(!is_transferred(&rules, SystemTime::now() + 36_500 * DAY));
}

#[test]
fn a_clock_that_stands_still_changes_nothing_and_stops_no_deadline() {
    let engine = Engine::new(RULES, |_| scripted(|_| Box::pin(std::future::pending())), SystemTime::now());
    let now = SystemTime::now();
    let (first, second) =
        (Moment::live(Arc::clone(&engine.moment.snapshot), now), Moment::live(Arc::clone(&engine.moment.snapshot), now));
    assert!(first.is_same(&second), "nothing that is open is judged again");
    // Deadlines are measured by the monotonic clock.
    let started = Instant::now();
    assert_eq!(paused(engine.judge("/account/1", "alice")).refusal(), Some(Code::DirectoryUnavailable));
    assert!(started.elapsed() < TIMEOUT);
}

#[test]
fn the_most_extreme_times_neither_panic_nor_revive_a_transfer() {
    let latest = (0..63).rev().find_map(|bit| UNIX_EPOCH.checked_add(Duration::from_secs((1 << bit) - 1 + (1 << bit)))).unwrap();
    let rules = transfer_until("2099-12-31");
    for days in [1 << 31, (1 << 31) + 20_000, 1 << 32, (1 << 32) + 20_000, u64::from(u32::MAX) * 3] {
        let now = UNIX_EPOCH + Duration::from_secs(days * 86_400);
        assert!(!is_transferred(&rules, now), "{days} days");
        assert!(!Day::of(now).to_string().is_empty());
    }
    assert!(!is_transferred(&rules, latest));
}

#[test]
fn a_pseudonym_key_that_cannot_be_written_refuses_the_start() {
    let mut world = World::prepare(&Plan::default());
    let folder = world.folder.path().join("ledger-us-east");
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/proc/domicile/pseudonym.key", folder.join("pseudonym.key")).unwrap();
    let error = world.start_region(1).unwrap_err().to_string();
    assert!(error.contains("cannot create the pseudonym key"), "{error}");
}

#[test]
fn a_configuration_that_was_cut_off_changes_nothing() {
    let world = World::start();
    let config = &world.eu().config;
    let whole = std::fs::read(config).unwrap();
    for part in 1..12 {
        let mut file = std::fs::File::create(config).unwrap();
        file.write_all(&whole[..whole.len() * part / 12]).unwrap();
        file.sync_all().unwrap();
        assert!(world.eu().reload().is_err(), "{part}/12 of the file");
    }
    assert_eq!(get(world.eu().http, "/users/alice/orders/1", &[]).text(), "eu-west");
    assert_eq!(get(world.eu().http, "/account/1", &[("x-user-id", "bob")]).status, StatusCode::TEMPORARY_REDIRECT);
}
