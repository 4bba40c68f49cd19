"""Word errors by a recogniser from a folder: whose items, by whose rules, and never mixed with the packaged one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from model.evaluate.evaluate import EvalOptions, evaluate
from model.evaluate.local import local_metrics
from model.evaluate.protocols import PROTOCOLS, Rules
from model.evaluate.records import EvalItem, EvalSet
from schemas.errors import ModelError
from schemas.files import sha256_of
from schemas.measured import MeasuredFile
from tests.stages.tiny_funasr import write_export

ITEMS = (
    EvalItem(item_id="chinese", text="今天，天氣好。", language="zh"),
    EvalItem(item_id="english", text="Sit down.", language="en"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_export(folder / "paraformer-zh", "paraformer", "好", "你")
    write_export(folder / "sense", "sense_voice_ctc", "好", "你")
    return folder


def test_each_protocol_has_the_recogniser_of_its_owner(models: Path) -> None:
    def names(protocol: Any) -> set[str]:
        return {each.name for each in local_metrics(models, protocol)[0]}

    assert names("seedtts") == {"wer_paraformer", "wer_50_paraformer"}
    assert names("versebench") == {"wer_sensevoice"}
    assert names("own") == {"wer_paraformer", "cer_paraformer", "wer_sensevoice", "cer_sensevoice"}
    assert names("mova") == set()
    (verse,) = local_metrics(models, "versebench")[0]
    assert verse.settings[-1] == "stages.transcribe.funasr.writes_numbers=true"


def test_seedtts_hears_chinese_apart_with_it_and_says_so(models: Path, tmp_path: Path) -> None:
    for item in ITEMS:
        (tmp_path / f"{item.item_id}.wav").write_bytes(item.item_id.encode())
    asked: list[tuple[str, ...]] = []

    def measured(files: Any, stages: Any, out: Path, *, workers: int, settings: Any) -> dict[Path, MeasuredFile]:
        asked.append((out.name.partition(".")[0], *stages, *settings))
        text = "今天天气好" if "stages.transcribe.engine=funasr" in settings else ""
        heard = {"engine": "whoever", "text": text}
        return {
            path.absolute(): MeasuredFile(uri=str(path), made_by="m", asset={"transcribe": heard}) for path in files
        }

    own = tuple(each for each in PROTOCOLS["seedtts"].metrics if each.name == "wer")
    options = EvalOptions("seedtts", Rules("words", (*own, *local_metrics(models, "seedtts")[0])))
    with patch("model.evaluate.evaluate.measure_files", measured):
        report, _ = evaluate(EvalSet("s", "seedtts", ITEMS), tmp_path, tmp_path / "out", options, say=lambda _: None)
    weights = models / "paraformer-zh" / "model.onnx"
    setting = f"stages.transcribe.funasr.weights_path={weights}"
    assert asked[-1][:4] == ("samples", "transcribe", "stages.transcribe.engine=funasr", setting)
    figures = {each.metric: each for each in report.figures}
    assert figures["wer_paraformer"].value == pytest.approx(1 / 5), (
        "of five characters one is traditional, which counts as wrong"
    )
    assert figures["wer_paraformer"].num_items == 1, "the English item is not its own"
    assert figures["wer"].value == 1.0, "what the packaged one hears stays its own"
    assert figures["wer_paraformer"].provenance.sha256 == sha256_of(weights)[0]
    assert "Paraformer in paraformer-zh/model.onnx" in figures["wer_paraformer"].provenance.model
    assert "Whisper" in figures["wer"].provenance.model


def test_a_folder_that_cannot_hear_is_named(tmp_path: Path) -> None:
    model = write_export(tmp_path / "one", "paraformer", "好", "你", model_type="zipformer")
    with pytest.raises(ModelError, match="says it is 'zipformer', which hears nothing"):
        local_metrics(tmp_path, "seedtts")
    model.write_bytes(b"")
    with pytest.raises(ModelError, match=r"model\.onnx is no network that ONNX Runtime reads"):
        local_metrics(tmp_path, "seedtts")
    (tmp_path / "one" / "model.int8.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not one network in ONNX: model\.int8\.onnx, model\.onnx"):
        local_metrics(tmp_path, "seedtts")
