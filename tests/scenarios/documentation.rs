//! The documentation is current: metrics, links, YAML blocks, examples and the tests behind the guarantees.

use std::path::{Path, PathBuf};
use std::process::Command;

use domicile::metrics::Metrics;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder with this ending, in the order of their names.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort();
    files
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files("docs", ".md");
    pages.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)));
    pages
}

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let mut parts = page.split("\n```");
    parts.next();
    let fences = parts.step_by(2);
    fences.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n').map(str::to_owned)).collect()
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    let page = read("docs/metrics.md");
    let row = |name: &str, labels: &[&str]| format!("| `domicile_{name}` | {} |", labels.join(", "));
    for metric in Metrics::LIST {
        let row = row(metric.name, metric.labels);
        assert!(page.contains(&row), "docs/metrics.md lacks: {row} {} |", metric.help);
    }
    let rows = page.lines().filter(|line| line.starts_with("| `domicile_")).count();
    assert_eq!(rows, Metrics::LIST.len() + 1, "docs/metrics.md has rows of metrics that do not exist");
    let queries = blocks(&page, "promql").concat() + &read("docs/alerts.yaml");
    let words = queries.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("domicile_"));
    for word in words {
        let name = word.trim_start_matches("domicile_").trim_end_matches("_bucket");
        assert!(Metrics::LIST.iter().any(|metric| metric.name == name), "`{word}` in a query is not a metric");
    }
}

#[test]
fn every_link_leads_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(page.parent().unwrap().join(target).exists(), "{}: `{target}` does not exist", page.display());
            }
        }
    }
}

#[test]
fn the_readme_names_what_an_installation_needs() {
    let (readme, cargo) = (read("README.md"), read("Cargo.toml"));
    let version = cargo.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(readme.contains(&format!("Rust {version} and a C compiler")), "the README names another version than {version}");
    for file in ["packaging/deb", "Dockerfile", "Cargo.lock"] {
        assert!(root().join(file).exists(), "{file}");
    }
}

#[test]
fn every_yaml_block_is_a_part_of_a_tested_file_or_valid_itself() {
    let mut tested = files("config", ".yaml");
    tested.extend(files("examples", ".yaml"));
    tested.push(root().join("docs/alerts.yaml"));
    let tested: Vec<String> = tested.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let mut count = 0;
    for page in pages() {
        for block in blocks(&std::fs::read_to_string(&page).unwrap(), "yaml") {
            count += 1;
            if !tested.iter().any(|text| text.contains(&block)) {
                check_block(&page.display().to_string(), &block);
            }
        }
    }
    assert!(count >= 10, "only {count} blocks were found");
}

/// Runs the cases of a block against an example, or checks `config/three-regions.yaml` with the sections of the block.
fn check_block(page: &str, block: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("domicile.yaml");
    let parse = |text: &str| -> serde_json::Value {
        serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{page}: {error}\n{text}"))
    };
    let sections = parse(block);
    let sections = sections.as_object().unwrap_or_else(|| panic!("{page}: {block}"));
    let file = file.to_str().unwrap();
    if sections.contains_key("cases") {
        std::fs::write(file, block).unwrap();
        domicile(&["test", "--config", "examples/residency.yaml", "--region", "eu", file]);
        return;
    }
    let mut whole = parse(&read("config/three-regions.yaml"));
    for (name, value) in sections {
        whole[name] = value.clone();
        for region in whole["regions"].as_object_mut().unwrap().values_mut() {
            // The block is about all regions.
            region.as_object_mut().unwrap().remove(name);
        }
    }
    // The pattern of `include` in the documentation.
    std::fs::create_dir(folder.path().join("conf.d")).unwrap();
    std::fs::write(folder.path().join("conf.d/more.yaml"), "data: { more: { stays: anywhere } }\n").unwrap();
    std::fs::write(file, whole.to_string()).unwrap();
    domicile(&["check", "--config", file]);
}

