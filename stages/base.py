"""The stage contract. There are three kinds of stage and no fourth:

    Measure   N rows in, one struct each
    Split     one row in, its children out
    Collect   all rows of one level of the whole run in, one struct each out: what only a look at the others can tell

A stage is constructed from its own pydantic config, `setup` once per worker, then called row batch by row batch.
It sees only the columns it `reads` (ancestors' structs included) and returns only what it `adds`; the adapter in
`pipeline` checks both, isolates bad rows, keeps time and settles verdicts. A stage never drops a row and never
applies a threshold: that is what gates are for. What others must know about a field, it says in the field's roles
(`schemas.fields`).

    name == file or folder == catalogue key == ledger column == gate path
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import ItemError
from schemas.records import Row
from stages.asset_pass import AssetPass, Wish
from stages.media.decoder import Decoder, DecoderConfig

if TYPE_CHECKING:
    import polars as pl


class StageConfig(BaseModel):
    """Base of every stage's configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Resources(StageConfig):
    """What one worker of a stage needs. Plain numbers, stated and never probed."""

    cpus: float = Field(default=1.0, gt=0)
    """CPUs, also in parts."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs, also in parts; a stage that needs one shares no worker with neighbours that do not."""
    memory_gb: float = Field(default=0.3, ge=0)
    """What the stage adds to a worker that already runs others; a worker is planned with the sum and 1 GB for itself."""
    scratch_gb_per_h: float = Field(default=0.0, ge=0)
    """Local disk the stage takes per hour of media in a row; where a worker has less, the run ends before it begins."""
    batch: int = Field(default=1, ge=1)
    """Rows handed to `process` at once."""
    timeout_s: float = Field(default=900.0, gt=0)
    """Time for one row however short it is; a worker that exceeds a row's time is killed and the row settles as an error."""
    timeout_per_s: float = Field(default=60.0, ge=0)
    """Time on top for each second of media in the row, so that a film has longer than a clip."""


M = TypeVar("M")


def everything(stage: str, found: Mapping[str, Any]) -> bool:
    """All is shown."""
    return True


@dataclass(eq=False)
class Context:
    """What a worker lends to its stages."""

    scratch_dir: Path
    """Local folder of this worker, emptied when the worker ends."""
    store_dir: str = ""
    """Content-addressed store of assets: a local folder or an fsspec URL."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The recipe's `decoder`: who decodes frames for all stages, and within which limits."""
    configs: Mapping[str, StageConfig] = field(default_factory=dict)
    """The recipe's stages by name, for one that has to do again what another did elsewhere."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """What each stage's answers are the answers of, by name: version, settings and what it reads."""
    cuts_dir: str = ""
    """Where the media of cut clips are left for the shards: a local folder or an fsspec URL of the run."""
    admits: Callable[[str, Mapping[str, Any]], bool] = everything
    """Whether an asset of which a stage found this at a first look is shown to all others; not if a gate will turn it away.

    Raises MachineError where there is no room for what they keep of it.
    """
    _models: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def media(self) -> Decoder:
        """The worker's one decoder. It keeps the last asset's sound."""
        return Decoder(self.scratch_dir, self.decoder)

    @cached_property
    def asset_pass(self) -> AssetPass:
        """Who decodes an asset's picture, once, before all who want to see it."""
        return AssetPass(self)

    def model(self, load: Callable[..., M], *arguments: Hashable) -> M:
        """What `load(*arguments)` returns, called once per worker however many stages ask.

        For networks, and for what others may go on with, such as faces that were followed.
        """
        key = (load, arguments)
        if key not in self._models:
            self._models[key] = load(*arguments)
        loaded: M = self._models[key]
        return loaded

    def asset_path(self, row: Row) -> Path:
        """A local path to the bytes of `row`'s asset, fetched into scratch if the store is remote."""
        return self.media.localise(row["download"]["path"])


C = TypeVar("C", bound=StageConfig)


class Stage(Generic[C]):
    """What all kinds of stage share."""

    name: ClassVar[str]
    version: ClassVar[str]
    """Raised whenever the same input may give another output; part of the recipe's resolved hash."""
    level: ClassVar[str]
    """The rows this stage works on: asset, shot or clip."""
    reads: ClassVar[tuple[str, ...]]
    """Dotted paths into other stages' structs, such as `probe.fps`; a bare stage name reads all of it."""
    adds: ClassVar[pa.StructType]
    Config: ClassVar[type[StageConfig]]
    resources: ClassVar[Resources] = Resources()
    is_watching: ClassVar[bool] = False
    """Whether it asks what the asset pass saw (`watches`), and so has to be where the whole asset is."""
    skips_rejected: ClassVar[bool] = False
    """Whether rows that a gate turned away are left out even where they are measured to the end for audit."""

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    def reads_with(cls, config: C) -> tuple[str, ...]:
        """What the stage reads under these settings."""
        return cls.reads

    @classmethod
    def may_read(cls, config: C) -> tuple[str, ...]:
        """What it reads besides where the recipe has the stage for it; null where it has not."""
        return ()

    @classmethod
    def watches(cls, config: C, ctx: Context) -> Wish | None:
        """Which observer it will ask the asset pass for, under these settings."""
        return None

    def setup(self, ctx: Context) -> None:
        """Loads models; called once per worker before the first batch."""
        self.ctx = ctx


class Measure(Stage[C]):
    """N rows in, N structs out. A stage writes `measure`, or `process` where its engine takes several rows at once."""

    def measure(self, row: Row) -> dict[str, Any]:
        """A mapping of exactly the fields in `adds`. Raises the ItemError that `row` runs into."""
        raise NotImplementedError

    def process(self, batch: Sequence[Row]) -> Sequence[dict[str, Any] | ItemError]:
        """What `measure` gives for each row, or the ItemError it raised.

        Where a stage overrides this, a raised ItemError concerns every row of the batch; the adapter then tries them one
        by one.
        """
        results: list[dict[str, Any] | ItemError] = []
        for row in batch:
            try:
                results.append(self.measure(row))
            except ItemError as error:
                results.append(error)
        return results


class Split(Stage[C]):
    """One row in, any number of children out. `adds` is the child's struct, carried as column `children`."""

    children: ClassVar[str]

    def split(self, row: Row) -> Sequence[dict[str, Any]]:
        """The children of `row`, in order, each with `parent_id` and exactly the fields in `adds`."""
        raise NotImplementedError


class Collect(Stage[C]):
    """All rows of one level of a run in, one struct each out. It ends a pass: stages after it see what it said.

    It runs on the driver, lazily, over the columns it reads; `setup` is given a Context without a decoder's work to do.
    The answer must not depend on the order of the rows, and it is asked again whenever the run has gained rows.
    """

    def collect(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """`row_id` and one column per field of `adds`, for each of `rows`.

        `rows` has `row_id` and `source_id`, and one column per path of `reads`, named by it (`download.asset_id`). It
        holds every row of the level, whatever its verdict; what was not measured is null.
        """
        raise NotImplementedError
