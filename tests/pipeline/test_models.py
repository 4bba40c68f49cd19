"""Networks are set up once per worker, whichever stages share them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import stages
from pipeline.config import load_recipe
from stages.base import Context
from stages.engines import packaged
from stages.engines.packaged import Packaged


class Counted(dict[str, Packaged]):
    """The table of weights, counting who looks up what: every load begins with that."""

    def __init__(self, table: dict[str, Packaged]) -> None:
        super().__init__(table)
        self.looked_up: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Packaged:
        self.looked_up[name] += 1
        return super().__getitem__(name)


@pytest.mark.slow
def test_no_weights_are_loaded_twice_by_a_worker_with_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Counted(packaged.WEIGHTS)
    monkeypatch.setattr(packaged, "WEIGHTS", table)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where Whisper's two halves have not been joined before
    context = Context(tmp_path, cuts_dir=str(tmp_path / "cuts"))
    configs = load_recipe("quickstart").stage_configs()
    configs |= {name: stages.load(name).Config() for name in ("quality", "camera", "ocr", "sound", "framing")}
    for name, config in configs.items():
        stages.load(name)(config).setup(context)
    not_asked_for = {"centerface", *(name for name in table if name.startswith("whisper_tiny"))}
    weights = {name for name in table if not name.endswith((".png", ".jpg"))} - not_asked_for
    assert table.looked_up == Counter(weights)


def test_a_model_is_known_by_its_loader_and_arguments(tmp_path: Path) -> None:
    loads: list[tuple[object, ...]] = []

    class Network:
        def __init__(self, *arguments: object) -> None:
            loads.append(arguments)

        @classmethod
        def load(cls, device: str) -> Network:
            return cls(device)

    context = Context(tmp_path, cuts_dir=str(tmp_path / "cuts"))
    assert context.model(Network, "a") is context.model(Network, "a")
    assert context.model(Network, "b") is not context.model(Network, "a")
    assert context.model(Network.load, "a") is context.model(Network.load, "a")
    assert loads == [("a",), ("b",), ("a",)]
    assert Context(tmp_path).model(Network, "a") is not context.model(Network, "a")
