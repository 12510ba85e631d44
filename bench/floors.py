"""What the machine needs for the same work without EnvForge."""

import http.client
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent


class RawTmux:
    """A tmux server of its own with one session."""

    def __init__(self, directory):
        self.socket = directory / "floor.tmux"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("TMUX")} | {"TERM": "xterm-256color"}

    def attach(self):
        return ["tmux", "-S", str(self.socket), "new-session", "-A", "-s", "bench", "bash", "--norc"]

    def stop(self):
        subprocess.run(["tmux", "-S", str(self.socket), "kill-server"], check=False, stderr=subprocess.DEVNULL)


class PrepareScript:
    """`floor-prepare`: the steps of PREPARE_SHELL as a shell script would do them."""

    def __init__(self, directory, origins):
        self.directory = directory / "floor-prepare"
        self.directory.mkdir()
        self.origins = origins
        for origin in origins:
            cache = self.directory / origin.name
            subprocess.run(["git", "clone", "--quiet", "--bare", "--no-local", str(origin), str(cache)], check=True)

    def run(self, number):
        """Milliseconds."""
        arguments = [str(HERE / "floor-prepare"), str(self.directory), f"{os.getpid()}-{number}"]
        began = time.monotonic()
        subprocess.run([*arguments, *(origin.name for origin in self.origins)], check=True)
        took = (time.monotonic() - began) * 1000
        subprocess.run([*arguments, "--undo"], check=True)
        return took


class BareProcesses:
    """PostgreSQL, Redis and two services, each started as early as it can be, watched without a pause."""

    def __init__(self, directory, checkouts):
        self.directory = directory / "floor-wake"
        self.directory.mkdir()
        self.checkouts = checkouts
        self.as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.as_user:
            shutil.chown(self.directory, "nobody", "nogroup")
        self.programs = postgres_programs()
        self.data = self.directory / "data"
        initdb = [self.programs / "initdb", "-D", self.data, "-A", "trust", "-U", "app", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.directory, **self.as_user)
        self.ports = free_ports(4)
        self.running = {}

    def wake(self):
        """Milliseconds until both services answer."""
        postgres, redis, web, api = self.ports
        began = time.monotonic()
        settings = {"port": postgres, "listen_addresses": "127.0.0.1", "shared_buffers": "16MB"}
        settings["unix_socket_directories"] = self.directory
        options = [text for key, value in settings.items() for text in ("-c", f"{key}={value}")]
        self.start("postgres", [self.programs / "postgres", "-D", self.data, *options])
        self.start("redis", ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--dir", self.directory])
        self.start_service("web", web)
        wait_without_pause(lambda: postgres_answers(postgres) and redis_answers(redis))
        self.start_service("api", api)
        wait_without_pause(lambda: http_answers(web) and http_answers(api))
        return (time.monotonic() - began) * 1000

    def sleep(self):
        """Milliseconds until all have ended: services first, then the servers, each its own way."""
        began = time.monotonic()
        self.end({"web": signal.SIGTERM, "api": signal.SIGTERM})
        # Redis looks for signals ten times a second; its command is obeyed at once.
        with socket.create_connection(("127.0.0.1", self.ports[1])) as redis:
            redis.sendall(b"SHUTDOWN\r\n")
            self.end({"postgres": signal.SIGINT, "redis": 0})
        return (time.monotonic() - began) * 1000

    def stop(self):
        self.end({name: signal.SIGKILL for name in self.running})

    def start(self, name, command, cwd=None, environment=None):
        self.running[name] = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd or self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.as_user,
        )

    def start_service(self, name, port):
        environment = {"PATH": os.environ["PATH"], "PORT": str(port)}
        self.start(name, ["node", "server.js"], self.checkouts[name], environment)

    def end(self, how):
        ending = {name: self.running.pop(name) for name in list(how) if name in self.running}
        for name, process in ending.items():
            process.send_signal(how[name])
        for process in ending.values():
            process.wait(timeout=30)


class BareService:
    """One service, started as it is and asked until it answers."""

    def __init__(self, directory, checkout):
        self.checkout = checkout
        self.port = free_ports(1)[0]
        self.as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self.process = None

    def wake(self):
        """Milliseconds until it answers."""
        environment = {"PATH": os.environ["PATH"], "PORT": str(self.port)}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        began = time.monotonic()
        self.process = subprocess.Popen(
            ["node", "server.js"], cwd=self.checkout, env=environment, **streams, **self.as_user
        )
        wait_without_pause(lambda: http_answers(self.port))
        return (time.monotonic() - began) * 1000

    def stop(self):
        self.process.kill()
        self.process.wait(timeout=30)


def postgres_programs():
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    at = str(found[-1]) if found else shutil.which("postgres")
    if not at:
        raise RuntimeError("no PostgreSQL server programs: install the package postgresql")
    return pathlib.Path(at).resolve().parent


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_without_pause(ready, patience=60):
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("the floor's processes were never ready")
        # A quarter of a millisecond: tight, and the processes waited for still get the processor.
        time.sleep(0.00025)


def ask(port, words, answer):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(words)
            return connection.recv(64).startswith(answer)
    except OSError:
        return False


def postgres_answers(port):
    body = struct.pack("!I", 196608) + b"user\0app\0database\0postgres\0\0"
    # `R`: it asks for (or waives) authentication, so it takes connections; while starting up it sends `E`.
    return ask(port, struct.pack("!I", len(body) + 4) + body, b"R")


def redis_answers(port):
    return ask(port, b"PING\r\n", b"+PONG")


def http_answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
