"""Same bytes, one representative: whatever the order of the rows, and whoever could not be downloaded."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.duplicates import Duplicates, DuplicatesConfig


def collected(assets: dict[str, str | None]) -> dict[str, tuple[str, int, bool]]:
    """source id -> (group, num_alike, is_representative)."""
    rows = pl.LazyFrame(
        {"row_id": list(assets), "source_id": list(assets), "download.asset_id": list(assets.values())},
        schema={"row_id": pl.String, "source_id": pl.String, "download.asset_id": pl.String},
    )
    found = Duplicates(DuplicatesConfig()).collect(rows).collect()
    return {
        row["row_id"]: (row["group"], row["num_alike"], row["is_representative"]) for row in found.iter_rows(named=True)
    }


def test_the_smallest_source_stands_for_its_bytes() -> None:
    found = collected({"s3": "a", "s1": "b", "s2": "a", "s4": None})
    assert found == {"s3": ("s2", 2, False), "s2": ("s2", 2, True), "s1": ("s1", 1, True)}


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.none() | st.sampled_from("xyz"), max_size=12))
def test_every_asset_has_one_representative_in_any_order(assets: dict[str, str | None]) -> None:
    found = collected(assets)
    assert found == collected(dict(reversed(assets.items())))
    assert found.keys() == {source for source, asset in assets.items() if asset is not None}
    chosen = [assets[source] for source, (_, _, is_representative) in found.items() if is_representative]
    assert sorted(chosen) == sorted({asset for asset in assets.values() if asset is not None})
    assert sum(1 for _ in found) == sum(found[group][1] for group in {group for group, _, _ in found.values()})


@pytest.mark.parametrize("order", [1, -1])
def test_nothing_downloaded_is_no_duplicate(order: int) -> None:
    assert collected(dict(list({"s1": None, "s2": None}.items())[::order])) == {}
