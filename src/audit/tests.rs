use std::sync::atomic::{AtomicU64, Ordering};

use super::reading::verify;
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
        grounds: vec![],
        reported: false,
        rules: vec!["personal.stays".into()],
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
    let ledger =
        Ledger::open(&Settings { directory: scratch.path().join("new/ledger"), region: "eu-west".into() }, tally().0, false)
            .unwrap();
    for lines in 1..=3 {
        block_on(ledger.record(&movement())).unwrap();
        let text = std::fs::read_to_string(scratch.path().join("new/ledger/ledger.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 1 + lines, "the start of the process, and the movements");
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
    let ledger = Ledger::open(&Settings { directory: scratch.path().into(), region: "eu-west".into() }, tally, false).unwrap();
    let ledger = WorkerLedger::of(ledger);
    let text = || std::fs::read_to_string(scratch.path().join("ledger.jsonl")).unwrap();
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        let movement = movement();
        let all = tokio::join!(ledger.record(&movement), ledger.record(&movement), ledger.record(&movement));
        assert!(matches!(all, (Ok(()), Ok(()), Ok(()))));
        assert_eq!(text().lines().count(), 1 + 3);
        // Lines that arrive later have a batch of their own.
        ledger.record(&movement).await.unwrap();
        assert_eq!(text().lines().count(), 1 + 4);
    });
    assert_eq!(*batches.lock().unwrap(), [3, 1]);
}

fn settlement() -> Settlement<'static> {
    Settlement {
        request: "r1",
        movements: 1,
        outcome: Outcome::Answered,
        code: None,
        status: Some(200),
        served_by: Some("eu-west"),
        sent_to: None,
        request_bytes: 7,
        response_bytes: 9,
    }
}

#[test]
fn settlements_go_with_the_next_movement_and_are_not_lost_at_the_end() {
    let scratch = tempfile::tempdir().unwrap();
    let batches = Arc::new(Mutex::new(Vec::new()));
    let counted = Arc::clone(&batches);
    let tally = Tally { lines: Arc::new(move |lines| counted.lock().unwrap().push(lines)), ..tally().0 };
    let ledger = Ledger::open(&Settings { directory: scratch.path().into(), region: "eu-west".into() }, tally, false).unwrap();
    let ledger = WorkerLedger::of(ledger);
    let kinds = || {
        let text = std::fs::read_to_string(scratch.path().join("ledger.jsonl")).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        ledger.record(&movement()).await.unwrap();
        ledger.settle(&settlement());
        ledger.record(&movement()).await.unwrap();
        assert_eq!(kinds(), ["process", "movement", "settlement", "movement"]);
        ledger.settle(&settlement());
        ledger.hand_over();
        while kinds().len() < 5 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        ledger.settle(&settlement());
        ledger.flush().await;
        assert_eq!(kinds().len(), 6);
        ledger.flush().await;
    });
    assert_eq!(*batches.lock().unwrap(), [1, 2, 1, 1], "one sync for a settlement and the next movement");
    let text = std::fs::read_to_string(scratch.path().join("ledger.jsonl")).unwrap();
    let line = text.lines().last().unwrap();
    let fields = &line[line.find("\"code\"").unwrap()..line.find("\"time\"").unwrap()];
    let expected = r#""code":null,"kind":"settlement","movements":1,"outcome":"answered","request":"r1","request_bytes":7,"response_bytes":9,"sent_to":null,"served_by":"eu-west","status":200,"#;
    assert_eq!(fields, expected, "canonical: sorted keys, no spaces");
}

#[test]
fn settlements_wait_until_the_ledger_can_be_written_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, aside) = (scratch.path().join("ledger"), scratch.path().join("aside"));
    let settings = Settings { directory: folder.clone(), region: "eu-west".into() };
    let ledger = WorkerLedger::of(Ledger::open(&settings, tally().0, false).unwrap());
    let file = folder.join("ledger.jsonl");
    tokio::runtime::LocalRuntime::new().unwrap().block_on(async {
        // Nothing can be written where the folder was.
        std::fs::rename(&folder, &aside).unwrap();
        std::fs::write(&folder, "").unwrap();
        ledger.settle(&settlement());
        ledger.flush().await;
        std::fs::remove_file(&folder).unwrap();
        std::fs::rename(&aside, &folder).unwrap();
        ledger.record(&movement()).await.unwrap();
    });
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.matches("\"kind\":\"settlement\"").count(), 1, "{text}");
}

