"""The last layer computes no more than what is asked for, where a model's own values say that it may."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.models.attention.last_layer import places, position_wise
from pipeline.models.attention.packing import pack
from pipeline.models.attention.shared_prompts import share, stream_arguments
from pipeline.models.classifier_scores import RowScores
from pipeline.models.token_logps import TokenLogps
from pipeline.training.batches.collate import collate
from pipeline.training.batches.examples import Example
from tests.support.tiny_training import tiny_llama

SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = [((3, 4, 5, 6, 7), (8, 9)), ((3, 4, 5, 6, 7), (10, 11, 12)), ((13, 14), (15,))]


def widths(modules: tuple[nn.Module, ...], counted: list[int]) -> None:
    """Note how many positions each of ``modules`` computes."""
    for module in modules:
        module.register_forward_hook(lambda _, given, __: counted.append(given[0].shape[1]))


def test_places_are_distinct_ascending_and_filled_up() -> None:
    wanted = torch.tensor([5, 2, 5, 7, 0])
    assert places(wanted, 9).tolist() == [0, 2, 5, 7]
    assert places(wanted, 9, 3).tolist() == [0, 1, 2, 3, 5, 7]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (tiny_llama, 3),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)), 3),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4)), 1),
    ],
)
def test_values_and_gradients_are_those_of_the_whole_layer(make: Callable[[], PreTrainedModel], count: int) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    narrow, whole = (TokenLogps(model, share_prompts=True) for _ in range(2))
    assert len(narrow._narrow[0]) == count
    whole._narrow = ((), ())
    ids, mask = (torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.bool))
    for row, (prompt, continuation) in enumerate(ROWS):
        ids[row, : len(prompt) + len(continuation)] = torch.tensor(prompt + continuation)
        mask[row, len(prompt) : len(prompt) + len(continuation)] = True
    found = []
    for policy in (narrow, whole):
        model.zero_grad()
        logps = policy(ids, mask, pack(ROWS)).policy
        (logps * torch.arange(27.0).view(3, 9)).sum().backward()
        found.append((logps.detach(), [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*found, atol=1e-10, rtol=1e-10)


def test_only_what_predicts_a_response_is_computed() -> None:
    policy = TokenLogps(tiny_llama(), share_prompts=True)
    counted: list[int] = []
    widths(policy._narrow[0], counted)
    example = Example.pair("0", (3, 4, 5, 6, 7), (8, 9), (10, 11, 12))
    collated = collate([example], packing=True)
    policy(collated.ids, collated.mask, collated.packed)
    # The prompt's end, one of two and two of three.
    assert counted == [4, 4, 4]
    model = policy.model
    model.gradient_checkpointing_enable()
    model.train()
    policy(collated.ids, collated.mask, collated.packed)
    assert counted[3:] == [10, 10, 10]


def test_rewards_cost_the_last_layer_the_ends_of_rows() -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=1, pad_token_id=0)).eval()
    scores = RowScores(model, {0: 1.0}, share_prompts=True)
    counted: list[int] = []
    widths(scores._narrow, counted)
    found = scores.of_stream(pack(ROWS))
    assert counted == [3, 3, 3]
    alone = [model(torch.tensor([prompt + ids])).logits[0, 0] for prompt, ids in ROWS]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)


class Mixing(nn.Module):
    """A feed-forward network that looks at the token before, as some decoders' do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        made: Tensor = self.inner(states + states.roll(1, dims=1))
        return made


def test_a_layer_whose_positions_are_not_apart_is_computed_whole() -> None:
    decoder = tiny_llama().get_decoder()
    share(decoder)
    assert len(position_wise(decoder)) == 3
    last = decoder.layers[-1]
    last.mlp = Mixing(last.mlp)
    assert position_wise(decoder) == ()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())
    packed = pack([((3, 4, 5), (3, 4))])
    assert decoder(**stream_arguments(packed)).last_hidden_state.shape[1] == len(packed.ids)
