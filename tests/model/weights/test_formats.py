"""Conversion between containers, strictness, the Wan warm start, and memory that does not grow with the file."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.network.config import NavaConfig
from model.network.nava import Nava
from model.weights import formats as checkpoint
from model.weights.convert import WarmStart, convert, expected_tensors, load_weights, wan_name
from model.weights.formats import TensorSpec, check_tensors, open_checkpoint
from schemas.errors import ModelError

CONFIG = NavaConfig.preset("nava_tiny")
KEY_LIST = Path(__file__).parents[4] / "shared/design/nava_state_dict_keys.txt"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    model = Nava(CONFIG)
    model.init_weights()
    return {name: torch.randn_like(value) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def release(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "nava.safetensors"
    save_file({f"backbone.{name}": value for name, value in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def wan(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Wan checkpoint of the tiny size: every tensor that has a place, with numbers of its own."""
    named = {name: wan_name(name, CONFIG) for name in weights}
    return {theirs: torch.randn_like(weights[name]) for name, theirs in named.items() if theirs is not None}


def _names_in(path: Path) -> dict[str, Tensor]:
    return {name.removeprefix("backbone."): value for name, value in load_file(path).items()}


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_safetensors_round_trip_is_exact_and_readable_by_the_library(
    release: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    done = convert(release, tmp_path / "copy.safetensors", CONFIG)
    assert (done.num_tensors, done.num_parameters) == (len(weights), sum(v.numel() for v in weights.values()))
    assert load_file(tmp_path / "copy.safetensors").keys() == load_file(release).keys()
    _same(_names_in(tmp_path / "copy.safetensors"), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.safetensors"]


def test_torch_checkpoint_of_the_trainer_is_read(weights: dict[str, Tensor], tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state, "data_state": torch.zeros(2, 3), "global_step": 5}, tmp_path / "step5.ckpt")
    torch.save(weights, tmp_path / "plain.pth")
    for name in ("step5.ckpt", "plain.pth"):
        convert(tmp_path / name, tmp_path / f"{name}.safetensors", CONFIG)
        _same(_names_in(tmp_path / f"{name}.safetensors"), weights)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Path("anything")}, tmp_path / "odd.ckpt")
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        open_checkpoint(tmp_path / "odd.ckpt")
    torch.save({"model": {}, "step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="found model, step"):
        open_checkpoint(tmp_path / "other.ckpt")


def test_shards_hold_at_most_the_limit_and_read_back(release: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    done = convert(release, tmp_path / "shards", CONFIG, max_shard_bytes=500_000)
    assert len(done.files) > 3
    assert all(path.stat().st_size < 500_000 + 20_000 for path in done.files)  # 20 kB for the header
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == len(weights)
    assert index["metadata"]["total_size"] == done.num_bytes
    convert(tmp_path / "shards", tmp_path / "whole.safetensors", CONFIG)
    _same(_names_in(tmp_path / "whole.safetensors"), weights)
    done.files[1].unlink()
    with pytest.raises(ModelError, match=done.files[1].name):
        open_checkpoint(tmp_path / "shards")


def test_dcp_round_trip_is_exact_and_loads_with_torch(
    release: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    import torch.distributed.checkpoint as dcp

    convert(release, tmp_path / "dcp", CONFIG, container="dcp")
    model = Nava(CONFIG)
    dcp.load({"model": model.state_dict()}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    _same(model.state_dict(), weights)
    convert(tmp_path / "dcp", tmp_path / "back.safetensors", CONFIG)
    _same(_names_in(tmp_path / "back.safetensors"), weights)


def test_a_training_checkpoint_gives_its_weights_alone(weights: dict[str, Tensor], tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    moments = {name: torch.zeros(3) for name in weights}
    average = {name: value + 1 for name, value in weights.items()}
    state = {"model": weights, "optim": moments, "step": 7}
    dcp.save({**state, "ema": average}, checkpoint_id=tmp_path / "step7", no_dist=True)
    convert(tmp_path / "step7", tmp_path / "weights.safetensors", CONFIG)
    _same(_names_in(tmp_path / "weights.safetensors"), weights)
    convert(tmp_path / "step7", tmp_path / "average.safetensors", CONFIG, layout="ema")
    _same(_names_in(tmp_path / "average.safetensors"), average)
    dcp.save(state, checkpoint_id=tmp_path / "plain", no_dist=True)
    for path in ("plain", "weights.safetensors"):
        with pytest.raises(ModelError, match=r"missing|section"):
            convert(tmp_path / path, tmp_path / "none.safetensors", CONFIG, layout="ema")


@pytest.mark.parametrize("container", ["safetensors", "dcp"])
def test_dtype_is_converted(release: Path, weights: dict[str, Tensor], tmp_path: Path, container: str) -> None:
    convert(release, tmp_path / "half", CONFIG, container=container, dtype=torch.bfloat16)  # type: ignore[arg-type]
    if container == "safetensors":
        (tmp_path / "half").rename(tmp_path / "half.safetensors")
    source = open_checkpoint(tmp_path / ("half" if container == "dcp" else "half.safetensors"))
    found = {name.removeprefix("backbone."): value for name, value in source.read(source.specs)}
    assert all(torch.equal(found[name], weights[name].bfloat16()) for name in weights)


def test_weights_load_into_a_model_of_another_dtype(release: Path, weights: dict[str, Tensor]) -> None:
    model = Nava(CONFIG).to(torch.bfloat16)
    load_weights(model, release, CONFIG)
    assert all(torch.equal(value, weights[name].bfloat16()) for name, value in model.state_dict().items())


def test_golden_weights_fit_the_tiny_preset(golden_dir: Path, tmp_path: Path) -> None:
    convert(golden_dir / "weights.safetensors", tmp_path / "golden.safetensors", CONFIG)
    _same(load_file(tmp_path / "golden.safetensors"), load_file(golden_dir / "weights.safetensors"))


def test_official_key_list_is_the_network() -> None:
    if not KEY_LIST.exists():
        pytest.skip("nava_state_dict_keys.txt is not beside the checkout")
    listed: dict[str, tuple[int, ...]] = {}
    for line in KEY_LIST.read_text().splitlines():
        if line.startswith("# ---- parameter count"):
            break
        if not line or line.startswith("#"):
            continue
        name, shape, count = line.split("\t")
        last = int(count.rpartition("..")[2]) if count else 0
        for i in range(last + 1):
            listed[name.replace("{i}", str(i))] = tuple(json.loads(shape))
    expected = expected_tensors(NavaConfig())
    assert listed == expected
    assert len(expected) == 1052
    assert sum(math.prod(shape) for shape in expected.values()) == 6_296_995_520


def test_the_wan_names_of_the_full_size() -> None:
    """Wan2.2-TI2V-5B has 825 tensors and 4,999,787,712 parameters; each is used once."""
    config = NavaConfig()
    expected = expected_tensors(config)
    names = {name: wan_name(name, config) for name in expected}
    taken = {theirs: expected[name] for name, theirs in names.items() if theirs is not None}
    assert len(taken) == 825 == sum(theirs is not None for theirs in names.values())
    assert sum(math.prod(shape) for shape in taken.values()) == 4_999_787_712
    assert wan_name("single_blocks.19.modulation.modulation", config) == "blocks.29.modulation"
    assert wan_name("double_blocks.3.self_attn.norm_q.weight", config) == "blocks.3.self_attn.norm_q.weight"
    assert wan_name("double_blocks.3.modulation_audio.modulation", config) is None
    assert wan_name("head_audio.head.weight", config) is None


def test_warm_start_takes_the_video_half_and_initialises_the_rest(wan: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(wan, tmp_path / "wan.safetensors")
    done = convert(tmp_path / "wan.safetensors", tmp_path / "start.safetensors", CONFIG, layout="wan")
    found = _names_in(tmp_path / "start.safetensors")
    fresh = [name for name in found if wan_name(name, CONFIG) is None]
    assert done.num_fresh_parameters == sum(found[name].numel() for name in fresh)
    for name, value in found.items():
        theirs = wan_name(name, CONFIG)
        assert theirs is None or torch.equal(value, wan[theirs])
    assert found["double_blocks.1.self_attn.q_audio.bias"].abs().max() == 0
    bound = math.sqrt(6 / (64 + 64))
    drawn = found["double_blocks.1.self_attn.q_audio.weight"]
    assert 0.9 * bound < drawn.abs().max() <= bound
    assert found["speaker_embedding.out_norm.weight"].eq(1).all()
    name = "double_blocks.1.self_attn.q_audio.weight"
    redrawn = {
        seed: dict(WarmStart(open_checkpoint(tmp_path / "wan.safetensors"), CONFIG, seed).read([name]))
        for seed in (0, 1)
    }
    assert torch.equal(redrawn[0][name], drawn)
    assert not torch.equal(redrawn[1][name], drawn)
    assert not torch.equal(drawn, found["double_blocks.0.self_attn.q_audio.weight"])


def test_misfits_are_named(release: Path, wan: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = load_file(release)
    moved = tensors.pop("backbone.head.head.bias")
    tensors["backbone.head.extra"] = moved
    tensors["backbone.head_audio.head.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError) as caught:
        convert(tmp_path / "odd.safetensors", tmp_path / "x.safetensors", CONFIG)
    assert "1 missing: head.head.bias" in str(caught.value)
    assert "1 unexpected: head.extra" in str(caught.value)
    assert "1 of another shape: head_audio.head.bias has [3], expected [10]" in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()

    save_file(wan, tmp_path / "wan.safetensors")
    with pytest.raises(ModelError, match="--from wan"):
        convert(tmp_path / "wan.safetensors", tmp_path / "x.safetensors", CONFIG)
    partial = {name: value for name, value in wan.items() if name != "blocks.0.norm3.bias"}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(ModelError, match=r"blocks\.0\.norm3\.bias"):
        convert(tmp_path / "partial.safetensors", tmp_path / "x.safetensors", CONFIG, layout="wan")
    save_file({**load_file(release), "stray": torch.zeros(1)}, tmp_path / "stray.safetensors")
    with pytest.raises(ModelError, match="1 are not: stray"):
        convert(tmp_path / "stray.safetensors", tmp_path / "x.safetensors", CONFIG)
    found = {"double_blocks.0.ffn_audio.0.bias": TensorSpec(torch.float32, (1,))}
    with pytest.raises(ModelError, match="no_split_norm_ffn"):
        check_tensors(found, {}, "somewhere")
    with pytest.raises(ModelError, match="exists already"):
        convert(release, release, CONFIG)


def test_damaged_and_foreign_files_are_named(release: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(release.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cut\.safetensors is not a whole safetensors file"):
        open_checkpoint(tmp_path / "cut.safetensors")
    save_file({"ids": torch.zeros(3, dtype=torch.int64)}, tmp_path / "ints.safetensors")
    with pytest.raises(ModelError, match="ids is stored as I64"):
        open_checkpoint(tmp_path / "ints.safetensors")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"ends in '\.txt'"):
        open_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match="No checkpoint at"):
        open_checkpoint(tmp_path / "nothing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="neither"):
        open_checkpoint(tmp_path / "empty")


CONVERT_AND_REPORT_PEAKS = """
    import json, sys
    from pathlib import Path
    import torch.distributed.checkpoint
    from model.weights import formats as checkpoint
    from model.weights import convert
    from model.network.config import NavaConfig

    def memory_mb(field):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024

    checkpoint.BATCH_BYTES = 16 * 2**20
    config, folder, peaks = NavaConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), []
    convert.expected_tensors(config)
    for source, target in (("a.ckpt", "b.safetensors"), ("b.safetensors", "c"), ("c", "d.safetensors")):
        Path("/proc/self/clear_refs").write_text("5")
        before = memory_mb("VmRSS")
        convert.convert(folder / source, folder / target, config, container="safetensors" if "." in target else "dcp")
        peaks.append(memory_mb("VmHWM") - before)
    print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_a_fraction_of_the_file(tmp_path: Path) -> None:
    """A network of over 200 MB, its largest tensor 22 MB, passes every container with less than 100 MB of memory."""
    shape = {"dim": 512, "ffn_dim": 2048, "num_heads": 4, "num_align_layers": 3, "num_fusion_layers": 5}
    config = NavaConfig(**shape, audio_channels=16, text_dim=256)
    drawn = {name: torch.zeros(shape) for name, shape in expected_tensors(config).items()}
    assert sum(value.numel() * 4 for value in drawn.values()) > 200 * 2**20
    torch.save({"state_dict": drawn}, tmp_path / "a.ckpt")
    del drawn
    command = [sys.executable, "-c", textwrap.dedent(CONVERT_AND_REPORT_PEAKS), config.model_dump_json(), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    peaks_mb = json.loads(done.stdout)
    assert max(peaks_mb) < 100, f"peaks over the start, MB: {peaks_mb}"


def test_batches_respect_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BATCH_BYTES", 100)
    specs = {str(i): TensorSpec(torch.float32, (size,)) for i, size in enumerate((10, 10, 10, 40, 1))}
    assert list(checkpoint._batches(specs, specs)) == [["0", "1"], ["2"], ["3"], ["4"]]
