"""The chat template that vLLM's server is started with: it prints the prompt that the gate has made."""

__all__ = ["PROMPT", "TEMPLATE"]

PROMPT = "colora_prompt"
TEMPLATE = "{{ " + PROMPT + " }}"
