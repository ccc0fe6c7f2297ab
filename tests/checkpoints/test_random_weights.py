"""Random checkpoints: the same bytes for a seed, and whole after a kill."""

from __future__ import annotations

import hashlib
import os

import pytest

from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.config.config_file import CONFIG_FILE, read_config


class Killed(BaseException):
    """As if the process had been killed."""


def digests(directory) -> dict[str, str]:
    files = sorted(directory.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_seed_writes_the_same_bytes_anywhere(tmp_path):
    first, second = tmp_path / "a" / "first", tmp_path / "second"
    second.mkdir()
    (tmp_path / "link").symlink_to(second)
    random_weights.make(first, "tiny", 3)
    random_weights.make(tmp_path / "link", "tiny", 3)
    assert set(digests(first)) == {*registry.FILES, CONFIG_FILE}
    assert digests(first) == digests(second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "link", "second"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_leaves_nothing_or_what_can_be_made_again(tmp_path, monkeypatch, existing):
    def write(directory, kind, config, size, seed):
        for name in (*registry.FILES, CONFIG_FILE):
            (directory / name).write_text('{"made": true}' if name == CONFIG_FILE else str(seed))

    monkeypatch.setattr(random_weights, "_write", write)
    target = tmp_path / "m"
    if existing:
        random_weights.make(target, "tiny", 1)
        (target / "mine").touch()
    replace, steps = os.replace, len(registry.FILES) + 1 if existing else 0
    for killed_at in range(steps):
        calls = iter(range(steps))

        def kill(old, new, killed_at=killed_at, calls=calls):
            if next(calls) == killed_at:
                raise Killed
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", kill)
            with pytest.raises(Killed):
                random_weights.make(target, "tiny", 2)
        assert read_config(target).random_weights, "the next command accepts the directory"
        contents = {(target / n).read_text() for n in registry.FILES if (target / n).exists()}
        assert len(contents) <= 1, "never a mixture"
    random_weights.make(target, "tiny", 2)
    assert {(target / name).read_text() for name in registry.FILES} == {"2"}
    names = {path.name for path in target.iterdir()}
    assert names == {*registry.FILES, CONFIG_FILE, *(["mine"] if existing else [])}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