/// The output of a command in the root of the repository, which must succeed.
fn domicile(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    let output = command.args(arguments).current_dir(root()).env_remove("DOMICILE_REGION").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn every_example_is_valid_in_each_region_and_its_cases_hold() {
    let mut count = 0;
    for cases in files("examples", ".cases.yaml") {
        let cases = cases.to_str().unwrap();
        let example = cases.replace(".cases.yaml", ".yaml");
        let config = if Path::new(&example).exists() {
            example
        } else {
            cases.replace(".cases.yaml", ".yaml").replace("/examples/", "/config/")
        };
        let regions = domicile::config::region_names(Path::new(&config)).map_err(|_| "invalid").unwrap();
        for region in &regions {
            assert!(domicile(&["check", "--config", &config, "--region", region]).contains("the configuration is valid"));
        }
        assert!(domicile(&["test", "--config", &config, "--region", &regions[0], cases]).contains(" cases, 0 wrong"));
        count += 1;
    }
    for (config, region) in [("packaging/domicile.yaml", "home"), ("packaging/container.yaml", "home")] {
        assert!(domicile(&["check", "--config", config, "--region", region]).contains("the configuration is valid"));
    }
    assert!(count >= 5, "only {count} examples were found");
    for example in files("examples", ".yaml") {
        let name = example.to_str().unwrap();
        assert!(
            name.ends_with(".cases.yaml") || Path::new(&name.replace(".yaml", ".cases.yaml")).exists(),
            "{name} has no cases"
        );
    }
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let mut code = String::new();
    let mut folders = vec![root().join("tests"), root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "yaml") {
                code += &std::fs::read_to_string(path).unwrap_or_default();
            }
        }
    }
    let page = read("docs/guarantees.md");
    let guarantees: Vec<_> = page.split("Not guaranteed:").next().unwrap().split("\n- **").skip(1).collect();
    assert!(guarantees.len() >= 7, "only {} guarantees were found", guarantees.len());
    for guarantee in guarantees {
        let tests = guarantee.split("Tests:").nth(1).unwrap_or_else(|| panic!("this guarantee names no test: {guarantee}"));
        let names: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{guarantee}");
        for name in names {
            let (before, _) = code.split_once(&format!("fn {name}()")).unwrap_or_else(|| panic!("there is no `{name}`"));
            assert!(before.rsplit("\n\n").next().unwrap().contains("#[test]"), "`{name}` is no test");
        }
    }
    // The README promises nothing that this page does not.
    let readme = read("README.md");
    let promises = readme.split("## Guarantees").nth(1).unwrap().split("Limits:").next().unwrap();
    let names: Vec<_> = promises.split("- **").skip(1).map(|promise| promise.split("**").next().unwrap()).collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("- **{name}.**")), "docs/guarantees.md has no `{name}`");
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 135, "{lines} lines; move details to docs/");
}

#[test]
fn the_reference_and_the_sample_are_current() {
    let page = domicile::config::schema::reference();
    assert!(
        read("docs/reference.md") == page,
        "docs/reference.md is outdated; run `domicile schema --reference > docs/reference.md`"
    );
}

/// The text with the default of each `${NAME:-default}`, because this parser does not know references in flow lists.
fn with_defaults(text: &str) -> String {
    let mut parts = text.split("${");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        // A comment may show the beginning of a reference alone.
        let (reference, rest) = part.split_once('}').filter(|(name, _)| !name.contains('\n')).unwrap_or(("", part));
        text + reference.split_once(":-").map_or("", |(_, default)| default) + rest
    })
}

#[test]
fn every_configuration_of_the_repository_fits_the_schema() {
    let schema: serde_json::Value = serde_json::from_str(&domicile::config::schema::schema()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut configurations = files("config", ".yaml");
    configurations.extend(files("examples", ".yaml").into_iter().filter(|file| !file.to_str().unwrap().ends_with(".cases.yaml")));
    configurations.extend(files("packaging", ".yaml"));
    configurations.extend(files("tests/decisions/policies", ".yaml"));
    for file in configurations {
        let text = std::fs::read_to_string(&file).unwrap();
        let value: serde_json::Value = match serde_yaml::from_str(&with_defaults(&text)) {
            Ok(value) => value,
            Err(error) => panic!("{}: {error}", file.display()),
        };
        let wrong: Vec<_> = validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", file.display());
    }
    let minimal = read("config/minimal.yaml");
    let accepts = |from: &str, to: &str| {
        assert!(minimal.contains(from), "{from}");
        validator.is_valid(&serde_yaml::from_str(&minimal.replace(from, to)).unwrap())
    };
    assert!(accepts("regions:", "limits: { drain: \"${DRAIN}\" }\nregions:"), "an environment variable");
    for (from, to) in [
        ("listen:", "lisen:"),
        ("listen: 127.0.0.1:8080", "listen: 127.0.0.1"),
        ("jurisdiction: eu, ", ""),
        ("match: {}, ", ""),
        ("regions:", "access_log: json\nregions:"),
        ("regions:", "access_log: { format: [json] }\nregions:"),
        ("regions:", "limits: { drain: \"5\" }\nregions:"),
        ("match: {}", "match: {}, rate_limit: { rate: 5/s, by: clent }"),
    ] {
        assert!(!accepts(from, to), "the schema accepts `{to}`");
    }
}
