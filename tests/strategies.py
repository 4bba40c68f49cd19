"""Hypothesis strategies shared by tests: what speech, time, shards and the sources of a run can look like.

Times of speech are sixteenths of a second, so that sums and differences of the floats are exact.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from schemas.ids import source_id
from schemas.records import Source
from schemas.spans import SpeechSpan, Turn, Word
from schemas.stretches import Stretch
from schemas.timing import Span
from tests.pipeline import toy_stages
from tests.pipeline.toy_run import toy_source

TICKS = st.integers(0, 400)
"""Instants in sixteenths of a second, within 25 s."""
TIME_BASES = st.sampled_from([(1, 25), (1001, 30000), (1, 90000), (1, 12800), (1, 1000)])
"""Numerator and denominator, in seconds, of time bases found in files."""
FAULTS = st.sampled_from(["item", "bug", "returned", "keys", "nan", "type", "unmeasured"])
"""Ways in which a toy stage breaks the contract, whatever its level."""
FAULTY_STAGES = st.sampled_from(
    ["download", "probe", "shot_split", "clip:0", "clip:1", "audio:0", "audio:2", "sync:0", "late:0"]
)
Samples = dict[str, dict[str, bytes]]
"""Payloads by member by key."""


def _timed(longest: int, shortest: int = 1) -> st.SearchStrategy[tuple[float, float]]:
    """(start, end) in seconds."""
    return st.tuples(TICKS, st.integers(shortest, longest)).map(lambda drawn: (drawn[0] / 16, sum(drawn) / 16))


def stretches(max_size: int = 12) -> st.SearchStrategy[list[Stretch]]:
    """Stretches in any order, overlapping or not, none empty."""
    return st.lists(_timed(80).map(lambda times: Stretch(*times)), max_size=max_size)


def words(max_size: int = 12) -> st.SearchStrategy[tuple[Word, ...]]:
    """Words in order of start, perhaps over each other, perhaps without length."""
    times = st.lists(_timed(30, shortest=0), max_size=max_size)
    return times.map(lambda drawn: tuple(Word(str(i), *each) for i, each in enumerate(sorted(drawn))))


def turns(max_size: int = 10, speakers: str = "ABC") -> st.SearchStrategy[list[Turn]]:
    """Turns in order of start; those of one speaker may overlap too."""
    each = st.tuples(st.sampled_from(speakers), _timed(60)).map(lambda drawn: Turn(drawn[0], *drawn[1]))
    return st.lists(each, max_size=max_size).map(lambda found: sorted(found, key=lambda turn: turn.start_s))


@st.composite
def speech_spans(draw: st.DrawFn, max_size: int = 6) -> list[SpeechSpan]:
    """Spans of a clip in speaking order, each as long as its words, which follow one another."""
    found, at = [], 0
    for gap, lengths in draw(
        st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(1, 20), min_size=1, max_size=5)), max_size=max_size)
    ):
        edges = np.cumsum([at + gap, *lengths]) / 16
        said = tuple(Word(f"w{i}", *map(float, edges[i : i + 2])) for i in range(len(lengths)))
        text, speaker = " ".join(word.text for word in said), draw(st.sampled_from([None, "A", "B"]))
        start_s, end_s = float(edges[0]), float(edges[-1])
        found.append(SpeechSpan(start_s=start_s, end_s=end_s, text=text, speaker=speaker, words=said))
        at += gap + sum(lengths)
    return found


@st.composite
def adjoining_spans(draw: st.DrawFn) -> list[Span]:
    """Exact spans of one time base, each beginning where the one before it ends."""
    base = draw(TIME_BASES)
    cuts = sorted(draw(st.lists(st.integers(-(2**33), 2**33), min_size=2, max_size=20, unique=True)))
    return [Span(low, high, *base) for low, high in pairwise(cuts)]


@st.composite
def shard_samples(draw: st.DrawFn) -> tuple[list[str], Samples]:
    """(members in their order, payloads by member by key) of a small shard."""
    names = ["mp4", "flac", "refs.flac", "json", "npy", "safetensors"]
    members = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    key = st.from_regex(r"[a-z0-9][A-Za-z0-9_-]{0,79}", fullmatch=True)
    keys = draw(st.lists(key, min_size=1, max_size=4, unique=True))
    size = st.one_of(st.integers(0, 1600), st.sampled_from([511, 512, 513, 10_240]))
    random = draw(st.randoms(use_true_random=False))
    return members, {key: {name: random.randbytes(draw(size)) for name in members} for key in keys}


@st.composite
def toy_sources(draw: st.DrawFn, max_size: int = 4) -> list[Source]:
    """Sources of the toy catalogue of any length, some with faults, perhaps one with the bytes of another."""
    found = []
    for number in range(draw(st.integers(1, max_size))):
        faults = draw(st.dictionaries(FAULTY_STAGES, FAULTS | st.just("media"), max_size=3))
        found.append(
            toy_source(
                f"v{number}", frames=draw(st.integers(1, 700)), shot=draw(st.integers(10, 300)),
                clip=draw(st.integers(5, 90)), video=draw(st.booleans()), faults=faults,
            )
        )  # fmt: skip
    if draw(st.booleans()):
        found.append(replace(found[0], uri="copy", source_id=source_id("copy")))
    return found


@st.composite
def toy_recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The toy recipe with other gates and another share of audited clips."""
    recipe: dict[str, Any] = copy.deepcopy(toy_stages.RECIPE)
    recipe["audit_fraction"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    missing = st.sampled_from(["error", "reject"])
    recipe["gates"]["audio"]["value"] = {"min": draw(st.sampled_from([0.0, 0.5, 2.0])), "missing": draw(missing)}
    recipe["gates"]["sync"]["offset_ms"] = {"abs_max": draw(st.sampled_from([5.0, 80.0])), "missing": draw(missing)}
    for name in draw(st.sets(st.sampled_from(sorted(recipe["gates"])))):
        del recipe["gates"][name]
    return recipe