#[test]
fn no_more_lines_wait_than_the_queue_holds() {
    let scratch = tempfile::tempdir().unwrap();
    let (tally, failures) = tally();
    let ledger = Ledger::open(&Settings { directory: scratch.path().into(), region: "eu-west".into() }, tally, false).unwrap();
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
    let (tally, failures) = tally();
    let ledger = WorkerLedger::of(on_a_full_disk(scratch.path(), tally));
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
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let written = finished(&settings, 2);
    let file = scratch.path().join("ledger.jsonl");
    std::fs::write(&file, format!("{written}{}", "x".repeat(9000))).unwrap();
    let text = finished(&settings, 1);
    assert!(text.starts_with(&written), "{text}");
    assert!(text.contains("9000 bytes of an incomplete line removed"), "{text}");
    let verified = verify::verify(&[file], &everything()).unwrap();
    assert_eq!((verified.epochs, verified.unsigned, verified.lines), (2, 0, text.lines().count() as u64));
}

#[test]
fn a_line_that_another_process_left_torn_is_cut_off_as_well() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let ledger = Ledger::open(&settings, tally().0, false).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    // A predecessor is killed while it writes.
    let file = scratch.path().join("ledger.jsonl");
    let mut torn = File::options().append(true).open(&file).unwrap();
    std::io::Write::write_all(&mut torn, b"{\"chain\":{\"epoch\":\"2026").unwrap();
    block_on(ledger.record(&movement())).unwrap();
    ledger.close();
    let verified = verify::verify(&[file], &everything()).unwrap();
    assert_eq!(verified.lines, 5, "start, two movements, end, checkpoint");
}

/// A ledger whose file fails every write, as on a full disk.
fn on_a_full_disk(directory: &Path, tally: Tally) -> Ledger {
    let settings = Settings { directory: directory.into(), region: "eu-west".into() };
    let ledger = Ledger::open(&settings, tally, false).unwrap();
    std::fs::remove_file(directory.join("ledger.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/full", directory.join("ledger.jsonl")).unwrap();
    ledger
}

/// The text of a ledger after a process has written some movements and has ended.
fn finished(settings: &Settings, movements: usize) -> String {
    let ledger = Ledger::open(settings, tally().0, false).unwrap();
    (0..movements).for_each(|_| block_on(ledger.record(&movement())).unwrap());
    ledger.close();
    std::fs::read_to_string(settings.directory.join("ledger.jsonl")).unwrap()
}

/// A whole ledger, signed by anybody.
fn everything() -> verify::Expected {
    verify::Expected { after: Some(Hash::BEGINNING), key: None, noted: Vec::new() }
}

/// The faults that are found in a ledger with this text.
fn fault(text: &str, expected: &verify::Expected) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("ledger.jsonl");
    std::fs::write(&file, text).unwrap();
    verify::verify(&[file], expected).unwrap_err().to_string()
}

#[test]
fn each_attack_on_the_ledger_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let text = finished(&settings, 5);
    let lines: Vec<&str> = text.lines().collect();
    let of = |lines: &[&str]| lines.join("\n") + "\n";
    let all = everything();
    let kinds =
        lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].as_str().unwrap().to_owned());
    let movements = ["movement"; 5];
    assert_eq!(kinds.collect::<Vec<_>>(), [&["process"], &movements[..], &["process", "checkpoint"]].concat());
    let changed = text.replacen("\"route\":\"orders\"", "\"route\":\"public\"", 1);
    assert!(fault(&changed, &all).contains("line 2: this line was changed"), "{}", fault(&changed, &all));
    let removed = of(&[&lines[..3], &lines[4..]].concat());
    assert!(fault(&removed, &all).contains("line 4: lines are missing before this one"), "{}", fault(&removed, &all));
    let doubled = of(&[&lines[..4], &lines[3..]].concat());
    assert!(fault(&doubled, &all).contains("line 5: this line was inserted or moved"), "{}", fault(&doubled, &all));
    let moved = of(&[lines[0], lines[2], lines[1], lines[3]]);
    assert!(fault(&moved, &all).contains("line 2: lines are missing before this one"), "{}", fault(&moved, &all));
    assert!(fault(&of(&lines[1..]), &all).contains("line 1: the beginning of the ledger is missing"));
    assert!(fault("{\"kind\":\"movement\"}\n", &all).contains("line 1: this line does not begin with its place"));
    assert!(fault(text.trim_end(), &all).contains("line 8: this line is torn"));
    // Cut off at the end, or an old copy put back: only a hash that was noted elsewhere shows it.
    let noted = verify::Expected { noted: vec![Hash::of(lines[7].as_bytes())], ..everything() };
    assert!(fault(&of(&lines[..5]), &noted).contains("the ledger was cut off or rewritten after that hash was noted"));
    // Rewritten by somebody without the key.
    let other = tempfile::tempdir().unwrap();
    let forged = finished(&Settings { directory: other.path().into(), region: "eu-west".into() }, 4);
    let pem = std::fs::read_to_string(scratch.path().join("signing.key")).unwrap();
    let key = Signer::open(&settings.directory.join("signing.key"), "eu-west", false).unwrap().public_key();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    let signed = verify::Expected { key: Some(key), ..everything() };
    assert!(fault(&forged, &signed).contains("line 7: this checkpoint is signed with the key"), "{}", fault(&forged, &signed));
    // A checkpoint whose region was changed, with the chain as it was.
    let renamed = text.replace("\"region\":\"eu-west\"", "\"region\":\"us-east\"");
    assert!(fault(&renamed, &all).contains("line 8: the signature of this checkpoint is wrong"));
    // Lines that the process itself lost.
    let chain = chain::Chain { epoch: "e".into(), number: 0, head: Hash::BEGINNING };
    let (first, after) = chain.extend("{\"kind\":\"x\"}");
    let (third, _) = chain::Chain { number: 2, ..after }.extend("{\"kind\":\"x\"}");
    assert!(fault(&(first + &third), &all).contains("line 2: this line has the number 3 after 1: the process lost lines"));
}

