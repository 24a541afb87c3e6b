"""Which parts of transformers' models see other rows than the batch's; on models without weights, as they come."""

import pytest
import transformers
from accelerate import init_empty_weights
from torch import nn

from colora.adapter.targets.towers import parts_of_other_rows

LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "depth")

PARTS = {
    "PaliGemmaForConditionalGeneration": ["model.vision_tower", "model.multi_modal_projector"],
    "IdeficsForVisionText2Text": ["model.vision_model"],
    "SmolVLMForConditionalGeneration": ["model.vision_model", "model.connector"],
    "Qwen2VLForConditionalGeneration": ["model.visual"],
    "InternVLForConditionalGeneration": ["model.vision_tower", "model.multi_modal_projector"],
    "MllamaForConditionalGeneration": ["model.vision_model", "model.multi_modal_projector"],
    "Blip2ForConditionalGeneration": ["vision_model", "qformer", "language_projection"],
    "LlavaModel": ["vision_tower", "multi_modal_projector"],
    "FuyuForCausalLM": ["model.vision_embed_tokens"],
    "Phi4MultimodalForCausalLM": ["model.embed_tokens_extend.image_embed", "model.embed_tokens_extend.audio_embed"],
    "Qwen2AudioForConditionalGeneration": ["model.audio_tower", "model.multi_modal_projector"],
    # encoder-decoders whose text encoder takes in images
    "Florence2ForConditionalGeneration": ["model.vision_tower", "model.multi_modal_projector"],
    "T5Gemma2ForConditionalGeneration": ["model.encoder.vision_tower"],
    # a model around another
    "ColPaliForRetrieval": ["vlm.vision_tower", "vlm.multi_modal_projector"],
    # row by row from the encoder to the decoder, or nothing but encoders
    "WhisperForConditionalGeneration": [],
    "Pix2StructForConditionalGeneration": [],
    "T5GemmaForConditionalGeneration": [],
    "SiglipModel": [],
    "ViTForImageClassification": [],
    "Gemma3ForCausalLM": [],
}


def without_weights(name):
    made = getattr(transformers, name)
    config = made.config_class()
    for part in [
        config,
        *(value for value in vars(config).values() if isinstance(value, transformers.PreTrainedConfig)),
    ]:
        for field in LAYERS:
            if isinstance(getattr(part, field, None), int):
                setattr(part, field, 2)
    with init_empty_weights():
        return made(config)


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_other_rows(name):
    model = without_weights(name)
    output = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    found = set(parts_of_other_rows(model)) - output
    # Of parts without a linear layer, such as embeddings of places, nothing needs to be known.
    modules = dict(model.named_modules())
    adaptable = {name for name in found if any(isinstance(one, nn.Linear) for one in modules[name].modules())}
    assert adaptable == set(PARTS[name])
