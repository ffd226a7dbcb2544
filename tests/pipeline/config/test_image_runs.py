"""Settings of image runs: what they are by default, and what is refused with field, value and what is allowed."""

from pathlib import Path

import pytest

from flows.preflight.check import check_config
from pipeline.config import DiffusersSampler, resolve
from pipeline.config.files import load_config
from pipeline.config.images.losses import image_refusal
from pipeline.config.loss.composition import Composition
from pipeline.errors import UserError
from tests.support.places import ROOT

IMAGES = [ROOT / "configs" / "images.yaml"]


def test_the_sampler_of_an_image_run_is_diffusers_without_saying_so(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "name: x\nmodality: image\nmode: iterative\npolicy: {path: m}\n"
        "prompts: {kind: conditions}\nscorer: {kind: dots}\n"
    )
    config = load_config([file])
    assert isinstance(config.sampler, DiffusersSampler) and config.policy.kind == "diffusion"


def test_a_text_config_s_identity_knows_nothing_of_images() -> None:
    identity = load_config([ROOT / "configs" / "quickstart.yaml"]).identity()
    assert "modality" not in identity
    training = identity["training"]
    assert isinstance(training, dict) and "score" not in training


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("loss.preset=orpo", "loss.preset: orpo reads odds, and an image has no probability"),
        ("loss.preset=tis_dpo", "loss.preset: tis_dpo weighs tokens, and the draws of an image are no tokens"),
        ("loss.preset=mallows_theta", "loss.preset: mallows_theta needs a dispersion for each prompt"),
        ("sampling.temperature=0.7", "sampling.temperature: 0.7, but images have no text or tokens"),
        ("chat.thinking=keep", "chat.thinking: keep, but images have no text or tokens"),
        ("pairing.max_similarity=0.9", "pairing.max_similarity: 0.9, but images have no text or tokens"),
        ("scorer.kind=length", "scorer.kind: length reads text; allowed with modality: image: dots"),
        ("sampler.kind=vllm", "sampler.kind: vllm, but modality: image; allowed: diffusers"),
        ("modality=text", "policy.kind: scratch_diffusion, but modality: text; allowed: another kind"),
        ("training.reference_sync.every=8", "training.score.reference_errors: stored reads errors from before"),
        ("prompts.kind=restaurants", "prompts.kind: restaurants asks for sentences"),
        (
            "sampler.eta=0.5 sampler.scheduler=euler",
            "eta: 0.5, but scheduler: euler does not read it; allowed: 0, or ddim",
        ),
        ("training.score.draws=0", "training.score.draws"),
        ("labelling.engines=2", "labelling.engines: 2, but labellers of images run in one process"),
        ("policy.channels=[30]", "channels: 30 is not a multiple of 8"),
    ],
)
def test_what_means_nothing_for_images_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(IMAGES, setting.split())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sampler.scheduler=flow", "sampler.scheduler: flow, but the policy predicts epsilon; allowed: auto, ddim"),
        ("policy.predicts=flow sampler.scheduler=ddim", "but the policy predicts flow; allowed: auto or flow"),
    ],
)
def test_a_scheduler_that_the_parametrisation_does_not_fit_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(IMAGES, setting.split())
    assert said in str(caught.value)


def test_a_policy_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy.path: .*: no such model folder"):
        check_config(IMAGES, ["policy.kind=diffusion", f"policy.path={tmp_path / 'absent'}", "warm_start=null"])


def test_presets_that_carry_over_and_those_that_do_not() -> None:
    def refused(name: str) -> str | None:
        return image_refusal(Composition.model_validate(resolve(name, {})))

    carried = (
        "dpo",
        "cdpo",
        "ipo",
        "kto",
        "rso_hinge",
        "infonca",
        "nca",
        "sppo",
        "dpop",
        "minordpo",
        "simpo",
        "cpo",
        "apa",
    )
    assert [name for name in carried if refused(name)] == []
    left = ("orpo", "simper", "wpo", "tis_dpo", "r_dpo", "sparsepo", "ganpo", "mallows_theta", "tdpo1")
    assert [name for name in left if refused(name) is None] == []
