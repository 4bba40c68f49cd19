"""Commands about what may be kept: `takedown`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import RunArgument, show
from pipeline.show.screen import plural

app = typer.Typer()
RIGHTS = "Curate"
KeysOption = Annotated[
    list[str] | None, typer.Option("--source", metavar="KEY", help="source: id, file name, or a clip of it; repeatable")
]


@app.command(rich_help_panel=RIGHTS)
def takedown(
    run_uri: RunArgument,
    source: KeysOption = None,
    uri_list: Annotated[
        list[str] | None,
        typer.Option("--uri-list", metavar="FILE", help="list of addresses, as --input reads them; * for anything"),
    ] = None,
    voice: Annotated[
        list[str] | None,
        typer.Option(
            "--voice", metavar="KEY:NAME", help="every source with this voice, or that of a .npy of embeddings"
        ),
    ] = None,
    face: Annotated[
        list[str] | None,
        typer.Option(
            "--face", metavar="CLIP:TRACK", help="every source with this face, or that of a .npy of embeddings"
        ),
    ] = None,
    same_voice: Annotated[float | None, typer.Option(help="least cosine of one voice (default: the recipe's)")] = None,
    same_face: Annotated[float | None, typer.Option(help="most distance of one face (default: the recipe's)")] = None,
    reason: Annotated[str, typer.Option(help="why, for the tombstone; a few words, without names")] = "",
    latents: Annotated[
        list[Path] | None, typer.Option("--latents", metavar="DIR", help="latents made of the run; repeatable")
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option("--pool", metavar="DIR", help="pool of the run, to be selected anew; repeatable")
    ] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="only say which sources are meant")] = False,
) -> None:
    """Takes sources out of RUN and what was made of it, and leaves a tombstone; without any, goes on with what was begun."""
    from pipeline.ask.queries import Run
    from pipeline.takedown import Somebody, TakedownRequest, chosen
    from pipeline.takedown import takedown as take_down
    from pipeline.takedown.chosen import uris_of
    from schemas.errors import RecipeError
    from schemas.records import Level

    people = [*(Somebody("voice", key) for key in voice or ()), *(Somebody("face", key) for key in face or ())]
    request = TakedownRequest(tuple(source or ()), tuple(uri_list or ()), tuple(people), same_voice, same_face)
    run = Run(run_uri)
    found = chosen(run, request)
    if found and not reason and not is_dry:
        raise RecipeError("a takedown needs a reason.", remedy="Give --reason, in words that name nobody.")
    show("\n".join(uris_of(found)) or "nothing of the run is meant")
    if is_dry:
        return
    done = take_down(run, found, reason, latents or (), pool or ())
    print(
        f"{plural(done.num_sources, 'source')} with {plural(done.num_clips, Level.CLIP)}, {done.num_kept_clips:,} of them "
        f"kept, taken down; {plural(len(done.packed_anew), 'shard')} packed anew, {done.num_shards_left_alone:,} left alone"
    )
    for folder, num_samples in done.latents.items():
        print(f"{folder}: {plural(num_samples, 'sample')} removed")
    print(f"files that were given by path stay where they are; next: nava-curate verify {run.dir.uri}")
