"""A checkpoint by its name on a hub: from a local cache, from a server on this machine, or a clear error."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from gptbridge.api import inspect
from gptbridge.errors import BadInput, UsageError
from gptbridge.hub import chosen, fetched
from gptbridge.training.beginning import Beginning
from gptbridge.weights.opening import Hints
from tests.command import COMMAND

VECTOR = Path(__file__).parent / "weights/conversion" / "vectors" / "hf"
SHA = "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"  # the port of a service that throws away: nobody listens


class Hub:
    """A server that has one repository, `org/tiny`, by the words of both hubs."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.asked: list[str] = []
        self.damaged = False
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                status, body, headers = hub.answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        words, query = urlparse(path).path, parse_qs(urlparse(path).query)
        if re.fullmatch("/api/models/org/tiny(/revision/[a-z0-9]+)?", words):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, json.dumps({"id": "org/tiny", "sha": SHA, "siblings": siblings}).encode(), {}
        if words == f"/api/models/org/tiny/tree/{SHA}":
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.files.items()
            ]
            return 200, json.dumps(tree).encode(), {}
        if "/org/tiny/resolve/" in words:
            body = self.files[Path(words).name]
            return 200, body, {"ETag": hashlib.sha256(body).hexdigest(), "X-Repo-Commit": SHA}
        if words == "/api/v1/models/org/tiny/repo/files":
            listed = [
                {"Path": name, "Type": "blob", "Size": len(body), "Sha256": hashlib.sha256(body).hexdigest()}
                for name, body in self.files.items()
            ]
            return 200, json.dumps({"Code": 200, "Data": {"Files": listed}}).encode(), {}
        if words == "/api/v1/models/org/tiny/repo":
            body = self.files[query["FilePath"][0]]
            return 200, body[:-1] + b"?" if self.damaged else body, {}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as it lies on a hub, with files beside the weights that are not for us."""
    folder = tmp_path / "model"
    shutil.copytree(VECTOR, folder)
    (folder / "README.md").write_text("# tiny\n")
    (folder / "tf_model.h5").write_bytes(b"h5")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    made = Hub(model)
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test's own, and hubs that nobody answers for."""
    for name, value in {"HF_HOME": "hf", "MODELSCOPE_CACHE": "modelscope"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for name in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.setenv(name, NOWHERE)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return tmp_path


def inspected(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `gptbridge inspect` in a process of its own: huggingface_hub reads its settings once."""
    command = [*COMMAND, "inspect", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_a_name_on_hugging_face(hub: Hub, cache: Path) -> None:
    """From the server once, from the cache without one, and an error where neither has it."""
    nobody = inspected("hf:org/tiny")
    assert nobody.returncode == 5
    assert "is not in the cache, and Hugging Face cannot be reached" in nobody.stderr
    assert len(nobody.stderr.splitlines()) == 1
    online = inspected("hf:org/tiny", "--json", HF_ENDPOINT=hub.address)
    assert online.returncode == 0, online.stderr
    digest = inspect(VECTOR).as_dict()["digest"]
    assert json.loads(online.stdout)["digest"] == digest
    assert not any("tf_model.h5" in path for path in hub.asked)
    offline = inspected("hf:org/tiny", "--json")
    assert json.loads(offline.stdout)["digest"] == digest
    refused = inspected("hf:org/other", HF_ENDPOINT=hub.address)
    assert (refused.returncode, "Hugging Face refuses it (404)" in refused.stderr) == (5, True)


def test_a_name_without_the_package(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"takes huggingface_hub, which is not installed.*\.\[hub\]"):
        fetched(Path("gpt2"))


def test_a_name_on_modelscope(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, warnings = Path("modelscope:org/tiny"), list[str]()
    with pytest.raises(BadInput, match="is not in the cache, and ModelScope cannot be reached"):
        fetched(name)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.address)
    folder = fetched(name)
    assert folder == cache / "modelscope" / "models" / "org" / "tiny"
    assert {path.name for path in folder.iterdir()} == {path.name for path in VECTOR.iterdir()}
    assert inspect(name).as_dict()["digest"] == inspect(VECTOR).as_dict()["digest"]
    with Beginning(name, Hints()).open(warnings.append) as opened:
        assert opened.path == folder
    assert warnings == []
    asked = len([path for path in hub.asked if "FilePath" in path])
    fetched(name)
    assert len([path for path in hub.asked if "FilePath" in path]) == asked  # nothing twice
    monkeypatch.setenv("MODELSCOPE_DOMAIN", NOWHERE)
    assert fetched(name) == folder
    with pytest.raises(BadInput, match="is not in the cache"):
        fetched(Path(f"{name}@v2"))
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.address)
    with pytest.raises(BadInput, match="refuses it"):
        fetched(Path("modelscope:org/other"))


def test_modelscope_s_revisions_and_updates(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.address)
    first = fetched(Path("modelscope:org/tiny"))
    held = (first / "config.json").read_bytes()
    hub.files["config.json"] = held.swapcase()  # as many bytes
    other = fetched(Path("modelscope:org/tiny@v2"))
    assert (other / "config.json").read_bytes() == held.swapcase()
    assert (first / "config.json").read_bytes() == held
    assert (fetched(Path("modelscope:org/tiny")) / "config.json").read_bytes() == held.swapcase()


def test_a_file_that_came_damaged_is_not_kept(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_DOMAIN", hub.address)
    hub.damaged = True
    with pytest.raises(BadInput, match="not what was announced"):
        fetched(Path("modelscope:org/tiny"))
    assert not [path for path in (cache / "modelscope").rglob("*") if path.is_file()]
    hub.damaged = False
    fetched(Path("modelscope:org/tiny"))


def test_what_lies_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    for path in (Path("gpt2"), Path("org/tiny"), Path("nothing"), tmp_path):
        assert fetched(path) == path


@pytest.mark.parametrize("name", ["hf:tiny", "hf:a/b/c", "hf:../b", "modelscope:", "hf:a/b@", "hf:a/b c"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="hf:ORG/NAME"):
        fetched(Path(name))


def test_one_form_of_the_weights_is_taken() -> None:
    beside = ["config.json", "vocab.json", "merges.txt", "README.md"]
    forms = ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "flax_model.msgpack"]
    assert chosen([*beside, *forms]) == ["config.json", "vocab.json", "merges.txt", "model.safetensors"]
    assert chosen(["config.json", *forms[1:]]) == ["config.json", "pytorch_model.bin"]
    ranks = ["configuration.json", "model/mp_rank_00_model_states.pt", "model/mp_rank_01_model_states.pt"]
    assert chosen(ranks) == ranks
    several = [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ]
    assert chosen(several) == several[:2]
    assert chosen(["../config.json", "/etc/config.json", "a/../../b.json"]) == []
