"""Which directories are trusted with code that this process runs."""

from __future__ import annotations

import os
import stat

import pytest

from chatterbox_opt.utils import cache_directory

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no file modes on this system")

OURS, NEIGHBOUR, ADMINISTRATOR = 1000, 1001, 0


def status(user, mode):
    """Of a directory; the tests may run as the administrator, who owns what they create."""
    return os.stat_result((stat.S_IFDIR | mode, 1, 1, 2, user, 100, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("user", "mode", "reason"),
    [
        (OURS, 0o700, ""),
        (OURS, 0o755, ""),
        (ADMINISTRATOR, 0o755, ""),
        (OURS, 0o775, "others can write to it (mode 775)"),
        (OURS, 0o757, "others can write to it (mode 757)"),
        (OURS, 0o1777, "others can write to it (mode 1777)"),
        (ADMINISTRATOR, 0o1777, "others can write to it (mode 1777)"),
        (NEIGHBOUR, 0o700, "it belongs to another user, 1001"),
        (NEIGHBOUR, 0o755, "it belongs to another user, 1001"),
    ],
)
def test_owner_and_mode(user, mode, reason):
    assert cache_directory.fault(status(user, mode), OURS) == reason


def test_the_administrator_trusts_nobody_else():
    assert cache_directory.fault(status(OURS, 0o700), ADMINISTRATOR)


@pytest.mark.parametrize(
    ("mode", "safe"), [(0o755, True), (0o775, True), (0o1777, True), (0o777, False)]
)
def test_parents_in_which_others_can_rename(mode, safe):
    for user in (OURS, ADMINISTRATOR):
        assert bool(cache_directory.parent_fault(status(user, mode))) != safe


def test_new_directories_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        cache_directory.create(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700] * 2
    assert not cache_directory.directory_fault(tmp_path / "a" / "b")


def test_a_directory_is_judged_with_those_above_it(tmp_path):
    path = tmp_path / "public" / "own"
    assert not cache_directory.directory_fault(path), "absent"
    cache_directory.create(path)
    path.parent.chmod(0o777)
    assert "others can replace it" in cache_directory.directory_fault(path)
    assert "others can replace it" in cache_directory.directory_fault(path / "absent")
    path.parent.chmod(0o1777)
    assert not cache_directory.directory_fault(path)


def test_a_symbolic_link_is_judged_by_its_target_and_its_owner(tmp_path, monkeypatch):
    (tmp_path / "public").mkdir()
    (tmp_path / "public").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "public")
    assert "others can write" in cache_directory.directory_fault(tmp_path / "link")
    (tmp_path / "public").chmod(0o700)
    assert not cache_directory.directory_fault(tmp_path / "link")
    monkeypatch.setattr(os, "getuid", lambda: NEIGHBOUR)
    monkeypatch.setattr(cache_directory, "ROOT_USER", -1)
    assert "another user's symbolic link" in cache_directory.directory_fault(tmp_path / "link")


def test_a_loop_of_links_is_not_trusted_and_warned_about_once(tmp_path, caplog):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for _ in range(3):
        assert not cache_directory.trusted(tmp_path / "loop", "kernels", "set X")
    assert len(caplog.records) == 1
    assert "set X" in caplog.text
