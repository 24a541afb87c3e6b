"""What vLLM compiles when it is asked the first time, before anybody asks."""

import logging
import uuid
from typing import TYPE_CHECKING

from vllm import SamplingParams

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)


async def warm_up(engine: "EngineClient") -> None:
    """Ask the base for a token with log probabilities: vLLM compiles for the first of them inside a step, in which all
    requests wait, and on a busy machine longer than a step may last. A failure is logged alone."""
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=1)
    try:
        async for _ in engine.generate({"prompt_token_ids": [0]}, sampling, f"warm-up-{uuid.uuid4()}"):
            pass
    except Exception:
        logger.exception("the first token failed")
