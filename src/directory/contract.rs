//! What every backend promises, tried on each.

use std::io::Write;

use super::{Directory, Settings};
use crate::model::region::{RegionId, Registry};

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
    Directory::open(&Settings { file: file.path().into() }, &registry()).map_err(|error| error.to_string())
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
        let home = |key: &str| table.find(key).map(|record| record.home);
        assert_eq!(home("alice"), RegionId::new(0));
        assert_eq!(home("c,d"), RegionId::new(1));
        assert_eq!(home("carol"), None);
        assert_eq!(home("Alice"), None, "keys are compared as they are");
        assert_eq!(table.len(), 3);
    }
}

#[test]
fn the_jurisdiction_column_is_kept_where_it_is_filled() {
    for table in tables() {
        assert_eq!(table.find("alice").unwrap().jurisdiction, None);
        assert_eq!(table.find("bob@example.com").unwrap().jurisdiction.unwrap().index(), 0);
    }
}

#[test]
fn a_table_that_says_something_else_has_another_version() {
    let version = |text: &str| open(".csv", text).unwrap().version().to_owned();
    let table = "user,home\nalice,eu-west\n";
    assert_eq!(version(table), version(table));
    for other in
        ["user,home\nalice,us-east\n", "user,home\nalice,eu-west\nbob,eu-west\n", "user,home,jurisdiction\nalice,eu-west,eu\n"]
    {
        assert_ne!(version(table), version(other), "{other}");
    }
}

#[test]
fn a_broken_table_is_refused_whole_with_its_line_and_without_its_keys() {
    for (ending, text, expected) in [
        (".csv", "user,home\nalice,eu-west\nsecret-key,mars\n", "line 3: unknown region `mars`"),
        (".csv", "user,home,jurisdiction\nsecret-key,eu-west,moon\n", "line 2: unknown jurisdiction `moon`"),
        (".csv", "user,home\nsecret-key,eu-west\nsecret-key,us-east\n", "line 3: this user stands in the table already"),
        (".csv", "name,region\n", "write `user,home`"),
        (".csv", "user,home\n,eu-west\n", "line 2: the user is empty"),
        (".csv", "user,home\nsecret-key\n", "is no CSV"),
        (".csv", "user,home\neu-west,secret@key\n", "unknown region `(not a name)`"),
        (".yaml", "secret-key: mars\n", "unknown region `mars`"),
        (".yaml", "secret-key: eu-west\nsecret-key: us-east\n", "each user once"),
        (".yaml", "- a\n", "write `USER: REGION`"),
    ] {
        let error = open(ending, text).err().unwrap_or_else(|| panic!("{text:?} was taken"));
        assert!(error.contains(expected), "{text:?}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
