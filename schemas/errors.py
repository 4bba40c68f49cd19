"""Every error a user can meet, as one tree.

NavaError                    anything this project raises on purpose; printed without a traceback
|-- RecipeError              the recipe or a command-line option is wrong
|   `-- PlanError            it is well formed but cannot run: miswired columns, too small a cluster, a stage that cannot start
|-- ItemError                one source, asset, shot or clip cannot go on; settles as `error(reason)` in the ledger
|   |-- DownloadError        the bytes could not be fetched
|   |-- MediaError           the bytes could not be opened or decoded
|   |-- EngineError          an engine refused this item
|   `-- StageTimeoutError    a stage ran past its time limit, or killed its worker, on this item
|-- MachineError             a full disk, no memory, a store that is away: no row's fault; ends the run and settles nothing
|-- ContractError            a stage returned something other than it declared
|-- LedgerError              the ledger is missing, of another version or inconsistent
|-- ShardError               a shard or its index is damaged or breaks the shard contract
|   `-- DamagedSampleError   the bytes of one sample are not those that were written; it can be replaced
`-- ModelError               a checkpoint, a sample or a training configuration does not fit the network
"""

from __future__ import annotations


class NavaError(Exception):
    """An error with a message a person can act on: what happened, where, and what to do.

    `remedy` is one imperative sentence, printed after the message.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class RecipeError(NavaError):
    """The recipe or an option is wrong."""


class PlanError(RecipeError):
    """The recipe is well formed but cannot run as it is."""


class ItemError(NavaError):
    """One row cannot go on. `reason` is a stable snake_case code, counted in the balance sheet of hours."""

    reason = "item"

    def __init__(self, message: str, *, reason: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason or type(self).reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.reason, self.remedy))


def _rebuild(kind: type[ItemError], message: str, reason: str, remedy: str) -> ItemError:
    return kind(message, reason=reason, remedy=remedy)


class DownloadError(ItemError):
    """The bytes of a source could not be fetched."""

    reason = "download_failed"


class MediaError(ItemError):
    """The bytes could not be opened or decoded."""

    reason = "not_decodable"


class EngineError(ItemError):
    """An engine cannot work on this item."""

    reason = "engine_failed"


class StageTimeoutError(ItemError):
    """A stage ran past its limit, or took its worker down, on this item."""

    reason = "timeout"


class MachineError(NavaError):
    """The machine, or the store of the run, is in trouble. It is booked on no row: the run ends, and goes on afterwards."""


class ContractError(NavaError):
    """A stage returned something other than what it declared."""


class LedgerError(NavaError):
    """The ledger is missing, of another version, or inconsistent."""


class ShardError(NavaError):
    """A shard or its index is damaged or breaks the shard contract."""


class DamagedSampleError(ShardError):
    """The bytes of one sample are not what the index says; it can be replaced."""


class ModelError(NavaError):
    """A checkpoint, a sample or a training configuration does not fit the network."""
