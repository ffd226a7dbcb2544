"""Messages to ids: BOS as the format has it, an end token only where the author stopped, prompts that are prefixes."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.config import ChatSettings as ChatSettings
from pipeline.errors import UserError
from pipeline.models.chat import Chat, load_chat
from pipeline.models.rendering.channels import Channels
from pipeline.models.rendering.template import ChatTemplate
from pipeline.sampling.sampler import make_response
from pipeline.types import Message
from tests.support.chat_formats import FORMATS
from tests.support.tiny_model import TEMPLATE, save_tiny_model, tiny_tokenizer

USER = (Message("user", "the cat"),)
BOS, EOS, USER_ID, ASSISTANT_ID, END = 1, 2, 3, 4, 6


def chat(template: str | None = TEMPLATE, bos: bool = True, settings: ChatSettings | None = None) -> Chat:
    return Chat(tiny_tokenizer(bos, template), settings or ChatSettings())


def words(text: str) -> tuple[int, ...]:
    return tuple(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


def adding_bos(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer that itself begins each text with a BOS."""
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert tokenizer("the")["input_ids"][0] == BOS
    return tokenizer


def test_template_prompt_is_its_turn_and_generation_prompt() -> None:
    assert chat().prompt_ids(USER) == (USER_ID, *words("the cat"), END, ASSISTANT_ID)


def test_plain_prompt_is_the_contents_joined_by_a_newline() -> None:
    messages = (Message("system", "the cat"), Message("user", "a dog"))
    assert chat(template=None).prompt_ids(messages) == words("the cat\na dog")


def test_plain_prompt_begins_as_the_tokenizer_begins_texts() -> None:
    made = Chat(adding_bos(template=None), ChatSettings())
    assert made.prompt_ids(USER) == (BOS, *words("the cat"))
    assert made.template_hash != chat(template=None).template_hash
    assert chat(template=None).prompt_ids((Message("user", ""),)) == (BOS,)


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("tokenizer_adds_one", [False, True])
def test_bos_is_there_if_the_template_writes_it_and_never_twice(times: int, tokenizer_adds_one: bool) -> None:
    template = "{{ bos_token }}" * times + TEMPLATE
    tokenizer = adding_bos(template) if tokenizer_adds_one else tiny_tokenizer(template=template)
    ids = Chat(tokenizer, ChatSettings()).prompt_ids(USER)
    assert ids == ((BOS,) if times else ()) + (USER_ID, *words("the cat"), END, ASSISTANT_ID)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "the cat"}], add_generation_prompt=True, tokenize=False
    )
    assert times > 1 or ids == tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }}{{ bos_token }}" + TEMPLATE, None])
def test_a_bos_may_be_asked_for(template: str | None) -> None:
    always, written = (chat(template, settings=ChatSettings(bos=bos)) for bos in ("always", "written"))
    ids = always.prompt_ids(USER)
    assert ids[0] == BOS != ids[1] and ids[1:] == written.prompt_ids(USER)[written.prompt_ids(USER)[0] == BOS :]
    assert chat(template, settings=ChatSettings(bos="earlier")).prompt_ids(USER) == ids
    assert always.template_hash != written.template_hash
    assert BOS not in chat(template, bos=False, settings=ChatSettings(bos="always")).prompt_ids(USER)


def test_no_bos_where_the_tokenizer_has_none() -> None:
    assert chat(bos=False).prompt_ids(USER)[0] == USER_ID
    assert BOS not in chat(bos=False, template=None).prompt_ids(USER)


def test_response_is_content_and_the_template_s_end_of_turn() -> None:
    assert chat().response_ids(USER, " sat") == (*words(" sat"), END)


def test_plain_response_ends_with_eos() -> None:
    assert chat(template=None).response_ids(USER, " sat") == (*words(" sat"), EOS)


def test_unfinished_response_has_no_end_token() -> None:
    assert chat().response_ids(USER, " sat", finished=False) == words(" sat")


def test_response_that_is_too_long_loses_its_end() -> None:
    short = chat(settings=ChatSettings(max_response_tokens=2))
    whole = chat().response_ids(USER, "name food")
    assert len(whole) > 3
    assert short.response_ids(USER, "name food") == whole[:2]


def test_special_tokens_spelled_out_in_a_text_stay_text() -> None:
    for made in (chat(), chat(template=None)):
        ids = made.response_ids(USER, "a</s>b<|end|>c", finished=False)
        assert not set(ids) & made.special_ids
        assert made.decode(ids) == "a</s>b<|end|>c"
    assert not set(chat(template=None).prompt_ids((Message("user", "a</s>"),))) & {EOS}


def test_decode_drops_special_tokens_and_keeps_spaces() -> None:
    assert chat().decode((BOS, *words("the cat , sat ."), END)) == "the cat , sat ."


def test_every_end_token_is_known() -> None:
    made = Chat(tiny_tokenizer(), ChatSettings(), model_end_ids=(5,))
    assert made.end_ids == {EOS, END, 5}
    assert made.end_id == END


