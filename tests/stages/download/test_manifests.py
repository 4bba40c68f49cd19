"""Lists of sources: every form is read or refused by name, every row is a source, merged, or named with what is wrong with it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import DownloadError, RecipeError
from stages.download.licences import strictest
from stages.download.sources import Listing, list_inputs
from stages.download.stage import Download, DownloadConfig
from tests.stages.download.web import Handler, fetch, serving

ROWS = [
    {"uri": "my video, take 1.mp4", "licence": "CC0", "n": "1"},
    {"uri": "https://example.org/b.mp4", "licence": "", "n": "2"},
]
TABLE = 'uri,licence,n\n"my video, take 1.mp4",CC0,1\nhttps://example.org/b.mp4,,2\n'
TEXT = {
    ".jsonl": "\n".join(map(json.dumps, ROWS)),
    ".ndjson": "\ufeff" + "\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    ".json": json.dumps(ROWS, indent=1),
    ".csv": TABLE,
    ".tsv": "uri\tlicence\tn\nmy video, take 1.mp4\tCC0\t1\nhttps://example.org/b.mp4\t\t2\n",
    ".txt": "# a comment\nmy video, take 1.mp4\n\nhttps://example.org/b.mp4\n",
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def listed(folder: Path, name: str, content: str | bytes) -> Listing:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return list_inputs([str(path)])


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("ending", TEXT)
def test_every_form_is_read(tmp_path: Path, ending: str, packed: str) -> None:
    listing = listed(tmp_path, f"list{ending}{packed}", PACK[packed](TEXT[ending].encode()))
    first, second = listing.sources
    assert (first.uri, second.uri) == (str(tmp_path / "my video, take 1.mp4"), "https://example.org/b.mp4")
    if ending != ".txt":
        assert (first.licence, second.licence) == ("CC0", None)
        assert json.loads(first.metadata or "") == {"n": "1"}
    assert listing.notes() == []


def test_lists_in_other_encodings_are_read(tmp_path: Path) -> None:
    assert len(listed(tmp_path, "a.csv", TABLE.encode("utf-16")).sources) == 2
    (row,) = listed(tmp_path, "b.csv", b"uri,title\ncaf\xe9.mp4,caf\xe9\n").sources
    assert row.uri == f"file://{tmp_path}/caf%E9.mp4"
    assert json.loads(row.metadata or "") == {"title": "caf\ufffd"}
    assert len(listed(tmp_path, "c.csv", b"uri\ra.mp4\rb.mp4").sources) == 2


@pytest.mark.parametrize("name", ["l.xlsx", "l.zip", "l.yaml", "l.mp4.gz", "l.srt", "l.feather", "l.md"])
def test_others_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"neither media nor a list.*\.jsonl"):
        listed(tmp_path, name, "x")
    with pytest.raises(RecipeError, match=r"neither media nor a list"):
        list_inputs([f"https://example.org/{name}?sig=1"])


BAD = [
    '{"uri": "a.mp4", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"uri": "a.mp4", "x": ' + "[" * 50 + "]" * 50 + "}",
    '{"uri": "a.mp4", "x": ' + "9" * 5000 + "}",
    '{"uri": "\\ud800.mp4"}',
    '{"uri": "a\\u0000.mp4"}',
    '{"uri": 7}',
    '{"uri": "https:\\\\\\\\u:SEKRET@h\\\\v.mp4"}',
    '{"uri": "http:/h/v.mp4"}',
    '{"url": "a.mp4"}',
    "[1]",
    "{not json",
    "null",
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_row_costs_itself_and_is_named(tmp_path: Path, bad: str) -> None:
    listing = listed(tmp_path, "list.jsonl", f'{bad}\n{{"uri": "good.mp4"}}\n')
    assert [Path(row.uri).name for row in listing.sources] == ["good.mp4"]
    (note,) = listing.notes()
    assert "row 1 of list.jsonl" in note


def test_a_list_of_bad_rows_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Row 1 of manifest .* is nested too deeply"):
        listed(tmp_path, "list.jsonl", BAD[0])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", 'uri,x\na.mp4,"open\nb.mp4,1\n', "row 1: .*quote"),
        ("b.json", '{"videos": []}', "one array"),
        ("c.json", "[" * 100_000, "nested too deeply"),
        ("d.parquet", b"PAR1garbagePAR1", "cannot be read"),
        ("e.jsonl.gz", gzip.compress(b"x" * 10_000)[:40], "cannot be read"),
        ("f.csv", "name,licence\na.mp4,CC0\n", "Row 1 .*columns are name, licence"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        listed(tmp_path, name, content)


def test_fields_of_any_length_and_rows_with_too_many(tmp_path: Path) -> None:
    long = "word " * 40_000
    listing = listed(tmp_path, "list.csv", f"uri,transcript\na.mp4,{long}\nb.mp4,Hello, world\nc.mp4,x,,\n")
    assert [Path(row.uri).name for row in listing.sources] == ["a.mp4", "c.mp4"]
    assert json.loads(listing.sources[0].metadata or "")["transcript"] == long.rstrip("\n")
    assert "row 2 of list.csv, which has 3 fields for 2 columns" in listing.notes()[0]


def test_metadata_is_json_that_everybody_reads(tmp_path: Path) -> None:
    text = '{"uri": "a.mp4", "x": NaN, "y": [1e999, 2.5], "half": "\\ud83d", "whole": "\\ud83d\\ude42"}'
    (row,) = listed(tmp_path, "list.jsonl", text).sources
    assert row.metadata is not None
    assert json.loads(row.metadata, parse_constant=pytest.fail) == {
        "y": [None, 2.5], "half": "\ufffd", "whole": "🙂"}  # fmt: skip
    row.metadata.encode()


def test_parquet_of_any_types_is_read(tmp_path: Path) -> None:
    columns = {
        "uri": pa.array(["a.mp4", "b.mp4"]).dictionary_encode(),
        "when": pa.array([1_700_000_000_123_456_789, 2**62], pa.timestamp("ns")),
        "day": pa.array([2**30, 0], pa.date32()),
        "price": pa.array([Decimal("1.50"), None]),
        "raw": pa.array([b"caf\xe9", b"x"]),
        "tags": pa.array([[{"k": float("nan")}], None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    first, second = list_inputs([str(tmp_path / "list.parquet")]).sources
    told = json.loads(first.metadata or "")
    assert told["when"].startswith("2023-11-14 22:13:20.123456789")
    assert (told["price"], told["raw"], told["tags"]) == ("1.50", "caf\ufffd", [{}])
    assert second.uri == str(tmp_path / "b.mp4")


def test_rows_of_one_file_become_rows_of_one_source(tmp_path: Path) -> None:
    ranges = ((0, "x"), (60, "y"), (60, "y"))
    rows = [{"uri": "a.mp4", "title": "T", "start": start, "caption": caption} for start, caption in ranges]
    listing = listed(tmp_path, "list.jsonl", "\n".join(map(json.dumps, rows)))
    (row,) = listing.sources
    assert json.loads(row.metadata or "") == {
        "title": "T",
        "rows": [{"start": 0, "caption": "x"}, {"start": 60, "caption": "y"}],
    }
    assert "rows that name a source named before: 2" in listing.notes()[0]
    many = listed(tmp_path, "many.jsonl", "\n".join(json.dumps({"uri": "a.mp4", "n": n}) for n in range(20_000)))
    assert len(json.loads(many.sources[0].metadata or "")["rows"]) == 20_000


def test_parts_of_one_address_are_rows_of_one_source(tmp_path: Path) -> None:
    listing = listed(tmp_path, "list.txt", "https://h/v.mp4#t=10,20\nhttps://h/v.mp4#t=30,40\nhttps://h/v.mp4#/other\n")
    assert [json.loads(row.metadata or "") for row in listing.sources] == [
        {"rows": [{"fragment": "t=10,20"}, {"fragment": "t=30,40"}]}, {}]  # fmt: skip


def test_a_row_adds_to_a_file_of_a_folder_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    (tmp_path / "list.csv").write_text("uri,licence,speaker\nin/a.mp4,CC0,Ada\n")
    for inputs in (["in", "list.csv"], ["list.csv", "in"]):
        (row,) = list_inputs([str(tmp_path / each) for each in inputs]).sources
        assert (row.licence, json.loads(row.metadata or "")) == ("CC0", {"speaker": "Ada"})


@pytest.mark.parametrize(
    ("one", "other", "holds"),
    [
        ("CC0", "proprietary", "proprietary"),
        ("CC BY 4.0", "CC0 1.0", "CC BY 4.0"),
        ("CC BY 4.0", "CC BY-NC 4.0", "CC BY-NC 4.0"),
        ("CC-BY-NC-ND", "CC BY-NC", "CC-BY-NC-ND"),
        ("CC BY-SA 4.0", "CC BY-NC 4.0", "CC BY-SA 4.0 AND CC BY-NC 4.0"),
        ("Pixabay", "Mixkit", "Pixabay AND Mixkit"),
        ("CC0", "cc0", "CC0"),
        ("All rights reserved", "CC BY 4.0", "All rights reserved"),
        (None, "CC0", "CC0"),
        ("CC0", None, "CC0"),
        (None, None, None),
    ],
)
def test_the_strictest_licence_holds(one: str | None, other: str | None, holds: str | None) -> None:
    assert strictest(one, other) == holds
    assert sorted((strictest(other, one) or "").casefold().split(" and ")) == sorted(
        (holds or "").casefold().split(" and ")
    )


def test_licences_of_a_row_are_one_line_of_text(tmp_path: Path) -> None:
    rows = '{"uri": "a", "licence": NaN}\n{"uri": "b", "licence": "CC0", "license": "CC BY\\n4.0"}\n{"uri": "c", "license": 7}'
    assert [row.licence for row in listed(tmp_path, "list.jsonl", rows).sources] == [None, "CC BY 4.0", "7"]


def test_rows_that_state_different_checksums_settle_as_an_error(tmp_path: Path, stage: Callable[..., Any]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = "\n".join(json.dumps({"uri": "a.mp4", "sha256": each * 64}) for each in "01")
    (row,) = listed(tmp_path, "list.jsonl", rows).sources
    with pytest.raises(DownloadError, match="2 different sha256"):
        fetch(stage(), row.uri, metadata=row.metadata)


def test_a_signed_list_on_a_web_server_is_fetched_with_its_signature(tmp_path: Path) -> None:
    """Its own host may be private, for the user named it; where that leads on to may not."""
    asked: list[str] = []

    def answer(handler: Handler) -> None:
        asked.append(handler.path)
        if handler.path.startswith("/gone"):
            handler.answer(404, b"no")
        else:
            handler.answer(200, gzip.compress(TABLE.encode()), Content_Encoding="gzip")

    with serving(answer) as server:
        url = f"{server.url}/lists/list.csv.gz?sig=SEKRET&x=[1]*?"
        first, second = list_inputs([url]).sources
        assert (first.uri, second.uri) == (f"{server.url}/lists/my video, take 1.mp4", "https://example.org/b.mp4")
        assert asked == ["/lists/list.csv.gz?sig=SEKRET&x=[1]*?"]
        with pytest.raises(RecipeError, match=r"404") as caught:
            list_inputs([f"{server.url}/gone.csv?sig=SEKRET"])
    assert "SEKRET" not in str(caught.value)


def test_secrets_in_columns_are_not_kept_and_it_is_said(tmp_path: Path) -> None:
    row = {"uri": "https://h/v.mp4?sig=SEKRET", "thumb": "https://h/t.jpg?sig=SEKRET", "cookie": "SEKRET", "title": "T",
           "http_headers": {"Authorization": "Bearer SEKRET", "Accept": "video/*"}, "n_tokens": 3}  # fmt: skip
    listing = listed(tmp_path, "list.jsonl", json.dumps(row))
    (source,) = listing.sources
    assert json.loads(source.metadata or "") == {
        "thumb": "https://h/t.jpg", "title": "T", "http_headers": {"Accept": "video/*"}, "n_tokens": 3}  # fmt: skip
    assert listing.notes() == ["credentials in columns of manifests are not kept: Authorization, cookie, thumb"]
    with pytest.raises(DownloadError, match="kept nowhere") as caught:
        Download(DownloadConfig()).measure(source.row() | {"fetch_uri": None})
    assert caught.value.reason == "address_not_kept"
