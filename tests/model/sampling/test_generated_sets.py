"""Samples made from a set's prompts and scored in one command, by two ranks, and not made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model.cli import app
from model.evaluate.generating import caption_of
from model.evaluate.records import EvalItem, Utterance
from model.evaluate.report import read_report
from schemas.errors import ModelError, RecipeError


def test_what_is_asked_of_the_network_is_all_that_is_known_of_an_item() -> None:
    known = EvalItem(item_id="a", prompt="A cook.", text="Salt it.", sounds=("sizzling",))
    assert caption_of(known) == "A cook. sizzling <S>Salt it.<E>"
    assert caption_of(EvalItem(item_id="a", text="Salt <it>")) == "<S>Salt it<E>"
    told = EvalItem(item_id="a", prompt="Rain is falling. <S>Wet.<E>", text="Wet.", sounds=("Rain",))
    assert caption_of(told) == "Rain is falling. <S>Wet.<E>", "nothing twice"
    assert caption_of(EvalItem(item_id="a")) is None
    turns = (Utterance("ann", "Wet?"), Utterance("ben", "Dry."))
    assert caption_of(EvalItem(item_id="a", text="Wet? Dry.", turns=turns)) == "<S>Wet?<E> <S>Dry.<E>"


def write_set(root: Path, folder: Path) -> Path:
    """Verse-Bench's form: an item with words and a first frame, one with sounds, one of which nothing is known."""
    for name, told in {"set1/001": {"video_prompt": "Rain", "audio_prompt": ["rain"]}, "set1/003": {}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps(told))
    (root / "set3").mkdir()
    spoken = {"video_prompt": "A man", "speech_prompt": {"text": "Good evening."}}
    (root / "set3" / "002.json").write_text(json.dumps(spoken))
    (root / "set3" / "002.png").write_bytes((folder / "frame.png").read_bytes())
    return root


def evaluated(given: Path, out: Path, folder: Path, *more: str) -> Any:
    settings: dict[str, Any] = {"prompt.seconds": 0.4, "prompt.height_px": 32, "prompt.width_px": 48, "num_steps": 1}
    settings |= {"network": str(folder / "model.json"), "codecs": str(folder / "codecs")}
    told = [f"--sample-set={name}={value}" for name, value in settings.items()]
    made = ["--generate", str(folder / "weights.safetensors")]
    options = ["--protocol", "mova", "--set", "stages.clip.min_s=0.1", *more]
    command = ["evaluate", str(given), "--out", str(out), *made, *told, *options]
    return CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.slow
def test_a_set_is_made_and_scored_by_one_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two ranks makes its share and ends; the first makes the rest and scores all."""
    from model.evaluate import evaluate

    monkeypatch.setattr(evaluate, "measure_files", lambda *_, **__: {})
    given, out = write_set(tmp_path / "set", folder), tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert evaluated(given, out, folder).exit_code == 0
    made = out / "generated"
    assert [path.relative_to(made).as_posix() for path in made.rglob("*.mp4")] == ["set3/002.mp4"]
    assert not (out / "report.json").exists()
    written = (made / "set3/002.mp4").stat().st_mtime_ns
    monkeypatch.setenv("RANK", "0")
    assert evaluated(given, out, folder).exit_code == 0
    report, scores = read_report(out)
    assert (report.num_items, report.missing) == (3, ("set1/003",))
    assert "weights.safetensors: 1 steps of unipc, seed 0" in report.notes[0]
    assert (made / "set3/002.mp4").stat().st_mtime_ns == written, "not made again"
    told = json.loads((made / "set3/002.json").read_text())
    assert told["prompt"] == "A man <S>Good evening.<E>"
    asked = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert [Path(line["image_path"]).name for line in asked if "image_path" in line] == ["002.png"]
    assert {score.state for score in scores if score.metric == "av_align" and score.item_id != "003"} != {"missing"}
    (made / "set3/002.json").write_text(json.dumps(told | {"weights": "another.safetensors"}))
    with pytest.raises(RecipeError, match=r"made of weights 'another\.safetensors'"):
        evaluated(given, out, folder)


def test_latents_are_no_samples(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"id": "a", "prompt": "wind"}))
    encoded = f"--sample-set=prompt.text_file={folder / 'text.safetensors'}"
    with pytest.raises(ModelError, match="which no metric sees or hears"):
        evaluated(tmp_path / "list.jsonl", tmp_path / "out", folder, encoded, "--sample-set=codecs=null")
