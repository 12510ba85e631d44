"""The gateway with its session check, against proxies without one: same machine, same upstream, in turns.

The upstream runs in a workspace, so the other proxies and their visitors are put into that workspace's network; ours
serves from outside, as it does always.
"""

import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import subprocess

import floors
from report import Row

UPSTREAM = """
pid /tmp/n.pid; error_log stderr; daemon off; worker_processes 2;
events { worker_connections 19000; }
http {
  access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
  uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; keepalive_requests 10000000; keepalive_timeout 600; sendfile on;
  server { listen 3000; root /tmp; }
}
"""
START = """head -c 1024 /dev/zero | tr '\\0' x > /tmp/1k; head -c 102400 /dev/zero | tr '\\0' x > /tmp/100k
./sockets serve 3001 & exec nginx -c /workspace/upstream/n.conf -e stderr
"""
MANIFEST = """version: 1
service: { name: Upstream, command: sh start.sh }
ports: { http: 3000, sockets: 3001 }
health: { http: /1k, interval: 200ms, start_period: 30s }
runtime: { size: large }
"""
NGINX = """
pid {at}/nginx.pid; error_log {at}/nginx.err; daemon off; worker_processes 2; 
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_requests 10000000;
  upstream http {{ server 127.0.0.1:3000; keepalive 128; keepalive_requests 10000000; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen 127.0.0.1:8001 reuseport; proxy_http_version 1.1; proxy_set_header Host localhost:3000; proxy_read_timeout 600;
    proxy_set_header Connection $connection_upgrade; proxy_set_header Upgrade $http_upgrade;
    location / {{ proxy_pass http://http; }}
    location /ws {{ proxy_pass http://127.0.0.1:3001; }}
  }}
}}
"""
HAPROXY = """global
  nbthread 2
  maxconn 9000
defaults
  mode http
  timeout client 10m
  timeout server 10m
  timeout connect 5s
  timeout tunnel 10m
frontend f
  bind 127.0.0.1:8002
  use_backend sockets if {{ path /ws }}
  default_backend http
backend http
  http-reuse always
  server s 127.0.0.1:3000
backend sockets
  server s 127.0.0.1:3001
"""
CADDY = """{{
  admin off
  auto_https off
}}
http://:8003 {{
  reverse_proxy /ws 127.0.0.1:3001
  reverse_proxy 127.0.0.1:3000
}}
"""
PORTS = {"nginx": 8001, "haproxy": 8002, "caddy": 8003}
# Seconds of load for each measurement, how often they take turns, and connections that carry it.
SECONDS, ROUNDS, CONNECTIONS = 3, 3, 64
IDLE_SOCKETS = 10_000


