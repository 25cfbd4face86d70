//! Files of the configuration are followed: behind links, in folders that are replaced whole, and after a refused reload.

use std::path::Path;

use domicile::app::{App, Launch};
use http::StatusCode;

use crate::exits::start_all;
use crate::support::{Plan, USERS, World, eventually, get};

/// A world in which eu-west reads its user table from this file in the world's folder.
fn with_table_at(file: &str, make: impl Fn(&Path)) -> World {
    let world = World::prepare(&Plan::default());
    make(world.folder.path());
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    std::fs::write(&world.eu().config, text.replace("users-eu-west.csv", file)).unwrap();
    start_all(world)
}

/// Asserts that eu-west uses a table with one more user after `put` has replaced the file. The test requests no reload.
fn assert_followed(world: &World, put: impl Fn(&str)) {
    let mut table = USERS.to_owned();
    for user in ["dora", "erin", "fred"] {
        let ask = || get(world.eu().http, &format!("/users/{user}/orders/1"), &[]);
        let before = world.eu().upstream().seen().len();
        assert_eq!(ask().code(), "home.unresolved");
        assert_eq!(world.eu().upstream().seen().len(), before, "the app server saw nothing of {user}");
        table += &format!("{user},eu-west\n");
        put(&table);
        eventually("the new table is used", || ask().status == StatusCode::OK);
    }
    world.assert_no_requests(&["us-east", "ap-northeast"]);
}

#[test]
fn a_user_table_behind_a_link_that_is_swapped_is_followed() {
    // Kubernetes mounts a ConfigMap like this: `users.csv` links to `..data/users.csv`, and a rename replaces `..data`.
    let mount = |folder: &Path, table: &str| {
        let mounted = folder.join("mounted");
        let version = format!("..{}", table.len());
        std::fs::create_dir_all(mounted.join(&version)).unwrap();
        std::fs::write(mounted.join(&version).join("users.csv"), table).unwrap();
        std::os::unix::fs::symlink(&version, mounted.join("..data_tmp")).unwrap();
        std::fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    };
    let world = with_table_at("mounted/users.csv", |folder| {
        mount(folder, USERS);
        std::os::unix::fs::symlink("..data/users.csv", folder.join("mounted/users.csv")).unwrap();
    });
    assert_followed(&world, |table| mount(world.folder.path(), table));
}

#[test]
fn a_user_table_in_a_folder_that_is_replaced_whole_is_followed() {
    let replace = |folder: &Path, table: &str| {
        let (tables, new, old) = (folder.join("tables"), folder.join("new"), folder.join(format!("old-{}", table.len())));
        std::fs::create_dir(&new).unwrap();
        std::fs::write(new.join("users.csv"), table).unwrap();
        if tables.exists() {
            std::fs::rename(&tables, old).unwrap();
        }
        std::fs::rename(&new, &tables).unwrap();
    };
    let world = with_table_at("tables/users.csv", |folder| replace(folder, USERS));
    assert_followed(&world, |table| replace(world.folder.path(), table));
}

