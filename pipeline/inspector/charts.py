"""The charts of pages and reports as Vega-Lite: made by Altair once, drawn by Vega in a browser or by vl-convert without one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

KEPT, OTHER = "kept", "not kept"
COLOURS = {KEPT: "#009E73", OTHER: "#D55E00"}
"""Okabe and Ito's, told apart with any colour vision."""
CHART_PX = (320, 120)
TIMES = (("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000))
"""Unit of an axis of time -> its length in microseconds."""


def time_unit(most_us: float) -> tuple[str, int]:
    """The largest unit of which the tallest bar has at least one."""
    return next((each for each in TIMES if most_us >= each[1]), TIMES[-1])


@cache
def histogram_spec() -> dict[str, Any]:
    """Hours by one measure, kept below not kept, with the gate's bounds as rules.

    Data are named `bins` (low, high, side, layer, amount) and `bounds` (at); parameters `low`, `high` and `most` are the domains.
    """
    import altair as alt

    domain = alt.Scale(domainMin=alt.expr("low"), domainMax=alt.expr("high"), nice=False)
    tall = alt.Scale(domainMin=0, domainMax=alt.expr("most"), nice=True)
    colours = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    bars = (
        alt.Chart(alt.NamedData("bins"))
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("low:Q", bin="binned", scale=domain, axis=alt.Axis(title=None, grid=False, tickCount=6)),
            x2="high:Q",
            y=alt.Y("amount:Q", stack="zero", scale=tall, axis=alt.Axis(title=None, tickCount=3)),
            color=alt.Color("side:N", scale=colours, legend=None),
            order=alt.Order("layer:Q"),
            tooltip=[
                alt.Tooltip("side:N"),
                alt.Tooltip("low:Q", format=".4~g"),
                alt.Tooltip("amount:Q", format=".4~g"),
            ],
        )
    )
    rules = alt.Chart(alt.NamedData("bounds")).mark_rule(strokeWidth=2, strokeDash=[4, 3]).encode(x="at:Q")
    chart = alt.layer(bars, rules).add_params(
        *(alt.param(name=name, value=value) for name, value in (("low", 0), ("high", 1), ("most", 1)))
    )
    spec: dict[str, Any] = chart.properties(width="container", height=CHART_PX[1]).to_dict(validate=False)
    spec.pop("config", None)
    return spec


def filled(
    edges: Sequence[float], kept: Sequence[float], everything: Sequence[float], bounds: Sequence[float], per_unit: float
) -> dict[str, Any]:
    """The histogram's spec with its data inside, for drawing without a script; amounts are divided by `per_unit`."""
    rows = [
        {"low": low, "high": high, "side": side, "layer": layer, "amount": amount / per_unit}
        for low, high, own, total in zip(edges[:-1], edges[1:], kept, everything, strict=True)
        for layer, (side, amount) in enumerate(((KEPT, own), (OTHER, total - own)))
    ]
    low, high = min([edges[0], *bounds]), max([edges[-1], *bounds])
    domains = {"low": low, "high": high, "most": max([*everything, 1]) / per_unit}
    spec = {**histogram_spec(), "width": CHART_PX[0]}
    spec["params"] = [{**each, "value": domains[each["name"]]} for each in spec["params"]]
    return {**spec, "datasets": {"bins": rows, "bounds": [{"at": each} for each in bounds]}}


def svg(spec: dict[str, Any]) -> str:
    """A chart as an SVG element, by vl-convert: no browser, no network."""
    import vl_convert  # type: ignore[import-not-found, unused-ignore]

    return str(vl_convert.vegalite_to_svg(spec, vl_version="6.4"))
