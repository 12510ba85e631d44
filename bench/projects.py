"""The projects that are measured: real repositories, Node services without packages.

`bench`: two services in two repositories with a thousand files each; one needs PostgreSQL and Redis.
`sleepers`: one service, a small repository; two hundred workspaces of it show what a sleeping one costs.
"""

import os
import shutil
import subprocess

SERVER = """
require('node:http').createServer((_, response) => response.end('ok\\n'))
  .listen(process.env.PORT, '127.0.0.1');
"""

WEB = """version: 1
service: { name: Web, command: node server.js }
ports: { http: 3000 }
health: { http: /, port: http, interval: 1s, timeout: 2s, start_period: 60s }
"""

API = """version: 1
service: { name: Api, command: node server.js }
ports: { http: 4100 }
health: { http: /, port: http, interval: 1s, timeout: 2s, start_period: 60s }
resources:
  database: { required: true }
  queue: { required: true }
environment:
  DATABASE_URL: { from: resource.database.url }
  QUEUE_URL: { from: resource.queue.url }
"""

FILES = 1000


def create(directory):
    """Makes repositories and project files in `directory`; the paths of the project files."""
    directory.mkdir()
    many = {f"src/{n // 50}/file{n}.js": f"// {n}\n" + f"export const value{n} = {n};\n" * 60 for n in range(FILES)}
    web = repository(directory, "web", {"server.js": SERVER, "envforge.yml": WEB} | many)
    api = repository(directory, "api", {"server.js": SERVER, "envforge.yml": API} | many)
    brief = WEB + "runtime: { sleep: { after: 2s } }\n"
    sleeper = repository(directory, "sleeper", {"server.js": SERVER, "envforge.yml": brief})
    return [
        project(directory, "bench", {"web": web, "api": api}, "resources: { database: managed, queue: managed }\n"),
        project(directory, "sleepers", {"web": sleeper}, ""),
    ]


def project(directory, name, services, rest):
    lines = "".join(f'  {service}: {{ repo: "{path}" }}\n' for service, path in services.items())
    file = directory / f"{name}.yml"
    file.write_text(f"project: {name}\nservices:\n{lines}{rest}")
    return file


def repository(directory, name, files, programs=()):
    work = directory / f"{name}-work"
    for path, text in files.items():
        at = work / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
    for program in programs:
        shutil.copy(program, work)
    git(work, "init", "--quiet", "--initial-branch=main")
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=first")
    bare = directory / f"{name}.git"
    git(directory, "clone", "--quiet", "--bare", str(work), str(bare))
    return bare


def git(directory, *arguments):
    who = {"AUTHOR_NAME": "Bench", "AUTHOR_EMAIL": "bench@example.invalid"}
    names = {f"GIT_{k}": v for k, v in who.items()} | {f"GIT_{k.replace('AUTHOR', 'COMMITTER')}": v for k, v in who.items()}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(["git", *arguments], cwd=directory, env=clean | names, check=True, stdin=subprocess.DEVNULL)
