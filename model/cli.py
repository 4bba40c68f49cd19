"""The `nava-train` command. Every subcommand is a few lines over the module that does the work.

Arguments and recipe are checked before that module is imported: a mistake is told at once, not after torch has loaded.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.evaluate.commands import app as evaluation
from schemas.errors import NavaError
from schemas.machine import trouble_of

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains NAVA on curated shards, samples from it and converts its checkpoints.",
)
app.add_typer(evaluation)


class CheckpointLayout(StrEnum):
    """What a checkpoint to convert is."""

    NAVA = "nava"
    EMA = "ema"
    WAN = "wan"


class Container(StrEnum):
    """How a checkpoint is stored."""

    SAFETENSORS = "safetensors"
    DCP = "dcp"


class Number(StrEnum):
    """Stored and computed number formats."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


SettingOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, as often as needed")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="preset, or json file of the network's shape (default: what it says of itself, or nava_6b)"
    ),
]


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(exists=True, help=".safetensors, .ckpt/.pt/.pth, a folder of shards, or a DCP folder")
    ],
    target: Annotated[Path, typer.Argument(help="file, or folder with --shard-gb or --to dcp; must not exist")],
    model: ModelOption = None,
    layout: Annotated[
        CheckpointLayout, typer.Option("--from", help="ema: running average; wan: Wan2.2-TI2V-5B as a start")
    ] = CheckpointLayout.NAVA,
    container: Annotated[Container, typer.Option("--to", help="how to store it")] = Container.SAFETENSORS,
    dtype: Annotated[Number | None, typer.Option(help="stored numbers (default: as they are)")] = None,
    shard_gb: Annotated[float | None, typer.Option(help="write shards of at most this many GB")] = None,
    seed: Annotated[int, typer.Option(help="for what a warm start initialises")] = 0,
) -> None:
    """Writes a checkpoint in another container, tensor by tensor; names and shapes must be exactly the network's."""
    from model.network.config import network_of

    network = network_of(source, model)
    import torch

    from model.weights import convert as conversion

    done = conversion.convert(
        source,
        target,
        network,
        layout=layout.value,
        container=container.value,
        dtype=getattr(torch, dtype) if dtype else None,
        max_shard_bytes=int(shard_gb * 1e9) if shard_gb else None,
        seed=seed,
    )
    print(f"{done.num_tensors} tensors, {done.num_parameters:,} parameters, {done.num_bytes / 1e9:.2f} GB -> {target}")
    if done.num_fresh_parameters:
        print(f"{done.num_fresh_parameters:,} parameters have no source and were initialised (seed {seed}).")


@app.command()
def check(
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="json and safetensors files of golden data")
    ],
) -> None:
    """Compares the network with golden data; prints the largest error per tensor and fails on a miss."""
    from model.parity.check import run_check

    raise typer.Exit(run_check(directory))


@app.command()
def sample(
    weights: Annotated[Path, typer.Argument(exists=True, help="a checkpoint in any container")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".mp4, .wav, .safetensors, or without suffix; a folder with --prompts")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON lines, or a Seed-TTS .lst; shared out under torchrun"),
    ] = None,
    caption: Annotated[str | None, typer.Option(help="prompt; spoken lines as <S>line<E>")] = None,
    voice: Annotated[
        list[str] | None, typer.Option(help="reference sound, one per spoken line; none: no voice")
    ] = None,
    first_frame: Annotated[Path | None, typer.Option(exists=True, help="picture to start from")] = None,
    codecs: Annotated[
        Path | None, typer.Option(exists=True, help="folder of frozen codecs (docs/checkpoints.md)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="another seed gives another clip")] = None,
    recipe: Annotated[str, typer.Option(help="a packaged sample recipe by name, or a .yaml file")] = "release",
    settings: SettingOption = None,
) -> None:
    """Generates a clip, or one for every prompt of a file: mp4 with sound where the codecs allow it, latents otherwise."""
    from model.sampling.config import load_recipe

    config = load_recipe(recipe, settings or [])
    voices = tuple(None if name == "none" else Path(name) for name in voice) if voice else None
    prompt = {"caption": caption, "voices": voices, "first_frame": first_frame}
    config = config.with_prompt(**{key: value for key, value in prompt.items() if value is not None})
    direct = {"codecs": codecs, "seed": seed}
    config = config.model_copy(update={key: value for key, value in direct.items() if value is not None})
    if prompts is not None:
        from model.sampling.batch import generate_all

        generate_all(weights, config, prompts, out)
        return
    from model.sampling.sample import generate

    print(generate(weights, config, out, _show_step))


@app.command()
def encode(
    run: Annotated[str, typer.Argument(help="curated run: a folder or fsspec URL with shards/ and index/")],
    out: Annotated[Path, typer.Option("--out", "-o", help="where latent shards/ and index/ go")],
    codecs: Annotated[Path, typer.Option(exists=True, help="folder of frozen networks (docs/checkpoints.md)")],
    recipe: Annotated[str, typer.Option(help="stage whose network will read the latents")] = "stage2_joint",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of EncodeConfig (docs/training.md)")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="spread shards over a Ray cluster")] = False,
    actors: Annotated[int, typer.Option(min=1, help="Ray actors")] = 1,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="GPUs of each actor")] = 0.0,
) -> None:
    """Turns curated shards into latent shards; goes on where it was stopped, shard by shard."""
    from model.encoding.config import read_encode_config
    from model.training.config import load_recipe

    config, network = read_encode_config(codecs, settings or []), load_recipe(recipe).network.network()
    from model.encoding.encode_shards import encode_shards

    manifest = encode_shards(
        run, out, config, network, num_actors=actors if ray else 0, num_gpus_per_actor=gpus_per_actor
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.num_left_out_by_reason.items()) or "none"
    print(f"{manifest.num_clips} clips -> {manifest.num_samples} samples in {out}; left out: {reasons}")


