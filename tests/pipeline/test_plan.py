"""Plans: miswired recipes and clusters that cannot schedule are refused before anything runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import load_recipe, parse_recipe
from pipeline.plan import Cluster, make_plan, render
from schemas.errors import PlanError
from schemas.fields import describe
from schemas.recipe import apply_overrides

LAPTOP = Cluster(cpus=2, gpus=0, memory_gb=16, node_cpus=2, node_gpus=0)


def reordered(recipe: dict[str, Any], *names: str) -> dict[str, Any]:
    return recipe | {"stages": {name: {} for name in names}, "gates": {}}


def test_the_default_recipe_fits_a_laptop_and_prints_units() -> None:
    plan = make_plan(load_recipe("quickstart"), LAPTOP)
    text = render(plan, LAPTOP)
    assert [len(each.groups) for each in plan.passes] == [1, 1], "CPU stages of a pass share one worker and one decode"
    for path, _, unit, doc in describe(list(plan.stages[-1].cls.adds)):
        assert path in text
        assert unit in text
        assert doc in text


def test_every_column_of_the_default_recipe_is_documented() -> None:
    for spec in make_plan(load_recipe("quickstart")).stages:
        undocumented = [path for path, _, _, doc in describe(list(spec.cls.adds)) if not doc]
        assert not undocumented, f"{spec.name}: {undocumented}"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("download", "shot_split", "clip", "sync", "audio"), "Move 'audio' before 'sync'"),
        (("download", "shot_split", "audio", "clip"), "works on clips, which no earlier stage makes"),
        (("probe", "shot_split"), "reads download.asset_id.*Add stage 'download'"),
    ],
)
def test_miswired_recipes_say_what_to_move(toy_recipe: dict[str, Any], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(parse_recipe(reordered(toy_recipe, *names)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gates.audio.valu.min=1", "no such field"),
        ("gates.audio.value.when={clip.speech: true}", "no such field"),
        ("gates.probe.has_video.min=1", "no order"),
        ("gates.shot_split={index: {min: 1}}", "shots are not gated"),
    ],
)
def test_gates_on_fields_that_do_not_exist_are_refused(toy_recipe: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(parse_recipe(apply_overrides(toy_recipe, [override])))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gates.sync.confidence.when={clip.has_speech: maybe}", "has_speech is bool .* 'maybe'. Give true or false"),
        ("gates.sync.confidence.when={clip.num_speakers: two}", "num_speakers is int32 .* Give a number"),
        ("gates.sync.confidence.when={clip.num_speakers: true}", "never equals True. Give a number"),
        ("gates.sync.confidence.when={sync.kind: 3}", "sync.kind is string .* Give a text"),
        ("gates.sync.confidence.when={picture.brightness: [a, b]}", "brightness is double and never equals 'a'"),
        ("gates.sync.confidence.when={clip: true}", "no single value. Name a field inside it"),
        ("gates.probe.has_video.when={clip.has_speech: true}", "measured on clips, the gate looks at assets"),
        ("gates.clip.has_speech.equals=maybe", "gates.clip.has_speech.equals: .* Give true or false"),
        ("gates.clip.num_speakers.one_of=[two]", "gates.clip.num_speakers.one_of: .* Give a number"),
        ("gates.clip.spans.equals=3", "no single value"),
    ],
)
def test_gates_on_values_that_a_field_never_has_are_refused(override: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(load_recipe("quickstart", [override]))


def test_gates_compare_whole_numbers_texts_and_truths() -> None:
    when = "{clip.num_speakers: 2, clip.has_speech: true, sync.kind: [speech], probe.has_audio: true}"
    overrides = [f"gates.sync.confidence.when={when}", "gates.clip.num_speakers.equals=2"]
    make_plan(load_recipe("quickstart", overrides))


def test_what_ray_would_wait_for_in_silence_is_refused(toy_recipe: dict[str, Any]) -> None:
    """Two pools of 0.5 and one of 1.5 CPUs on two CPUs leave the last one without a place."""
    odd = apply_overrides(toy_recipe, ["resources.audio={cpus: 1.5}"])
    with pytest.raises(PlanError, match="wait for ever"):
        make_plan(parse_recipe(odd), LAPTOP)
    with pytest.raises(PlanError, match="largest node"):
        make_plan(parse_recipe(apply_overrides(toy_recipe, ["resources.audio={gpus: 1}"])), LAPTOP)


def test_nested_rows_survive_arrow(toy_recipe: dict[str, Any]) -> None:
    schema = make_plan(parse_recipe(toy_recipe)).unit_schema()
    row = {"source_id": "s", "uri": "u", "clips": [{"clip": None, "audio": {"value": None}, "sync": None}]}
    back = pa.Table.from_pylist([row], schema=schema).to_pylist()[0]
    assert back["clips"][0]["sync"] is None, "null struct: not reached"
    assert back["clips"][0]["audio"] == {"value": None}, "null field: reached, not measurable"


def test_planning_and_asking_load_neither_ray_nor_torch_nor_cv2() -> None:
    code = (
        "import sys, schemas.records, stages, pipeline.plan, pipeline.ask.queries, pipeline.cli;"
        "from pipeline.config import load_recipe; pipeline.plan.make_plan(load_recipe('quickstart'));"
        "print([name for name in ('ray', 'torch', 'cv2', 'whisperx', 'av') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"
