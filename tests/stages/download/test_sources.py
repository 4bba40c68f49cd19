"""Naming sources: every way of pointing at media, in a fixed order, without credentials."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import RecipeError
from schemas.ids import source_id
from schemas.public import public_uri
from schemas.records import FETCH_URI, SOURCE
from stages.download.sources import expand_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "raw videos"
    for name in ("b/two.MKV", "a/one.mp4", "a/weird.bin", "a/no_suffix", "ünï 日本.mp4", "a/one.json", "notes.txt",
                 ".hidden.mp4", ".cache/x.mp4", "a/one.srt", "list.csv", "a/one.mp4.part"):  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(inputs: list[str], root: Path) -> list[str]:
    return [str(Path(row.uri).relative_to(root)) for row in expand_sources(inputs)]


def test_a_folder_gives_every_file_that_is_no_sidecar(folder: Path) -> None:
    expected = ["a/no_suffix", "a/one.mp4", "a/weird.bin", "b/two.MKV", "ünï 日本.mp4"]
    assert names([str(folder)], folder) == expected
    assert names([f"file://{folder}"], folder) == expected


def test_files_globs_and_repeats(folder: Path) -> None:
    inputs = [str(folder / "b" / "two.MKV"), str(folder / "**" / "*.mp4"), str(folder)]
    assert names(inputs, folder)[:3] == ["b/two.MKV", "a/one.mp4", "ünï 日本.mp4"]
    assert len(names(inputs, folder)) == 5
    assert names([str(folder / "[ab]" / "*")], folder) == ["a/no_suffix", "a/one.mp4", "a/weird.bin", "b/two.MKV"]


def test_rows_are_complete_and_stable(folder: Path) -> None:
    (row,) = expand_sources([str(folder / "a" / "one.mp4")])
    assert set(row.row()) == {field.name for field in (*SOURCE, FETCH_URI)}
    assert row.source_id == source_id(str(folder / "a" / "one.mp4"))
    assert (row.licence, row.metadata) == (None, "{}")
    assert expand_sources([str(folder)]) == expand_sources([str(folder)])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_manifests_carry_licence_and_all_other_columns(folder: Path, kind: str) -> None:
    path = folder / f"set.{kind}"
    records = [
        {"uri": "a/one.mp4", "licence": "CC BY 4.0", "speaker": "Ada", "sha256": "00"},
        {"uri": "https://example.org/x.mp4", "licence": None, "speaker": None, "sha256": None},
    ]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    elif kind == "csv":
        path.write_text("uri,licence,speaker,sha256\na/one.mp4,CC BY 4.0,Ada,00\nhttps://example.org/x.mp4,,,\n")
    else:
        pq.write_table(pa.Table.from_pylist(records), path)
    first, second = expand_sources([str(path)])
    assert first.uri == str(folder / "a" / "one.mp4")
    assert first.licence == "CC BY 4.0"
    assert json.loads(first.metadata) == {"sha256": "00", "speaker": "Ada"}
    assert (second.uri, second.licence, second.metadata) == ("https://example.org/x.mp4", None, "{}")


def test_a_manifest_on_an_object_store() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/lists/set.jsonl", b'{"uri": "videos/a.mp4", "license": "CC0"}\n')
    (row,) = expand_sources(["memory://lists/set.jsonl"])
    assert (row.uri, row.licence) == ("memory://lists/videos/a.mp4", "CC0")


def test_a_prefix_of_an_object_store_is_searched_and_an_object_is_itself() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("b.mp4", "deep/a.webm", "deep/note.txt", ".hidden/c.mp4"):
        memory.pipe_file(f"/prefix/{name}", b"")
    found = [row.uri for row in expand_sources(["memory://prefix/"])]
    assert found == ["memory://prefix/b.mp4", "memory://prefix/deep/a.webm"]
    alone = ["memory://prefix/b.mp4", "memory://prefix/none.mp4", "unknown://prefix/"]
    assert [row.uri for row in expand_sources(alone)] == alone


def test_credentials_stay_out_of_the_row() -> None:
    uri = "https://user:secret@cdn.example.org/v/a.mp4?id=7&X-Amz-Signature=abc&X-Amz-Expires=60&token=t#frag"
    (row,) = expand_sources([uri])
    assert row.uri == "https://cdn.example.org/v/a.mp4?id=7"
    assert row.fetch_uri == uri
    assert row.source_id == source_id(uri)
    assert "secret" not in json.dumps({key: value for key, value in row.row().items() if key != "fetch_uri"})
    (plain,) = expand_sources(["https://example.org/watch?v=a_b&list=2"])
    assert plain.uri == "https://example.org/watch?v=a_b&list=2"
    assert plain.fetch_uri is None
    assert public_uri("/data/a@b?token=1.mp4") == "/data/a@b?token=1.mp4"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("missing.mp4", "neither a file"),
        ("*.nothing", "No file matches"),
        ("bad.jsonl", "cannot be read"),
        ("nouri.csv", "Row 1"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, item: str, words: str) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json}\n")
    (tmp_path / "nouri.csv").write_text("url,licence\nx.mp4,CC0\n")
    with pytest.raises(RecipeError) as caught:
        expand_sources([str(tmp_path / item)])
    assert words in str(caught.value)
