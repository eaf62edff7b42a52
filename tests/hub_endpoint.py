"""A hub on 127.0.0.1: the calls that huggingface_hub makes to push and load a model, with tokens, commits and LFS."""

import base64
import hashlib
import json
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
NEW_REPOSITORY = {".gitattributes": b"*.safetensors filter=lfs\n"}  # what the hub puts into one
DRIVER = """
import contextlib, io, json, os, sys, traceback
from vlprompt.cli.app import main
for words in json.loads(sys.argv[1]):
    if words[0].startswith("HF_TOKEN="):
        os.environ["HF_TOKEN"] = words[0].partition("=")[2]
        continue
    printed = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
        try:
            main(words)
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = -1
    print(json.dumps([status, *(text.getvalue() for text in printed)]), flush=True)
"""


class HubEndpoint:
    """The state of the hub: models by name, each a list of commits {path: content}, and what went wrong on purpose.

    Args:
        url: HF_ENDPOINT of clients.
        models: {OWNER/NAME: [(commit, {path: bytes}), ...]}, the last one is main.
        fails: {pattern of "METHOD /path": status} of requests that fail, or a page that another server gives.
        taken: names that somebody else makes just before they are made.
        hangs: pattern of a request that is not answered; `hanging` is set when it comes.
        calls: all requests, in their order.
    """

    def __init__(self):
        self.models, self.fails, self.hangs, self.calls = {}, {}, None, []
        self.objects, self.private, self.taken = {}, set(), set()
        self.hanging, self.released = threading.Event(), threading.Event()
        hub = self

        class Handler(_Handler):
            endpoint = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add_commit(self, name, files):
        """Commit {path: content} over what is there; gives the commit."""
        commits = self.models.setdefault(name, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        sha = hashlib.sha1(repr((name, len(commits), sorted(content.items()))).encode()).hexdigest()
        commits.append((sha, content))
        return sha

    def environment(self, home):
        """The variables of a client: this hub alone, with a cache of its own and the right token."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}  # fmt: skip


@contextmanager
def open_hub():
    """Serve a hub until the with-block ends."""
    hub = HubEndpoint()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.server.shutdown()
        hub.server.server_close()


def start_commands(commands, environment, cwd):
    """Start a process, which imports huggingface_hub anew for its HF_ENDPOINT, that gives commands one by one."""
    words = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    return subprocess.Popen(words, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)


def give_commands(commands, environment, cwd):
    """Give commands in a process of their own; gives (status, stdout, stderr) of each."""
    process = start_commands(commands, environment, cwd)
    out, _ = process.communicate()
    return [tuple(json.loads(line)) for line in out.splitlines() if line.startswith("[")]


class _Handler(BaseHTTPRequestHandler):
    endpoint: HubEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        hub, path = self.endpoint, unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{self.command} {path}"
        hub.calls.append(call)
        if hub.hangs and re.search(hub.hangs, call):
            hub.hanging.set()
            hub.released.wait()
            self.close_connection = True
            return None
        for pattern, status in hub.fails.items():
            if re.search(pattern, call):
                if isinstance(status, bytes):
                    return self.give(200, status)
                return self.give(status, {"error": f"made to fail with {status}"})
        if self.command != "GET" and self.command != "HEAD" and "/lfs-store/" not in path and not self.is_known():
            return self.give(401, {"error": "Invalid credentials"}, {"X-Error-Message": "Invalid credentials"})
        return self.route(path)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def is_known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def route(self, path):
        routes = {
            r"POST /api/validate-yaml": self.validate_yaml,
            r"POST /api/repos/create": self.create,
            r"GET /api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self.describe,
            r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)/?": self.list_tree,
            r"POST /api/models/([^/]+/[^/]+)/preupload/main": self.preupload,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"PUT /lfs-store/(\w+)": self.store,
            r"POST /api/models/([^/]+/[^/]+)/commit/main": self.commit,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
        }
        for pattern, act in routes.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return act(*match.groups())
        return self.give(404, {"error": f"no such call: {self.command} {path}"})

    def give(self, status, content, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(data), **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find(self, name, revision=None):
        """The commit and its files, or None after an error was given."""
        commits = self.endpoint.models.get(name)
        if not commits or (name in self.endpoint.private and not self.is_known()):
            return self.give(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        for sha, files in reversed(commits):
            if revision in (None, "main", sha):
                return sha, files
        return self.give(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})

    def validate_yaml(self):
        self.give(200, {"errors": [], "warnings": []})

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.endpoint.models or name in self.endpoint.taken:
            return self.give(409, {"error": "You already created this model repo"})
        self.endpoint.add_commit(name, NEW_REPOSITORY)
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.endpoint.private.add(name)
        return self.give(200, {"url": f"{self.endpoint.url}/{name}", "name": name, "id": name})

    def describe(self, name, revision):
        if found := self.find(name, revision):
            siblings = [{"rfilename": path} for path in found[1]]
            self.give(200, {"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": [],
                            "private": name in self.endpoint.private})  # fmt: skip

    def list_tree(self, name, revision):
        if found := self.find(name, revision):
            self.give(200, [{"type": "file", "path": path, "size": len(data), "oid": _git_id(data), **_lfs(path, data)}
                            for path, data in found[1].items()])  # fmt: skip

    def preupload(self, name):
        if self.find(name):
            modes = [{"path": file["path"], "uploadMode": "lfs" if _is_large(file["path"]) else "regular",
                      "shouldIgnore": False} for file in json.loads(self.body)["files"]]  # fmt: skip
            self.give(200, {"files": modes})

    def batch(self, name):
        objects = [{**entry, "actions": {"upload": {"href": f"{self.endpoint.url}/lfs-store/{entry['oid']}"}}}
                   for entry in json.loads(self.body)["objects"]]  # fmt: skip
        self.give(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.endpoint.objects[oid] = self.body
        self.give(200, {})

    def commit(self, name):
        if not (found := self.find(name)):
            return None
        files, parent = {}, None
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                parent = value.get("parentCommit")
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                assert len(self.endpoint.objects[value["oid"]]) == value["size"]
                files[value["path"]] = self.endpoint.objects[value["oid"]]
        if parent not in (None, found[0]):
            return self.give(412, {"error": "A commit has happened since. Please refresh and try again."})
        sha = self.endpoint.add_commit(name, files)
        return self.give(200, {"commitUrl": f"{self.endpoint.url}/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, name, revision, path):
        if not (found := self.find(name, revision)):
            return None
        if path not in found[1]:
            return self.give(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = found[1][path]
        etag = hashlib.sha256(data).hexdigest() if _is_large(path) else _git_id(data)
        return self.give(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": found[0]})


def _is_large(path):
    return path.endswith(".safetensors")


def _lfs(path, data):
    entry = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {"lfs": entry} if _is_large(path) else {}


def _git_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