#[test]
fn a_changed_ledger_and_a_missing_key_stop_the_start() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let text = finished(&settings, 3);
    let file = scratch.path().join("ledger.jsonl");
    std::fs::write(&file, text.replacen("eu-west", "us-east", 1)).unwrap();
    let error = Ledger::open(&settings, tally().0, false).err().unwrap().to_string();
    assert!(error.contains("line 2: this line was changed") && error.contains("move all files of the ledger away"), "{error}");
    std::fs::write(&file, &text).unwrap();
    std::fs::rename(scratch.path().join("signing.key"), scratch.path().join("lost.key")).unwrap();
    let error = Ledger::open(&settings, tally().0, false).err().unwrap().to_string();
    assert!(error.contains("the key that signed this ledger is missing"), "{error}");
    assert!(!scratch.path().join("signing.key").exists(), "no silent new key");
}

#[test]
fn a_large_file_is_rotated_and_its_end_is_signed() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let text = finished(&settings, 1);
    let head = Hash::of(text.lines().last().unwrap().as_bytes());
    let line = format!("{{\"kind\":\"x\",\"text\":\"{}\"}}\n", "x".repeat(1 << 20));
    let (more, _) = chain::Chain { epoch: "e".into(), number: 0, head }.extend(&line.repeat(64));
    std::fs::write(scratch.path().join("ledger.jsonl"), text + &more).unwrap();
    finished(&settings, 1);
    let files = verify::files_of(scratch.path()).unwrap();
    assert_eq!(files.len(), 2, "{files:?}");
    let rotated = verify::verify(&files[..1], &everything()).unwrap();
    assert_eq!((rotated.checkpoints, rotated.unsigned), (2, 0), "the end of the first process, and the end of the file");
    verify::verify(&files, &everything()).unwrap();
}

#[test]
fn the_chain_goes_on_across_files_and_processes() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    finished(&settings, 2);
    let file = scratch.path().join("ledger.jsonl");
    // The file of an earlier day is rotated at the next line.
    let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
    File::options().write(true).open(&file).unwrap().set_modified(yesterday).unwrap();
    finished(&settings, 2);
    let files = verify::files_of(scratch.path()).unwrap();
    assert_eq!(files.len(), 2, "{files:?}");
    // A predecessor and its successor write in turns.
    let predecessor = Ledger::open(&settings, tally().0, false).unwrap();
    predecessor.share(true);
    let successor = Ledger::open(&settings, tally().0, true).unwrap();
    for _ in 0..3 {
        block_on(predecessor.record(&movement())).unwrap();
        block_on(successor.record(&movement())).unwrap();
    }
    // One of them finds the file rotated by the other.
    std::fs::rename(&file, scratch.path().join("ledger-2999.jsonl")).unwrap();
    block_on(successor.record(&movement())).unwrap();
    block_on(predecessor.record(&movement())).unwrap();
    let verified = verify::verify(&verify::files_of(scratch.path()).unwrap(), &everything()).unwrap();
    assert_eq!(verified.epochs, 4);
    assert!(verified.checkpoints >= 3, "two ends and a rotation: {verified:?}");
    // The same without the first file.
    let rest = verify::files_of(scratch.path()).unwrap()[1..].to_vec();
    let error = verify::verify(&rest, &everything()).unwrap_err().to_string();
    assert!(error.contains("the beginning of the ledger is missing") && error.contains("`--after`"), "{error}");
    assert!(verify::verify(&rest, &verify::Expected { after: None, ..everything() }).is_ok());
}

