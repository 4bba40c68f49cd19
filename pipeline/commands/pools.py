"""`nava-curate select`: pools of a run for the stages of training."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.commands.shared import CacheOption, JsonOption, RunArgument, said, show

app = typer.Typer()


@app.command(rich_help_panel="Curate")
def select(
    run_uri: RunArgument,
    out: Annotated[str, typer.Option("--out", "-o", help="folder or URL of the pool; without rules it is renewed")],
    rules: Annotated[
        str | None, typer.Option("--rules", help="YAML file, or audio_pool, joint_pool, finetune_pool")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", metavar="CONDITION", help="as --where of `clips`; repeatable, beside those of --rules"),
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0, help="most that the pool holds")] = None,
    balance: Annotated[
        str | None,
        typer.Option(metavar="FIELDS", help="share hours evenly over values, e.g. language,source,sound.kind"),
    ] = None,
    as_json: JsonOption = False,
    cache: CacheOption = None,
) -> None:
    """Chooses clips of RUN for a stage of training, by conditions, hours and balance; copies no shard."""
    from pipeline.ask.queries import US_PER_HOUR, Run
    from pipeline.pools import PoolRules, load_rules
    from pipeline.pools import select as make
    from pipeline.show.pools import pool_text

    changes: dict[str, object] = {}
    if hours is not None:
        changes["hours"] = hours
    if balance is not None:
        changes["balance"] = tuple(name.strip() for name in balance.split(",") if name.strip())
    given = None
    if rules is not None or query or changes:
        given = load_rules(rules) if rules is not None else PoolRules(name=out.rstrip("/").rpartition("/")[2] or "pool")
        given = PoolRules.model_validate({**given.model_dump(), "query": (*given.query, *(query or ())), **changes})
    found = make(Run(run_uri, cache, said), out, given)
    if as_json:
        told = {"num_clips": len(found.clips), "hours": found.us / US_PER_HOUR, "rules": found.rules.model_dump()}
        show(json.dumps(told, indent=1))
    else:
        show(pool_text(found, out))
