"""TRL's OnlineDPOTrainer, in a process of its own: two samples a prompt, the gold reward, one pass over the prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.online_dpo.online_dpo_config import OnlineDPOConfig
from trl.experimental.online_dpo.online_dpo_trainer import OnlineDPOTrainer

from pipeline.config import RunConfig
from pipeline.storage.rows import read_groups
from pipeline.types import Group, Prompt, Response
from reward_models.rules import SlotReward
from tests.benchmarks.isolated import Facts, cores, serve
from tests.benchmarks.trl_steps import StepsTimer


class GoldReward:
    """The round's own scorer, called as TRL calls a reward function."""

    __name__ = "gold"

    def __init__(self, scorer: Any, prompts: Mapping[str, Prompt]) -> None:
        self._scorer = SlotReward(scorer)
        self._prompts = prompts

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float | None]:
        groups = [
            Group(self._prompts[prompt], (0,), (Response(text.strip(), (0,), (), "stop"),))
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        return [scores[0] for scores in self._scorer.score(groups)]


def measure(job: Facts, folder: Path) -> Mapping[str, Any]:
    """Seconds from the begin of training to its end; setting up is not counted.

    ``job``: the policy's folder, that of the samples whose prompts are taken, the run's config, and the micro-batch: a
    batch of more is drawn and accumulated in parts. Batch, rate, β, length and precision are the run's.
    """
    torch.set_num_threads(cores())
    config = RunConfig.model_validate(job["config"])
    micro = min(job["micro_batch"] or config.training.batch_size, config.training.batch_size)
    tokenizer = AutoTokenizer.from_pretrained(job["policy"])
    texts: dict[str, Prompt] = {}
    for group in read_groups(Path(job["samples"])):
        turns = [{"role": m.role, "content": m.content} for m in group.prompt.messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        texts[str(text)] = group.prompt
    settings = OnlineDPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.training.batch_size // micro,
        num_train_epochs=1,
        learning_rate=config.training.learning_rate,
        max_grad_norm=config.training.max_grad_norm,
        beta=[config.loss.beta],
        max_new_tokens=config.sampling.max_tokens,
        temperature=config.sampling.temperature,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    timer = StepsTimer()
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["policy"]),
        reward_funcs=GoldReward(config.scorer, texts),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": list(texts)}),
        processing_class=tokenizer,
        callbacks=[timer],
    )
    trainer.train()
    reward = trainer.stats.get("objective/scores") or []
    return {
        "seconds": timer.seconds,
        "prompts": len(texts),
        "prompts_per_second": len(texts) / timer.seconds,
        "updates": trainer.state.global_step,
        "mean_reward": sum(reward) / len(reward) if reward else None,
    }


if __name__ == "__main__":
    serve(measure)