#[test]
fn a_ledger_that_is_moved_away_goes_on_in_a_new_file_of_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let ledger =
        Ledger::open(&Settings { directory: scratch.path().join("l"), region: "eu-west".into() }, tally().0, false).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    std::fs::rename(scratch.path().join("l/ledger.jsonl"), scratch.path().join("l/ledger.1")).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    std::fs::remove_dir_all(scratch.path().join("l")).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    let text = std::fs::read_to_string(scratch.path().join("l/ledger.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 1);
    let place = chain::place_of(text.lines().next().unwrap()).unwrap();
    assert_eq!(place.number, 4, "the start and three movements: the chain goes on");
}

#[test]
fn two_processes_do_not_share_a_ledger() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let _first = Ledger::open(&settings, tally().0, false).unwrap();
    let error = Ledger::open(&settings, tally().0, false).err().unwrap().to_string();
    assert!(error.contains("give each region a directory of its own"), "{error}");
}

#[test]
fn a_full_disk_is_an_error_and_is_counted() {
    let scratch = tempfile::tempdir().unwrap();
    let (tally, failures) = tally();
    let ledger = on_a_full_disk(scratch.path(), tally);
    let error = block_on(ledger.record(&movement())).unwrap_err().to_string();
    assert!(error.contains("No space left") && error.contains("free space"), "{error}");
    assert_eq!(failures.load(Ordering::Relaxed), 1);
}

#[test]
fn a_pseudonym_is_stable_under_its_key_and_differs_under_another() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("pseudonym.key");
    let lost = Pseudonyms::open(&file, false).err().unwrap().to_string();
    assert!(lost.contains("restore it from a backup") && !file.exists(), "{lost}");
    let first = Pseudonyms::open(&file, true).unwrap().of("alice");
    assert_eq!(Pseudonyms::open(&file, false).unwrap().of("alice"), first);
    assert_ne!(Pseudonyms::ephemeral().of("alice"), first);
    assert_eq!(first.len(), 32);
    std::fs::write(&file, "short").unwrap();
    assert!(Pseudonyms::open(&file, true).is_err());
}

#[test]
fn a_clock_that_goes_back_does_not_change_the_order_of_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let file = scratch.path().join("ledger.jsonl");
    // Rotated while the clock was years ahead.
    finished(&settings, 2);
    std::fs::rename(&file, scratch.path().join("ledger-2999-01-01T00-00-00.000000Z.jsonl")).unwrap();
    for _ in 0..12 {
        finished(&settings, 1);
        let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
        File::options().write(true).open(&file).unwrap().set_modified(yesterday).unwrap();
    }
    let files = verify::files_of(scratch.path()).unwrap();
    assert_eq!(files.len(), 13, "{files:?}");
    let verified = verify::verify(&files, &everything()).unwrap();
    assert_eq!(verified.epochs, 13);
}

#[test]
fn a_signing_key_is_replaced_by_one_that_it_has_signed() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    let file = scratch.path().join("signing.key");
    let key = || Signer::open(&file, "eu-west", false).unwrap().public_key();
    let verify = |key| {
        let files = verify::files_of(scratch.path()).unwrap();
        verify::verify(&files, &verify::Expected { key, ..everything() })
    };
    finished(&settings, 1);
    let first = key();
    let ledger = Ledger::open(&settings, tally().0, false).unwrap();
    block_on(ledger.record(&movement())).unwrap();
    block_on(ledger.rotate_signing_key()).unwrap();
    let second = key();
    assert_ne!(first, second);
    assert_eq!(ledger.public_key().unwrap(), second.pem());
    // An auditor who noted either key can verify all lines.
    for noted in [first, second] {
        assert_eq!(verify(Some(noted)).unwrap().keys, [first, second]);
    }
    ledger.close();
    drop(ledger);
    finished(&settings, 1);
    assert_eq!(verify(None).unwrap().signer, Some(second));

    // A crash after the ledger has named the new key, and before its file is in place.
    let lost = scratch.path().join("signing.key.next");
    std::fs::rename(&file, &lost).unwrap();
    finished(&settings, 1);
    assert!(!lost.exists() && key() == second);
    // A crash before: the next key has no name in the ledger, and the old one stays.
    std::fs::copy(&file, scratch.path().join("kept")).unwrap();
    Signer::open(&lost, "eu-west", true).unwrap();
    finished(&settings, 1);
    assert_eq!(key(), second);
    // Another key, which no checkpoint names.
    std::fs::rename(&lost, &file).unwrap();
    let error = Ledger::open(&settings, tally().0, false).err().unwrap().to_string();
    assert!(error.contains("this is another key than") && error.contains("restore that key"), "{error}");
}

