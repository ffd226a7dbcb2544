"""Tiny random models of the families that people align: at most 0.2 million parameters, two or three layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from pipeline.models.architectures import auto_class
from tests.support.tiny_model import tiny_tokenizer

WORDS = len(tiny_tokenizer())
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
PLAIN: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 320,
    **IDS,
}
HEADS: dict[str, Any] = {**PLAIN, "head_dim": 8}
OLD: dict[str, Any] = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 320, **IDS}
FEW: dict[str, Any] = {name: PLAIN[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")} | IDS
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16},
    **{"n_group": 2, "topk_group": 1},
}
SMALL: dict[str, Any] = {"moe_intermediate_size": 16}
LATENT: dict[str, Any] = {
    **PLAIN,
    **{"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}
WINDOW: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
NEMOTRON: dict[str, Any] = {
    **{**HEADS, "num_hidden_layers": 3},
    **{"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
}
EACH_LAYER: dict[str, Any] = {"vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 8}
# As in the folders of their authors: transformers 5 has other names.
QUARTER: dict[str, Any] = {"rotary_pct": 0.25}
LONG: dict[str, Any] = {
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]}
}
# Parts for images.
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
IMAGES: dict[str, Any] = {**SIZES, "image_size": 28, "patch_size": 14}
QWEN_IMAGES: dict[str, Any] = {
    **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
}
QWEN_TOKENS: dict[str, Any] = {
    **{"image_token_id": WORDS - 1, "video_token_id": WORDS - 2},
    **{"vision_start_token_id": WORDS - 3, "vision_end_token_id": WORDS - 4},
}
STACKED: dict[str, Any] = {**QWEN_IMAGES, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
MROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 1, 1]}
GEMMA: dict[str, Any] = {**HEADS, "query_pre_attn_scalar": 8}


def layers(pattern: str) -> dict[str, Any]:
    """Kinds of Nemotron-H's layers, as in the folders of their authors."""
    return {"hybrid_override_pattern": pattern}


def rope(kind: str, **settings: Any) -> Callable[[], Any]:
    """A Llama whose positions are scaled."""
    return lambda: hf.LlamaConfig(**HEADS, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **settings})


