"""Short prompts made into the long structured captions that the network was trained on, by a language model behind an
OpenAI-compatible endpoint (vLLM, llama.cpp, a provider). What is to be said stays word for word, or the answer is refused.
"""

from __future__ import annotations

import os
import re
import time

from model.sampling.config import RewriteConfig
from schemas.errors import ModelError
from schemas.lines import lines_in

INSTRUCTIONS = """You turn a short idea for a video with sound into one dense caption, in {language}, as a single paragraph.
Describe in this order: overall picture (style, mood, subject, appearance, background, light); what happens over time (first \
state, actions, details of motion, last state); camera (angle, shot size, framing, movement); sound (speech and how it \
sounds, effects, music, ambience).
Keep every passage between <S> and <E>, with these marks, exactly as it is and in its order; put it where it is spoken. Add \
no other speech. Answer with the caption alone."""
RETRIED = (408, 429, 500, 502, 503, 504)
WAITS_S = (1.0, 4.0, 15.0)


def rewrite(caption: str, config: RewriteConfig) -> str:
    """The caption that the language model makes of a prompt.

    Busy answers are asked for again, and so are those that changed what is said. Raises ModelError when that does not help.
    """
    import httpx

    headers = {}
    if config.api_key_variable:
        if not (key := os.environ.get(config.api_key_variable)):
            raise ModelError(
                f"the environment has no {config.api_key_variable}.", remedy="Set it to the endpoint's key."
            )
        headers["Authorization"] = f"Bearer {key}"
    system = config.instructions or INSTRUCTIONS.format(language=config.language)
    url = f"{config.url.rstrip('/')}/chat/completions"
    trouble = ""
    with httpx.Client(timeout=config.timeout_s, headers=headers) as client:
        for attempt, wait_s in enumerate((*WAITS_S, 0.0)):
            body = {
                "model": config.model,
                "messages": [{"role": "system", "content": system}, {"role": "user", "content": caption}],
                "temperature": config.temperature,
                "seed": attempt,
            }
            try:
                answer = client.post(url, json=body)
                answer.raise_for_status()
                rewritten = _text(answer.json())
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status not in RETRIED:
                    raise ModelError(
                        f"{config.url} answers {status} to a prompt.", remedy="Check rewrite.*."
                    ) from error
                trouble = f"answers {status}"
                time.sleep(wait_s)
            except httpx.TransportError as error:
                trouble = f"cannot be reached: {type(error).__name__}"
                time.sleep(wait_s)
            except (ValueError, LookupError, TypeError):
                trouble = "answers something that is no completion"
            else:
                if rewritten and lines_in(rewritten) == lines_in(caption):
                    return rewritten
                trouble = "changes what is said"
    raise ModelError(
        f"{config.url} {trouble}, {len(WAITS_S) + 1} times, for the prompt '{caption[:60]}'.",
        remedy="Check rewrite.url and rewrite.model, or write the caption yourself and leave rewrite out.",
    )


def _text(answer: dict[str, list[dict[str, dict[str, str]]]]) -> str:
    """The words of a completion, without what a model thought aloud before them."""
    content = answer["choices"][0]["message"]["content"]
    return re.sub(r"^.*</think>", "", content, flags=re.DOTALL).strip()
