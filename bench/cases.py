"""What is measured: each case runs product and floor in turns and tells the report."""

import os
import pathlib
import subprocess
import time

import floors
from report import Row
from terminal import DRAWN, PROMPT, SET_PROMPT, Terminal


def milliseconds(span):
    return (span[1] - span[0]) * 1000


def attach(installation, report, given):
    """`envforge up` on a terminal until the prompt is there, against `tmux new-session -A`, whatever the runtime does."""
    installation.run("up", "attach", "-c", "--wait")
    up = installation.command("up", "attach")
    raw = floors.RawTmux(installation.directory)

    def asleep():
        installation.run("sleep", "attach", "--wait")

    def broken():
        edit(installation, "s/node server.js/false/")
        installation.run("sleep", "attach", "--wait")
        installation.run("wake", "attach")

    def starved():
        edit(installation, "s/false/node server.js/")
        installation.run("sleep", "attach", "--wait")
        installation.run("wake", "attach", "--wait")
        busy = "for n in 1 2 3 4; do while :; do :; done & done; wait"
        installation.run("run", "attach", "--service", "web", "--detach", "--", "sh", "-c", busy)

    cases = [("awake", None, None), ("asleep", None, asleep), ("broken", broken, None), ("starved", starved, None)]
    try:
        for command, environment in [(up, installation.environment), (raw.attach(), raw.environment)]:
            first_prompt(command, environment)
        for what, once, each in cases:
            if once:
                once()
            product, floor = [], []
            for _ in range(given.runs):
                if each:
                    each()
                floor.append(until_prompt(raw.attach(), raw.environment))
                product.append(until_prompt(up, installation.environment))
            report.time(Row(f"attach, runtime {what}", "tmux new-session -A", product, floor, 2.0))
    finally:
        raw.stop()
        installation.run("delete", "attach", "--yes", "--force")


def edit(installation, script):
    installation.run("exec", "attach", "--", "sed", "-i", script, "/workspace/web/envforge.yml")


def first_prompt(command, environment):
    """Opens the session and gives its shell the prompt that is looked for."""
    with Terminal(command, environment) as terminal:
        # tmux throws away what was typed before it drew its screen.
        terminal.wait_for(DRAWN)
        terminal.type(SET_PROMPT)
        terminal.wait_for(PROMPT)


def until_prompt(command, environment):
    with Terminal(command, environment) as terminal:
        return terminal.wait_for(PROMPT)


def prepare(installation, report, given):
    """PREPARE_SHELL by its receipt, against the same steps by a shell script."""
    origin = installation.directory / "origin"
    script = floors.PrepareScript(installation.directory, [origin / "web.git", origin / "api.git"])
    record, floor, before, after = [], [], [], []
    for number in range(given.runs):
        floor.append(script.run(number))
        name = f"prepare-{number}"
        began, ended = installation.timed("up", name, "-c")
        requested, finished = installation.receipt(name, "PREPARE_SHELL")
        record.append((finished - requested) * 1000)
        before.append((requested - began) * 1000)
        after.append((ended - finished) * 1000)
        installation.run("delete", name, "--yes", "--force")
    parts = {"command line and finding the branch": before, "the record": record, "back in the command line": after}
    report.time(Row("PREPARE_SHELL", "a script, same steps", record, floor, 1.2, parts=parts))


def wake_and_sleep(installation, report, given):
    """`wake --wait` and `sleep --wait` with warm data, against the same processes started and stopped bare."""
    origin = installation.directory / "origin"
    bare = floors.BareProcesses(installation.directory, {name: origin / f"{name}-work" for name in ["web", "api"]})
    installation.run("up", "wake", "-c", "--wait")
    installation.run("sleep", "wake", "--wait")
    rows = {"wake": ("START_RUNTIME", [], [], {}), "sleep": ("SLEEP_RUNTIME", [], [], {})}
    try:
        # The floor's first start makes files that later ones find: not counted, as the product's was not.
        bare.wake()
        bare.sleep()
        for _ in range(given.runs):
            for verb, floor_run in [("wake", bare.wake), ("sleep", bare.sleep)]:
                kind, product, floor, parts = rows[verb]
                floor.append(floor_run())
                began, ended = installation.timed(verb, "wake", "--wait")
                product.append((ended - began) * 1000)
                requested, finished = installation.receipt("wake", kind)
                parts.setdefault("until the record is written", []).append((requested - began) * 1000)
                parts.setdefault("the record", []).append((finished - requested) * 1000)
                parts.setdefault("back in the command line", []).append((ended - finished) * 1000)
    finally:
        bare.stop()
    _, product, floor, parts = rows["wake"]
    report.time(Row("wake, data warm", "bare processes", product, floor, 1.1, parts=parts))
    _, product, floor, parts = rows["sleep"]
    # These services end at SIGTERM, so no grace is used and none is granted.
    report.time(Row("sleep", "stopping them", product, floor, 1.1, parts=parts))
    installation.run("delete", "wake", "--yes", "--force")


def status(installation, report, given):
    """`envforge status` against `curl` of the control plane's health page."""
    installation.run("up", "status", "-c", "--wait")
    host, port = installation.address()
    curl = ["curl", "-sf", "-o", "/dev/null", f"http://{host}:{port}{health_path(host, port)}"]
    product, floor = [], []
    for _ in range(given.runs):
        began = time.monotonic()
        subprocess.run(curl, check=True)
        floor.append((time.monotonic() - began) * 1000)
        product.append(milliseconds(installation.timed("status", "status")))
    report.time(Row("status", "curl of the health page", product, floor, None))
    installation.run("delete", "status", "--yes", "--force")


def health_path(host, port):
    for path in ["/healthz", "/v1/healthz", "/health"]:
        if subprocess.run(["curl", "-sf", "-o", "/dev/null", f"http://{host}:{port}{path}"], check=False).returncode == 0:
            return path
    raise RuntimeError("the control plane has no health page")


def memory(installation, report, given):
    """What the programs hold with one runtime awake, and with many workspaces asleep beside it."""
    installation.run("up", "awake", "-c", "--wait")
    note_parts(installation, report, "one awake")
    note_supervisors(installation, report, "one awake")
    if given.sleeping:
        names = [f"sleeper-{number}" for number in range(given.sleeping)]
        for name in names:
            body = {"name": name, "create": True, "project": "sleepers", "wake": False}
            installation.api("POST", "/v1/workspaces/open", body)
        for name in names:
            installation.wait_until(name, "shell", "ready")
        label = f"one awake, {given.sleeping} asleep"
        note_parts(installation, report, label)
        note_supervisors(installation, report, label)
        # The sleepers go with the installation: deleting each first would only take long.
    installation.run("delete", "awake", "--yes", "--force")


def note_parts(installation, report, label):
    for part in installation.json("local", "status")["parts"]:
        if part.get("pid"):
            report.note_memory(f"{part['name']} ({label})", pss(part["pid"]))


def note_supervisors(installation, report, label):
    found = supervisors(installation.home)
    total = sum(pss(pid) for pid in found)
    report.note_memory(f"supervisors, {len(found)} of them ({label})", total)


def supervisors(home):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:2] == [b"supervise"] and words[2].startswith(os.fsencode(home)):
            found.append(int(entry.name))
    return found


def pss(pid):
    """KiB, shared pages counted in parts."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/smaps_rollup says no Pss")
