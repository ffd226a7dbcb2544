"""Settings of text in a run of images, and the other way round: refused with the field, its value and what is allowed.

Each function raises ``ValueError``.
"""

from pipeline.config.base import Closed
from pipeline.config.images.losses import averages, image_refusal

# Settings that mean nothing for images, by section.
OF_TEXT = {
    "sampling": ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop", "mixture"),
    "chat": ("template", "template_kwargs", "template_file", "max_prompt_tokens", "max_response_tokens", "thinking"),
    "pairing": ("second", "max_length_difference", "max_similarity", "drop_cut", "max_response_tokens"),
    "training": ("context_parallel", "router_aux_loss_coef", "contrastive", "turns", "evaluate_every"),
    "gate": (
        *("max_length", "min_length", "min_length_falling", "max_length_share", "min_longer"),
        *("max_repetition", "max_unfinished", "min_distinct"),
    ),
}
IMAGE_SCORERS = ("dots", "function", "judge", "ensemble", "image_classifier", "clip", "people")
IMAGE_KINDS = {"policy": ("diffusion", "scratch_diffusion"), "sampler": ("diffusers",)}


def require_modality(modality: str, kinds: dict[str, str]) -> None:
    """Refuse kinds of the other modality; ``kinds``: of the sections that are given."""
    images = modality == "image"
    for name, of_images in IMAGE_KINDS.items():
        if (kinds[name] in of_images) != images:
            allowed = " or ".join(of_images) if images else f"another kind than {kinds[name]}, or modality: image"
            raise ValueError(f"{name}.kind: {kinds[name]}, but modality: {modality}; allowed: {allowed}")
    if not images and kinds.get("prompts") in ("dots", "conditions"):
        raise ValueError(f"prompts.kind: {kinds['prompts']} asks for images; allowed: modality: image")
    if images and kinds.get("prompts") == "restaurants":
        raise ValueError(
            "prompts.kind: restaurants asks for sentences; allowed with modality: image: another kind, such as dots"
        )
    for name in ("prompts", "pairs"):
        if not images and kinds.get(name) == "images":
            raise ValueError(f"{name}.kind: images, but modality: text; allowed: modality: image, or tables of text")
    if not images and kinds.get("pairs") == "dots":
        raise ValueError("pairs.kind: dots are comparisons of images; allowed: modality: image, or pairs of text")
    if images and kinds.get("pairs", "images") not in ("images", "dots"):
        raise ValueError(f"pairs.kind: {kinds['pairs']} holds texts; allowed with modality: image: images, dots")
    scorer = kinds.get("scorer")
    if images and scorer is not None and scorer not in IMAGE_SCORERS:
        raise ValueError(f"scorer.kind: {scorer} reads text; allowed with modality: image: {', '.join(IMAGE_SCORERS)}")
    if not images and scorer in ("dots", "image_classifier", "clip", "people"):
        raise ValueError(f"scorer.kind: {scorer} reads images; allowed: modality: image, or a labeller of text")


def require_image_run(run: Closed) -> None:
    """Refuse what a run of images does not read, or has no meaning for it; ``run``: a whole ``RunConfig``."""
    parts = run.__dict__
    for name in OF_TEXT:
        if name != "gate":
            _require_defaults(name, parts[name])
    loss, training = parts["loss"], parts["training"]
    why = image_refusal(loss)
    if why is not None:
        raise ValueError(
            f"loss.preset: {loss.preset} {why}; allowed: what prefloop losses --modality image lists as carried over"
        )
    if averages(loss) and training.score.draws > 1:
        raise ValueError(
            f"training.score.draws: {training.score.draws}, but loss {loss.preset} takes means over draws itself; "
            "allowed: 1"
        )
    if training.score.score_scale == "nats" and any(part.shape.kind == "bernoulli" for part in loss.parts):
        raise ValueError(
            f"training.score.score_scale: nats, but loss {loss.preset} reads a function of errors that is 0 in nats; "
            "allowed: mean_error"
        )
    if training.reference_sync is not None and training.score.reference_errors == "stored":
        raise ValueError(
            "training.reference_sync: moves the reference while training, but training.score.reference_errors: stored "
            "reads errors from before; allowed: null, or training.score.reference_errors: live"
        )
    for field in ("discriminator", "replay"):
        if parts[field] is not None:
            raise ValueError(f"{field}: a run of images has none yet; allowed: null")
    if training.reference == "ema":
        raise ValueError("training.reference: ema is of text policies so far; allowed: fixed, previous, every_n")
    if parts["gate"] is not None:
        _require_defaults("gate", parts["gate"])
    engines = parts["labelling"].engines
    if engines not in ("auto", 1):
        raise ValueError(
            f"labelling.engines: {engines}, but labellers of images run in one process, the trainer's; allowed: 1, auto"
        )
    scorer = parts["scorer"]
    if scorer is not None and scorer.kind == "people" and parts["gate"] is not None:
        raise ValueError("gate: people score no held-out images, so there is nothing to judge by; allowed: null")
    if parts["gate"] is not None and parts["gate"].second is not None:
        raise ValueError("gate.second: the gate of a run of images has one labeller; allowed: null")


def _require_defaults(name: str, section: Closed) -> None:
    """Refuse settings of text that differ from their defaults."""
    for field in OF_TEXT[name]:
        if field in section.changed:
            default = type(section).model_fields[field].get_default(call_default_factory=True)
            raise ValueError(
                f"{name}.{field}: {section.__dict__[field]}, but images have no text or tokens, so modality: image "
                f"does not read it; allowed: {default}"
            )
