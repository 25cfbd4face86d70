"""Runs every `sh` block of the documentation in its order, and compares the output with the `# prints:` lines; verifies a ledger with the
script of docs/ledger.md; a Prometheus server answers every `promql` block about the running demo, and a browser shows the demo's page.

usage: documentation.py BINARY PROMETHEUS
needs: chromium, jq, openssl

As root, the commands run in a network namespace of their own, because the pages use fixed ports.
"""
import contextlib, json, os, pathlib, re, shutil, signal, subprocess, sys, tempfile, time, urllib.parse, urllib.request

from isolation import isolate

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT = 30


def blocks(page, language):
    return re.findall(r"^```%s\n(.*?)^```$" % language, page.read_text(), re.M | re.S)


def eventually(what, is_so):
    """Waits until `is_so` returns something; a server that does not listen yet is not a failure."""
    until = time.monotonic() + TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            if found := is_so():
                return found
        if time.monotonic() > until:
            sys.exit("not in time: " + what)
        time.sleep(0.2)


@contextlib.contextmanager
def running(*command, folder, environment=None, seen=subprocess.DEVNULL):
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=seen, stderr=seen, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(TIMEOUT)


def run_block(block, folder, environment):
    """Runs the lines of a block; those that end in `&` run until its end."""
    background, checked = [], 0
    try:
        lines = block.splitlines()
        for index, line in enumerate(lines):
            if line.startswith("# prints:"):
                continue
            command = line.split("  #")[0].strip()
            if command.endswith("&"):
                output = open(os.path.join(folder, "background.log"), "ab")
                background.append(subprocess.Popen(
                    "exec " + command[:-1], shell=True, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True))
                continue
            following = lines[index + 1] if index + 1 < len(lines) else ""
            wanted = following.removeprefix("# prints:").strip() if following.startswith("# prints:") else None
            until = time.monotonic() + TIMEOUT
            while True:
                done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
                said = done.stdout + done.stderr
                if wanted is None and done.returncode == 0 or wanted is not None and wanted in said:
                    break
                if time.monotonic() > until:
                    log = open(os.path.join(folder, "background.log"), errors="replace").read()[-3000:]
                    sys.exit("`%s` printed\n%s\ninstead of `%s`\n%s" % (command, said, wanted, log))
                # A process that was started above may not listen yet.
                time.sleep(0.2)
            checked += wanted is not None
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGTERM)
        for process in background:
            process.wait(TIMEOUT)
    return checked


def main(binary, prometheus):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config", "examples", "geoip"):
            os.symlink(ROOT / name, os.path.join(folder, name))
        os.mkdir(os.path.join(folder, "bin"))
        os.symlink(binary, os.path.join(folder, "bin/domicile"))
        environment = {**os.environ, "PATH": "%s/bin:%s" % (folder, os.environ["PATH"])}
        for name in ("DOMICILE_REGION", "DOMICILE_CONFIG"):
            environment.pop(name, None)
        for page, least in [("README.md", 4), ("docs/tutorial.md", 9)]:
            check_page(page, least, folder, environment)
        write_operated(folder)
        operated = {**environment, "DOMICILE_CONFIG": "operated.yaml"}
        with running(binary, "run", folder=folder, environment=operated):
            eventually("a running process", lambda: get(ADMIN + "/livez"))
            check_page("docs/operations.md", 6, folder, operated)
            check_page("docs/ledger.md", 3, folder, operated)
            key = get(ADMIN + "/.well-known/domicile-ledger-key")
        check_ledger(os.path.join(folder, "ledger/eu-west"), key, binary)
        check_tour(binary)
        with running(binary, "demo", folder=folder, environment=environment):
            eventually("the demo", lambda: get("http://127.0.0.1:8100/"))
            check_page_of_the_demo(folder)
            check_queries(folder, prometheus)


def check_page(page, least, folder, environment):
    found = blocks(ROOT / page, "sh")
    checked = sum(run_block(block, folder, environment) for block in found)
    assert checked >= least, "%s: only %d outputs were found" % (page, checked)
    print("%s: %d blocks, %d outputs as promised" % (page, len(found), checked))