/// The home that eu-west gives to a client in Brazil, by `geoip.countries`.
fn home_of_brazil(world: &World) -> String {
    let answer = get(world.eu().admin, "/explain?format=json&ip=177.1.1.1&url=http://a/profile/1", &[]);
    let explanation: serde_json::Value = serde_json::from_str(answer.text()).unwrap();
    explanation["home"]["region"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_successor_does_not_take_a_table_that_lost_its_users() {
    let start = |predecessor_user_count| {
        let mut world = World::prepare(&Plan::default());
        let region = &mut world.regions[0];
        let (config, inherited) = (region.config.clone(), region.ports.take().unwrap_or_default());
        App::start(Launch { config, inherited, predecessor_user_count, ..Launch::default() }).map(App::shut_down)
    };
    let error = start(Some(4)).unwrap_err().to_string();
    assert!(error.contains("has 3 users and had 4") && error.contains("--accept-loss"), "{error}");
    start(Some(3)).expect("no user is lost");
}

#[test]
fn a_file_that_only_a_refused_configuration_names_starts_a_reload_when_it_is_corrected() {
    let world = World::start();
    let (config, renewed) = (&world.eu().config, world.folder.path().join("new.pem"));
    let sound = std::fs::read_to_string(config).unwrap();
    let certificate = world.folder.path().join("site.pem");
    assert!(sound.contains(certificate.to_str().unwrap()));
    let renamed = sound.replacen(certificate.to_str().unwrap(), renewed.to_str().unwrap(), 1);
    let with_brazil = renamed.replace("countries: { BR: us-east }", "countries: { BR: eu-west }");
    assert_ne!(with_brazil, renamed);
    std::fs::write(&renewed, "not a certificate").unwrap();
    std::fs::write(config, with_brazil).unwrap();
    let refused = || world.eu().metrics().contains("domicile_reloads_total{result=\"refused\"} 1");
    eventually("the change starts a reload, which is refused", refused);
    // From here on only this file changes.
    std::fs::copy(&certificate, &renewed).unwrap();
    eventually("the corrected configuration is used", || home_of_brazil(&world) == "eu-west");
}

#[test]
fn a_configuration_in_a_mounted_folder_that_is_swapped_is_followed() {
    // Kubernetes mounts a ConfigMap like this: every file links to `..data/FILE`, and a rename replaces `..data`.
    let mount = |folder: &Path, version: &str, config: &str| {
        let folder = folder.join("mounted");
        std::fs::create_dir_all(folder.join(version)).unwrap();
        std::fs::write(folder.join(version).join("domicile.yaml"), config).unwrap();
        std::os::unix::fs::symlink(version, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    let mut world = World::prepare(&Plan::default());
    let folder = world.folder.path().to_owned();
    let config = std::fs::read_to_string(&world.eu().config).unwrap();
    mount(&folder, "..1", &config);
    let file = folder.join("mounted/domicile.yaml");
    std::os::unix::fs::symlink("..data/domicile.yaml", &file).unwrap();
    world.regions[0].config = file;
    let world = start_all(world);
    for (version, home) in [("..2", "eu-west"), ("..3", "us-east"), ("..4", "eu-west")] {
        mount(&folder, version, &config.replace("BR: us-east", &format!("BR: {home}")));
        eventually("the new version is used", || home_of_brazil(&world) == home);
    }
}

#[test]
fn included_files_are_followed_also_new_ones() {
    let world = World::prepare(&Plan::default());
    let folder = world.folder.path().join("conf.d");
    std::fs::create_dir(&folder).unwrap();
    let route = |name: &str, path: &str, status: u16| {
        format!("routes:\n  - {{ name: {name}, match: {{ path: {path} }}, data: public, home: [latency], respond: {status} }}\n")
    };
    // The included routes come last, so that the route for everything else is moved behind them.
    let text = std::fs::read_to_string(&world.eu().config).unwrap();
    let (main, rest) = text.rsplit_once("  - { name: rest").unwrap();
    std::fs::write(&world.eu().config, format!("include: [\"conf.d/*.yaml\"]\n{main}")).unwrap();
    std::fs::write(folder.join("99-rest.yaml"), format!("routes:\n  - {{ name: rest{rest}")).unwrap();
    std::fs::write(folder.join("10-one.yaml"), route("one", "/one", 201)).unwrap();
    let world = start_all(world);
    let status = |path: &str| get(world.eu().http, path, &[]).status.as_u16();
    assert_eq!((status("/one"), status("/two")), (201, 403));
    std::fs::write(folder.join("10-one.yaml"), route("one", "/one", 202)).unwrap();
    eventually("the changed file is used", || status("/one") == 202);
    std::fs::write(folder.join("20-two.yaml"), route("two", "/two", 203)).unwrap();
    eventually("the new file is used", || status("/two") == 203);
    std::fs::write(folder.join("30-bad.yaml"), route("three", "/three", 204).replace("public", "publik")).unwrap();
    eventually("the reload is refused", || world.eu().sum_of("domicile_reloads_total{result=\"refused\"}") >= 1.0);
    assert_eq!((status("/two"), status("/three")), (203, 403));
    let error = world.eu().reload().unwrap_err();
    assert!(error.contains("30-bad.yaml:2:") && error.contains("did you mean `public`?"), "{error}");
    std::fs::write(folder.join("30-bad.yaml"), route("three", "/three", 204)).unwrap();
    eventually("the corrected file is used", || status("/three") == 204);
}
