"""Snapshots of the hub: pins, the local cache, revisions, and downloads from a server of ours."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chatterbox_opt.checkpoints import hub, registry
from chatterbox_opt.checkpoints.hub import Pin, Snapshot
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.doctor import command
from chatterbox_opt.errors import InputError, WeightsError

COMMIT, OTHER = "a" * 40, "b" * 40
CONTENT = {"one.bin": b"first file", "two.json": b"{}"}


def pinned(content=CONTENT, revision=COMMIT) -> Snapshot:
    pins = {n: Pin(len(b), hashlib.sha256(b).hexdigest()) for n, b in content.items()}
    return Snapshot("owner/name", revision, tuple(content), pins)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache; without a server there is no network."""
    directory = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(directory))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between huggingface_hub's retries
    return directory


def store(cache, revision, content=CONTENT, branch=None, repository="owner/name"):
    """Put files where huggingface_hub has them after a download."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name, data in content.items():
        (snapshot / name).write_bytes(data)
    if branch:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(revision)
    return snapshot


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def served(cache, monkeypatch, socket_enabled):
    """A hub with one repository; returns its files by revision."""
    revisions = {COMMIT: dict(CONTENT)}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer()

        def do_GET(self):
            self.wfile.write(self._answer())

        def log_message(self, *_):
            pass

        def _answer(self) -> bytes:
            _, owner, name, _, revision, file = self.path.split("/", 5)
            files = revisions.get(revision)
            known = files is not None and file in files
            body = files[file] if known else b""
            self.send_response(200 if known else 404)
            if not known:
                missing = "Revision" if files is None else "Entry"
                self.send_header("X-Error-Code", f"{missing}NotFound")
            self.send_header("X-Repo-Commit", revision)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
        raising=False,
    )
    yield revisions
    server.shutdown()
    server.server_close()


def test_a_converter_downloads_only_what_it_needs(cache, monkeypatch):
    """Unless all of the model is here."""
    kind, snapshot = registry.HUB_KINDS["chatterbox"], registry.HUB["chatterbox"]
    needed = {kind.s3gen, kind.voice_encoder, "conds.pt"}
    wanted = registry.must_download("chatterbox", speaks=False)
    assert set(wanted.files) == needed == set(wanted.pins)
    assert wanted.size < registry.must_download("chatterbox").size / 2
    content = dict.fromkeys(needed, b"x")
    store(cache, snapshot.revision, content, repository=snapshot.repository)
    assert registry.must_download("chatterbox", speaks=False) is None
    assert registry.must_download("chatterbox") == snapshot
    for code in ("turbo", "multilingual", "multilingual-hi"):
        kind = registry.HUB_KINDS[code]
        wanted = registry.must_download(code, speaks=False)
        assert kind.s3gen in wanted.files and kind.t3 not in wanted.files


def test_a_snapshot_is_downloaded_checked_and_then_used_without_network(served, monkeypatch):
    directory = hub.fetch(pinned())
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == CONTENT
    assert directory.name == COMMIT
    served.clear()
    assert hub.fetch(pinned()) == directory


@pytest.mark.parametrize(
    ("data", "reason"), [(b"first fil", "has 9 bytes, not 10"), (b"First file", "has the SHA-256")]
)
def test_a_download_that_is_not_the_pinned_file_is_refused(served, data, reason):
    served[COMMIT]["one.bin"] = data
    for _ in range(2):  # it is not used because it is there the second time
        with pytest.raises(WeightsError, match=reason) as caught:
            hub.fetch(pinned())
        assert "delete" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_download_that_was_not_checked_to_the_end_is_checked_again(served, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hub, "sha256", interrupted)
        hub.fetch(pinned())
    checked, plain = [], hub.sha256
    monkeypatch.setattr(hub, "sha256", lambda path: checked.append(path.name) or plain(path))
    hub.fetch(pinned())
    assert sorted(checked) == sorted(CONTENT)


def test_a_file_that_a_revision_does_not_have_is_named(served):
    served[OTHER] = {"one.bin": b"moved on"}
    with pytest.raises(WeightsError, match=f"has no two.json at revision '{OTHER}'"):
        hub.fetch(pinned().at(OTHER))


def test_a_full_disk_is_no_fault_of_the_network(cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(
        WeightsError, match="No space left on device.: free space there, or set HF_"
    ):
        hub.fetch(pinned())


def test_a_cached_file_of_another_size_is_refused(cache):
    store(cache, COMMIT, CONTENT | {"two.json": b"{}\n"})
    with pytest.raises(WeightsError, match=r"two.json' has 3 bytes, not 2"):
        hub.fetch(pinned())


def test_another_revision_is_used_only_if_it_is_asked_for(served):
    served[OTHER] = {"one.bin": b"moved on", "two.json": b"[]"}
    served["main"] = served[OTHER]
    assert (hub.fetch(pinned()) / "one.bin").read_bytes() == b"first file"
    assert (hub.fetch(pinned().at(OTHER)) / "one.bin").read_bytes() == b"moved on"
    assert (hub.fetch(pinned().at("main")) / "one.bin").read_bytes() == b"moved on"
    with pytest.raises(WeightsError, match=r"no revision 'v9'; without --revision"):
        hub.fetch(pinned().at("v9"))


def test_a_moved_branch_does_not_change_what_is_cached(cache, no_network):
    mine = store(cache, COMMIT, branch="main")
    (cache / "models--owner--name" / "refs" / "main").write_text(OTHER)
    assert hub.fetch(pinned()) == mine


def test_an_earlier_download_is_named_if_the_pinned_one_cannot_be_had(cache, no_network):
    earlier = store(cache, OTHER, branch="main")
    with pytest.raises(WeightsError, match=r"\(4\) --revision main, which is here"):
        hub.fetch(pinned())
    assert hub.fetch(pinned().at("main")) == earlier


@pytest.mark.parametrize("revision", ["", "..", "a/../../b", "-\n", "/etc", "a b", "a//b"])
def test_impossible_revisions_are_refused(revision):
    with pytest.raises(InputError, match="no commit, branch or tag"):
        pinned().at(revision)


def test_the_pinned_revision_by_name_is_pinned():
    assert pinned().at(COMMIT) == pinned()
    assert pinned().at("refs/pr/1").pins == {}


def test_missing_weights_without_network_error_lists_the_remedies(cache, no_network):
    with pytest.raises(WeightsError, match=r"\(1\) connect.*\(2\) --model DIR.*\(3\)") as caught:
        registry.locate("chatterbox")
    assert "\n" not in str(caught.value)
    assert "(4)" not in str(caught.value)


def test_the_remedy_names_the_files_of_a_pack_that_are_elsewhere(cache, no_network):
    with pytest.raises(
        WeightsError, match=r"DIR with a copy of ve.pt, t3_hi.safetensors, s3gen_v3"
    ):
        registry.locate("multilingual-hi")


def test_offline_mode_is_named_in_the_error(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        registry.locate("chatterbox")


def test_a_complete_cache_is_used_without_network(tiny, cache, no_network, monkeypatch):
    files = {n: (tiny / n).read_bytes() for n in (*registry.FILES, "config.json")}
    directory = store(cache, OTHER, files, "main", "ResembleAI/chatterbox")
    assert registry.locate("chatterbox@main").directory == directory
    assert registry.must_download("chatterbox@main") is None
    assert registry.must_download("chatterbox") is registry.HUB["chatterbox"]


def test_revisions_are_those_of_hub_models(tmp_path, monkeypatch):
    assert registry.at_revision("pico", None) == "pico"
    assert registry.at_revision("chatterbox", "main") == "chatterbox@main"
    for model in ("pico", str(tmp_path)):
        with pytest.raises(InputError, match=r"--revision is for models of the hub \(chatterbox, "):
            registry.at_revision(model, "main")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatterbox@mine").mkdir()
    assert registry.on_hub("chatterbox@mine") is None
    assert registry.on_hub("pico@main") is None
    with pytest.raises(InputError, match="unknown model 'pico@main'"):
        registry.check_name("pico@main")


def test_the_release_is_pinned_whole():
    release = registry.HUB["chatterbox"]
    assert set(release.pins) == set(registry.FILES)
    assert len(release.revision) == 40
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in release.pins.values())
    assert release.size == 3_191_966_992


def test_models_list_verbose_prints_digests(cache, monkeypatch):
    data = {name: name.encode() for name in registry.FILES}
    pins = {n: Pin(len(b), hashlib.sha256(b).hexdigest()) for n, b in data.items()}
    release = dataclasses.replace(registry.HUB["chatterbox"], pins=pins)
    monkeypatch.setitem(registry.HUB, "chatterbox", release)
    listed = CliRunner().invoke(app, ["models", "list", "--verbose"]).output
    assert f"chatterbox at {release.revision}" in listed
    assert listed.split("\n\n")[1].count("to download") == len(data)
    directory = store(cache, release.revision, data, repository=release.repository)
    (directory / registry.T3).write_bytes(b"damaged")
    listed = CliRunner().invoke(app, ["models", "list", "-v"], env={"COLUMNS": "80"}).output
    assert listed.count("  as released") == len(data) - 1
    assert "7 bytes  NOT as released" in listed
    assert hashlib.sha256(b"damaged").hexdigest() in listed
    assert max(map(len, listed.split("\n\n", 1)[1].splitlines())) <= 80
    entry = json.loads(CliRunner().invoke(app, ["models", "list", "-v", "--json"]).output)[0]
    assert entry["revision"] == release.revision
    assert {f["name"]: f["sha256"] for f in entry["files"]}[registry.TOKENIZER] == (
        pins[registry.TOKENIZER].sha256
    )


def test_models_get_downloads_a_model_once_and_prints_where_it_is(served, monkeypatch):
    release = dataclasses.replace(registry.HUB["turbo"], revision=COMMIT, pins={})
    monkeypatch.setitem(registry.HUB, "turbo", release)
    served[COMMIT] = {name: name.encode() for name in release.files}
    result = CliRunner().invoke(app, ["models", "get", "turbo"])
    assert "downloading ResembleAI/chatterbox-turbo" in result.stderr
    directory = Path(result.stdout.strip())
    assert {path.name for path in directory.iterdir()} == set(release.files)
    assert registry.cached("turbo") == directory
    served.clear()
    again = CliRunner().invoke(app, ["models", "get", "turbo"])
    assert (again.stdout, again.stderr) == (result.stdout, "")
    for arguments in (["nope"], [str(directory)], ["pico", "--revision", "main"]):
        result = CliRunner().invoke(app, ["models", "get", *arguments])
        assert isinstance(result.exception, InputError)
        assert "known: chatterbox" in str(result.exception) or "--revision" in str(result.exception)
    assert CliRunner().invoke(app, ["models", "get", "pico"]).stdout.strip().endswith("pico")


def test_models_list_shows_sizes_and_languages(cache):
    listed = CliRunner().invoke(app, ["models", "list"]).stdout
    rows = {line.split()[0]: line for line in listed.splitlines()}
    assert "3.0 GB" in rows["turbo"]
    assert "not downloaded yet" in rows["turbo"]
    assert "23 languages" in rows["multilingual"]
    assert "unknown" in rows["multilingual-pt-br"]
    assert " pt " in rows["multilingual-pt-br"]
    assert "MB" in rows["pico"]
    assert rows["multilingual-zh-cmn"].endswith("not downloaded yet (not pinned)")
    assert rows["pico"].endswith("built in")
    assert max(map(len, listed.splitlines())) <= 80
    entries = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    unpinned = [
        entry["model"].removeprefix("multilingual-") for entry in entries if not entry["pinned"]
    ]
    assert unpinned == ["zh-cmn", "es-mx-latam", "pt-pt"]
    wordy = CliRunner().invoke(app, ["models", "list", "-v"]).stdout
    assert "\n  hub: ResembleAI/chatterbox-nano\n" in wordy
    assert "pt-pt\n  not pinned: what the branch has when it is downloaded\n" in wordy
    turbo = next(entry for entry in entries if entry["model"] == "turbo")
    assert turbo["size"] == 2_987_680_596
    assert "[laugh]" in turbo["tags"]
    assert turbo["missing_knobs"] == ["cfg_weight", "exaggeration", "min_p"]


@pytest.mark.parametrize(("kind", "size"), [("turbine", "tiny"), ("turbo", "huge")])
def test_models_make_names_what_it_can_make(tmp_path, kind, size):
    arguments = ["models", "make", str(tmp_path / "m"), "--kind", kind, "--size", size]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert "known: " in str(result.exception)
    assert not (tmp_path / "m").exists()


def test_doctor_finds_a_download_that_was_cut_off(cache):
    snapshot = registry.HUB["turbo"]
    content = {name: b"cut" for name in snapshot.files}
    store(cache, snapshot.revision, content, repository=snapshot.repository)
    found = command._weights("turbo")
    assert not found.good and "has 3 bytes, not" in found.remedy
