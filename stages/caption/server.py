"""Any server that speaks OpenAI's chat protocol: asked by several threads at once, no more than it bears, and no longer than
the retries last that the requests have earned.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import EngineError, RecipeError
from stages.base import StageConfig
from stages.retry import RetryPolicy, retry_after_s

T = TypeVar("T", bound=BaseModel)
LONGEST_ASKED_S = 60.0
"""Longest pause a server is granted: with the default four tries a clip must stay within its time limit."""
FREE_RETRIES = 20.0
"""Retries a worker has before any request has earned some, so that a short run is not without."""
BUSY = (429, 503)
"""Answers of a server that has too much to do: there are fewer requests at a time from then on."""


class ServerConfig(StageConfig):
    """Where to ask, and how."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    base_url: str = "http://127.0.0.1:8000/v1"
    """Root of the API, without /chat/completions."""
    model: str = ""
    """Model name the server knows."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; the key itself never stands in a recipe or a log."""
    send_audio: bool = True
    """Send the clip's sound as 16 kHz mono WAV; switch off for models that only see."""
    answer_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the server is told the form of answers: by its schema, as JSON, or by the words alone. They are checked in any case."""
    max_tokens: int = Field(default=1500, ge=16)
    """Longest answer."""
    temperature: float = Field(default=0.2, ge=0, le=2)
    """Sampling temperature."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one answer."""
    tries: int = Field(default=4, ge=1)
    """Attempts in all, for failures of the server and for answers that do not fit."""
    wait_s: float = Field(default=1.0, ge=0)
    """Pause before the second attempt; doubles from try to try, and Retry-After is respected."""
    retry_ratio: float = Field(default=0.2, ge=0)
    """Retries of a worker as a share of its requests, beyond its first 20, so that nobody asks a server that fails most requests
    four times as often."""
    usd_per_million_prompt: float | None = Field(default=None, ge=0)
    """What a million tokens of question cost, for the ledger."""
    usd_per_million_completion: float | None = Field(default=None, ge=0)
    """What a million tokens of answer cost."""


class AskAgainError(EngineError):
    """Another attempt may do better; `wait_s` is the pause the server asked for."""

    wait_s: float | None = None


@dataclass
class TokenBill:
    """What the requests for one clip took; null where a server does not say, or has no price."""

    requests: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    cost_usd: float | None = 0.0

    def add(self, usage: Mapping[str, Any], config: ServerConfig) -> None:
        """Books one answer with what its server said of it."""
        asked, told = (
            count if isinstance(count := usage.get(name), int) else None
            for name in ("prompt_tokens", "completion_tokens")
        )
        prices = (config.usd_per_million_prompt, config.usd_per_million_completion)
        usd = None
        if asked is not None and told is not None and prices[0] is not None and prices[1] is not None:
            usd = (asked * prices[0] + told * prices[1]) / 1e6
        self.prompt_tokens = _sum(self.prompt_tokens, asked)
        self.completion_tokens = _sum(self.completion_tokens, told)
        self.cost_usd = _sum(self.cost_usd, usd)

    def row(self) -> dict[str, Any]:
        """The fields of the ledger that say this."""
        return asdict(self)


N = TypeVar("N", int, float)


def _sum(before: N | None, more: N | None) -> N | None:
    return None if before is None or more is None else before + more