TEXT: dict[str, Callable[[], Any]] = {
    "apertus": lambda: hf.ApertusConfig(**PLAIN),
    "arcee": lambda: hf.ArceeConfig(**PLAIN),
    "bamba": lambda: hf.BambaConfig(**PLAIN, **MAMBA, attn_layer_indices=[1]),
    "bitnet": lambda: hf.BitNetConfig(**PLAIN),
    "bloom": lambda: hf.BloomConfig(
        vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1, attention_dropout=0.1, **IDS
    ),
    "codegen": lambda: hf.CodeGenConfig(**OLD, rotary_dim=8),
    "cohere": lambda: hf.CohereConfig(**PLAIN, logit_scale=0.25),
    "cohere 2": lambda: hf.Cohere2Config(**PLAIN, **WINDOW, logit_scale=0.25),
    "cohere 2 moe": lambda: hf.Cohere2MoeConfig(**HEADS, **WINDOW, **EXPERTS),
    "cwm": lambda: hf.CwmConfig(**HEADS, **WINDOW),
    "dbrx": lambda: hf.DbrxConfig(
        vocab_size=WORDS,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=320,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.1},
        **IDS,
    ),
    "deepseek v2": lambda: hf.DeepseekV2Config(**LATENT, **ROUTED, first_k_dense_replace=1),
    "deepseek v3": lambda: hf.DeepseekV3Config(**LATENT, **ROUTED, first_k_dense_replace=1),
    "dots 1": lambda: hf.Dots1Config(**HEADS, **ROUTED, first_k_dense_replace=1),
    "ernie 4.5": lambda: hf.Ernie4_5Config(**HEADS),
    "ernie 4.5 moe": lambda: hf.Ernie4_5_MoeConfig(
        **PLAIN, **SMALL, moe_num_experts=4, moe_k=2, moe_layer_start_index=1
    ),
    "exaone 4": lambda: hf.Exaone4Config(**PLAIN, **WINDOW),
    "exaone moe": lambda: hf.ExaoneMoeConfig(**PLAIN, **WINDOW, **EXPERTS, **SMALL, num_shared_experts=1),
    "falcon": lambda: hf.FalconConfig(**FEW, num_attention_heads=4, attention_dropout=0.1, hidden_dropout=0.1),
    "falcon alibi": lambda: hf.FalconConfig(**FEW, num_attention_heads=4, alibi=True, multi_query=False, bias=True),
    "falcon h1": lambda: hf.FalconH1Config(
        **HEADS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
    ),
    "falcon mamba": lambda: hf.FalconMambaConfig(**FEW, state_size=8),
    "gemma": lambda: hf.GemmaConfig(**HEADS),
    "gemma 2": lambda: hf.Gemma2Config(**GEMMA, **WINDOW, attn_logit_softcapping=2.0),
    "gemma 3": lambda: hf.Gemma3TextConfig(
        **{**GEMMA, "num_hidden_layers": 3},
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gemma 3n": lambda: hf.Gemma3nTextConfig(
        **{**HEADS, **WINDOW, **EACH_LAYER, "intermediate_size": [32, 32]},
        laurel_rank=4,
        num_kv_shared_layers=0,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma 4": lambda: hf.Gemma4TextConfig(**HEADS, **WINDOW, **EACH_LAYER, num_kv_shared_layers=0, global_head_dim=16),
    "glm": lambda: hf.GlmConfig(**HEADS),
    "glm 4": lambda: hf.Glm4Config(**HEADS),
    "glm 4 moe": lambda: hf.Glm4MoeConfig(**HEADS, **ROUTED, first_k_dense_replace=1),
    "glm 4 moe lite": lambda: hf.Glm4MoeLiteConfig(**LATENT, **ROUTED, first_k_dense_replace=1),
    "gpt bigcode": lambda: hf.GPTBigCodeConfig(**OLD),
    "gpt neo": lambda: hf.GPTNeoConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=320,
        embed_dropout=0.1,
        **IDS,
    ),
    "gpt-2": lambda: hf.GPT2Config(**OLD),
    "gpt-j": lambda: hf.GPTJConfig(**OLD, rotary_dim=8),
    "gpt-neox": lambda: hf.GPTNeoXConfig(
        **FEW,
        intermediate_size=32,
        num_attention_heads=4,
        max_position_embeddings=320,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        **QUARTER,
    ),
    "gpt-oss": lambda: hf.GptOssConfig(**HEADS, **LOCAL, **WINDOW),
    "granite": lambda: hf.GraniteConfig(
        **PLAIN, logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "granite moe": lambda: hf.GraniteMoeConfig(**PLAIN, **LOCAL, logits_scaling=4.0),
    "granite moe hybrid": lambda: hf.GraniteMoeHybridConfig(
        **PLAIN, **LOCAL, **MAMBA, logits_scaling=4.0, layer_types=["mamba", "attention"], shared_intermediate_size=32
    ),
    "granite moe shared": lambda: hf.GraniteMoeSharedConfig(**PLAIN, **LOCAL, shared_intermediate_size=16),
    "helium": lambda: hf.HeliumConfig(**HEADS),
    "hunyuan": lambda: hf.HunYuanDenseV1Config(**HEADS),
    "hunyuan moe": lambda: hf.HunYuanMoEV1Config(**HEADS, num_experts=4, moe_topk=2),
    "jais 2": lambda: hf.Jais2Config(**PLAIN),
    "jamba": lambda: hf.JambaConfig(
        **PLAIN,
        **EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "kimi linear": lambda: hf.KimiLinearConfig(
        **LATENT,
        **LOCAL,
        **SMALL,
        linear_head_dim=8,
        linear_num_heads=2,
        layer_types=["linear_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
    ),
    "lfm 2": lambda: hf.Lfm2Config(**PLAIN, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm 2 moe": lambda: hf.Lfm2MoeConfig(
        **PLAIN, **EXPERTS, **SMALL, layer_types=["conv", "full_attention"], num_dense_layers=1
    ),
    "llama": lambda: hf.LlamaConfig(**HEADS),
    "llama 4": lambda: hf.Llama4TextConfig(
        **HEADS, num_local_experts=2, intermediate_size_mlp=32, router_jitter_noise=0.1
    ),
    "llama, dynamic RoPE": rope("dynamic", factor=4.0),
    "llama, linear RoPE": rope("linear", factor=4.0),
    "llama, RoPE of llama 3": rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama, YaRN": rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama, tied": lambda: hf.LlamaConfig(**HEADS, tie_word_embeddings=True, attention_dropout=0.1),
    "mamba": lambda: hf.MambaConfig(**FEW, state_size=8),
    "mamba 2": lambda: hf.Mamba2Config(**FEW, state_size=8, num_heads=8, head_dim=8, n_groups=1),
    "minicpm 3": lambda: hf.MiniCPM3Config(**LATENT),
    "minimax": lambda: hf.MiniMaxConfig(**HEADS, **LOCAL, layer_types=["linear_attention", "full_attention"]),
    "minimax m2": lambda: hf.MiniMaxM2Config(**HEADS, **LOCAL),
    "ministral": lambda: hf.MinistralConfig(**HEADS, sliding_window=8),
    "ministral 3": lambda: hf.Ministral3Config(**HEADS),
    "mistral": lambda: hf.MistralConfig(**HEADS, sliding_window=None),
    "mistral, window": lambda: hf.MistralConfig(**HEADS, sliding_window=8),
    "mixtral": lambda: hf.MixtralConfig(**HEADS, **LOCAL, router_jitter_noise=0.3, output_router_logits=True),
    "mpt": lambda: hf.MptConfig(vocab_size=WORDS, d_model=32, n_layers=2, n_heads=4, max_seq_len=320, **IDS),
    "nanochat": lambda: hf.NanoChatConfig(**PLAIN),
    "nemotron": lambda: hf.NemotronConfig(**HEADS),
    "nemotron-h": lambda: hf.NemotronHConfig(**NEMOTRON, **layers("M*-")),
    "nemotron-h moe": lambda: hf.NemotronHConfig(
        **{**NEMOTRON, **ROUTED, "n_group": 1}, **layers("M*E"), moe_shared_expert_intermediate_size=16
    ),
    "olmo": lambda: hf.OlmoConfig(**PLAIN),
    "olmo 2": lambda: hf.Olmo2Config(**PLAIN),
    "olmo 3": lambda: hf.Olmo3Config(**PLAIN, **WINDOW),
    "olmo hybrid": lambda: hf.OlmoHybridConfig(**PLAIN, **LINEAR),
    "olmoe": lambda: hf.OlmoeConfig(**PLAIN, **EXPERTS),
    "opt": lambda: hf.OPTConfig(
        **FEW, ffn_dim=32, num_attention_heads=4, max_position_embeddings=320, word_embed_proj_dim=32, dropout=0.1
    ),
    "opt, projected": lambda: hf.OPTConfig(
        **FEW,
        ffn_dim=32,
        num_attention_heads=4,
        max_position_embeddings=320,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        layerdrop=0.1,
    ),
    "persimmon": lambda: hf.PersimmonConfig(**{n: v for n, v in PLAIN.items() if n != "num_key_value_heads"}),
    "phi": lambda: hf.PhiConfig(**PLAIN, embd_pdrop=0.1, resid_pdrop=0.1),
    "phi 3": lambda: hf.Phi3Config(**PLAIN, embd_pdrop=0.1, resid_pdrop=0.1, attention_dropout=0.1),
    "phi 3, longrope": lambda: hf.Phi3Config(**PLAIN, **LONG, original_max_position_embeddings=64),
    "phi 3.5 moe": lambda: hf.PhimoeConfig(**PLAIN, **LOCAL, router_jitter_noise=0.3, input_jitter_noise=0.2),
    "qwen 2": lambda: hf.Qwen2Config(**PLAIN),
    "qwen 2 moe": lambda: hf.Qwen2MoeConfig(**PLAIN, **EXPERTS, **SMALL, shared_expert_intermediate_size=16),
    "qwen 2, window": lambda: hf.Qwen2Config(**PLAIN, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen 3": lambda: hf.Qwen3Config(**HEADS),
    "qwen 3 moe": lambda: hf.Qwen3MoeConfig(**HEADS, **EXPERTS, **SMALL),
    "qwen 3 next": lambda: hf.Qwen3NextConfig(
        **HEADS, **LINEAR, **EXPERTS, **SMALL, shared_expert_intermediate_size=16
    ),
    "qwen 3.5": lambda: hf.Qwen3_5TextConfig(**HEADS, **LINEAR),
    "qwen 3.5 moe": lambda: hf.Qwen3_5MoeTextConfig(
        **HEADS, **LINEAR, **EXPERTS, **SMALL, shared_expert_intermediate_size=16
    ),
    "recurrent gemma": lambda: hf.RecurrentGemmaConfig(
        **{**PLAIN, "num_hidden_layers": 3}, lru_width=32, attention_window_size=8
    ),
    "seed oss": lambda: hf.SeedOssConfig(**HEADS, residual_dropout=0.1),
    "smollm 3": lambda: hf.SmolLM3Config(**PLAIN, no_rope_layers=[1, 0]),
    "solar open": lambda: hf.SolarOpenConfig(**HEADS, **ROUTED),
    "stablelm": lambda: hf.StableLmConfig(**PLAIN, hidden_dropout=0.1, attention_dropout=0.1),
    "starcoder 2": lambda: hf.Starcoder2Config(
        **PLAIN, residual_dropout=0.1, embedding_dropout=0.1, attention_dropout=0.1
    ),
    "vaultgemma": lambda: hf.VaultGemmaConfig(**GEMMA, **WINDOW),
    "zamba 2": lambda: hf.Zamba2Config(
        **PLAIN,
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=8,
        layers_block_type=["mamba", "hybrid"],
    ),
}
WITH_IMAGES: dict[str, Callable[[], Any]] = {
    "gemma 3 with images": lambda: hf.Gemma3Config(
        text_config={**GEMMA, **WINDOW, "attention_dropout": 0.2},
        vision_config=IMAGES,
        mm_tokens_per_image=4,
        image_token_index=WORDS - 1,
        boi_token_index=WORDS - 2,
        eoi_token_index=WORDS - 3,
    ),
    "gemma 4 with images": lambda: hf.Gemma4Config(
        text_config={**HEADS, **WINDOW, **EACH_LAYER, "num_kv_shared_layers": 0, "global_head_dim": 16},
        vision_config={**IMAGES, "head_dim": 8, "num_key_value_heads": 2, "position_embedding_size": 16},
        image_token_id=WORDS - 1,
    ),
    "glm 4 with images": lambda: hf.Glm4vConfig(
        text_config={
            **PLAIN,
            "rope_parameters": {
                **{"rope_type": "default", "mrope_section": [1, 1, 0]},
                **{"partial_rotary_factor": 0.5, "rope_theta": 1e4},
            },
        },
        vision_config={**QWEN_IMAGES, "image_size": 28, "patch_size": 14},
        image_token_id=WORDS - 1,
    ),
    "internvl": lambda: hf.InternVLConfig(
        text_config={**HEADS, "model_type": "qwen3"},
        vision_config={**SIZES, "image_size": [28, 28], "patch_size": [14, 14]},
        image_token_id=WORDS - 1,
    ),
    "llama 4 with images": lambda: hf.Llama4Config(
        text_config={**HEADS, "num_local_experts": 2, "intermediate_size_mlp": 32},
        vision_config={
            **IMAGES,
            **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 16),
        },
    ),
    "llava": lambda: hf.LlavaConfig(
        text_config={**HEADS, "model_type": "llama"},
        vision_config={**IMAGES, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_index=WORDS - 1,
    ),
    "mistral 3": lambda: hf.Mistral3Config(
        text_config={**HEADS, "model_type": "mistral"},
        vision_config={**IMAGES, "model_type": "pixtral", "head_dim": 8},
        image_token_index=WORDS - 1,
    ),
    "ministral 3 with images": lambda: hf.Mistral3Config(
        text_config={**HEADS, "model_type": "ministral3"},
        vision_config={**IMAGES, "model_type": "pixtral", "head_dim": 8},
        image_token_index=WORDS - 1,
    ),
    "paligemma": lambda: hf.PaliGemmaConfig(
        text_config={**GEMMA, **WINDOW, "model_type": "gemma2"},
        vision_config={
            **{**IMAGES, "model_type": "siglip_vision_model"},
            **{"vision_use_head": False, "projection_dim": 32},
        },
        image_token_index=WORDS - 1,
        projection_dim=32,
    ),
    "qwen 2 with images": lambda: hf.Qwen2VLConfig(
        text_config={**PLAIN, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        **QWEN_TOKENS,
    ),
    "qwen 2.5 with images": lambda: hf.Qwen2_5_VLConfig(
        text_config={**PLAIN, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config=QWEN_IMAGES,
        **QWEN_TOKENS,
    ),
    "qwen 3 with images": lambda: hf.Qwen3VLConfig(
        text_config={**HEADS, "rope_scaling": MROPE}, vision_config=STACKED, **QWEN_TOKENS
    ),
    "qwen 3 moe with images": lambda: hf.Qwen3VLMoeConfig(
        text_config={**HEADS, **EXPERTS, **SMALL, "rope_scaling": MROPE}, vision_config=STACKED, **QWEN_TOKENS
    ),
    "qwen 3.5 with images": lambda: hf.Qwen3_5Config(
        text_config={**HEADS, **LINEAR, "attention_dropout": 0.3},
        vision_config=QWEN_IMAGES,
        image_token_id=WORDS - 1,
    ),
    "qwen 3.5 moe with images": lambda: hf.Qwen3_5MoeConfig(
        text_config={**HEADS, **LINEAR, **EXPERTS, **SMALL, "shared_expert_intermediate_size": 16},
        vision_config=QWEN_IMAGES,
        image_token_id=WORDS - 1,
    ),
    "smolvlm": lambda: hf.SmolVLMConfig(
        text_config={**HEADS, "model_type": "llama"}, vision_config=IMAGES, image_token_id=WORDS - 1
    ),
}
FAMILIES = TEXT | WITH_IMAGES


def save_family(settings: Any, folder: Path, seed: int = 0, scale: float = 0.12) -> Path:
    """Save a random model with this config, as its authors would.

    ``scale``: standard deviation of the matrices: large enough that what attention sees shows in log-probs.
    """
    torch.manual_seed(seed)
    model = auto_class(settings).from_config(settings)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=scale)
        else:
            # No scale is exactly 1, and none is 0.
            parameter.data += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
