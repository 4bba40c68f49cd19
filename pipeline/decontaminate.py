"""Which clips of a run are near an evaluation set: by what is seen, heard or said, or by who says it.

The set is another run, or media that are measured as the run was, without its gates. What is seen and heard is held against
each other by what clips are recognised by, whoever measured it (`schemas.fields.MEANINGS`), with the search of
`stages.near_duplicates`: no clip is held against all others. Moving pictures are near whatever is heard with them. What is
said is near where eight words in a row are the same, or where all of a shorter item, of four words at least, is all that is
said in a clip. A voice is near by the recipe's `pack.same_voice`, and marks every clip of the source it is heard in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.ask.queries import Run
from pipeline.config import Recipe, parse_recipe
from pipeline.execute.here import here
from pipeline.plan import Plan
from pipeline.run import run as curate
from pipeline.splits import embeddings_at
from pipeline.store import RunDir
from schemas.errors import RecipeError
from schemas.fields import Meaning
from schemas.held_against import WAYS, Way
from schemas.records import Level
from stages.download.manifests import kind_of
from stages.download.places import is_local, path_of, scheme_of
from stages.download.sources import list_inputs
from stages.near_duplicates.across import PRINTS, near_pairs

if TYPE_CHECKING:
    import polars as pl

MEANT: tuple[Meaning, ...] = ("picture_times", "picture_prints", "sound_prints")
"""What says where `PRINTS` are, in their order."""
WORDS, LEAST_WORDS = 8, 4
"""Own choice: eight words in a row are hardly said twice by chance; a shorter item is told by all of it."""
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]")
"""Characters of scripts without spaces, each of which counts as a word."""
COSINES_AT_ONCE = 1 << 24
"""Of voices with voices, in memory: 64 MB, however many voices both sides have."""
SPOKEN = f"{Level.CLIP}.spans"
Near = dict[str, list[str]]
"""clip_id, by, item: columns of `pipeline.near_marks.SCHEMA`, but what the set is called."""


def near(run: Run, against: Run, ways: Sequence[Way] = WAYS) -> pl.DataFrame:
    """clip_id, by, item of every clip of `run` that is near a clip of `against`, once for each way in which it is.

    Holds the voices of both runs (1 kB each) and the words of `against`; voices cost one cosine for each pair.

    Raises RecipeError where nothing that was asked for can be compared: neither run measured it.
    """
    import polars as pl

    asked = {way: can_compare(run.plan, way) and can_compare(against.plan, way) for way in ways}
    if not any(asked.values()):
        raise RecipeError(
            f"neither {', '.join(ways)} can be compared: stages that measure them are not in both recipes.",
            remedy="Add the stage that measures prints, or voices, to the recipe and run it again.",
        )
    found: Near = {"clip_id": [], "by": [], "item": []}
    if asked.get("seen") or asked.get("heard"):
        _add(found, (row for row in _by_prints(run, against) if asked.get(row[1])))
    if asked.get("said"):
        _add(found, _by_text(run, against))
    if asked.get("voice"):
        _add(found, _by_voice(run, against))
    schema = dict.fromkeys(found, pl.String)
    return (
        pl.DataFrame(found, schema=schema)
        .unique(["clip_id", "by"], keep="first", maintain_order=True)
        .sort("clip_id", "by")
    )


def can_compare(plan: Plan, way: Way) -> bool:
    """Whether a run of this plan has what a way compares; what is said is always there."""
    needed: dict[Way, tuple[Meaning, ...]] = {
        "seen": MEANT, "heard": MEANT, "said": (), "voice": ("voice",),
    }  # fmt: skip
    return all(plan.meaning(each) for each in needed[way])


def is_run(place: str) -> bool:
    """Whether a path or URL is that of a run."""
    if is_local(place):
        return (path_of(place) / "recipe.yaml").is_file()
    is_folder = scheme_of(place) not in ("http", "https") and kind_of(place) is None
    return is_folder and RunDir(place).exists("recipe.yaml")


def measured_set(run: Run, inputs: Sequence[str], out: str) -> Run:
    """The media of `inputs` measured into the run folder `out` as `run` measured its own, as far as comparing needs it.

    Without its gates, for an item that is not kept may still be met. The same call goes on with what is missing.
    """
    recipe = comparing_recipe(run.plan)
    curate(recipe, list_inputs(inputs).sources, out, here, quiet=True)
    return Run(out, run.cache)


def comparing_recipe(plan: Plan) -> Recipe:
    """The stages of a plan that measure what is compared, and those they read; no gates, nothing cut."""
    meanings: set[Meaning] = {*MEANT, "voice"}
    columns = {path.partition(".")[0] for each in meanings for _, path in plan.meaning(each)} | {*Level}
    wanted: set[str] = set()
    for spec in reversed(plan.stages):
        if spec.column in columns and not spec.is_collect:
            wanted.add(spec.name)
            columns |= set(spec.sees)
    told = plan.recipe.model_dump(mode="json")
    stages = {name: config for name, config in told["stages"].items() if name in wanted}
    resources = {name: each for name, each in told["resources"].items() if name in wanted}
    return parse_recipe({**told, "stages": stages, "resources": resources, "gates": {}, "opt_out": []})


def _add(found: Near, rows: Iterator[tuple[str, Way, str]]) -> None:
    for clip_id, by, item in rows:
        found["clip_id"].append(clip_id)
        found["by"].append(by)
        found["item"].append(item)


# ----------------------------------------------------------------------------------------------- picture and sound


def _prints_of(run: Run) -> pl.LazyFrame:
    """What the clips of a run are recognised by, as `near_pairs` wants it."""
    import polars as pl

    paths = [run.plan.meaning(meaning)[0][1] for meaning in MEANT]
    renamed = {name: pl.col(path) for name, path in zip(PRINTS, paths, strict=True)}
    return run.ledger.scan(Level.CLIP).select("row_id", **renamed)


def _by_prints(run: Run, against: Run) -> Iterator[tuple[str, Way, str]]:
    for pair in near_pairs(_prints_of(run), _prints_of(against)):
        if pair.is_seen:
            yield pair.one, "seen", pair.other
        if pair.is_heard:
            yield pair.one, "heard", pair.other


# ------------------------------------------------------------------------------------------------------ words, voices


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text without case and marks; a script without spaces has a word per character."""
    plain = UNSPACED.sub(lambda found: f" {found[0]} ", unicodedata.normalize("NFKC", text).casefold())
    return tuple(re.findall(r"[^\W_]+", plain.replace("'", "").replace("\u2019", "")))


