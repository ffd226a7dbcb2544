"""Tiny diffusion models of the real classes, with random weights, as policies' folders."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.images.image_folder import write_image_policy

SIZE = 8
CLASSES = 4


def vp(prediction: str = "epsilon", **settings: Any) -> DDIMScheduler:
    told = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, **settings}
    return DDIMScheduler(prediction_type=prediction, **told)


def unet(classes: int | None = CLASSES, channels: int = 3, **settings: Any) -> UNet2DModel:
    told = {
        "sample_size": SIZE,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "num_class_embeds": classes,
    }
    return UNet2DModel(**{**told, **settings})


def class_conditional(folder: Path, seed: int = 0, prediction: str = "epsilon", null: bool = False) -> Path:
    torch.manual_seed(seed)
    network = unet(CLASSES + 1 if null else CLASSES)
    write_image_policy(network, vp(prediction), folder, null_class=CLASSES if null else None)
    return folder


def unconditional(folder: Path, seed: int = 0, **scheduler: Any) -> Path:
    torch.manual_seed(seed)
    write_image_policy(unet(None), vp(**scheduler), folder)
    return folder


def vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=2 * SIZE,
    )


def words(folder: Path) -> Path:
    """Write a tokenizer of CLIP's kind that knows letters only."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16, pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def text_config(width: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def text_conditioned(folder: Path, seed: int = 0, prediction: str = "epsilon") -> Path:
    """Stable Diffusion's layout."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    write_image_policy(
        network,
        vp(prediction, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        folder,
    )
    vae().save_pretrained(folder / "vae")
    CLIPTextModel(text_config()).save_pretrained(folder / "text_encoder")
    words(folder / "tokenizer")
    return folder


def dit(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        dropout=0.1,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    _break_zeros(network)
    write_image_policy(network, vp(), folder)
    vae().save_pretrained(folder / "vae")
    return folder


def flow_transformer(folder: Path, seed: int = 0) -> Path:
    """Stable Diffusion 3's layout, without T5."""
    torch.manual_seed(seed)
    network = SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    _break_zeros(network)
    write_image_policy(network, FlowMatchEulerDiscreteScheduler(shift=3.0), folder)
    vae().save_pretrained(folder / "vae")
    for number in ("", "_2"):
        CLIPTextModelWithProjection(text_config()).save_pretrained(folder / f"text_encoder{number}")
        words(folder / f"tokenizer{number}")
    return folder


def _break_zeros(network: Any) -> None:
    """Give layers that start at 0 small weights, so that every input counts."""
    for parameter in network.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05)


KINDS = {
    "unconditional": unconditional,
    "class": class_conditional,
    "text": text_conditioned,
    "dit": dit,
    "flow": flow_transformer,
}
PROMPTS: dict[str, list[Any]] = {
    "unconditional": [None, None],
    "class": [0, 3],
    "text": ["a red dot", "blue"],
    "dit": [1, 2],
    "flow": ["a red dot", "blue"],
}
