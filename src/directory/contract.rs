//! The promises of every backend, tested on each.

use std::io::Write;

use super::{Answer, Directory, Settings};
use crate::model::region::{RegionId, Registry};
use crate::model::user::Record;

fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.regions.number("eu-west");
    registry.regions.number("us-east");
    registry.jurisdictions.number("eu");
    registry
}

fn open(ending: &str, text: &str) -> Result<Directory, String> {
    let mut file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Directory::open(&Settings { file: file.path().into(), max_loss: 10, stale_after: None }, &registry())
        .map_err(|error| error.to_string())
}

fn find(table: &Directory, key: &str) -> Option<Record> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    match runtime.block_on(table.find(key)) {
        Answer::Found(record) => Some(record),
        Answer::Absent => None,
        Answer::Unavailable => panic!("a table that is open is available"),
    }
}

/// The same table in every form a backend takes.
fn tables() -> [Directory; 2] {
    let csv = "user,home,jurisdiction\nalice,eu-west,\n# a remark\nbob@example.com, us-east , eu\n\"c,d\",us-east,\n";
    let yaml = "alice: eu-west\nbob@example.com: { home: us-east, jurisdiction: eu }\n\"c,d\": us-east\n";
    [open(".csv", csv).unwrap(), open(".yaml", yaml).unwrap()]
}

#[test]
fn a_recorded_user_is_found_and_a_stranger_is_absent() {
    for table in tables() {
        let home = |key: &str| find(&table, key).map(|record| record.home);
        assert_eq!(home("alice"), RegionId::new(0));
        assert_eq!(home("c,d"), RegionId::new(1));
        assert_eq!(home("carol"), None);
        assert_eq!(home("Alice"), None, "keys are compared as they are");
        assert_eq!(table.len(), 3);
    }
}

#[test]
fn a_key_may_begin_with_the_sign_of_a_remark() {
    let table = open(".csv", "user,home\n#alice,eu-west\n# alice,us-east\n\"#bob\",us-east\n").unwrap();
    assert_eq!(find(&table, "#alice").unwrap().home, RegionId::new(0).unwrap());
    assert_eq!(find(&table, "#bob").unwrap().home, RegionId::new(1).unwrap());
    assert_eq!(table.len(), 2, "the line with a blank behind the sign is a remark");
}

#[test]
fn a_table_that_lost_too_many_users_needs_a_confirmation() {
    let settings = Settings { file: "users.csv".into(), max_loss: 10, stale_after: None };
    // Users with these numbers. A table from a file has one user at least.
    let table = |numbers: std::ops::Range<usize>| {
        open(".csv", &numbers.fold("user,home\n".to_owned(), |text, number| format!("{text}u{number},eu-west\n"))).unwrap()
    };
    let hundred = table(0..100);
    for (after, is_fine) in [(0..90, true), (0..89, false), (0..200, true), (10..110, true), (60..160, false), (100..200, false)]
    {
        assert_eq!(settings.check_loss(&hundred, &table(after.clone())).is_ok(), is_fine, "0..100 to {after:?}");
    }
    assert!(settings.check_loss(&table(0..10), &table(0..9)).is_ok() && settings.check_loss(&table(0..3), &table(0..2)).is_err());
    let error = settings.check_loss(&hundred, &table(50..100)).unwrap_err().to_string();
    assert!(error.contains("has 50 users and had 100, of whom 50 are missing") && error.contains("--accept-loss"), "{error}");
    let anything = Settings { max_loss: 100, ..settings };
    assert!(anything.check_loss(&hundred, &table(0..1)).is_ok());
    assert!(anything.check_loss(&hundred, &table(200..300)).is_err(), "losing all is never a matter of share");
}

#[test]
fn the_jurisdiction_column_is_kept_where_it_is_filled() {
    for table in tables() {
        assert_eq!(find(&table, "alice").unwrap().jurisdiction, None);
        assert_eq!(find(&table, "bob@example.com").unwrap().jurisdiction.unwrap().index(), 0);
    }
}

#[test]
fn a_table_that_says_something_else_has_another_version() {
    let version = |text: &str| open(".csv", text).unwrap().version();
    let table = "user,home\nalice,eu-west\n";
    assert_eq!(version(table), version(table));
    for other in
        ["user,home\nalice,us-east\n", "user,home\nalice,eu-west\nbob,eu-west\n", "user,home,jurisdiction\nalice,eu-west,eu\n"]
    {
        assert_ne!(version(table), version(other), "{other}");
    }
}

#[test]
fn rows_that_are_not_text_do_not_hide_other_mistakes() {
    let mut file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    file.write_all(b"user,home\na\xff,eu-west\nb,moon\nc\xfe,eu-west\n").unwrap();
    let opened = Directory::open(&Settings { file: file.path().into(), max_loss: 10, stale_after: None }, &registry());
    let error = opened.err().expect("three rows are wrong").to_string();
    for expected in
        ["line 2: this row is not valid UTF-8", "line 3: unknown region `moon`", "line 4: this row is not valid UTF-8"]
    {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_broken_table_is_refused_whole_with_its_line_and_without_its_keys() {
    for (ending, text, expected) in [
        (".csv", "user,home\nalice,eu-west\nsecret-key,mars\n", "line 3: unknown region `mars`"),
        (".csv", "user,home,jurisdiction\nsecret-key,eu-west,moon\n", "line 2: unknown jurisdiction `moon`"),
        (".csv", "user,home\nsecret-key,eu-west\nsecret-key,us-east\n", "line 3: this user is already in the table"),
        (".csv", "name,region\n", "write `user,home`"),
        (".csv", "user,home\n,eu-west\n", "line 2: the user is empty"),
        (".csv", "user,home\nsecret-key\n", "line 2: this row has 1 columns instead of 2"),
        (".csv", "user,home\neu-west,secret@key\n", "unknown region `(not a name)`"),
        (".csv", "", "write `user,home`"),
        (".csv", "user,home\n", "the table has no users"),
        (".csv", "user,home\n# a remark, with a comma\n#\n", "the table has no users"),
        (
            ".csv",
            "user,home\na,mars\nb,eu-west\nc,moon\n",
            "line 2: unknown region `mars`; add it under `regions`, or correct the row; line 4:",
        ),
        (".csv", "user,home\na,\u{fffd}\nb,moon\n", "line 2: unknown region `(not a name)`"),
        (
            ".yaml",
            "a: [eu-west]\nb: eu-west\nsecret-key: { hom: eu-west }\nc: moon\n",
            "line 1: write `USER: REGION` or `USER: { home: REGION, jurisdiction: NAME }`; line 3: write",
        ),
        (".yaml", "a: 1\nb: moon\n", "line 2: unknown region `moon`"),
        (".yaml", "{}\n", "the table has no users"),
        (".yaml", "alice: eu-west\nsecret-key: mars\n", "line 2: unknown region `mars`"),
        (
            ".yaml",
            "secret-key: eu-west\nsecret-key: us-east\nb: mars\n",
            "line 2: this user is already in the table, with another home; line 3: unknown",
        ),
        (".csv", "\u{ff},home\n", "write `user,home`"),
        (".yaml", "- a\n", "write `USER: REGION`"),
    ] {
        let error = open(ending, text).err().unwrap_or_else(|| panic!("{text:?} was taken"));
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
