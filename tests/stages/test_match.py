"""Sound that belongs to a picture and sound that does not, on a drawn hammer; networks from paths, as tiny ones made here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.match_events import HEIGHT_PX, SECONDS, WIDTH_PX, film, heard, instants
from pipeline.demo.write import Encoding, encode
from schemas.errors import ModelError, RecipeError
from schemas.timing import Span
from stages.base import Context
from stages.match.config import MatchConfig
from stages.match.evidence import EventWatch, SeenMotion, evidence_of
from stages.match.stage import MATCH, Match, told_of_sound
from stages.media.decoder import Frames
from stages.media.waveform import Waveform
from tests.rows import clip_row, span_of_file, struct_of
from tests.schemas.networks.tiny import SYNC_DIM, imagebind_tensors, synchformer_tensors, write_clap

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    found = Context(tmp_path_factory.mktemp("match"))
    yield found
    found.media.close()


@pytest.fixture(scope="module")
def hammer(context: Context) -> Path:
    """A film of a hammer that is heard to strike."""
    rng, path = np.random.default_rng(3), context.scratch_dir / "hammer.mp4"
    events_s = instants(rng)
    encode(path, film("choose", "hammer", events_s, rng), heard("choose", events_s, rng), Encoding(WIDTH_PX, HEIGHT_PX))
    return path


@pytest.fixture(scope="module")
def motion(context: Context, hammer: Path) -> SeenMotion:
    watch, whole = context.asset_pass.look(hammer, EventWatch), context.asset_pass.seen(hammer)
    return watch.of(Span(int(whole.pts[0]), whole.end_pts, whole.num, whole.den))


def waveform(samples: np.ndarray) -> Waveform:
    return Waveform(samples.astype(np.float32), RATE_HZ, Fraction(0))


def test_strikes_that_are_seen_are_far_above_chance_and_others_are_not(
    context: Context, hammer: Path, motion: SeenMotion
) -> None:
    own = context.media.audio(hammer)
    found = evidence_of(motion, own)
    assert found.status == "measured"
    assert found.num_onsets >= 4
    assert found.onset_agreement > 5
    elsewhere = [
        evidence_of(motion, waveform(np.roll(own.samples, round(by_s * RATE_HZ)))).onset_agreement
        for by_s in np.arange(-2.4, 2.5, 0.6)
        if abs(by_s) > 0.3
    ]
    assert max(elsewhere) < 3
    assert abs(np.mean(elsewhere)) < 1, "0 is chance"


def test_where_there_is_nothing_to_tell_it_says_why(context: Context, hammer: Path, motion: SeenMotion) -> None:
    at = np.arange(round(SECONDS * RATE_HZ)) / RATE_HZ
    own = context.media.audio(hammer)
    hum = 0.1 * np.sin(2 * np.pi * 100 * at) + np.random.default_rng(0).normal(0, 0.01, len(at))
    still = replace(motion, change=np.zeros(len(motion.change)))
    short = replace(motion, end_s=1.0, times_s=motion.times_s[:25], flow=motion.flow[:25], change=motion.change[:25])
    sparse = SeenMotion(motion.times_s[::5], motion.end_s, motion.flow[::5], motion.change[::5])
    unseen = replace(motion, times_s=motion.times_s[:0])
    told = {
        "no_sound": evidence_of(motion, waveform(np.zeros(len(at)))),
        "no_onset": evidence_of(motion, waveform(hum)),
        "static_picture": evidence_of(still, own),
        "too_short": evidence_of(short, own),
        "too_few_frames": evidence_of(sparse, own),
        "no_picture": evidence_of(unseen, own),
    }
    assert {name: found.status for name, found in told.items()} == {name: name for name in told}
    assert {found.onset_agreement for found in told.values()} == {None}


@pytest.mark.parametrize(("height_px", "width_px"), [(16, 192), (192, 16), (2, 2), (108, 192)])
def test_pictures_of_any_shape_are_looked_at(height_px: int, width_px: int) -> None:
    """Of a strip OpenCV's flow ends the process."""
    watch, images = EventWatch(), np.random.default_rng(0).integers(0, 255, (3, height_px, width_px)).astype(np.uint8)
    for first in (0, 3):
        watch.see(Frames(images, first + np.arange(3), first + 3, 1, 25, np.zeros(3, bool)))
    seen = watch.of(Span(1, 6, 1, 25))
    assert seen.flow.shape == (5, 40, 2)
    assert np.isfinite(seen.flow).all()
    assert seen.times_s.tolist() == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])


