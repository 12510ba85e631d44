"""Forks of workspaces that are written to: a database against `cp -a`, the same where extents are shared, and objects.

A service writes while each copy is made, and tells the longest time for which it could not: to a file that it appends to
every millisecond, and to the database, of which it changes two thousand rows a second in a hundred transactions.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import s3
from installation import Installation, seconds
from report import Row

# Runs of what writes a gigabyte each.
MOST_RUNS = 5
# Sizes between which a fork must not grow where extents are shared, in MiB.
SIZES = [100, 1024]
# A file of such a file system: two databases, their logs, and an installation.
IMAGE_MIB = 4096
# Objects of a gigabyte: so many of so many MiB.
OBJECTS = [(300, 1), (60, 5), (1, 400)]

WRITER = """
const { spawn } = require('node:child_process'), fs = require('node:fs'), http = require('node:http');
const out = fs.openSync('/tmp/appended', 'a');
const longest = { file: 0, database: 0 }, last = { file: 0, database: 0 };
const wrote = (where) => {
  const now = performance.now();
  if (last[where]) longest[where] = Math.max(longest[where], now - last[where]);
  last[where] = now;
};
let lines = 0;
const append = () => { fs.writeSync(out, 'x\\n'); if (++lines % 100000 === 0) fs.ftruncateSync(out); wrote('file'); setTimeout(append, 1); };
const change = (rows) => {
  const database = spawn('psql', [process.env.DATABASE_URL, '-XAtq', '-v', 'ON_ERROR_STOP=1'], { stdio: ['pipe', 'pipe', 'inherit'] });
  const next = () => {
    const some = Array.from({ length: 20 }, () => Math.floor(Math.random() * rows));
    database.stdin.write(`update big set text = repeat(md5(random()::text), 30) where n in (${some});\\n\\\\echo done\\n`);
  };
  database.stdout.on('data', () => { wrote('database'); setTimeout(next, 10); });
  database.on('exit', () => process.exit(9));
  next();
};
http.createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  if (pathname === '/begin') { append(); change(Number(searchParams.get('rows'))); }
  response.end(JSON.stringify(longest));
  if (pathname === '/gaps') { longest.file = 0; longest.database = 0; }
}).listen(process.env.PORT, '127.0.0.1');
"""

YML = """version: 1
service: { name: Writer, command: node writer.js }
ports: { http: 3000 }
health: { http: /, port: http, interval: 1s, timeout: 2s, start_period: 60s }
resources: { database: { required: true } }
environment: { DATABASE_URL: { from: resource.database.url } }
"""

STORED = """version: 1
service: { name: Stored, command: sleep infinity }
health: { command: "true", interval: 1s, timeout: 2s, start_period: 60s }
resources: { storage: { required: true } }
environment:
  S3_ENDPOINT: { from: resource.storage.endpoint }
  S3_BUCKET: { from: resource.storage.bucket }
  S3_REGION: { from: resource.storage.region }
  S3_ACCESS_KEY: { from: resource.storage.access_key }
  S3_SECRET_KEY: { from: resource.storage.secret_key }
