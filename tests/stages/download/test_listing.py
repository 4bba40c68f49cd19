"""Everything that lies among the inputs is a source, or is named with the reason why not."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import RecipeError
from stages.download.places import is_local, path_of, scheme_of, uri_of
from stages.download.sources import Listing, list_inputs
from tests.stages.download.web import fetch


def made(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
    return root


def names(listing: Listing, root: Path) -> list[str]:
    return [str(path_of(row.uri).relative_to(root)) for row in listing.sources]


def skipped(listing: Listing, why: str) -> list[str]:
    """Names of what was left out for reasons that begin so."""
    return [
        Path(name).name
        for reason, all_names in listing.skips.names.items()
        if reason.startswith(why)
        for name in all_names
    ]


def test_what_downloaders_leave_beside_media_is_no_source(tmp_path: Path) -> None:
    stem = "How we met [dQw4w9WgXcQ]"
    beside = (".en.vtt", ".de-DE.srt", ".info.json", ".description", ".annotations.xml", ".live_chat.json", ".webp", ".jpg",
              ".part", ".f137.mp4.part", ".f137.mp4.part-Frag12", ".ytdl")  # fmt: skip
    made(
        tmp_path,
        *(stem + ending for ending in (".webm", *beside)),
        "Thumbs.db",
        "desktop.ini",
        "cover.png",
        "C0001M01.XML",
    )
    listing = list_inputs([str(tmp_path)])
    assert names(listing, tmp_path) == [f"{stem}.webm"]
    assert listing.skips.counts.total() == len(beside) + 4
    assert len(skipped(listing, "still pictures")) == 3
    assert any("still pictures: 3" in note and stem in note for note in listing.notes())


def test_pictures_that_move_are_sources_unless_they_are_covers(tmp_path: Path) -> None:
    made(tmp_path, "film.mkv", "film.webp", "loop.webp", "loop2.gif")
    assert names(list_inputs([str(tmp_path)]), tmp_path) == ["film.mkv", "loop.webp", "loop2.gif"]


def test_linked_folders_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    root, elsewhere = (
        made(tmp_path / "in", "a/one.mp4", "z.mp4"),
        made(tmp_path / "elsewhere", "two.mp4", "deep/three.mp4"),
    )
    (root / "link").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (elsewhere / "deep" / "circle").symlink_to(elsewhere)
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "b_twin").symlink_to(root / "a")
    (root / "file_link.mp4").symlink_to(elsewhere / "two.mp4")
    listing = list_inputs([str(root)])
    assert names(listing, root) == ["a/one.mp4", "file_link.mp4", "z.mp4", "again/deep/three.mp4", "again/two.mp4"]
    assert sorted(skipped(listing, "links to folders")) == ["b_twin", "circle", "link", "up"]


def test_a_folder_that_is_a_link_and_one_of_links_alone_are_searched(tmp_path: Path) -> None:
    real = made(tmp_path / "real", "one.mp4")
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "inside").symlink_to(real)
    assert len(list_inputs([str(tmp_path / "link")]).sources) == 1
    assert len(list_inputs([str(tmp_path / "only")]).sources) == 1
    assert len(list_inputs([str(tmp_path / "on*" / "*" / "*.mp4")]).sources) == 1


def test_what_cannot_be_read_is_counted_and_named(tmp_path: Path) -> None:
    made(tmp_path, "one.mp4")
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.mp4"))
        listing = list_inputs([str(tmp_path)])
    assert names(listing, tmp_path) == ["one.mp4"]
    assert skipped(listing, "links that lead nowhere") == ["broken.mp4", "loop.mp4"]
    assert skipped(listing, "pipes") == ["pipe.mp4", "socket.mp4"]
    for bad, words in (("broken.mp4", "leads nowhere"), ("pipe.mp4", "neither a file")):
        with pytest.raises(RecipeError, match=words):
            list_inputs([str(tmp_path / bad)])


@pytest.mark.skipif(os.geteuid() != 0, reason="somebody else's folder needs two users")
def test_a_folder_of_somebody_else_is_named(tmp_path: Path) -> None:
    made(tmp_path / "in", "one.mp4", "closed/two.mp4")
    (tmp_path / "in" / "closed").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and len(folder.parts) > 1:
            folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        listing = list_inputs([str(tmp_path / "in")])
    finally:
        os.seteuid(0)
    assert names(listing, tmp_path / "in") == ["one.mp4"]
    assert skipped(listing, "folders that cannot be read") == ["closed"]


def test_runs_and_exports_are_no_recordings(tmp_path: Path) -> None:
    made(tmp_path, "one.mp4", "run/recipe.yaml", "run/ledger/_delta_log/0.json", "run/assets/ab/ab.mp4", "run/cuts/c.mp4",
         "old/data.jsonl", "old/data.list", "old/data.weight", "old/media/c.mp4", "new/.nava-export",
         "new/media/c.mp4")  # fmt: skip
    listing = list_inputs([str(tmp_path)])
    assert names(listing, tmp_path) == ["one.mp4"]
    assert sorted(skipped(listing, "folders that a run or an export wrote")) == ["new", "old", "run"]
    for own in ("run", "old", "new"):
        with pytest.raises(RecipeError, match="written by a run or an export"):
            list_inputs([str(tmp_path / own)])


def test_the_same_on_an_object_store() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("one.mp4", "one.jpg", "clip [x].mp4", "run/recipe.yaml", "run/ledger/_delta_log/0.json", "run/assets/ab.mp4",
                 "deep/two.webm"):  # fmt: skip
        memory.pipe_file(f"/bucket/raw/{name}", b"")
    listing = list_inputs(["memory://bucket/raw"])
    root = "memory://bucket/raw/"
    assert [row.uri.removeprefix(root) for row in listing.sources] == ["clip [x].mp4", "deep/two.webm", "one.mp4"]
    assert skipped(listing, "folders that a run") == ["run"]
    found = [row.uri.removeprefix(root) for row in list_inputs([f"{root}*.mp4"]).sources]
    assert found == ["clip [x].mp4", "one.mp4"]
    assert [row.uri for row in list_inputs([f"{root}clip [x].mp4"]).sources] == [f"{root}clip [x].mp4"]
    assert [row.uri for row in list_inputs([f"{root}**/*.webm"]).sources] == [f"{root}deep/two.webm"]
    for nothing in (f"{root}*.mkv", "memory://bucket/none/"):
        with pytest.raises(RecipeError, match="Nothing that can be a source"):
            list_inputs([nothing])


@pytest.mark.parametrize("name", [b"caf\xe9 interview.mp4", b"\x83e\x83X\x83g/a.mp4", b"two\nlines.mp4", b"\x1b[2J[/x] $y.mp4",
                                  b"%41.mp4", b"#?&.mp4"])  # fmt: skip
def test_names_of_any_bytes_are_sources(tmp_path: Path, stage: Callable[..., Any], name: bytes) -> None:
    made(tmp_path / "in", os.fsdecode(name), "good.mp4")
    listing = list_inputs([str(tmp_path / "in")])
    assert len(listing.sources) == 2
    assert sorted(os.fsencode(path_of(row.uri)) for row in listing.sources) == sorted(
        os.fsencode(tmp_path / "in") + b"/" + each for each in (name, b"good.mp4")
    )
    for row in listing.sources:
        assert row.uri.isprintable()
        got = fetch(stage(), row.uri)
        assert got["path"].isprintable(), "columns, messages and other programs take it"
        assert Path(got["path"]).read_bytes() == path_of(row.uri).read_bytes()


def test_file_uris_are_unquoted(tmp_path: Path, stage: Callable[..., Any]) -> None:
    path = made(tmp_path, "my video, take 1 100%.mp4") / "my video, take 1 100%.mp4"
    for uri in (
        path.as_uri(),
        path.as_uri().replace("file://", "file://localhost"),
        path.as_uri().replace("file:", "FILE:"),
    ):
        (row,) = list_inputs([uri]).sources
        assert row.uri == str(path)
        assert fetch(stage(), uri)["path"] == str(path)
    with pytest.raises(RecipeError, match="not this machine"):
        list_inputs([f"file://elsewhere{path}"])


def test_addresses_are_told_apart() -> None:
    assert uri_of(Path("/a/b c.mp4")) == "/a/b c.mp4"
    assert uri_of(Path("/a/b\nc.mp4")) == "file:///a/b%0Ac.mp4"
    assert [is_local(each) for each in ("a.mp4", "FILE:///a", "s3://b/a", "a::b")] == [True, True, False, True]
    assert [scheme_of(each) for each in ("a", "S3://b", "s3::http://h", "s3://b::http://h", "https://h/a::b")] == [
        "file", "s3", "", "", "https"]  # fmt: skip
    with pytest.raises(RecipeError, match="chains"):
        list_inputs(["simplecache::http://127.0.0.1/x"])


def test_a_pattern_names_what_it_left_out(tmp_path: Path) -> None:
    made(tmp_path, "a.mp4", "a.srt", "sub/b.mp4")
    listing = list_inputs([str(tmp_path / "*")])
    assert names(listing, tmp_path) == ["a.mp4"]
    assert skipped(listing, "folders that a pattern") == ["sub"]
    with pytest.raises(RecipeError, match=r"No file matches.*a\.srt"):
        list_inputs([str(tmp_path / "*.srt")])
    shutil.rmtree(tmp_path / "sub")
    (tmp_path / "circle").symlink_to(tmp_path)
    assert names(list_inputs([str(tmp_path / "**" / "*.mp4")]), tmp_path) == ["a.mp4"]
