"""Text becomes tokens and text again: converted tokenizers, chats, and text that streams."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.core.errors import CheckpointError, ConfigError
from ark_dist.launch.exit_codes import BAD_FILE, exit_code
from ark_dist.optional import tokenizers_errors
from ark_dist.tokenizer import Tokenizer, load_tokenizer
from tests.gguf_models import CHATML, DEFAULT, SPECIAL, TinyLlama, changed, write_gguf

TEXTS = (
    "hello world",
    "  two  spaces\tand\n\nlines ",
    "Köln, 東京, 😀👩‍👩‍👧‍👦 and é",
    "1234567890 12.5%",
    "it's I'LL we're",
    "",
)
CHAT = ({"role": "user", "content": "What is the capital of France?"},)
CHAT_TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def folder_of(tmp_path: Path, llama: TinyLlama = DEFAULT) -> Path:
    """Convert a Llama and return its folder."""
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", llama), tmp_path / "model")
    return tmp_path / "model"


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the text of each token."""
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of the default Llama."""
    return load_tokenizer(folder_of(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize("words", ["gpt-2", "smollm", "llama-bpe"])
def test_text_comes_back_as_it_was(tmp_path: Path, words: str) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, changed(words=words)))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("words", "text", "wanted"),
    [
        ("gpt-2", "hello world12", ["hello", " w", "o", "r", "l", "d", "12"]),
        ("smollm", "hello 12", ["hello", " ", "1", "2"]),
        ("smollm", "ab'll", ["ab", "'", "ll"]),
        ("llama-bpe", "hello 12", ["hello", " ", "12"]),
        ("llama-bpe", "abab", ["ab", "ab"]),
    ],
)
def test_words_are_cut_and_merged_as_the_model_was_trained(
    tmp_path: Path, words: str, text: str, wanted: list[str]
) -> None:
    assert words_of(load_tokenizer(folder_of(tmp_path, changed(words=words))), text) == wanted


def test_llama3_takes_whole_words_that_are_tokens_without_merges(tmp_path: Path) -> None:
    llama = DEFAULT
    tokens = (*llama.tokens, "zebra")
    assert words_of(
        load_tokenizer(folder_of(tmp_path, changed(words="llama-bpe", tokens=tokens))), "zebra"
    ) == ["zebra"]


def test_special_tokens_are_found_in_text_and_left_out_of_it(tiny: Tokenizer) -> None:
    ids = tiny.encode("<|im_start|>ab<|im_end|>")
    assert ids == [1, tiny.token_id("ab"), 2]
    assert tiny.decode(ids) == "ab"
    assert tiny.decode(ids, skip_special_tokens=False) == "<|im_start|>ab<|im_end|>"


def test_a_text_begins_with_bos_where_the_model_wants_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, changed(has_bos=True)))
    assert tokenizer.encode("ab")[0] == 1
    assert len(tokenizer.encode("ab", add_special_tokens=False)) == 1
    assert tokenizer.encode_chat(CHAT).count(1) == 3  # those of the template alone


def test_the_tokens_that_stop_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert load_tokenizer(folder).stop_ids == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert load_tokenizer(folder).stop_ids == {0, 2}
    for name in ("generation_config.json", "config.json"):
        (folder / name).unlink()
    assert load_tokenizer(folder).stop_ids == {2}  # the token of tokenizer_config.json
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_start|>"}}')
    assert load_tokenizer(folder).stop_ids == {1}
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).stop_ids == frozenset()


def test_an_unknown_token_is_named(tiny: Tokenizer) -> None:
    for token in (-1, tiny.vocab_size, 2**40):
        with pytest.raises(ValueError, match=f"found the token {token}, wanted one of the 266"):
            tiny.decode([5, token])


# --- chats ------------------------------------------------------------------------------------


def test_a_chat_is_written_as_the_template_says(tiny: Tokenizer) -> None:
    assert tiny.render_chat(CHAT) == CHAT_TEXT
    cut = CHAT_TEXT.removesuffix("<|im_start|>assistant\n")
    assert tiny.render_chat(CHAT, add_generation_prompt=False) == cut
    mine = ({"role": "system", "content": "No."}, *CHAT)
    assert tiny.render_chat(mine) == CHAT_TEXT.replace("Be brief.", "No.")
    assert tiny.decode(tiny.encode_chat(CHAT), skip_special_tokens=False) == CHAT_TEXT


@pytest.mark.parametrize("place", ["list", "file"])
def test_a_template_is_found_where_hugging_face_keeps_it(tmp_path: Path, place: str) -> None:
    folder = folder_of(tmp_path, changed(chat_template=None))
    path = folder / "tokenizer_config.json"
    if place == "list":
        named = [{"name": "tool", "template": "-"}, {"name": "default", "template": CHATML}]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    else:
        (folder / "chat_template.jinja").write_text(CHATML)
    assert load_tokenizer(folder).render_chat(CHAT) == CHAT_TEXT


def with_template(folder: Path, template: str) -> Tokenizer:
    """Give a folder another template."""
    (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


def test_a_template_sees_the_special_tokens(tmp_path: Path) -> None:
    tokenizer = with_template(folder_of(tmp_path), "{{ bos_token }}{{ eos_token }}")
    assert tokenizer.render_chat(CHAT) == SPECIAL[1] + SPECIAL[2]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].nothing.more }}",
        "{% for %}",
        "{{ 1 / 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_a_template_that_breaks_out_or_down_is_an_error(tmp_path: Path, template: str) -> None:
    tokenizer = with_template(folder_of(tmp_path), template)
    with pytest.raises(CheckpointError, match="its chat template fails") as caught:
        tokenizer.render_chat(CHAT)
    assert exit_code(caught.value) == BAD_FILE


def test_a_template_may_refuse_messages(tmp_path: Path) -> None:
    tokenizer = with_template(folder_of(tmp_path), "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refuses: roles must alternate"):
        tokenizer.render_chat(CHAT)


def test_messages_that_are_none_are_named(tiny: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"message 1 is .* it must be a dict"):
        tiny.render_chat([*CHAT, {"role": "user"}])
    with pytest.raises(ValueError, match="no messages"):
        tiny.render_chat([])


def test_a_chat_without_template_or_jinja_says_what_to_do(
    tmp_path: Path, tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, changed(chat_template=None)))
    with pytest.raises(CheckpointError, match="found no chat template"):
        tokenizer.encode_chat(CHAT)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match="needs the package jinja2"):
        tiny.render_chat(CHAT)


# --- streaming --------------------------------------------------------------------------------


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return all text of a stream."""
    stream = tokenizer.stream()
    return "".join([stream.push(token) for token in ids]) + stream.finish()