"""


class Written:
    """A workspace with a database of so many MiB that its service writes to."""

    def __init__(self, installation, name, mib):
        self.installation = installation
        self.name = name
        rows = mib * 1024
        installation.run("up", name, "-c", "--wait", project="written")
        fill = f"create table big as select n, repeat(md5(n::text), 30) as text from generate_series(1, {rows}) n"
        sql = f"{fill}; alter table big add primary key (n); vacuum analyze big; checkpoint"
        for statement in sql.split("; "):
            script = f'psql "$DATABASE_URL" -Xqc "{statement}"'
            # Only a superuser may ask for a checkpoint: one that may not leaves that to the server.
            script += " || true" if statement == "checkpoint" else ""
            installation.run("run", name, "--service", "writer", "--", "sh", "-c", script)
        self.ask(f"begin?rows={rows}")
        # What was filled is on the disk before anything is measured.
        os.sync()
        time.sleep(1)
        self.gaps()

    def ask(self, path):
        return json.loads(self.installation.run("exec", self.name, "--", "curl", "-sf", f"http://localhost:3000/{path}"))

    def gaps(self):
        """Longest times without a write since this was asked last, in ms."""
        return self.ask("gaps")

    def directory(self):
        return self.installation.home / "workspaces" / self.installation.json("status", self.name)["id"]

    def remove(self):
        self.installation.run("delete", self.name, "--yes", "--force")


class Forks:
    """Forks of a workspace, one after the other, and what each took."""

    def __init__(self, installation, source):
        self.installation = installation
        self.source = source
        self.took = []
        self.parts = {}

    def one(self):
        name = f"{self.source}-{len(self.took)}"
        began = time.time()
        made = self.installation.json("fork", self.source, name)
        ended = time.time()
        requested, finished = (seconds(made["command"][moment]) for moment in ["requested_at", "finished_at"])
        self.took.append((ended - began) * 1000)
        self.note("until the record", (requested - began) * 1000)
        self.note("copying", made["took_ms"])
        self.note("of which the source stood still", made["stall_ms"])
        self.note("the rest of the record", (finished - requested) * 1000 - made["took_ms"])
        self.note("back in the command line", (ended - finished) * 1000)
        return name

    def note(self, part, milliseconds):
        self.parts.setdefault(part, []).append(milliseconds)


class Disk:
    """A file system of a kind that shares extents, in a file; unmounted and removed whatever happens."""

    def __init__(self, kind):
        self.kind = kind

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="efb"))
        self.directory.chmod(0o755)
        self.at = self.directory / "disk"
        try:
            self.at.mkdir()
            image = self.directory / self.kind
            with image.open("wb") as file:
                file.truncate(IMAGE_MIB << 20)
            options = {"xfs": ["-m", "reflink=1"], "btrfs": []}[self.kind]
            self.run(f"mkfs.{self.kind}", "-q", *options, image)
            self.run("mount", "-o", "loop", "-t", self.kind, image, self.at)
        except BaseException:
            self.__exit__()
            raise
        return self.at

    def __exit__(self, *_):
        # Whoever still uses it goes on in what no path leads to.
        if os.path.ismount(self.at):
            self.run("umount", "--lazy", self.at)
        shutil.rmtree(self.directory)

    def run(self, *words):
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        done = subprocess.run([str(word) for word in words], env=os.environ | {"PATH": path}, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {done.stderr.strip()}")


def copied(sources, directory, strict):
    """Milliseconds of `cp -a` of these until all is on the disk."""
    copy = directory / "copied"
    copy.mkdir()
    try:
        began = time.time()
        # Files of a database that is written to come and go: what `cp` says of those is no failure.
        subprocess.run(["cp", "-a", *map(str, sources), str(copy)], stderr=subprocess.DEVNULL, check=strict)
        subprocess.run(["sync", "-f", str(copy)], check=True)
        return (time.time() - began) * 1000
    finally:
        shutil.rmtree(copy)


def gaps_in_words(longest):
    return ", ".join(f"{where} {statistics.median(ms):.0f} (at most {max(ms):.0f})" for where, ms in longest.items())


def note_gaps(longest, gaps):
    for where, milliseconds in gaps.items():
        longest.setdefault(where, []).append(milliseconds)


def fork(installation, report, given):
    """`envforge fork` of a database that is written to, against `cp -a` of the same directory under the same load."""
    installation.add_project("written", {"writer": {"writer.js": WRITER, "envforge.yml": YML}}, rest="resources: { database: managed }\n")
    source = Written(installation, "written", given.fork_mib)
    directory = source.directory()
    forks, floor, seen, seen_by_cp = Forks(installation, "written"), [], {}, {}
    try:
        for _ in range(min(given.runs, MOST_RUNS)):
            source.gaps()
            floor.append(copied([directory / "data", directory / "files"], installation.directory, strict=False))
            note_gaps(seen_by_cp, source.gaps())
            name = forks.one()
            note_gaps(seen, source.gaps())
            installation.run("delete", name, "--yes", "--force")
    finally:
        source.remove()
    what = f"fork, {given.fork_mib} MiB written to"
    report.time(Row(what, "cp -a and sync, same load", forks.took, floor, 1.1, parts=forks.parts))
    report.say(f"{what}: longest time without a write, median ms: {gaps_in_words(seen)}; during `cp -a`: {gaps_in_words(seen_by_cp)}")


def reflink(_, report, given):
    """The same where extents are shared: an installation on XFS and one on btrfs, whatever the size."""
    for kind in ["xfs", "btrfs"]:
        with Disk(kind) as disk, Installation(given.binary.resolve(), disk) as installation:
            files = {"writer.js": WRITER, "envforge.yml": YML}
            installation.add_project("written", {"writer": files}, rest="resources: { database: managed }\n")
            for mib in SIZES:
                source = Written(installation, f"of-{mib}", mib)
                forks, seen = Forks(installation, source.name), {}
                for _ in range(min(given.runs, MOST_RUNS)):
                    source.gaps()
                    name = forks.one()
                    note_gaps(seen, source.gaps())
                    installation.run("delete", name, "--yes", "--force")
                source.remove()
                what = f"fork on {kind}, {mib} MiB written to"
                report.bound(what, "s", statistics.median(forks.took) / 1000, 1)
                report.bound(f"{what}: longest time without an append", "ms", statistics.median(seen["file"]), 200)
                report.where(what, forks.parts)
                report.say(f"{what}: longest time without a write, median ms: {gaps_in_words(seen)}")


def objects(installation, report, given):
    """`envforge fork` of a workspace with a gigabyte of objects, against `cp -a` of a directory with the same files."""
    installation.add_project("stored", {"stored": {"envforge.yml": STORED}}, rest="resources: { storage: managed }\n")
    installation.run("up", "stored", "-c", "--wait", project="stored")
    files = installation.directory / "objects"
    files.mkdir()
    forks, floor = Forks(installation, "stored"), []
    try:
        for many, mib in OBJECTS:
            for number in range(many):
                (files / f"{mib}-mib-{number:04}").write_bytes(os.urandom(mib << 20))
        script = pathlib.Path(s3.__file__).read_text()
        fill = ["python3", "-c", script, *(f"{many}x{mib}" for many, mib in OBJECTS)]
        installation.run("run", "stored", "--service", "stored", "--", *fill)
        os.sync()
        for _ in range(min(given.runs, MOST_RUNS)):
            floor.append(copied([files], installation.directory, strict=True))
            installation.run("delete", forks.one(), "--yes", "--force")
    finally:
        shutil.rmtree(files)
        installation.run("delete", "stored", "--yes", "--force")
    count, mib = sum(many for many, _ in OBJECTS), sum(many * each for many, each in OBJECTS)
    report.time(Row(f"fork, {count} objects of {mib} MiB", "cp -a of files and sync", forks.took, floor, None, parts=forks.parts))
