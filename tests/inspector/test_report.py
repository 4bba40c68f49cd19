"""The report: one file without addresses of others, and codes that answer as the measures do."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ask.read_measures import measures
from pipeline.inspector.report import FIXED, STEPS, coded, data_of, gate_steps, packed_clips, scripts, write_report
from pipeline.inspector.session import Session
from schemas.verdict import Check, Gate
from tests.inspector.conftest import HOSTILE

STATIC = Path(__file__).resolve().parents[2] / "pipeline" / "inspector" / "static"


def check(operator: str, bound: float) -> Check:
    return Check("a", "x", operator, bound, Gate(**{operator: bound}))


@given(
    st.sampled_from(["min", "max", "abs_max"]),
    st.floats(-100, 100),
    st.lists(st.floats(-200, 200) | st.just(float("nan")), min_size=1, max_size=30),
)
def test_codes_decide_as_values_do_on_every_step(operator: str, bound: float, values: list[float]) -> None:
    bound = abs(bound) if operator == "abs_max" else bound
    gate, numbers = check(operator, bound), np.array(values)
    looks = np.arange(len(numbers)) % 3 != 0
    low, step = gate_steps(gate, numbers[looks])
    codes = coded(gate, numbers, looks, low, step)
    own = round((bound - low) / step)
    assert 0 <= own <= STEPS
    seen = np.abs(numbers) if operator == "abs_max" else numbers
    for at in range(0, STEPS + 1, 11):
        edge = low + at * step
        is_near = np.abs(seen - edge) < 1e-6 * max(1.0, step)
        within = (seen >= edge) if operator == "min" else (seen <= edge)
        expected = np.where(looks, within & ~np.isnan(numbers), True)
        kept = (codes != FIXED) & ((codes >= at) if operator == "min" else (codes <= at))
        assert (kept == expected)[~is_near].all(), (at, edge)


@pytest.mark.slow
def test_the_codes_of_a_run_keep_what_the_run_keeps(session: Session) -> None:
    table = measures(session.view.run)
    told = packed_clips(table)
    num = told["num_clips"]
    data = zlib.decompress(base64.b64decode(told["clips"]), -15)
    us = np.frombuffer(data, "<u2", num).astype(np.int64) * 10_000
    columns = np.frombuffer(data, np.uint8, offset=2 * num).reshape(-1, num)
    state, bins = columns[0], columns[1 : 1 + len(told["measures"])]
    kept = state & 2 == 0
    for gate, codes in zip(told["moved"], columns[1 + len(told["measures"]) :], strict=True):
        step = round((gate["bound"] - gate["low"]) / gate["step"])
        kept &= (codes != FIXED) & ((codes >= step) if gate["operator"] == "min" else (codes <= step))
    assert us[kept & (state & 1 == 0)].sum() == table.answer({}).low_us
    assert bins.tolist() == [codes.tolist() for codes in table.codes.values()]


@pytest.mark.slow
def test_it_is_one_small_file_that_asks_nobody(session: Session, tmp_path: Path) -> None:
    (path,) = write_report(session, tmp_path / "report.html")
    text = path.read_text()
    assert path.stat().st_size <= 2_500_000
    own = text.replace(scripts()[0], "")
    assert not re.findall(r"""(?:src|href)="(?!data:)[^"]*""", re.sub(r"<svg.*?</svg>", "", own, flags=re.DOTALL))
    assert "fetch(" not in own
    assert 'type="module"' not in own
    assert own.count("<svg") >= len(data_of(text)["axes"])
    assert "<img src=x" not in text
    assert data_of(text)["kept_now"]["us"] == session.view.stats.sheet.kept_us
    for script in scripts():
        assert "</script" not in script
        assert not re.search(r"^(?:import|export) ", script, re.MULTILINE)


@pytest.mark.slow
def test_media_lie_beside_it(session: Session, tmp_path: Path) -> None:
    page, *files = write_report(session, tmp_path / "report.html", 2)
    assert sorted(path.suffix for path in files) == [".jpg", ".jpg", ".mp4", ".mp4"]
    assert all(path.parent == tmp_path / "report_files" and path.stat().st_size > 1_000 for path in files)
    text = page.read_text()
    assert all(f'"report_files/{path.name}"' in text for path in files)
    assert HOSTILE not in text


def test_the_vendored_scripts_are_those_that_were_built() -> None:
    folder = STATIC / "vendor"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, "run static/vendor/build.sh"
        assert name in (folder / "README.md").read_text()


def test_scripts_and_styles_stay_small() -> None:
    sizes = {
        path.name: len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.suffix in (".js", ".css")
    }
    assert sum(sizes.values()) <= 400_000, sizes
    assert sum(sizes[name] for name in ("style.css", "app.js", "clip.js", "wavesurfer.js")) <= 60_000, sizes


def test_pages_import_neither_torch_nor_ray() -> None:
    code = "import pipeline.inspector.app, pipeline.inspector.report, sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "starlette" in told.stdout.split()
    assert not {"torch", "ray"} & set(told.stdout.split())