def sentencepiece_like(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that marks words by the space in front, and puts one before the first word of any text."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], vocab_size=120, show_progress=False)
    bpe.train_from_iterator(["[INST] the cat sat [/INST] answer the cat"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("gap", [" ", ""])
def test_prompt_and_response_are_the_tokens_of_the_whole_conversation(gap: str) -> None:
    tokenizer = sentencepiece_like(INST.replace("%} {{ m['content'] }}</s>", "%}" + gap + "{{ m['content'] }}</s>"))
    made = Chat(tokenizer, ChatSettings())
    whole = tokenizer(f"<s>[INST] the cat [/INST]{gap}answer the cat</s>", add_special_tokens=False)["input_ids"]
    assert list(made.prompt_ids(USER) + made.response_ids(USER, "answer the cat")) == whole


def test_template_hash_follows_template_and_end_tokens() -> None:
    hashes = {
        chat().template_hash,
        chat(template=None).template_hash,
        chat("x" + TEMPLATE).template_hash,
        Chat(tiny_tokenizer(), ChatSettings(), model_end_ids=(5,)).template_hash,
    }
    assert len(hashes) == 4
    assert chat().template_hash == chat().template_hash


def test_template_asked_for_but_missing() -> None:
    with pytest.raises(UserError, match=r"chat\.template: model, but .* has none"):
        chat(template=None, settings=ChatSettings(template="model"))


def test_plain_asked_for_ignores_the_template() -> None:
    assert chat(settings=ChatSettings(template="plain")).prompt_ids(USER) == words("the cat")


def test_template_that_refuses_the_messages_names_their_roles() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE
    with pytest.raises(UserError, match="refuses turns system: no system turn"):
        chat(template).prompt_ids((Message("system", "x"),))


def test_model_folder_without_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no tokenizer files"):
        load_chat(str(tmp_path), ChatSettings())


def test_model_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        load_chat(str(tmp_path / "nowhere"), ChatSettings())


def test_broken_tokenizer_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_chat(str(tmp_path), ChatSettings())


def test_saved_chat_is_read_back_with_the_model_s_end_tokens(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    made = load_chat(str(tmp_path), ChatSettings())
    assert made.prompt_ids(USER) == chat().prompt_ids(USER)
    assert made.end_ids == {EOS, END, 5}


ENDS = {
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "nemotron": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content | trim + '\n' }}"
        "{% if m.role == 'assistant' %}{{ '<|end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "llama 3": TEMPLATE.replace("m['content']", "(m['content'] | trim)"),
}


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("text", ["sat", " sat \n", "\n\nsat on", "sat "])
def test_whitespace_at_the_edges_and_before_the_end_is_the_template_s(family: str, text: str) -> None:
    tokenizer = tiny_tokenizer(template=ENDS[family])
    made = Chat(tokenizer, ChatSettings())
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": " the cat "}, {"role": "assistant", "content": text}], tokenize=False
    )
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    asked = (Message("user", " the cat "),)
    found = list(made.prompt_ids(asked) + made.response_ids(asked, text))
    assert found == ids[: len(found)]
    assert found[-1] in made.end_ids
    assert made.continues(asked, text)
    unfinished = made.response_ids(asked, text, finished=False)
    assert made.decode(unfinished).strip() == text.strip()
    assert not made.decode(unfinished).endswith((" ", "\n"))


def test_a_system_text_that_moves_on_to_the_last_question_is_trained_as_it_is_asked() -> None:
    nemo = (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
        "{{ '[INST]' + (first + '\n\n' if loop.last and first is defined else '') + m.content + '[/INST]' }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    made = Chat(tiny_tokenizer(template=nemo), ChatSettings())
    asked = (Message("system", "be kind"), Message("user", "the cat"))
    assert made.prompt_ids(asked) == (BOS, *words("[INST]be kind\n\nthe cat[/INST]"))
    assert made.response_ids(asked, "sat") == (*words("sat"), EOS)
    assert made.continues(asked, "sat")
    talk = (asked[0], Message("user", "a dog"), Message("assistant", "ran"), asked[1])
    assert made.continues(talk, "sat")


def test_labellers_see_the_final_channel_and_training_all_tokens() -> None:
    tokenizer = FORMATS["gpt-oss"].tokenizer()
    made = Chat(tokenizer, ChatSettings())
    thought = "<|channel|>analysis<|message|>the cat?<|end|><|start|>assistant"
    for sampled, text, finish in (
        (thought + "<|channel|>final<|message|>a dog<|return|>", "a dog", "stop"),
        ("<|channel|>final<|message|>a dog<|return|>", "a dog", "stop"),
        ("<|channel|>final <|constrain|>json<|message|>a dog<|return|>", "a dog", "stop"),
        (thought + "<|channel|>final<|message|>a d", "a d", "length"),
        ("<|channel|>analysis<|message|>the final ca", "", "length"),
        ("<|channel|>final<|channel|>analysis<|message|>the ca", "", "length"),
        (thought + "<|channel|>fin", "", "length"),
        ("a dog<|return|>", "a dog", "stop"),
    ):
        ids = tokenizer(sampled, add_special_tokens=False)["input_ids"]
        response = make_response(made, (), ids, [0.0] * len(ids), [])
        assert (response.text, response.finish_reason, response.token_ids) == (text, finish, tuple(ids))
    ids = tokenizer(thought + "<|channel|>final<|message|>a dog sat", add_special_tokens=False)["input_ids"]
    cut = make_response(made, (), ids, [0.0] * len(ids), [" sat"])
    assert (cut.text, cut.finish_reason) == ("a dog", "stop")
    own = Chat(FORMATS["phi 4"].tokenizer(), ChatSettings())
    assert own.thoughts.answer((), words("final cat")) == own.decode(words("final cat"))


def test_the_final_channel_is_found_in_one_pass() -> None:
    tokenizer = FORMATS["gpt-oss"].tokenizer()
    channels = Channels(tokenizer, ChatTemplate(tokenizer))
    ids = tokenizer("<|channel|>the cat" * 50, add_special_tokens=False)["input_ids"]
    decoded: list[int] = []

    def decode(part: Sequence[int]) -> str:
        decoded.extend(part)
        return str(tokenizer.decode(part))

    assert channels.place(ids, decode) == (len(ids), len(ids), "the") and len(decoded) < len(ids)