class Valve:
    """How many requests are under way at once: at most `widest`, half as many after each busy answer, one more after as many
    good ones as there are at once. While a server asks for a pause nobody starts one.
    """

    def __init__(self, widest: int) -> None:
        self._widest = self._width = float(widest)
        self._num_open, self._closed_until = 0, 0.0
        self._changed = threading.Condition()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Waits for its turn."""
        with self._changed:
            while (pause_s := self._closed_until - time.monotonic()) > 0 or self._num_open >= int(self._width):
                self._changed.wait(pause_s if pause_s > 0 else None)
            self._num_open += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_open -= 1
                self._changed.notify_all()

    def good(self) -> None:
        """The server kept up."""
        with self._changed:
            self._width = min(self._widest, self._width + 1 / self._width)

    def busy(self, asked_s: float | None) -> None:
        """The server did not, and wants to be left alone for `asked_s`."""
        with self._changed:
            self._width = max(1.0, self._width / 2)
            pause_s = min(asked_s or 0.0, LONGEST_ASKED_S)
            self._closed_until = max(self._closed_until, time.monotonic() + pause_s)


class RetryBudget:
    """Retries left: each request earns a part of one, up to `FREE_RETRIES`."""

    def __init__(self, ratio: float) -> None:
        self._ratio, self._left, self._lock = ratio, FREE_RETRIES, threading.Lock()

    def earn(self) -> None:
        """For a new request."""
        with self._lock:
            self._left = min(FREE_RETRIES, self._left + self._ratio)

    def take(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            self._left -= (is_left := self._left >= 1)
        return is_left


class ChatServer:
    """One endpoint and its model. Safe to use from several threads."""

    def __init__(self, config: ServerConfig, in_flight: int, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises RecipeError where the environment has not the key."""
        import httpx

        name = config.api_key_env
        if name and not os.environ.get(name):
            raise RecipeError(
                f"api_key_env of caption.openai names {name}, which is not set.",
                remedy=f"Export {name} on every worker, or leave api_key_env empty for a server without keys.",
            )
        self.config, self._sleep = config, sleep
        self._key = os.environ.get(name, "") if name else ""
        self._valve, self._budget = Valve(in_flight), RetryBudget(config.retry_ratio)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)

    def ask(
        self,
        content: Sequence[Mapping[str, Any]],
        form: type[BaseModel],
        read: Callable[[str], T],
        bill: TokenBill,
    ) -> T:
        """What `read` makes of the answer to a message of these parts; AskAgainError of it is one more attempt.

        Raises EngineError: `caption_unreachable` when the server does not answer, `caption_refused` when it refuses the
        request, and what `read` raised of the last answer.
        """
        body = self._body(content, form)
        self._budget.earn()

        def once() -> T:
            try:
                return read(self._post(body, bill))
            except AskAgainError as error:
                if self._budget.take():
                    raise
                told = f"{error.message} The retries that requests have earned are used up."
                raise EngineError(told, reason=error.reason, remedy=error.remedy) from None

        policy = RetryPolicy(self.config.tries, self.config.wait_s, longest_asked_s=LONGEST_ASKED_S)
        return policy.run(once, (AskAgainError,), self._sleep)[0]

    def _post(self, body: bytes, bill: TokenBill) -> str:
        """The text of one answer. Raises AskAgainError where another attempt may do better, EngineError where none will."""
        import httpx

        bill.requests += 1
        url = self.config.base_url
        try:
            with self._valve.request():
                answer = self._client.post(url.rstrip("/") + "/chat/completions", content=body)
        except httpx.HTTPError as error:
            raise _unreachable(f"No answer from {url}: {type(error).__name__}.") from None
        if answer.status_code == 429 or answer.status_code >= 500:
            asked_s = retry_after_s(answer.headers.get("Retry-After"))
            if answer.status_code in BUSY:
                self._valve.busy(asked_s)
            raise _unreachable(f"{url} answered {answer.status_code}.", asked_s)
        if answer.status_code != 200:
            said = answer.text[:200]
            said = said.replace(self._key, "***") if self._key else said
            raise EngineError(
                f"{url} refused the request with {answer.status_code}: {said}",
                reason="caption_refused",
                remedy="Check model, api_key_env, answer_format and send_audio of stages.caption.openai.",
            )
        self._valve.good()
        try:
            told = answer.json()
            text = told["choices"][0]["message"]["content"]
            bill.add(told.get("usage") or {}, self.config)
        except (ValueError, LookupError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise _unreachable(f"{url} sent no chat completion.")
        return text

    def _body(self, content: Sequence[Mapping[str, Any]], form: type[BaseModel]) -> bytes:
        request = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": list(content)}],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }
        if self.config.answer_format == "json_schema":
            schema = {"name": form.__name__, "strict": True, "schema": form.model_json_schema()}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.config.answer_format == "json_object":
            request["response_format"] = {"type": "json_object"}
        return json.dumps(request).encode()


def _unreachable(message: str, asked_s: float | None = None) -> AskAgainError:
    error = AskAgainError(message, reason="caption_unreachable")
    error.wait_s = asked_s
    return error
