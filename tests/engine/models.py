"""Tiny models with random weights, and adapters, as folders that the engines load. The same bytes every time.

torch and transformers are imported late, after the shims: transformers imports torchvision.
"""

import json
import string
from pathlib import Path
from typing import Any

from backends import cpu_shims

IMAGE = "<image>"
IMAGE_SIZE = 64
PATCH_SIZE = 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
"""What an image of any size costs in tokens."""
HIDDEN_SIZE = 64
HEADS = 2
"""Of 32 dimensions each: vLLM's attention on CPUs takes none smaller."""
SHARP = 0.3
"""The deviation of random weights with which no two tokens are nearly as likely: greedy texts can be compared."""

LORA_RANK = 8
LORA_MODULES = ("q_proj", "v_proj")
LORA_STRENGTH = 0.15
"""The deviation of what an adapter adds to each weight; the demo model's own deviate by 0.2."""

AUDIO_RATE = 16000
AUDIO_SECONDS = 2
"""Of a window of the tiny Whisper: a real one's is 30."""


def create_llava(folder: Path, words: Path) -> None:
    """A LLaVA: a CLIP tower before a Llama of two layers, with the tokenizer of the model in ``words``."""
    cpu_shims.install()
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 2 * HIDDEN_SIZE, "num_hidden_layers": 2,
             "num_attention_heads": HEADS}  # fmt: skip
    vision = CLIPVisionConfig(image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, initializer_factor=3.0, **sizes)
    text = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2048, initializer_range=SHARP,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=image_token, image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS, vision_feature_layer=-1,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    rename_tower(folder / "model.safetensors")
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=square), tokenizer=tokenizer,
        patch_size=PATCH_SIZE, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)  # fmt: skip


def rename_tower(weights: Path) -> None:
    """transformers 5 saves the tower's weights without ``vision_model.``, where the engines look for them."""
    from safetensors.torch import load_file, save_file

    old, new = "vision_tower.", "vision_tower.vision_model."
    named = {name.replace(old, new): tensor for name, tensor in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})


def create_lora(folder: Path, base: Path, seed: int) -> None:
    """An adapter for the Llama in ``base``, as peft saves one, strong enough that the model says something else."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    hidden = config["hidden_size"]
    outputs = {"q_proj": config["num_attention_heads"], "v_proj": config["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(seed)
    # The sum of RANK products deviates by the product of the deviations, times the root of RANK.
    deviation = (LORA_STRENGTH / LORA_RANK**0.5) ** 0.5
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for module in LORA_MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            shape_a, shape_b = (LORA_RANK, hidden), (outputs[module] * config["head_dim"], LORA_RANK)
            weights[f"{name}.lora_A.weight"] = torch.randn(shape_a, generator=generator) * deviation
            weights[f"{name}.lora_B.weight"] = torch.randn(shape_b, generator=generator) * deviation
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "bias": "none",
        "r": LORA_RANK, "lora_alpha": LORA_RANK, "lora_dropout": 0.0, "target_modules": list(LORA_MODULES),
        "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None, "use_dora": False,
        "use_rslora": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2))


def create_whisper(folder: Path) -> None:
    """A Whisper that hears two seconds, and says random printable characters."""
    cpu_shims.install()
    import torch
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    tokenizer = whisper_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    extractor = WhisperFeatureExtractor(chunk_length=AUDIO_SECONDS)
    end = ids("<|endoftext|>")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=HIDDEN_SIZE, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=2 * HIDDEN_SIZE,
        decoder_ffn_dim=2 * HIDDEN_SIZE, max_source_positions=extractor.nb_max_frames // 2, max_target_positions=64,
        decoder_start_token_id=ids("<|startoftranscript|>"), bos_token_id=end, eos_token_id=end, pad_token_id=end,
        suppress_tokens=None, begin_suppress_tokens=None, init_std=SHARP,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)


def whisper_tokenizer() -> Any:
    """One token for each printable character, then Whisper's own special tokens in its order."""
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    characters = [character for character in string.printable if character.isprintable() and character != " "]
    vocabulary = {character: index for index, character in enumerate([*characters, "Ġ"])}
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=[])
    special = ["startoftranscript", *LANGUAGES, "translate", "transcribe", "startoflm", "startofprev", "nospeech",
               "notimestamps"]  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{name}|>" for name in special]})
    return tokenizer