@pytest.mark.slow
def test_networks_are_asked_where_there_is_a_path(context: Context, hammer: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(imagebind_tensors()[0], tmp_path / "imagebind_huge.pth")
    early = synchformer_tensors()[0] | {"transformer.off_head.weight": torch.zeros(21, SYNC_DIM)}
    early["transformer.off_head.bias"] = 20.0 * (torch.arange(21) == 11)
    torch.save(early, tmp_path / "synchformer_state_dict.pth")
    write_clap(tmp_path / "clap")
    probe = context.media.probe(hammer)
    row = clip_row(hammer, span_of_file(probe, 0, Fraction(24, 5)), probe=probe)
    row["sound"] = struct_of("sound", heard=[{"kind": "music", "start_s": 0.0, "end_s": 1.0}])
    alone, asking = (
        Match(MatchConfig()),
        Match(
            MatchConfig(
                imagebind_path=str(tmp_path / "imagebind_huge.pth"),
                synchformer_path=str(tmp_path / "synchformer_state_dict.pth"),
                clap_path=str(tmp_path / "clap"),
            )
        ),
    )
    for stage in (alone, asking):
        stage.setup(context)
    (own,), (told,) = alone.process([row]), asking.process([row])
    assert set(own) == set(told) == {field.name for field in MATCH}
    assert {name for name, value in own.items() if value is not None} == {"status", "onset_agreement", "num_onsets"}
    assert None not in told.values()
    assert told["onset_agreement"] == own["onset_agreement"] > 5
    assert -1 <= told["imagebind"] <= 1
    assert told["synchformer_offset_ms"] == pytest.approx(-200), "its twelfth class is sound 0.2 s early"
    assert told["synchformer_in_sync"] == pytest.approx(1, abs=1e-3)
    assert told["clap_text"] == "music"
    half = span_of_file(probe, 0, 3)
    (short,) = asking.process([row | {"clip": clip_row(hammer, half)["clip"]}])
    assert short["synchformer_offset_ms"] is short["synchformer_in_sync"] is None, "it judges 4.8 s at once"
    assert short["imagebind"] is not None
    (silent,) = asking.process([clip_row(hammer, half, probe=probe | {"has_audio": False})])
    assert silent == dict.fromkeys(silent) | {"status": "no_sound"}


@pytest.mark.parametrize("name", ["imagebind", "synchformer", "clap"])
def test_weights_that_are_not_there_end_the_run_before_it_begins(context: Context, tmp_path: Path, name: str) -> None:
    stage = Match(MatchConfig(**{f"{name}_path": str(tmp_path / "gone")}))
    with pytest.raises(
        RecipeError, match=rf"stages\.match\.{name}_path: .*gone.* does not exist\. Set it to .* leave it empty"
    ):
        stage.setup(context)


def test_weights_of_another_network_end_it_as_well(context: Context, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("imagebind", "synchformer"):
        with pytest.raises(ModelError, match=r"other\.pth has no tensor '.*'\. Give the published file"):
            Match(MatchConfig(**{f"{name}_path": str(tmp_path / "other.pth")})).setup(context)


def test_a_caption_of_the_sound_goes_before_what_was_heard() -> None:
    heard_kinds = [{"kind": kind} for kind in ("music", "other", "speech", "music")]
    assert told_of_sound({"sound": {"heard": heard_kinds}}) == "music and speech"
    assert told_of_sound({"sound": {"heard": heard_kinds}, "caption": {"sound": "A dog barks."}}) == "A dog barks."
    assert told_of_sound({"caption": {"sound": None}}) is None