RecipeArgument = Annotated[str, typer.Argument(help="a packaged recipe by name, or a .yaml file")]


@app.command()
def plan(
    recipe: RecipeArgument,
    settings: SettingOption = None,
    gpus: Annotated[list[int] | None, typer.Option(help="numbers of GPUs to reckon with (default 8, 64, 128)")] = None,
    memory_only: Annotated[bool, typer.Option("--memory-only", help="without an index: memory alone")] = False,
    cards: Annotated[bool, typer.Option("--cards", help="what fits 1 to 64 GPUs of 24 to 141 GB, and how")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for plan.json and plan.txt")] = None,
) -> None:
    """Shows buckets, balance, steps, hours and memory of a stage; fails when it fits none of the numbers of GPUs."""
    from model.training.config import load_recipe

    config = load_recipe(recipe, settings or [])
    from model.training.plan_stage import cards_text, plan_stage

    if cards:
        print(cards_text(config))
        return
    text = plan_stage(config, tuple(gpus or (8, 64, 128)), out, memory_only=memory_only)
    print(text)


@app.command()
def train(
    recipe: RecipeArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder for checkpoints and metrics; resumed from if it has any")
    ],
    settings: SettingOption = None,
    ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="start the ranks with Ray Train instead of torchrun")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="ranks that Ray starts")] = 1,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="go on although the recipe makes it another experiment")
    ] = False,
) -> None:
    """Trains a stage: as one process, under `torchrun -m model.cli train`, or with --ray, from the same recipe."""
    from model.training.config import load_recipe

    config = load_recipe(recipe, settings or [])
    if ray:
        from model.training.ray_launch import train_on_ray

        train_on_ray(config, out, workers, allow_changes=allow_changes)
    else:
        from model.training.start import train as train_here

        train_here(config, out, allow_changes=allow_changes)


@app.command()
def stages(
    chain: Annotated[str, typer.Argument(help="packaged stages by name, or a .yaml file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder with a training folder for each stage")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value of every stage's recipe")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="print the stages and train nothing")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="go on although a recipe makes it another experiment")
    ] = False,
) -> None:
    """Trains stages one after the other, each from the weights of the one before; the same command goes on."""
    from model.training.config import load_stages

    loaded = load_stages(chain, settings or [])
    from model.training.stages import run_stages, stages_text

    if show:
        print(stages_text(loaded, out))
    else:
        run_stages(loaded, out, allow_changes=allow_changes)


@app.command("tiny-codecs")
def tiny_codecs(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    recipe: Annotated[str, typer.Option(help="stage whose network will read the latents")] = "tiny",
) -> None:
    """Writes random codecs of the real classes, to try `encode` without weights: their latents mean nothing."""
    from model.training.config import load_recipe

    network = load_recipe(recipe).network.network()
    from model.encoding.tiny_codec import write_tiny_codecs

    write_tiny_codecs(out, network)
    print(f"{out}: random video_vae, audio_vae, vocoder, text_encoder, tokenizer and speaker.pt")


def _show_step(done: int, of: int) -> None:
    print(f"\rstep {done}/{of}", end="\n" if done == of else "", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point: a NavaError, or trouble of the machine, prints without a traceback and exits with 2."""
    try:
        app()
    except (NavaError, OSError, MemoryError) as error:
        told = error if isinstance(error, NavaError) else trouble_of(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