def _said_in(run: Run) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(clip id, words) of every clip in which anything is said."""
    import polars as pl

    said = pl.col(SPOKEN).list.eval(pl.element().struct.field("text")).list.join(" ")
    rows = run.ledger.scan(Level.CLIP).select("row_id", said=said).filter(pl.col("said").str.len_chars() > 0)
    for name, text in rows.collect(engine="streaming").iter_rows():
        yield name, words_of(text)


def _by_text(run: Run, against: Run) -> Iterator[tuple[str, Way, str]]:
    runs: dict[tuple[str, ...], str] = {}
    wholes: dict[tuple[str, ...], str] = {}
    for item, words in _said_in(against):
        if LEAST_WORDS <= len(words) < WORDS:
            wholes.setdefault(words, item)
        for at in range(len(words) - WORDS + 1):
            runs.setdefault(words[at : at + WORDS], item)
    for name, words in _said_in(run):
        parts = (words[at : at + WORDS] for at in range(len(words) - WORDS + 1))
        met = wholes.get(words) or next((runs[part] for part in parts if part in runs), None)
        if met is not None:
            yield name, "said", met


def _by_voice(run: Run, against: Run) -> Iterator[tuple[str, Way, str]]:
    import polars as pl

    reach = run.recipe.pack.same_voice
    if reach is None:
        return
    met: dict[str, str] = {}
    for level, path in run.plan.meaning("voice"):
        owners, table = embeddings_at(run.ledger.scan(level), path)
        for other_level, other_path in against.plan.meaning("voice"):
            names, wanted = embeddings_at(against.ledger.scan(other_level), other_path)
            if len(table) and len(wanted) and table.shape[1] == wanted.shape[1]:
                num_rows = max(1, COSINES_AT_ONCE // len(wanted))
                for first in range(0, len(table), num_rows):
                    cosines = table[first : first + num_rows] @ wanted.T
                    best = cosines.argmax(axis=1)
                    for at in np.flatnonzero(cosines.max(axis=1) >= reach):
                        met.setdefault(owners[first + int(at)], names[best[at]])
    rows = run.ledger.scan(Level.CLIP).select("row_id", "asset_id").filter(pl.col("asset_id").is_in(list(met)))
    for name, asset in rows.collect(engine="streaming").iter_rows():
        yield name, "voice", met[asset]
