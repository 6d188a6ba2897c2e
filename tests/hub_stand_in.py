"""Stand-in for the Hugging Face hub: repos, LFS storage and commits in memory, over the hub's HTTP interface."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

WEIGHTS = (".safetensors", ".gguf")  # stored with LFS; everything else is a regular file


class Hub:
    """State of the stand-in. Tokens: `writer` may write, `reader` may not, others are unknown."""

    def __init__(self):
        self.repos = {}  # name: {"type", "private", "files": {name: bytes}, "commits": [summary]}
        self.cards = {}  # name of a model: its card's metadata
        self.stored = {}  # sha256: bytes, of LFS
        self.requests = []  # (method, path)
        self.broken_after = None  # LFS uploads that succeed before connections break; None: all
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def add(self, name, kind="model", private=False, **files):
        self.repos[name] = {"type": kind, "private": private, "files": files, "commits": []}
        return self.repos[name]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *values):
        pass

    def answer(self, status, content=None, error=None):
        data = json.dumps(content if error is None else {"error": error}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if error is not None:
            self.send_header("X-Error-Message", error)
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_GET(self):
        self.hub.requests.append(("GET", self.path))
        name = self.path.removeprefix("/api/models/")
        if name in self.hub.cards:
            return self.answer(200, {"id": name, "siblings": [], "cardData": self.hub.cards[name]})
        repo = self.hub.repos.get(name)
        if repo is None or repo["type"] != "model":
            return self.answer(404, error="Repository not found")
        siblings = [{"rfilename": file} for file in repo["files"]]
        return self.answer(200, {"id": name, "private": repo["private"], "siblings": siblings, "sha": "0" * 40})

    def do_PUT(self):
        hub, data = self.hub, self.body()
        hub.requests.append(("PUT", self.path))
        if hub.broken_after is not None and len(hub.stored) >= hub.broken_after:
            self.close_connection = True
            return None
        assert hashlib.sha256(data).hexdigest() == self.path.removeprefix("/lfs/")
        hub.stored[self.path.removeprefix("/lfs/")] = data
        return self.answer(200, {})

    def do_POST(self):
        data = self.body()
        self.hub.requests.append(("POST", self.path))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != "writer":
            status = 403 if token == "reader" else 401
            return self.answer(status, error="Forbidden" if status == 403 else "Invalid credentials")
        if self.path == "/api/repos/create":
            return self.create(json.loads(data))
        if self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(data)["content"].split("---")[1])
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(WEIGHTS) else "regular"}
                for f in json.loads(data)["files"]
            ]
            return self.answer(200, {"files": [{**f, "shouldIgnore": False} for f in files]})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(200, {"objects": [self.batch(o) for o in json.loads(data)["objects"]]})
        match = re.fullmatch(r"/api/models/(.+)/commit/main", self.path)
        return self.commit(match[1], [json.loads(line) for line in data.splitlines()])

    def create(self, given):
        name = f"{given['organization']}/{given['name']}"
        new = name not in self.hub.repos
        if new:
            self.hub.add(name, given.get("type", "model"), given.get("visibility") == "private")
        prefix = "" if self.hub.repos[name]["type"] == "model" else self.hub.repos[name]["type"] + "s/"
        return self.answer(200 if new else 409, {"url": f"{self.hub.url}/{prefix}{name}"})

    def batch(self, given):
        if given["oid"] in self.hub.stored:
            return given
        return {**given, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{given['oid']}"}}}

    def commit(self, name, lines):
        files = dict(self.hub.repos[name]["files"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        self.hub.repos[name]["files"] = files
        self.hub.repos[name]["commits"].append(lines[0]["value"]["summary"])
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40})
