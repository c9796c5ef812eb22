"""Fetching an encoder, from a server on this machine that speaks as much of the hub as is used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from small import plain, random_state

from mdm_apple.config.model import ModelConfig, TextConfig
from mdm_apple.config.network import T5Config
from mdm_apple.config.shapes import encoder_shapes
from mdm_apple.errors import MdmError
from mdm_apple.storage.atomic_folder import verify_files
from mdm_apple.storage.model_folder import Training, load_model_config, save_model
from mdm_apple.text.encoder_folder import HubError, fetch_encoder, read_encoder_folder

COMMIT = "c" * 40
CONFIG = T5Config(20, 8, 4, 12, 2, 2)
HF_CONFIG = {
    "model_type": "t5", "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2,
    "num_heads": 2, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def sharded_t5(folder: Path) -> dict[str, bytes]:
    """The files of a repository: encoder in two shards, decoder in a third, and a pickle."""
    generator = np.random.default_rng(0)
    encoder = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in encoder_shapes(CONFIG).items()
    }
    names = list(encoder)
    decoder = {"decoder.final_layer_norm.weight": np.ones(8, np.float32)}
    shards = [{k: encoder[k] for k in names[:9]}, {k: encoder[k] for k in names[9:]}, decoder]
    index: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-0000{number}-of-00003.safetensors"
        save_file(shard, folder / file)
        files[file] = (folder / file).read_bytes()
        index.update(dict.fromkeys(shard, file))
    files["config.json"] = json.dumps(HF_CONFIG).encode()
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    files["spiece.model"] = b"not read here"
    files["pytorch_model.bin"] = b"not wanted"
    return files


class Hub:
    """One repository, google/small-t5, on a port of this machine."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.fetched: list[str] = []
        self.claimed: dict[str, int] = {}  # sizes that it tells in place of the true ones
        self.cut_after: int | None = None  # bytes of a file after which the connection drops
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        model = "/api/models/google/small-t5"
        resolved = f"/google/small-t5/resolve/{COMMIT}/"
        if path in (model, f"{model}/revision/main", f"{model}/revision/{COMMIT}"):
            sizes = {name: len(data) for name, data in self.files.items()} | self.claimed
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            info = {"_id": "1", "id": "google/small-t5", "sha": COMMIT, "siblings": siblings}
            self.send(request, 200, json.dumps(info).encode(), body)
        elif path == f"{model}/tree/{COMMIT}":
            tree = [
                {"type": "file", "oid": "0" * 40, "size": len(data), "path": name}
                for name, data in self.files.items()
            ]
            self.send(request, 200, json.dumps(tree).encode(), body)
        elif path.startswith(resolved) and path.removeprefix(resolved) in self.files:
            name = path.removeprefix(resolved)
            if body:
                self.fetched.append(name)
            self.send(request, 200, self.files[name], body, self.cut_after)
        else:
            code = "RevisionNotFound" if path.startswith(f"{model}/revision") else "RepoNotFound"
            self.send(request, 404, b"", body, error=code)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler,
        status: int,
        data: bytes,
        body: bool,
        cut_after: int | None = None,
        error: str | None = None,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Type", "application/json")
        if error:
            request.send_header("X-Error-Code", error)
        request.end_headers()
        if body:
            request.wfile.write(data if cut_after is None else data[:cut_after])
            request.close_connection = cut_after is not None


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    hub = Hub(sharded_t5(tmp_path_factory.mktemp("repository")))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def fetch(
    url: str, into: Path, source: str = "google/small-t5", revision: str | None = None
) -> Any:
    """Fetch in a process of its own, as the client reads its server's address only once."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from mdm_apple.text.encoder_folder import HubError, fetch_encoder\n"
        "source, revision, into = sys.argv[1:]\n"
        "try:\n"
        "    found = fetch_encoder(source, revision or None, Path(into))\n"
        "except HubError as error:\n"
        "    print(json.dumps({'refused': str(error)}))\n"
        "else:\n"
        "    print(json.dumps([found.source, found.revision, found.encoder_sha256,\n"
        "                      found.tokenizer_sha256]))\n"
    )
    run = run_python(url, into, code, source, revision or "", str(into))
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def run_python(
    url: str, home: Path, code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": f"{home}.home"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_only_the_encoder_is_fetched_and_its_commit_and_hashes_are_told(
    hub: Hub, tmp_path: Path, revision: str | None
) -> None:
    into = tmp_path / "encoder"
    source, commit, encoder_sha256, tokenizer_sha256 = fetch(hub.url, into, revision=revision)
    wanted = {
        "config.json",
        "model.safetensors.index.json",
        "spiece.model",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    }
    assert set(hub.fetched) == wanted
    assert {p.name for p in into.iterdir() if not p.name.startswith(".")} == wanted
    assert (source, commit) == ("google/small-t5", COMMIT)
    assert tokenizer_sha256 == hashlib.sha256(hub.files["spiece.model"]).hexdigest()
    files = read_encoder_folder(into)
    assert files.config == CONFIG
    assert files.encoder_sha256() == encoder_sha256

    shard = into / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert files.encoder_sha256() != encoder_sha256


def model_folder(folder: Path, encoder: T5Config) -> dict[str, bytes]:
    """A trained model that reads features of google/small-t5; its files but config.json."""
    network = plain(text_dim=encoder.d_model)
    text = TextConfig(max_tokens=4, encoder=encoder, source="google/small-t5")
    weights = random_state(network)
    save_model(
        folder,
        ModelConfig(network, 8, text=text),
        weights,
        ema=weights,
        training=Training({"m": np.ones(3)}, {"step": 7}),
    )
    changing = ("config.json", "hashes.json")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in changing}


def fetch_command(hub: Hub, folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from mdm_apple.cli import main; main()"
    return run_python(hub.url, folder, code, "fetch", "text-encoder", "--out", str(folder))


def test_the_command_notes_the_encoder_and_keeps_every_other_file(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    before = model_folder(folder, CONFIG)
    assert set(before) >= {"ema.safetensors", "training.safetensors", "training.json"}
    hub.claimed = {f"model-0000{n}-of-00003.safetensors": n * 10**6 for n in (1, 2, 3)}
    run = fetch_command(hub, folder)
    assert run.returncode == 0, run.stderr
    assert "google/small-t5: 3.0 MB to download; " in run.stderr  # not the decoder's third file
    text = load_model_config(folder).text
    assert text is not None
    assert text.revision == COMMIT
    assert text.encoder_sha256 == read_encoder_folder(folder / "encoder").encoder_sha256()
    assert before == {name: (folder / name).read_bytes() for name in before}
    verify_files(folder)


def test_the_command_refuses_an_encoder_that_the_model_was_not_trained_with(
    hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    model_folder(folder, dataclasses.replace(CONFIG, d_ff=16))
    noted = (folder / "config.json").read_bytes()
    run = fetch_command(hub, folder)
    assert run.returncode == 1
    assert "is not the text encoder that" in run.stderr
    assert (folder / "config.json").read_bytes() == noted


def test_a_connection_that_drops_is_told_and_the_next_run_takes_up(
    hub: Hub, tmp_path: Path
) -> None:
    into = tmp_path / "encoder"
    hub.cut_after = 40
    refused = fetch(hub.url, into)["refused"]
    assert "cannot be fetched" in refused
    assert "run the command again" in refused
    assert refused.count("\n") == 0
    assert not list(into.glob("*.safetensors"))  # nothing half-written under its own name
    hub.cut_after = None
    assert fetch(hub.url, into)[1] == COMMIT


def test_an_encoder_larger_than_the_disk_is_refused_before_it_is_fetched(
    hub: Hub, tmp_path: Path
) -> None:
    hub.claimed = {"model-00001-of-00003.safetensors": 10**18}
    refused = fetch(hub.url, tmp_path / "encoder")["refused"]
    assert "1,000,000,000,00" in refused
    assert refused.endswith("free some space.")
    assert not any(name.endswith(".safetensors") for name in hub.fetched)


def test_without_a_network_one_sentence_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    refused = fetch(hub.url, tmp_path / "encoder")["refused"]
    assert refused.startswith("google/small-t5: cannot be fetched (")
    assert refused.endswith("or give a folder that holds the encoder.")
    assert not (tmp_path / "encoder").exists()


def test_unknown_repositories_and_revisions_are_named(hub: Hub, tmp_path: Path) -> None:
    into = tmp_path / "encoder"
    assert (
        "google/nothing: Hugging Face has no such"
        in fetch(hub.url, into, "google/nothing")["refused"]
    )
    assert "no such repository at revision 'v9'" in fetch(hub.url, into, revision="v9")["refused"]


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {k: v for k, v in hub.files.items() if "safetensors" not in k}
    refused = fetch(hub.url, tmp_path / "encoder")["refused"]
    assert "holds no model.safetensors; only .safetensors weights are read" in refused


@pytest.mark.parametrize(
    "source", ["flan-t5-xl", "../etc/passwd", "a/b/c", "https://x/y", "", "a/ b"]
)
def test_sources_that_name_no_repository_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="expected a repository such as google/flan-t5-xl"):
        fetch_encoder(source, None, tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected a weight_map"),
        (
            '{"weight_map": {"shared.weight": "../secret.safetensors"}}',
            "names of .safetensors files",
        ),
        ('{"weight_map": {"shared.weight": "/etc/passwd"}}', "names of .safetensors files"),
        ('{"weight_map": {"shared.weight": 7}}', "names of .safetensors files"),
        ('{"weight_map": {}}', "is missing"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: str, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(HubError, match=message):
        read_encoder_folder(tmp_path)


def test_a_shard_without_the_weights_that_the_index_promises_is_refused(tmp_path: Path) -> None:
    for name, data in sharded_t5(tmp_path).items():
        (tmp_path / name).write_bytes(data)
    assert read_encoder_folder(tmp_path).config == CONFIG
    shards = sorted(tmp_path.glob("*.safetensors"))
    first = shards[0].read_bytes()
    shards[0].write_bytes(shards[2].read_bytes())
    with pytest.raises(HubError, match=r"shared\.weight is listed but missing"):
        read_encoder_folder(tmp_path)
    shards[0].write_bytes(first[:-1])
    with pytest.raises(HubError, match="cannot be read as safetensors"):
        read_encoder_folder(tmp_path)
    shards[0].unlink()
    with pytest.raises(HubError, match="cannot be read as safetensors"):
        read_encoder_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdmError, match=r"config\.json: no such file"):
        read_encoder_folder(tmp_path)
