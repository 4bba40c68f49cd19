"""Every page and its twin: same numbers as `stats --json`, honest refusals, lists that cover everything once."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from pipeline.ask.queries import Run
from pipeline.ask.stats import stats
from pipeline.ask.what_if import what_if
from pipeline.config import parse_recipe
from pipeline.inspector.app import PAGES, Inspector
from pipeline.inspector.guard import Access
from pipeline.inspector.pages import question_of
from pipeline.inspector.session import Session
from pipeline.show.plain import stats_plain
from schemas.recipe import parsed
from tests.inspector.conftest import BASE, HOSTILE, LONGEST_US, PORT

ROOT = Path(__file__).resolve().parents[2]
GATE = "clip.duration_us.max"


def filled(path: str, ids: dict[str, str], client: TestClient) -> str:
    shard = client.get("/shards.json").json()["rows"][0]["name"].removesuffix(".tar")
    clip = path.replace("/clips/{id}", f"/clips/{ids['keep']}")
    return clip.replace("{id}", ids["source"]).replace("{name}", shard)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_has_a_twin(path: str, client: TestClient, ids: dict[str, str]) -> None:
    where = filled(path, ids, client)
    page = client.get(where)
    assert page.status_code == 200, page.text
    assert page.text.startswith("<!doctype html>")
    assert f'<a href="{"/" if path == "/" else path.split("/{", maxsplit=1)[0]}" aria-current="page">' in page.text
    twin = client.get("/overview.json" if path == "/" else f"{where}.json")
    assert twin.json()["schema"] == 1
    assert twin.json()["run"] in page.text
    assert re.search(r'<footer>.*?<a href="([^"]+)"', page.text, re.DOTALL)[1].partition("?")[0] == twin.url.path
    again = client.get(twin.url.path, headers={"if-none-match": twin.headers["etag"]})
    assert again.status_code == 304


def test_the_routes_are_those_of_the_guide(session: Session, access: Access) -> None:
    guide = (ROOT / "docs" / "inspector.md").read_text()
    told = set(re.findall(r"^\| `(/[^`?]*)", guide, re.MULTILINE))
    routes = {str(vars(route)["path"]) for route in Inspector(session, access).app().routes}
    pages = {path for path in routes if not path.startswith("/static/") and not path.endswith(".json")}
    assert told == pages | {"/peaks/{id}.json"}


def test_the_overview_says_what_stats_says_and_its_bars_add_up(client: TestClient, whole_run: Path) -> None:
    told = client.get("/overview.json").json()
    plain = stats_plain(stats(Run(str(whole_run))))
    for key in ("hours", "assets", "shots", "clips", "labels", "cost", "cpu_s"):
        assert told[key] == plain[key], key
    assert [{k: v for k, v in gate.items() if k != "doc"} for gate in told["gates"]] == plain["gates"]
    assert sum(bar["us"] for bar in told["bars"]) == plain["hours"]["exact_us"]["in"]
    assert told["progress"]["is_settled"]
    assert [check["outcome"] for check in told["checks"]] == ["passed", "passed", "passed", "not run"]


def test_every_bar_leads_to_what_it_counts(client: TestClient) -> None:
    for bar in client.get("/overview.json").json()["bars"]:
        path, _, query = bar["href"].partition("?")
        told = client.get(f"{path}.json?{query}").json()
        assert told["found"] if path == "/clips" else told["num_found"], bar
        if path == "/clips":
            assert told["found_us"] == bar["us"], bar


@pytest.mark.parametrize("sort", ["", "-duration_us", "margin:picture.brightness", "audio.loudness_lufs"])
def test_pages_of_clips_cover_everything_once(sort: str, session: Session) -> None:
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = session.view.lists.page(replace(question_of({"sort": sort, "after": after}), limit=1))
        seen += [row.clip_id for row in page.rows]
        after = page.next_after
    assert sorted(seen) == sorted(row["row_id"] for row in session.view.run.ledger.rows("clip"))


def test_a_list_is_csv_as_well(client: TestClient) -> None:
    answer = client.get("/clips?format=csv&where=picture.brightness>0")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == client.get("/clips.json?where=picture.brightness>0").json()["found"] == 3
    assert all(float(row["picture.brightness"]) > 0 for row in rows)
    assert HOSTILE in client.get("/clips?format=csv").text
    for path in ("/sources", "/shards"):
        assert len(list(csv.DictReader(io.StringIO(client.get(f"{path}?format=csv").text)))) >= 1


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/clips.json?where=picture.britness<1", 400, "Did you mean 'picture.brightness'"),
        ("/clips.json?where=picture.brightness<dark", 400, "is a number"),
        ("/clips.json?where=nonsense", 400, "FIELD OPERATOR VALUE"),
        ("/clips.json?sort=margin:sound.kind", 400, "cannot be sorted"),
        ("/clips.json?sort=margin:audio.loudness_lufs", 400, "no gate bounds"),
        ("/clips.json?after=c00000000000000000000", 400, "no clip"),
        ("/measures.json?gate.clip.duration_us.mox=3", 400, "Did you mean 'clip.duration_us.max'"),
        ("/measures.json?gate.clip.duration_us.max=long", 400, "expected a number"),
        ("/sources.json?sort=size", 400, "Known: name"),
        ("/shards/none.json", 404, "no shard"),
        ("/compare.json?other=x", 200, ""),
        ("/nothing.json", 404, "no such page"),
    ],
)
def test_refusals_say_what_to_do(client: TestClient, path: str, status: int, said: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert said in answer.text.replace("\\u0027", "'")
    page = client.get(path.replace(".json", "", 1))
    assert page.status_code == status
    assert page.headers["content-type"].startswith("text/html")


def test_an_unknown_id_is_answered_with_those_of_its_beginning(client: TestClient, ids: dict[str, str]) -> None:
    wrong = ids["keep"][:8] + 13 * "0"
    answer = client.get(f"/clips/{wrong}.json")
    assert answer.status_code == 404
    assert answer.json()["near"] == [ids["keep"]]
    assert f'href="/clips/{ids["keep"]}"' in client.get(f"/clips/{wrong}").text


def test_a_clip_page_tells_value_bound_and_margin_of_every_gate(client: TestClient, ids: dict[str, str]) -> None:
    told = client.get(f"/clips/{ids['reject']}.json?sort=-duration_us").json()
    (gate,) = [each for each in told["gates"] if each["gate"] == GATE]
    assert (gate["value"], gate["bound"], gate["margin"]) == (4_000_000, LONGEST_US, LONGEST_US - 4_000_000)
    assert gate["outcome"] == "failed"
    assert [each["outcome"] for each in told["gates"] if each["gate"] != GATE] == ["not reached"]
    kept = client.get(f"/clips/{ids['keep']}.json").json()
    assert {each["outcome"] for each in kept["gates"]} == {"passed"}
    assert kept["is_packed"]
    assert not told["is_packed"]
    assert told["previous"] is None
    assert told["next"] is not None


def test_moved_gates_agree_with_stats_and_come_as_a_recipe_that_runs(client: TestClient, whole_run: Path) -> None:
    bounds = {GATE: 4_500_000.0, "picture.brightness.min": 0.9}
    query = "&".join(f"gate.{name}={bound}" for name, bound in bounds.items())
    told = client.get(f"/measures.json?{query}").json()
    then = what_if(Run(str(whole_run)), [f"gates.{name}={bound}" for name, bound in bounds.items()])
    assert told["kept"]["low_us"] == then.low_us
    assert told["kept"]["high_us"] == then.high_us
    assert told["kept_now"]["us"] == then.now_us
    assert yaml.safe_load(told["yaml"])["gates"]["clip"]["duration_us"]["max"] == 4_500_000
    recipe = client.get(f"/measures/recipe?{query}")
    assert parse_recipe(parsed(recipe.text)).gates["picture"]["brightness"].min == 0.9
    assert "--set gates.picture.brightness.min=0.9" in told["command"]


def test_a_dropped_gate_is_dropped_in_the_command_too(client: TestClient, whole_run: Path) -> None:
    told = client.get(f"/measures.json?gate.{GATE}=off").json()
    assert "duration_us" not in told["yaml"]
    assert "--set 'gates.clip={}'" in told["command"]
    then = what_if(Run(str(whole_run)), ["gates.clip={}"])
    assert (told["kept"]["low_us"], told["kept"]["high_us"]) == (then.low_us, then.high_us)


def test_a_run_can_be_held_against_another(whole_run: Path, damaged_run: Path, cache: Path) -> None:
    recipe = damaged_run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max: 3500000", "max: 3600000"))
    session = Session(str(whole_run), (str(damaged_run),), cache)
    with TestClient(Inspector(session, Access("127.0.0.1", PORT)).app(), BASE) as client:
        told = client.get("/compare.json").json()
        assert (told["before_us"], told["num_flips"]) == (told["after_us"], 0)
        assert [row[0] for row in told["recipe_diff"]] == ["gates.clip.duration_us.max"]
        assert client.get("/compare").status_code == 200