def check_ledger(ledger, key, binary):
    """The script of the page and the command line agree about the ledger of the process that has ended, and about a changed one."""
    with open(os.path.join(ledger, "ledger.pub"), "w") as file:
        file.write(key)
    [script] = blocks(ROOT / "docs/ledger.md", "bash")
    by_hand = lambda: subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ledger, capture_output=True, text=True)
    command = [binary, "audit", "verify", "--key", "ledger.pub", "ledger.jsonl"]
    by_command = lambda: subprocess.run(command, cwd=ledger, capture_output=True, text=True)
    done, verified = by_hand(), by_command()
    assert done.returncode == 0 and "Signature Verified Successfully" in done.stdout, done
    assert verified.returncode == 0 and "the chain is whole" in verified.stdout, verified
    head = re.search("the chain is whole up to ([0-9a-f]{64})", done.stdout)[1]
    assert "last line: " + head in verified.stdout, (done, verified)
    file = os.path.join(ledger, "ledger.jsonl")
    text = open(file).read()
    assert text.count("upstream_weight") >= 1, text
    open(file, "w").write(text.replace("upstream_weight", "upstream_height", 1))
    assert by_hand().returncode == 1 and "this line was changed" in by_command().stderr, by_command()
    open(file, "w").write(text)
    print("docs/ledger.md: the ledger verifies by hand, and a changed one does not")


def write_operated(folder):
    """The configuration of the process that the commands of docs/operations.md change."""
    text = (ROOT / "config/three-regions.yaml").read_text()
    text = text.replace("[http://127.0.0.1:8105, http://127.0.0.1:8106]", "[http://10.0.0.1:3000, http://10.0.0.2:3000]")
    with open(os.path.join(folder, "operated.yaml"), "w") as file:
        file.write(text.replace('admin: { address: "127.0.0.1:8104" }', 'admin: { address: "127.0.0.1:8104", socket: control.sock }'))


ADMIN = "http://127.0.0.1:8104"


def get(url):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        return answer.read().decode()


def check_page_of_the_demo(folder):
    """A browser shows the page, its examples, and the way of a request."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + folder + "/browser"]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    shown = lambda url: subprocess.run([chromium, *flags, "--dump-dom", url], capture_output=True, text=True, timeout=60).stdout
    page = shown("http://127.0.0.1:8100/")
    link = re.search(r'href="([^"]*)"[^>]*>the same user abroad', page)
    assert link, page
    page = shown(urllib.parse.urljoin("http://127.0.0.1:8100/", link[1].replace("&amp;", "&")))
    for words in ("200", "us-east", "eu-west", "forwarded to eu-west"):
        assert words in page, "the page lacks `%s`: %s" % (words, page)
    print("the demo's page: a browser shows the way of a request")


def check_tour(binary):
    """The README shows some lines of the tour, without the columns `from` and `ms`."""
    done = subprocess.run([binary, "demo", "--tour"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = lambda line: re.split(r"  +", line.strip())
    said = [cells(line) for line in done.stdout.splitlines()]
    shown = (ROOT / "README.md").read_text().split("Output of `domicile demo --tour`")[1].split("##")[0].split("\n\n")[1].splitlines()
    assert len(shown) > 5, shown
    for line in map(cells, shown):
        assert any(line == known or line == known[:2] + known[3:-1] for known in said), (line, done.stdout)
    print("README.md: the tour says its %d lines" % len(shown))


def check_queries(folder, prometheus):
    """Prometheus answers every query, and loads every alert."""
    queries = blocks(ROOT / "docs/metrics.md", "promql")
    assert len(queries) >= 6, queries
    with open(os.path.join(folder, "prometheus.yml"), "w") as file:
        json.dump({
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(ROOT / "docs/alerts.yaml")],
            "scrape_configs": [{"job_name": "domicile", "static_configs": [{"targets": ["127.0.0.1:%d" % port for port in (8112, 8122, 8132)]}]}],
        }, file)
    server = "http://127.0.0.1:9090"
    command = [prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=metrics", "--web.listen-address=127.0.0.1:9090"]
    with running(*command, folder=folder):
        asked = lambda query: json.loads(get(server + "/api/v1/query?" + urllib.parse.urlencode({"query": query})))["data"]["result"]

        def values(query):
            # Traffic between regions, so that every rate has something to count.
            get("http://127.0.0.1:8120/users/alice/orders/1")
            return [row for row in asked(query) if row["value"][1] != "NaN"]

        for query in queries:
            eventually("an answer to " + query, lambda: values(query))
        rules = [rule for group in json.loads(get(server + "/api/v1/rules"))["data"]["groups"] for rule in group["rules"]]
        written = len(re.findall("- alert:", (ROOT / "docs/alerts.yaml").read_text()))
        eventually("evaluated alerts", lambda: len([r for r in json.loads(get(server + "/api/v1/rules"))["data"]["groups"][0]["rules"] if r["health"] == "ok"]) == written)
        assert len(rules) == written, rules
    print("docs/metrics.md: Prometheus answers %d queries and evaluates %d alerts" % (len(queries), written))


isolate()
main(os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]))