class Peers:
    """The other proxies, in the workspace's network."""

    def __init__(self, directory, network):
        self.network = network
        self.directory = directory / "peers"
        self.directory.mkdir()
        self.running = {}
        commands = {
            "nginx": (NGINX, lambda file: ["nginx", "-c", file, "-e", "stderr"]),
            "haproxy": (HAPROXY, lambda file: ["haproxy", "-f", file]),
            "caddy": (CADDY, lambda file: ["caddy", "run", "--config", file, "--adapter", "caddyfile"]),
        }
        for name, (text, command) in commands.items():
            if shutil.which(name):
                file = self.directory / f"{name}.conf"
                file.write_text(text.format(at=self.directory))
                self.start(name, command(str(file)))

    def start(self, name, command):
        environment = os.environ | {"HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory)}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.running[name] = subprocess.Popen([*self.network, *command], env=environment, **streams)
        address = f"http://127.0.0.1:{PORTS[name]}/1k"
        answers = lambda: subprocess.run([*self.network, "curl", "-sf", "-o", "/dev/null", address]).returncode == 0
        floors.wait_without_pause(answers, patience=20)

    def stop(self):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(timeout=20)


class Visitor:
    """How load reaches one of them: a prefix to commands, an address, a host, a cookie."""

    def __init__(self, prefix, address, host, cookie):
        self.prefix, self.address, self.host, self.cookie = prefix, address, host, cookie

    def requests(self, path, connections, seconds=SECONDS):
        """Requests a second, and the median and 99th percentile of latency in ms."""
        command = [*self.prefix, "wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "--latency"]
        command += ["-H", f"Host: {self.host}", "-H", f"Cookie: {self.cookie}", f"http://{self.address}{path}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in said:
            raise RuntimeError(f"not every request was answered well: {said}")
        found = dict(re.findall(r"(50|99)%\s+([\d.]+[mu]?s)", said))
        return float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), milliseconds(found["50"]), milliseconds(found["99"])

    def sockets(self, tool, *words):
        return [*self.prefix, str(tool), words[0], self.address, self.host, self.cookie, *map(str, words[1:])]


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(m|u|)s", text).groups()
    return float(number) * {"m": 1, "u": 0.001, "": 1000}[unit]


def gateway(installation, report, given):
    """Requests, latency, sockets and what an idle socket costs."""
    missing = [program for program in ["nginx", "wrk"] if not shutil.which(program)]
    if missing or os.geteuid() != 0:
        why = f"needs {' and '.join(missing)}: apt-get install nginx-light haproxy caddy wrk" if missing else "needs root"
        report.missing("gateway", why)
        return
    tool = given.binary.resolve().parent / "examples" / "sockets"
    files = {"start.sh": START, "n.conf": UPSTREAM, "envforge.yml": MANIFEST}
    installation.add_project("gateway", {"upstream": files}, programs=[tool])
    installation.run("up", "proxied", "-c", "--wait", project="gateway")
    shared = installation.json("share", "proxied")
    sockets = installation.json("share", "proxied", "--service", "upstream.sockets")
    ours, our_sockets = enter(shared["url"]), enter(sockets["url"])
    network = ["nsenter", f"--net={workspace_network(installation, 'proxied')}"]
    peers = Peers(installation.directory, network)
    try:
        others = {name: Visitor(network, f"127.0.0.1:{PORTS[name]}", "localhost", "a=b") for name in peers.running}
        direct = Visitor(network, "127.0.0.1:3000", "localhost", "a=b")
        throughput(report, ours, others)
        latency(report, ours, direct)
        echo(report, tool, our_sockets, others)
        idle(installation, report, tool, our_sockets)
    finally:
        peers.stop()
    installation.run("delete", "proxied", "--yes", "--force", project="gateway")


def throughput(report, ours, others):
    for path, size in [("/1k", "1 KiB"), ("/100k", "100 KiB")]:
        seen = {name: [] for name in ["envforge", *others]}
        for _ in range(ROUNDS):
            for name, visitor in [("envforge", ours), *others.items()]:
                seen[name].append(visitor.requests(path, CONNECTIONS)[0])
        for name in others:
            target = 1.0 if name == "nginx" else None
            report.rate(f"{size}, keep-alive", "requests/s", seen["envforge"], name, seen[name], target)


def latency(report, ours, direct):
    added = {"p50": [], "p99": []}
    for _ in range(ROUNDS):
        _, ours50, ours99 = ours.requests("/1k", 4)
        _, direct50, direct99 = direct.requests("/1k", 4)
        added["p50"].append(ours50 - direct50)
        added["p99"].append(ours99 - direct99)
    report.bound("latency added to 1 KiB, p50, 4 connections", "ms", statistics.median(added["p50"]), 0.1)
    report.bound("latency added to 1 KiB, p99, 4 connections", "ms", statistics.median(added["p99"]), 1.0)


def echo(report, tool, ours, others):
    seen = {name: [] for name in ["envforge", *others]}
    for _ in range(ROUNDS):
        for name, visitor in [("envforge", ours), *others.items()]:
            done = subprocess.run(visitor.sockets(tool, "echo", CONNECTIONS, SECONDS), check=True, capture_output=True)
            seen[name].append(json.loads(done.stdout)["per_second"])
    for name in others:
        target = 1.0 if name == "nginx" else None
        report.rate("WebSocket echo of 1 KiB", "messages/s", seen["envforge"], name, seen[name], target)


def idle(installation, report, tool, ours):
    parts = installation.json("local", "status")["parts"]
    gateway = next(part["pid"] for part in parts if part["name"] == "gateway")
    before = resident(gateway)
    # Two descriptors each, of which a machine may not grant as many.
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000) // 2
    sockets = min(IDLE_SOCKETS, most)
    opening = subprocess.Popen(ours.sockets(tool, "idle", sockets), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if opening.stdout.readline().strip() != "open":
            raise RuntimeError("the sockets were not opened")
        each = (resident(gateway) - before) / sockets
        what = f"memory of the gateway with {IDLE_SOCKETS} idle WebSockets"
        what += "" if sockets == IDLE_SOCKETS else f" (by {sockets} open ones)"
        report.bound(what, "MiB", (before + each * IDLE_SOCKETS) / 1024, 150)
        report.note_memory("gateway without sockets", before)
    finally:
        opening.stdin.close()
        opening.wait(timeout=60)


def resident(pid):
    """KiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory")


def enter(url):
    """Opens a link as a browser does."""
    authority = url.split("/")[2]
    port = authority.rpartition(":")[2]
    curl = ["curl", "-sS", "-o", "/dev/null", "-D", "-", "--resolve", f"*:{port}:127.0.0.1"]
    shared = subprocess.run([*curl, url], check=True, capture_output=True, text=True).stdout
    way = re.search(r"(?im)^location: (\S+)", shared)[1]
    entered = subprocess.run([*curl, way], check=True, capture_output=True, text=True).stdout
    cookie = re.search(r"(?im)^set-cookie: ([^;]+)", entered)[1]
    return Visitor([], f"127.0.0.1:{port}", way.split("/")[2], cookie)


def workspace_network(installation, workspace):
    identity = (installation.home / "host" / "installation").read_text().strip()
    wanted = installation.json("status", workspace)["id"]
    for record in (installation.home / "host" / "ledger").glob("*.json"):
        known = json.loads(record.read_text())
        if known.get("intent", {}).get("workspace") == wanted:
            return f"/run/envforge/{identity}/w{known['index']}/ns/net"
    raise RuntimeError(f"the host does not know {workspace}")


def first_request(installation, report, given):
    """The first request to a sleeping workspace, by its link and from inside, against the bare service."""
    origin = installation.directory / "origin"
    bare = floors.BareService(installation.directory, origin / "sleeper-work")
    installation.run("up", "first", "-c", "--wait", project="sleepers")
    link = installation.json("share", "first")["url"]
    visitor = enter(link)
    curl = ["curl", "-sSf", "-o", "/dev/null", "-w", "%{time_total}", "-H", f"Cookie: {visitor.cookie}"]
    curl += ["-H", f"Host: {visitor.host}", f"http://{visitor.address}/"]
    by_link, inside, floor = [], [], []
    for _ in range(given.runs):
        installation.run("sleep", "first", "--wait", project="sleepers")
        floor.append(bare.wake())
        bare.stop()
        by_link.append(float(subprocess.run(curl, check=True, capture_output=True, text=True).stdout) * 1000)
    report.time(Row("first request, by link", "bare service", by_link, floor, 1.0, grace=10))
    network = ["nsenter", f"--net={workspace_network(installation, 'first')}", "nft", "list", "table", "inet", "envforge"]
    led = lambda: subprocess.run(network, capture_output=True).returncode == 0
    for _ in range(given.runs):
        installation.wait_until("first", "runtime", "asleep")
        floors.wait_without_pause(led)
        took = installation.run("exec", "first", "--", "curl", "-sSf", "-o", "/dev/null", "-w", "%{time_total}",
                                "localhost:3000", project="sleepers")
        inside.append(float(took) * 1000)
    report.time(Row("first request, from inside", "bare service", inside, floor, 1.0, grace=10))
    installation.run("delete", "first", "--yes", "--force", project="sleepers")
