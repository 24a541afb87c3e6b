"""CoLoRA: collaborative low-rank adaptation. Importing it makes stock PEFT know `CoLoRAConfig`."""

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import CoLoRAModel
from colora.adapter.registration import register

__all__ = ["CoLoRAConfig", "CoLoRAModel"]
__version__ = "0.1.0"

register()
