"""What drivers of data services take, against a script that does the same by hand.

Two workspaces a run, in turns: the script's server has the same user, arguments, namespaces and control group as the
driver's, and both have the same client, so that the ratio shows what our code adds. `crates/testkit/examples/drivers.rs` has
both; `by_hand.py` is the script.
"""

import json
import os
import pathlib
import subprocess

from report import Row

HERE = pathlib.Path(__file__).resolve().parent
# What each is called, what its floor is, and runs at most: a storage server takes a second to start and three to stop.
KINDS = {
    "database": ("PostgreSQL", "template copied, postgres, passwords", "postgres", 15),
    "cache": ("Redis", "directory, redis-server", "redis-server", 25),
    "mail": ("Mailpit", "directory, mailpit", "mailpit", 25),
    "storage": ("SeaweedFS", "weed, bucket, user and policy", "weed", 5),
}


def drivers(_, report, given):
    program = given.binary.resolve().parent / "examples" / "drivers"
    if not os.access(program, os.X_OK):
        raise RuntimeError(f"no {program}: `cargo build --release -p envforge-testkit --example drivers`")
    tools = program.parents[2] / "tools"
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:{tools}"}
    # One text: in a workspace's own view of files the two lie nowhere.
    script = (HERE / "s3.py").read_text().partition("def main()")[0] + (HERE / "by_hand.py").read_text()
    for kind, (name, first, later, most) in KINDS.items():
        command = [program, given.binary.resolve(), kind, str(min(given.runs, most)), script]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            # One server that is not on this machine must not hide the others.
            report.missing(f"driver of {name}", done.stderr.strip()[-300:])
            continue
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for step, what, floor in [("first", "first start", first), ("wake", "wake", later)]:
            of = {key: [line[key] for line in lines if line["step"] == step] for key in ["answered", "floor", "told"]}
            parts = {"until the supervisor says ready": of["told"], "until a client has its answer": of["answered"]}
            report.time(Row(f"{name}, {what}", floor, of["answered"], of["floor"], 1.1, parts=parts))