def test_bytes_of_half_a_character_are_held_back(tiny: Tokenizer) -> None:
    stream = tiny.stream()
    pushed = [stream.push(token) for token in tiny.encode("a😀b é")]
    assert pushed == ["a", "", "", "", "😀", "b", " ", "", "é"]
    assert stream.finish() == ""


def test_a_stream_that_ends_within_a_character_says_so(tiny: Tokenizer) -> None:
    stream = tiny.stream()
    assert [stream.push(token) for token in tiny.encode("😀")[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


@pytest.mark.parametrize("seed", range(20))
def test_streamed_text_is_that_of_all_tokens_at_once(tiny: Tokenizer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, tiny.vocab_size, 60).tolist()  # bytes in any order, mostly no UTF-8
    for text in TEXTS:
        ids += tiny.encode(text)
    assert streamed(tiny, ids) == tiny.decode(ids), f"seed {seed}"


def test_a_token_that_ends_one_character_and_begins_another_shows_the_first(
    tmp_path: Path,
) -> None:
    llama = DEFAULT
    euro = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("€€")
    first, last = euro[0][0][0], euro[0][0][2]
    tokens = (*llama.tokens, last + first)
    tokenizer = load_tokenizer(folder_of(tmp_path, changed(tokens=tokens)))
    head, middle, tail = tokenizer.encode("€")
    both = len(tokens) - 1
    stream = tokenizer.stream()
    pushed = [stream.push(token) for token in (head, middle, both, middle, both, middle, tail)]
    assert pushed == ["", "", "€", "", "€", "", "€"]


def test_a_stream_of_a_decoder_with_spaces_in_front_keeps_them(tmp_path: Path) -> None:
    names = ["<unk>", "▁the", "▁cat", "s", "<0xE2>", "<0x82>", "<0xAC>"]
    engine = tokenizers.Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, [], byte_fallback=True)
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    stream = tokenizer.stream()
    pushed = [stream.push(token) for token in (1, 2, 3, 4, 5, 6, 1)]
    assert pushed == ["the", " cat", "s", "", "", "€", " the"]


# --- damaged folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "found no tokenizer.json"),
        ("tokenizer.json", "{}", "tokenizer.json: damaged"),
        ("tokenizer.json", '{"model": [[[', "tokenizer.json: damaged"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1", "a git LFS pointer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: damaged JSON of 1 bytes"),
        ("tokenizer_config.json", "[1]", "found a JSON list, wanted an object"),
        ("tokenizer_config.json", "[" * 100_000, "damaged JSON of 100000 bytes"),
        ("tokenizer_config.json", '{"chat_template": 3}', "its chat_template is no text"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{}, {"name": "default", "template": 3}]}',
            "its chat_template is no text",
        ),
        ("generation_config.json", '{"eos_token_id": 266}', "eos_token_id is 266, wanted some"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id is '2', wanted some"),
        ("generation_config.json", " " * (16 << 20) + "{}", "wanted at most 16777216"),
        ("chat_template.jinja", "\udcff", "chat_template.jinja: damaged"),
    ],
)
def test_a_damaged_folder_is_a_sentence(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = folder_of(tmp_path)
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert exit_code(caught.value) == BAD_FILE


def test_a_panic_of_the_tokenizers_is_an_error() -> None:
    merges = [("a", "x" * 9)]  # not in the vocabulary together: it slices out of bounds
    with pytest.raises(ValueError, match=r"gave up|out of vocabulary"), tokenizers_errors():
        models.BPE({"a": 0, "x" * 9: 1, "": 2}, merges)
    with pytest.raises(KeyboardInterrupt), tokenizers_errors():
        raise KeyboardInterrupt
