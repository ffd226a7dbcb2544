"""What a loss needs and the config or the data lack is refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flows.preflight.check import check_run, check_vocabulary
from pipeline.config import Composition, RunConfig, preset_names, resolve
from pipeline.config.files import dump_config, load_config
from pipeline.config.loss.needs import needs_of
from pipeline.errors import UserError
from pipeline.losses import load_preset
from tests.support.tiny_model import save_tiny_model

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"a dog ran {n}", "chosen": f"to the barn {n}", "rejected": f"mat {n}"} for n in range(8)
]
SCORED = [{**row, "chosen_score": 1.0, "rejected_score": 0.0} for row in PAIRS]
MARKED = [{"prompt": f"a dog ran {n}", "completion": f"to the barn {n}", "label": n % 2 == 0} for n in range(8)]
GROUPS = [{"prompt": f"a dog ran {n}", "responses": ["barn", "mat", "cat"], "rewards": [1, 2, 4]} for n in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("needs") / "model")


@pytest.fixture
def offline(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "run.yaml").write_text(
        f"name: t\nmode: offline\npolicy: {{path: {model}}}\npairs: {{path: {tmp_path / 'rows.jsonl'}}}\n"
        "held_out: {prompts: 2}\n"
    )
    return tmp_path


@pytest.fixture
def iterative(tmp_path: Path, model: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(8)))
    (tmp_path / "run.yaml").write_text(
        f"name: t\nmode: iterative\npolicy: {{path: {model}}}\nprompts: {{path: {tmp_path / 'rows.jsonl'}}}\n"
        "scorer: {kind: length}\nheld_out: {prompts: 2}\n"
    )
    return tmp_path


def config(job: Path, rows: list[dict[str, Any]] | None, *settings: str) -> RunConfig:
    if rows is not None:
        (job / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config([job / "run.yaml"], settings)


def refused(job: Path, rows: list[dict[str, Any]] | None, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        check_run(config(job, rows, *settings))
    return str(caught.value)


@pytest.mark.parametrize(
    "preset",
    [
        *("rpo_sq", "rpo_bwd", "rpo_fwd", "rpo_sqloo", "rpo_list_fwd", "rpo_list_bwd", "infonca", "nca_list", "hpo"),
        *("apa", "apa_token"),
    ],
)
def test_rewards_must_be_among_the_columns(offline: Path, preset: str) -> None:
    message = refused(offline, [*PAIRS[:-1], SCORED[-1]], f"loss.preset={preset}")
    assert f"loss {preset} needs rewards" in message
    assert "'chosen_score' and 'rejected_score'" in message and "rows.jsonl" in message
    assert "5 of 6 pairs of" in message
    check_run(config(offline, SCORED, f"loss.preset={preset}"))
    check_run(config(offline, GROUPS, f"loss.preset={preset}"))


def test_a_head_that_can_do_without_rewards_takes_all_or_none(offline: Path) -> None:
    check_run(config(offline, PAIRS, "loss.preset=rrhf"))
    check_run(config(offline, SCORED, "loss.preset=rrhf"))
    message = refused(offline, [*PAIRS[:4], *SCORED[4:]], "loss.preset=rrhf")
    assert "loss rrhf takes the rewards of all pairs or of none" in message


def test_a_label_of_wins_needs_win_probabilities_or_scores(offline: Path) -> None:
    loss = "loss={prior: reference, link: logistic, label: wins}"
    message = refused(offline, PAIRS, loss)
    assert "loss.label: wins needs the column 'win_probability', or scores" in message
    check_run(config(offline, SCORED, loss))
    check_run(config(offline, [{**row, "win_probability": 0.7} for row in PAIRS], loss))


def test_a_reference_that_moves_is_one_that_is_stored(iterative: Path, model: Path) -> None:
    check_run(config(iterative, None, "training.reference_sync={every: 4}"))
    for loss, why in (
        ("simpo", "reads no references"),
        ("tdpo1", "reads more of the reference than"),
        ("mrpo", "reads 2"),
    ):
        further = [f"training.references=[{model}]"] if loss == "mrpo" else []
        message = refused(iterative, None, f"loss.preset={loss}", "training.reference_sync={every: 4}", *further)
        assert message.startswith(f"training.reference_sync: loss {loss} {why}"), message


def test_soft_targets_need_win_probabilities_or_scores(offline: Path) -> None:
    message = refused(offline, PAIRS, "loss.preset=ipo_soft")
    assert message.startswith("loss.margin: wins needs the column 'win_probability', or scores: 6 of 6 pairs")
    check_run(config(offline, SCORED, "loss.preset=ipo_soft"))
    check_run(config(offline, PAIRS, "loss.preset=ipo_soft", "loss.against=average"))


def test_a_mixture_with_the_start_needs_no_folder(iterative: Path, model: Path) -> None:
    check_run(config(iterative, None, "loss.preset=inpo", "training.references=[start]"))
    message = refused(iterative, None, "loss.preset=inpo")
    assert "0 model folders, but loss inpo measures against 2" in message and "start is the policy that" in message
    message = refused(iterative, None, "loss.preset=apo_accelerated", "rounds=2", "training.references=[start]")
    assert message.startswith("training.references: start, but loss apo_accelerated reads the checkpoint before")


def test_sppo_takes_hard_pairs(offline: Path) -> None:
    check_run(config(offline, PAIRS, "loss.preset=sppo"))
    check_run(config(offline, [{**row, "soft_label": 0.8} for row in PAIRS], "loss.preset=sppo"))


@pytest.mark.parametrize("preset", ["dpo", "simpo", "sppo", "hpo", "rpo_sqloo", "sampo", "sft", "cal_dpo", "apo_down"])
def test_single_responses_are_refused_by_a_loss_that_compares(offline: Path, preset: str) -> None:
    message = refused(offline, MARKED, f"loss.preset={preset}")
    assert "single responses (columns completion and label)" in message
    assert f"loss {preset} reads several" in message and "one of aot_unpaired, apo_zero, bco" in message


@pytest.mark.parametrize("preset", ["kto", "bco", "apo_zero", "nca"])
def test_single_responses_serve_losses_of_one_sided_terms(offline: Path, preset: str) -> None:
    check_run(config(offline, MARKED, f"loss.preset={preset}"))


def test_marks_of_one_kind_are_refused(offline: Path) -> None:
    message = refused(offline, [{**row, "label": False} for row in MARKED], "loss.preset=kto")
    assert "pairs.columns.label: all 6 responses" in message and "marked bad (false)" in message


@pytest.mark.parametrize("preset", ["kto", "cdpo", "rpo_sqloo", "sft", "orpo"])
def test_soft_labels_are_not_dropped_in_silence(offline: Path, preset: str) -> None:
    rows = [{**row, "soft_label": 0.8} for row in SCORED]
    if preset == "orpo":
        check_run(config(offline, rows, f"loss.preset={preset}"))
        return
    message = refused(offline, rows, f"loss.preset={preset}")
    assert "pairs.columns.soft_label: 6 of 6 pairs" in message and f"loss {preset} does not read" in message


def test_a_given_prior_needs_its_columns(offline: Path) -> None:
    loss = "loss={preset: mi_dpo, prior: given}"
    assert "'chosen_prior' and 'rejected_prior'" in refused(offline, PAIRS, loss)
    assert "given needs pairs" in refused(offline, GROUPS, loss)
    check_run(config(offline, [{**row, "chosen_prior": -3.0, "rejected_prior": -2} for row in PAIRS], loss))


def test_a_given_prior_is_refused_where_responses_are_sampled(iterative: Path) -> None:
    assert "loss.prior: given comes from columns" in refused(iterative, None, "loss={preset: dpo, prior: given}")


def test_an_extrapolated_prior_needs_two_checkpoints(iterative: Path, model: Path) -> None:
    message = refused(iterative, None, "loss.preset=apo_accelerated")
    assert "rounds: 1" in message and "two checkpoints" in message and "training.references" in message
    check_run(config(iterative, None, "loss.preset=apo_accelerated", "rounds=2"))
    check_run(config(iterative, None, "loss.preset=apo_accelerated", f"training.references=[{model}]"))
    two = refused(iterative, None, "loss.preset=apo_accelerated", f"training.references=[{model}, {model}]")
    assert "training.references: 2 model folders" in two
    fixed = refused(iterative, None, "loss.preset=apo_accelerated", "rounds=2", "training.reference=fixed")
    assert "training.reference: fixed" in fixed and "previous" in fixed


def test_a_soft_value_needs_responses_of_the_reference(iterative: Path, model: Path) -> None:
    soft = ["loss.preset=apa", "loss.value=soft"]
    check_run(config(iterative, None, *soft))
    message = refused(iterative, None, *soft, "training.reference=fixed")
    assert "training.reference: fixed, but loss.head.value: soft" in message and "leave_one_out or mean" in message
    check_run(config(iterative, None, "loss.preset=apa", "training.reference=fixed"))
    again = refused(iterative, None, *soft, "replay={share: 0.2}")
    assert again.startswith("replay: loss.head.value: soft")


def test_a_mixture_needs_as_many_references_as_weights(iterative: Path, model: Path) -> None:
    assert "training.references: 0 model folders, but loss mrpo measures against 2 references" in refused(
        iterative, None, "loss.preset=mrpo"
    )
    check_run(config(iterative, None, "loss.preset=mrpo", f"training.references=[{model}]"))
    three = "loss={preset: mi_dpo, prior: {kind: mixture, weights: [0.2, 0.3, 0.5]}}"
    message = refused(iterative, None, three, f"training.references=[{model}]")
    assert "training.references: 1 model folder," in message and "3 references" in message
    check_run(config(iterative, None, three, f"training.references=[{model}, {model}]"))


def test_references_that_no_loss_reads_are_refused(iterative: Path, model: Path) -> None:
    message = refused(iterative, None, f"training.references=[{model}]")
    assert "training.references: 1 model folder," in message and "loss dpo has the prior reference" in message


def test_token_weights_of_two_models_need_both(iterative: Path, model: Path) -> None:
    message = refused(iterative, None, "loss.preset=tis_dpo")
    assert "training.contrastive: loss tis_dpo weighs tokens by two contrasting models" in message
    both = f"training.contrastive={{positive: {model}, negative: {model}}}"
    check_run(config(iterative, None, "loss.preset=tis_dpo", both))
    assert "training.contrastive: loss dpo reads no such models" in refused(iterative, None, both)
    with pytest.raises(UserError, match=r"training\.contrastive\.negative: must be given"):
        config(iterative, None, f"training.contrastive={{positive: {model}}}")


def test_further_models_must_exist_and_share_the_vocabulary(iterative: Path, model: Path, tmp_path: Path) -> None:
    message = refused(iterative, None, "loss.preset=mrpo", "training.references=[/no/such/model]")
    assert "training.references: /no/such/model: no such model folder" in message
    other = save_tiny_model(tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "vocab_size": 77}))
    weights = load_file(other / "model.safetensors")
    fewer = {name: tensor[:77].clone() if len(tensor) > 256 else tensor for name, tensor in weights.items()}
    save_file(fewer, other / "model.safetensors", {"format": "pt"})
    check_vocabulary(model, other, "training.references")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    file.unlink()
    message = refused(iterative, None, "loss.preset=mrpo", f"training.references=[{other}]")
    assert f"training.references: {other}: a vocabulary of 77, but policy.path has" in message
    ids = tokenizer["model"]["vocab"]
    first, second = list(ids)[20:22]
    ids[first], ids[second] = ids[second], ids[first]
    file.write_text(json.dumps(tokenizer))
    message = refused(iterative, None, "loss.preset=mrpo", f"training.references=[{other}]")
    assert f"training.references: {other}: its tokenizer and that of policy.path give different ids" in message
    check_vocabulary(model, tmp_path, "training.references")


def test_what_a_scorer_gives_is_not_asked_of_the_config(iterative: Path) -> None:
    for preset in ("rpo_sq", "rpo_sqloo", "sppo", "hpo", "kto", "rrhf", "xpo", "sampo", "tdpo1", "ganpo"):
        check_run(config(iterative, None, f"loss.preset={preset}"))


@pytest.mark.parametrize("name", preset_names())
def test_what_is_supplied_is_what_the_loss_reads(name: str) -> None:
    loss = load_preset(name)
    parts = Composition.model_validate(resolve(name, {}))
    assert needs_of(parts).groups == ("responses" in loss.needs)
    assert needs_of(parts).only_chosen == (not loss.needs.fields & {"rejected", "responses"})
    assert needs_of(parts).stored_reference == bool(
        loss.needs.references or "dispersion" in loss.needs or needs_of(parts).contrast
    )
    assert needs_of(parts).calibration == ("calibration" in loss.needs)
    live = {"kl", "critic_chosen", "kl_weights"} & loss.needs.fields or (
        loss.needs.fields & {"weights", "prior"} and not needs_of(parts).contrast
    )
    assert needs_of(parts).live_reference == bool(live)
    assert not needs_of(parts).accepts_unpaired or not needs_of(parts).baseline or loss.needs.statistics


def test_a_run_folders_config_of_a_list_loss_is_checked_like_the_one_it_was_made_from(iterative: Path) -> None:
    """It writes every setting of ``pairing``, also those that such a loss cannot use."""
    made = config(iterative, None, "loss.preset=rpo_list_bwd")
    (iterative / "run.yaml").write_text(dump_config(made))
    check_run(config(iterative, None))
    assert "pairing.max_pairs: " in refused(iterative, None, "pairing={rule: all, max_pairs: 2}")
