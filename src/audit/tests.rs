use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

fn tally() -> (Tally, Arc<AtomicU64>) {
    let failures = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&failures);
    let tally = Tally {
        lines: Arc::new(|_| ()),
        failures: Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }),
    };
    (tally, failures)
}

fn movement() -> Movement<'static> {
    Movement {
        request: "r1",
        direction: Direction::Request,
        from: "us-east",
        to: "eu-west",
        route: "orders",
        classes: vec!["personal"],
        user: Some("p".into()),
        jurisdiction: "eu",
        evidence: Some("recorded"),
        bases: vec![],
        reported: false,
        policy: PolicyHash::default(),
    }
}

use crate::model::vitals::PolicyHash;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

#[test]
fn a_line_is_in_the_file_when_recording_it_returns() {
    let scratch = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&Settings { directory: scratch.path().join("new/ledger") }, tally().0, false).unwrap();
    for lines in 1..=3 {
        block_on(ledger.record(&movement())).unwrap();
        let text = std::fs::read_to_string(scratch.path().join("new/ledger/ledger.jsonl")).unwrap();
        assert_eq!(text.lines().count(), lines);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((&line["from"], &line["to"], &line["user"]), (&"us-east".into(), &"eu-west".into(), &"p".into()));
    }
}

#[test]
fn lines_of_one_worker_are_written_together_and_each_is_acknowledged() {
    let scratch = tempfile::tempdir().unwrap();
    let batches = Arc::new(Mutex::new(Vec::new()));
    let counted = Arc::clone(&batches);
    let tally = Tally { lines: Arc::new(move |lines| counted.lock().unwrap().push(lines)), ..tally().0 };
    let ledger = Ledger::open(&Settings { directory: scratch.path().into() }, tally, false).unwrap();
    let ledger = WorkerLedger::of(ledger);
    let text = || std::fs::read_to_string(scratch.path().join("ledger.jsonl")).unwrap();
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        let movement = movement();
        let all = tokio::join!(ledger.record(&movement), ledger.record(&movement), ledger.record(&movement));
        assert!(matches!(all, (Ok(()), Ok(()), Ok(()))));
        assert_eq!(text().lines().count(), 3);
        // Lines that arrive later have a batch of their own.
        ledger.record(&movement).await.unwrap();
        assert_eq!(text().lines().count(), 4);
    });
    assert_eq!(*batches.lock().unwrap(), [3, 1]);
}

#[test]
fn no_more_lines_wait_than_the_queue_holds() {
    let scratch = tempfile::tempdir().unwrap();
    let (tally, failures) = tally();
    let ledger = Ledger::open(&Settings { directory: scratch.path().into() }, tally, false).unwrap();
    let lines = QUEUE + 1;
    let error = block_on(ledger.write("{}\n".repeat(lines), lines)).unwrap_err().to_string();
    assert!(error.contains("the queue is full") && error.contains("free space"), "{error}");
    assert_eq!(failures.load(Ordering::Relaxed), lines as u64);
    for _ in 0..2 {
        block_on(ledger.write("{}\n".repeat(QUEUE), QUEUE)).expect("refused and written lines no longer wait");
    }
}

#[test]
fn lines_of_a_worker_fail_together_on_a_full_disk() {
    let scratch = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", scratch.path().join("ledger.jsonl")).unwrap();
    let (tally, failures) = tally();
    let ledger = WorkerLedger::of(Ledger::open(&Settings { directory: scratch.path().into() }, tally, false).unwrap());
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        let movement = movement();
        let both = tokio::join!(ledger.record(&movement), ledger.record(&movement));
        assert!(matches!(both, (Err(_), Err(_))));
        assert!(ledger.record(&movement).await.is_err(), "the next line is tried again");
    });
    assert_eq!(failures.load(Ordering::Relaxed), 3);
}

#[test]
fn a_torn_last_line_is_cut_off_and_whole_lines_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("ledger.jsonl");
    std::fs::write(&file, format!("{{\"whole\":1}}\n{}", "x".repeat(9000))).unwrap();
    let ledger = Ledger::open(&Settings { directory: scratch.path().into() }, tally().0, false).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("{\"whole\":1}\n{\"bases\""), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn a_ledger_that_is_moved_away_goes_on_in_a_new_file_of_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&Settings { directory: scratch.path().join("l") }, tally().0, false).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    std::fs::rename(scratch.path().join("l/ledger.jsonl"), scratch.path().join("l/ledger.1")).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    std::fs::remove_dir_all(scratch.path().join("l")).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    let text = std::fs::read_to_string(scratch.path().join("l/ledger.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn two_processes_do_not_share_a_ledger() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into() };
    let _first = Ledger::open(&settings, tally().0, false).unwrap();
    let error = Ledger::open(&settings, tally().0, false).err().unwrap().to_string();
    assert!(error.contains("give each region a directory of its own"), "{error}");
}

#[test]
fn a_full_disk_is_an_error_and_is_counted() {
    let scratch = tempfile::tempdir().unwrap();
    // `/dev/full` fails every write as a full disk does.
    std::os::unix::fs::symlink("/dev/full", scratch.path().join("ledger.jsonl")).unwrap();
    let (tally, failures) = tally();
    let ledger = Ledger::open(&Settings { directory: scratch.path().into() }, tally, false).unwrap();
    let error = block_on(ledger.record(&movement())).unwrap_err().to_string();
    assert!(error.contains("No space left") && error.contains("free space"), "{error}");
    assert_eq!(failures.load(Ordering::Relaxed), 1);
}

#[test]
fn a_pseudonym_is_stable_under_its_key_and_differs_under_another() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("pseudonym.key");
    let first = Pseudonyms::open(&file).unwrap().of("alice");
    assert_eq!(Pseudonyms::open(&file).unwrap().of("alice"), first);
    assert_ne!(Pseudonyms::ephemeral().of("alice"), first);
    assert_eq!(first.len(), 32);
    std::fs::write(&file, "short").unwrap();
    assert!(Pseudonyms::open(&file).is_err());
}
