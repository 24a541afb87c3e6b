"""Fields of requests that this server does not act on: let through where they ask for nothing, refused by name else.

A field that would change the answer and is not understood must not be dropped in silence, a misspelt one no more than
one of another server's. null asks for nothing in every field.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

__all__ = ["CHAT", "COMPLETION", "HARMLESS", "NEUTRAL", "Fields", "UnsupportedError"]


class UnsupportedError(ValueError):
    """A field that asks for something that this server does not do. `field`: its name, with its place."""

    def __init__(self, field: str, hint: str | None = None) -> None:
        self.field = field.encode("ascii", "backslashreplace").decode()
        super().__init__(f"{self.field}: not supported by this server" + (f"; did you mean {hint}?" if hint else ""))


HARMLESS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "request_id", "priority", "cache_salt"),
        *("prediction", "cache_prompt", "use_cache", "keep_alive", "id_slot", "slot_id"),  # how fast it comes
        *("include_reasoning", "separate_reasoning", "stream_reasoning"),  # there is no reasoning to be told apart
        "n_keep",  # of prompts that are cut, which none is
        # of what is refused unless it is switched off
        *("repeat_last_n", "penalize_nl", "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold"),
        *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    }
)
"""They change no answer, whatever their value."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    # OpenAI's
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # of vLLM, SGLang, TGI, llama.cpp, transformers, and gateways
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "top_a": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "eta_cutoff": (0,),
    "epsilon_cutoff": (0,),
    "mirostat": (0,),
    "dynatemp_range": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "no_repeat_ngram_size": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "num_beams": (1,),
    "early_stopping": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "skip_special_tokens": (True,),
    "logits_processors": ([],),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,),
    "return_full_text": (False,),
    "return_progress": (False,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "details": (False,),
    "decoder_input_details": (False,),
    "watermark": (False,),
    "n_predict": (-1,),
    "n_probs": (0,),
    "min_keep": (0,),
    "post_sampling_probs": (False,),
    "timings_per_token": (False,),
    "t_max_predict_ms": (0, -1),
    "top_n_sigma": (-1, 0),
    "grammar": ("",),
    "lora": ([],),
    "num_return_sequences": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "repetition_penalty_range": (0,),
    "guidance_scale": (1,),
    "smoothing_factor": (0,),
    "penalty_alpha": (0,),
    "think": (False,),
    "safe_prompt": (False,),
    "transforms": ([],),
    "models": ([],),
    "plugins": ([],),
}
"""What asks for nothing, in both kinds of requests: the value that each would have if it were left out."""

CHAT: dict[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "echo": (False,),
}
"""The same of chats."""

COMPLETION: dict[str, tuple[object, ...]] = {
    "add_special_tokens": (True,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "echo": (False,),
}
"""The same of plain completions."""


class Fields(BaseModel):
    """An object in a request; what it does not know is kept until `check_fields`."""

    model_config = ConfigDict(extra="allow", strict=True)
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    harmless: ClassVar[frozenset[str]] = frozenset()

    def check_fields(self, place: str = "") -> None:
        """Refuse the first field, here or within, that asks for something that is not done. Raises UnsupportedError."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in self.harmless:
                continue
            if not any(_same(value, one) for one in self.neutral.get(name, ())):
                known = [*type(self).model_fields, *self.neutral, *self.harmless]
                raise UnsupportedError(place + name, None if name in known else _like(name, type(self).model_fields))
        for name in type(self).model_fields:
            _check_within(getattr(self, name), f"{place}{name}.")


def _check_within(value: object, place: str) -> None:
    if isinstance(value, Fields):
        value.check_fields(place)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            _check_within(one, f"{place}{index}.")


def _same(value: object, neutral: object) -> bool:
    """Whether they are equal; 1 is 1.0, but neither is true."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _like(name: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(name[:60], known, 1, 0.8)), None)
