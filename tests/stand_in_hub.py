"""A small Hugging Face Hub on this machine: what the Hub's own client asks for when it uploads and downloads models."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LICENCES = ("apache-2.0", "mit", "other")


@dataclass
class Repository:
    """Commits by hash, each with all its files; branches by name."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, bytes], message: str, branch: str = "main", start: str = "main") -> str:
        parent = self.branches.get(branch, self.branches.get(start, ""))
        content = self.commits.get(parent, {}) | files
        state = json.dumps([parent, message, {name: len(data) for name, data in content.items()}])
        commit = hashlib.sha1(state.encode() + b"".join(files.values())).hexdigest()
        self.commits[commit], self.messages[commit], self.branches[branch] = content, message, commit
        return commit


class Hub:
    """`repositories` by "owner/name"; `requests`, what was asked, as "METHOD path"; `most_commits` that one takes."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.most_commits = 100
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def connect(self, patch: pytest.MonkeyPatch, cache: Path, token: str | None = "hf_owner") -> None:
        """Let the real client of this process talk to this Hub, with an empty cache."""
        from huggingface_hub import constants

        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", token)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path)
            hub.requests.append(f"{self.command} {unquote(path.path)}")
            parts = [unquote(part) for part in path.path.strip("/").split("/")]
            user = (self.headers.get("Authorization") or "").removeprefix("Bearer hf_")
            if parts == ["api", "validate-yaml"]:
                return self.validate()
            if parts == ["api", "repos", "create"]:
                return self.create(user)
            repo_id = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            repository = hub.repositories.get(repo_id)
            if repository is None or (repository.private and user != repo_id.split("/")[0]):
                return self.send(404 if user else 401, {"error": "Repository not found"}, code="RepoNotFound")
            if self.command == "POST" and user != repo_id.split("/")[0]:
                return self.send(403, {"error": f"{user} may not write here"})
            if parts[0] == "api":
                return self.api(repo_id, repository, parts[4:], parse_qs(path.query))
            commit = repository.branches.get(parts[3], parts[3])
            data = repository.commits.get(commit, {}).get("/".join(parts[4:]))
            if commit not in repository.commits:
                return self.send(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
            if data is None:
                return self.send(404, {"error": "Entry not found"}, code="EntryNotFound")
            etag = hashlib.sha256(data).hexdigest() if parts[-1].endswith(".safetensors") else _blob(data)
            return self.send(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

        def api(self, repo_id: str, repository: Repository, rest: list[str], query: dict[str, list[str]]) -> None:
            verb, name = (*rest, "", "main")[:2] if len(rest) != 1 else (rest[0], "main")
            commit = repository.branches.get(name, name)
            if verb in ("", "revision", "tree") and commit not in repository.commits:
                return self.send(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
            if verb in ("", "revision"):
                return self.send(200, {"id": repo_id, "sha": commit, "private": repository.private})
            if verb == "tree":
                files = repository.commits[commit].items()
                return self.send(200, [{"type": "file", "path": n, "size": len(d), "oid": _blob(d)} for n, d in files])
            if verb == "branch":
                if name in repository.branches:
                    return self.send(409, {"error": "exists"})
                repository.branches[name] = repository.branches["main"]
                return self.send(200, {})
            if name not in repository.branches:
                return self.send(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
            if verb == "preupload":
                old = repository.commits[commit]
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    | ({"oid": _blob(old[f["path"]])} if f["path"] in old else {})
                    for f in json.loads(self.body)["files"]
                ]
                return self.send(200, {"files": files})
            if len(repository.commits) >= hub.most_commits:
                return self.send(500, {"error": "out of order"})
            assert verb == "commit"
            lines = [json.loads(line) for line in self.body.splitlines()]
            files = {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
            asked = "create_pr" in query
            made = repository.add(files, lines[0]["value"]["summary"], "refs/pr/1" if asked else name)
            answer = {"commitUrl": f"{hub.endpoint}/{repo_id}/commit/{made}", "commitOid": made}
            return self.send(200, answer | {"pullRequestUrl": f"{hub.endpoint}/{repo_id}/discussions/1"})

        def validate(self) -> None:
            header = yaml.safe_load(json.loads(self.body)["content"].split("---")[1])
            wrong = header.get("license") not in (None, *LICENCES)
            message = f'"license" must be one of [{", ".join(LICENCES)}]'
            if wrong and self.headers.get("Accept") == "text/plain":
                return self.send(400, message.encode())
            errors = [{"message": message}] if wrong else []
            return self.send(400 if wrong else 200, {"errors": errors, "warnings": []})

        def create(self, user: str) -> None:
            asked = json.loads(self.body)
            owner = asked.get("organization") or user
            if not user or owner != user:
                return self.send(403 if user else 401, {"error": "You don't have the rights to create a model"})
            repo_id = f"{owner}/{asked['name']}"
            if repo_id in hub.repositories:
                return self.send(409, {"error": "exists", "url": f"{hub.endpoint}/{repo_id}"})
            private = bool(asked.get("private") or asked.get("visibility") == "private")
            hub.repositories[repo_id] = Repository(private)
            hub.repositories[repo_id].add({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            return self.send(200, {"url": f"{hub.endpoint}/{repo_id}"})

        def send(
            self, status: int, content: object, headers: dict[str, str] | None = None, code: str | None = None
        ) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in ((headers or {}) | ({"X-Error-Code": code} if code else {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _blob(data: bytes) -> str:
    """Git's name of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
