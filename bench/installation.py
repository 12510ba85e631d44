"""A whole installation of its own in a temporary home, with two projects made for measuring."""

import http.client
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from datetime import datetime

import projects

# The longest that anything is waited for, in seconds: only what separates "slow" from "never".
PATIENCE = 120


class Installation:
    """Starts with `with`, is stopped and removed after it."""

    def __init__(self, binary, within=None):
        self.binary = binary
        # The directory in which everything of it lies; absent: that of temporary files.
        self.within = within

    def __enter__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="efb", dir=self.within))
        self.directory.chmod(0o755)
        self.home = self.directory / "home"
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ENVFORGE_", "TMUX", "GIT_"))}
        self.environment = keep | {"ENVFORGE_HOME": str(self.home), "XDG_CACHE_HOME": str(self.directory / "cache")}
        self.environment["TERM"] = "xterm-256color"
        try:
            self.run("local", "start")
            for file in projects.create(self.directory / "origin"):
                self.run("project", "apply", "-f", str(file))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # A reset that fails must leave the directory: it names what is still there.
        self.run("local", "reset", "--yes")
        shutil.rmtree(self.directory)

    def command(self, *arguments):
        return [str(self.binary), *arguments]

    def run(self, *arguments, project="bench"):
        """Runs a command line that must succeed; its standard output."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment | {"ENVFORGE_PROJECT": project},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode != 0:
            raise RuntimeError(f"envforge {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-600:]}")
        return done.stdout

    def add_project(self, name, services, programs=(), rest=""):
        """One more project, of services with these files."""
        directory = self.directory / "origin"
        made = {service: projects.repository(directory, service, files, programs) for service, files in services.items()}
        self.run("project", "apply", "-f", str(projects.project(directory, name, made, rest)))

    def timed(self, *arguments):
        """Runs a command line; when it began and ended, in seconds since 1970."""
        began = time.time()
        self.run(*arguments)
        return began, time.time()

    def json(self, *arguments):
        return json.loads(self.run("--json", *arguments))

    def receipt(self, workspace, kind):
        """When the newest command of this kind was requested and finished, in seconds since 1970."""
        commands = self.json("workspace", "commands", workspace)["commands"]
        newest = max((c for c in commands if c["kind"] == kind), key=lambda c: c["requested_at"])
        if newest["state"] != "succeeded":
            raise RuntimeError(f"{kind} of {workspace} is {newest['state']}: {newest.get('reason')}")
        return seconds(newest["requested_at"]), seconds(newest["finished_at"])

    def wait_until(self, workspace, layer, state):
        """Follows `status -w` until a layer is in a state."""
        following = subprocess.Popen(
            self.command("--json", "status", workspace, "-w"),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + PATIENCE
        try:
            for line in following.stdout:
                seen = json.loads(line)[layer]["state"]
                if seen == state:
                    return
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{workspace}: {layer} is {seen}, never became {state}")
            raise RuntimeError(f"`envforge status {workspace} -w` ended")
        finally:
            following.kill()
            following.wait()

    def api(self, method, path, body=None):
        """One request to the control plane as the owner, for what no command line asks."""
        host, port = self.address()
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        token = (self.home / "control" / "owner.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")
        return json.loads(text) if text else None

    def address(self):
        """Host and port of the control plane."""
        text = (self.home / "control" / "address").read_text().strip()
        host, _, port = text.removeprefix("http://").rstrip("/").rpartition(":")
        return host, int(port)


def seconds(text):
    """RFC 3339 as seconds since 1970; digits beyond microseconds are dropped."""
    body = text.removesuffix("Z")
    whole, _, fraction = body.partition(".")
    return datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}+00:00").timestamp()
