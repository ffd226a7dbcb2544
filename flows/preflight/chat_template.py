"""The chat template that a config names or gives values: read, and refused, before anything is loaded. Torch-free."""

from pathlib import Path

from pipeline.config import PretrainedPolicy, RunConfig
from pipeline.config.policy import TemplateSettings
from pipeline.errors import UserError


def check_template(config: RunConfig) -> None:
    """Raise ``UserError`` as ``check_rendering`` does for the run's policy."""
    policy = config.policy
    if isinstance(policy, PretrainedPolicy):
        check_rendering(config.chat, policy.path, policy.revision, trust_remote_code=config.trusts_policy)
    elif config.chat.template_file is None and config.chat.template_kwargs:
        name = next(iter(config.chat.template_kwargs))
        raise UserError(
            f"chat.template_kwargs: {name}: a policy of kind scratch has no chat template that could read it"
        )
    else:
        check_rendering(config.chat, None)


def check_rendering(
    chat: TemplateSettings, path: str | None, revision: str | None = None, *, trust_remote_code: bool = False
) -> None:
    """Raise ``UserError`` for a template file that cannot be read, with its line, and for values that nothing reads.

    ``path``: the model folder, or a hub name; None: there is none yet. The template of a model that is not here is
    checked when it is; a file is checked now.
    """
    if not chat.rerendered:
        return
    from pipeline.models.foreign import cached_folder, load_tokenizer
    from pipeline.models.rendering.template import ChatTemplate

    folder = None if path is None else Path(path) if Path(path).is_dir() else cached_folder(path, revision)
    if folder is not None:
        tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        if chat.template_file is None and not tokenizer.chat_template:
            name = next(iter(chat.template_kwargs))
            raise UserError(f"chat.template_kwargs: {name}: {path} has no chat template that could read it")
        ChatTemplate(tokenizer, file=chat.template_file, kwargs=chat.template_kwargs)
    elif chat.template_file is not None:
        ChatTemplate(None, file=chat.template_file, kwargs=chat.template_kwargs)