#[test]
fn a_key_that_the_one_before_it_has_not_signed_signs_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings { directory: scratch.path().into(), region: "eu-west".into() };
    finished(&settings, 1);
    let file = scratch.path().join("ledger.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let own = Signer::open(&scratch.path().join("signing.key"), "eu-west", false).unwrap();
    let thief = Signer::open(&scratch.path().join("thief.key"), "eu-west", true).unwrap();
    // A line that goes on from the end, as somebody without the key could write it.
    let chain = |text: &str| {
        let last = text.lines().last().unwrap();
        chain::Chain { epoch: "2026-11-28T05:00:00.000000Z".into(), number: 0, head: chain::Hash::of(last.as_bytes()) }
    };
    let forge = |text: &str, next: Option<PublicKey>, expected: Option<PublicKey>| {
        let end = chain(text);
        let (line, _) = end.extend(&record::checkpoint_line(&thief, end.head, next));
        std::fs::write(&file, format!("{text}{line}")).unwrap();
        verify::verify(std::slice::from_ref(&file), &verify::Expected { key: expected, ..everything() })
    };
    let error = forge(&text, None, None).unwrap_err().to_string();
    assert!(error.contains(&format!("signed with the key {} instead of {}", thief.public_key(), own.public_key())), "{error}");
    // A whole ledger of the thief's own that only names the true key.
    let error = forge(
        text.lines().next().map(|line| format!("{line}\n")).as_deref().unwrap(),
        Some(own.public_key()),
        Some(own.public_key()),
    );
    assert!(error.unwrap_err().to_string().contains("has signed no checkpoint"));
}

/// The vectors were written without this program, by a script with the hash, HMAC and signature functions of OpenSSL.
#[test]
fn the_test_vectors_verify_and_our_lines_equal_theirs_byte_for_byte() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ledger");
    let key = PublicKey::from_pem(&std::fs::read_to_string(folder.join("signing.pub")).unwrap()).unwrap();
    let verified =
        verify::verify(&verify::files_of(&folder).unwrap(), &verify::Expected { key: Some(key), ..everything() }).unwrap();
    assert_eq!((verified.lines, verified.checkpoints, verified.unsigned, verified.epochs), (5, 1, 0, 1));
    let head = "ee499f4159f842cfbae03602bb0761836ec73b38db998ff8777ae8a93371763a";
    assert_eq!(verified.head.unwrap().to_string(), head);
    let user = Pseudonyms::open(&folder.join("pseudonym.key"), false).unwrap().of("alice");
    assert_eq!(user, "6eefad2bed97b6d93ee663d67a44b460");

    let text = std::fs::read_to_string(folder.join("ledger.jsonl")).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let movement = Movement {
        request: "f0ac41f7580d688e6a8f1a92d277ac06",
        jurisdiction: "us",
        grounds: vec![Grounds { basis: "contract", record: Some("SCC 2026-14") }],
        rules: vec!["personal.transfers".into()],
        user: Some(user),
        policy: PolicyHash([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        ..movement()
    };
    let settlement = Settlement { request: "f0ac41f7580d688e6a8f1a92d277ac06", sent_to: Some("eu-west"), ..settlement() };
    for (index, written) in [(1, movement.line()), (2, settlement.line())] {
        let place = chain::place_of(lines[index]).unwrap();
        let before = chain::Chain { epoch: place.epoch.into(), number: place.number - 1, head: place.previous };
        // Only the time is that of this moment.
        let time = |line: &str| line.split("\"time\":\"").nth(1).unwrap()[..27].to_owned();
        let (line, _) = before.extend(&written.replace(&time(&written), &time(lines[index])));
        assert_eq!(line.trim_end(), lines[index]);
    }
}
