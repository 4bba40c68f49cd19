"""A picture is decoded once for all stages that look at it, each pays for its own look, and the doomed are not shown to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.clips import flash_and_click
from pipeline.demo.write import Encoding
from pipeline.execute.looks import LookCosts
from pipeline.ledger import Ledger
from schemas.errors import MachineError, PlanError, RecipeError
from schemas.records import Cost, Level
from stages.asset_pass import Spent
from stages.base import Context
from stages.faces import FacesConfig, FaceWatch
from stages.picture import Watch
from tests.pipeline.light_run import curate

NUM_FRAMES = 200
CHAIN = ("probe", "shot_split", "clip", "picture", "audio")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds with one key frame."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    flash_and_click(path, NUM_FRAMES / 25, Encoding(width_px=192, height_px=96), seed=3)
    return path


def cost_of(run: Path) -> Iterator[dict[str, Any]]:
    (asset,) = Ledger(str(run / "ledger")).rows(Level.ASSET)
    yield from asset["cost"]


@pytest.mark.slow
def test_a_frame_is_decoded_once_before_cutting_and_little_more_to_cut_it(film: Path, tmp_path: Path) -> None:
    curate(film, tmp_path / "run", "stages.clip.max_s=3", "stages.cut.whole_check=0", "stages.cut.allow_copy=false")
    frames = {each["stage"]: each["frames_decoded"] for each in cost_of(tmp_path / "run")}
    assert NUM_FRAMES <= sum(frames[stage] for stage in CHAIN) <= 1.02 * NUM_FRAMES
    assert NUM_FRAMES <= frames["cut"] <= 1.3 * NUM_FRAMES


def test_each_stage_pays_for_its_own_look(context: Context) -> None:
    """`probe` set the pass going, at which picture and faces looked on; nobody came to ask about faces."""
    looks = LookCosts()
    picture, faces = (Watch,), (FaceWatch, FacesConfig())
    assert list(looks.of({picture: "picture", faces: "faces"})) == [picture, faces]
    context.asset_pass.spent = {picture: Spent(2.0, 1.5), faces: Spent(4.0, 3.5)}
    assert looks.shared_out("probe", Spent(10.0, 6.0), context.asset_pass) == Spent(4.0, 1.0)
    assert looks.shared_out("picture", Spent(0.25, 0.25), context.asset_pass) == Spent(2.25, 1.75)
    assert looks.shared_out("sync", Spent(1.0, 1.0), context.asset_pass) == Spent(1.0, 1.0)
    assert looks.unasked() == [Cost("faces", 4.0, 3.5, 0)]
    assert looks.unasked() == []
    context.asset_pass.spent = {picture: Spent(2.0, 1.5)}
    assert looks.shared_out("picture", Spent(2.5, 1.75), context.asset_pass) == Spent(2.5, 1.75)


def test_what_the_header_turns_away_is_not_shown(film: Path, tmp_path: Path) -> None:
    curate(film, tmp_path / "run", "gates.probe.height_px={min: 1000}")
    assert {each["stage"] for each in cost_of(tmp_path / "run")} == {"download", "probe"}


def test_a_stage_that_cannot_look_ends_the_run_and_no_file_is_to_blame(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise RecipeError("The network's package is gone.", remedy="Install it.")

    monkeypatch.setattr("stages.shot_split.stage.make_detector", gone)
    with pytest.raises(PlanError, match="stage shot_split cannot start"):
        curate(film, tmp_path / "run")
    assert Ledger(str(tmp_path / "run" / "ledger")).rows(Level.ASSET) == []


def test_what_the_looks_have_no_room_for_is_not_begun(film: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"shot_split takes about .* GB of scratch"):
        curate(film, tmp_path / "run", "resources.shot_split.scratch_gb_per_h=1e9")
