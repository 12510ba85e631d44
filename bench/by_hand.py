"""Data services by hand: what a careful script does for a server's first start and for a later one.

It is run inside a workspace by `crates/testkit/examples/drivers.rs`, says `"ready"`, is told what to do by a line of JSON, says
at which moment a real client had its answer, and ends the server when its input ends. Told to `ask`, it is that client alone.
`s3` is the text of s3.py before this one.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time


def until(done, patience=60):
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("it never answered")
        # A quarter of a millisecond: tight, and the processes waited for still get the processor.
        time.sleep(0.00025)


def said(port, words, answer):
    try:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(words)
            return connection.recv(64).startswith(answer)
    except OSError:
        return False


def sh(script):
    subprocess.run(["sh", "-ec", script], check=True)


class Database:
    """PostgreSQL; its client is libpq, since starting psql takes longer than most answers."""

    stop = signal.SIGINT

    def __init__(self, told):
        self.told, self.data, self.fields = told, told["data"], told["fields"]

    def make(self):
        sh(f"cp -a {self.data}/template {self.data}/postgresql && mkdir -m 700 {self.data}/postgresql-socket && sync -f {self.data}/postgresql")

    def prepare(self):
        password, own = self.fields["password"], os.urandom(10).hex()
        # The template's passwords are those of every workspace: each gets its own.
        sql = f"alter role envforge password '{own}'; alter role app password '{password}'"
        before = f"host={self.data}/postgresql-socket port=5432 user=envforge dbname=postgres password={self.told['password']}"
        until(lambda: query(before, sql))

    def answers(self):
        return query(self.fields["url"], "select 1")


def query(where, sql):
    connection = PQ.PQconnectdb(where.encode())
    try:
        if PQ.PQstatus(connection) != 0:
            return False
        result = PQ.PQexec(connection, sql.encode())
        # A command that was done, or rows.
        done = PQ.PQresultStatus(result) in (1, 2)
        PQ.PQclear(result)
        return done
    finally:
        PQ.PQfinish(connection)


def libpq():
    found = ctypes.CDLL("libpq.so.5")
    for name, arguments, result in [
        ("PQconnectdb", [ctypes.c_char_p], ctypes.c_void_p),
        ("PQstatus", [ctypes.c_void_p], ctypes.c_int),
        ("PQexec", [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
        ("PQresultStatus", [ctypes.c_void_p], ctypes.c_int),
        ("PQclear", [ctypes.c_void_p], None),
        ("PQfinish", [ctypes.c_void_p], None),
    ]:
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    return found


class Cache:
    """Redis."""

    stop = signal.SIGTERM

    def __init__(self, told):
        self.data = told["data"]

    def make(self):
        sh(f"mkdir -m 700 {self.data}/redis")

    def prepare(self):
        pass

    def answers(self):
        return said(6379, b"PING\r\n", b"+PONG")


class Mail:
    """Mailpit."""

    stop = signal.SIGTERM

    def __init__(self, told):
        self.data = told["data"]

    def make(self):
        sh(f"mkdir -m 700 {self.data}/mailpit")

    def prepare(self):
        pass

    def answers(self):
        return said(1025, b"", b"220 ")


class Storage:
    """SeaweedFS, with the one that is there for all workspaces, asleep: a first time is another bucket and user of it."""

    stop = signal.SIGTERM
    ROOT = ("byhandroot", "byhandsecret")

    def __init__(self, told):
        self.data, self.fields = told["data"], told["fields"]
        self.root = Client("http://localhost:9000", *self.ROOT)
        self.user = Client("http://localhost:9000", self.fields["access_key"], self.fields["secret_key"], self.fields["region"])
        self.place = f"{self.data}/seaweedfs"
        told["argv"][1:] = (
            f"mini -dir={self.place} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port=9000 -s3.iam.readOnly=false -s3.autoCreateBucket=false "
            "-s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false -master.telemetry=false "
            "-volume.preStopSeconds=0 -volume.max=16384"
        ).split()
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = self.ROOT

    def make(self):
        sh(f"mkdir -p -m 700 {self.place}")

    def prepare(self):
        until(lambda: asked(lambda: self.root.ask("GET", "/")[0] == 200))
        bucket = self.fields["bucket"]
        self.root.must("PUT", f"/{bucket}")
        self.root.iam("CreateUser", UserName=bucket)
        self.root.iam("CreateAccessKey", UserName=bucket, AccessKeyId=self.fields["access_key"], SecretAccessKey=self.fields["secret_key"])
        all_of_it = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": all_of_it}]}
        self.root.iam("PutUserPolicy", UserName=bucket, PolicyName="bucket", PolicyDocument=json.dumps(policy))

    def answers(self):
        return asked(lambda: self.user.ask("PUT", f"/{self.fields['bucket']}/asked", b"x")[0] == 200)


def asked(ask):
    try:
        return ask()
    except OSError:
        return False


KINDS = {"database": Database, "cache": Cache, "mail": Mail, "storage": Storage}


def main():
    print('"ready"', flush=True)
    told = json.loads(sys.stdin.readline())
    kind = KINDS[told["kind"]](told)
    if told["step"] == "ask":
        until(kind.answers)
        print(time.monotonic(), flush=True)
        return
    if told["step"] == "first":
        kind.make()
    server = subprocess.Popen(told["argv"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if told["step"] == "first":
        kind.prepare()
    until(kind.answers)
    print(time.monotonic(), flush=True)
    sys.stdin.readline()
    server.send_signal(kind.stop)
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


PQ = libpq()
main()
