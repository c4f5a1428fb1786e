"""Vectors of texts from a folder with a tiny random BERT, and from the real MiniLM."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import CacheError
from ark_dist.demo_model import MINILM, fetch_folder
from ark_dist.models.bert_config import read_bert_config
from ark_dist.sentence_encoder import SentenceEncoder
from ark_dist.tokenizer import load_tokenizer
from tests.bert_models import CONFIG, TOKENS, random_weights, save_model
from tests.bert_reference import Floats, Reference
from tests.mpi import run_mpi
from tests.rank_threads import on_ranks

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "encode.py"
MAX_TOKENS = 36
TEXTS = ["the sea is blue", "", "a", "blue sea " * 40, "is it?", "the sea", "z" * 20, "sea \0 is"]
# Of an element; vectors have length 1.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model") / "tiny", random_weights(CONFIG))
    sentences = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentences))
    return folder


@pytest.fixture(scope="module", params=["cpu", "numpy"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[SentenceEncoder]:
    with SentenceEncoder(folder, batch=3, device=request.param, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def wanted(folder: Path) -> Floats:
    tokenizer = load_tokenizer(folder, max_tokens=MAX_TOKENS)
    reference = Reference(CONFIG, random_weights(CONFIG))
    return reference.vectors([tokenizer.encode(text) for text in TEXTS])


def test_texts_get_the_vectors_of_numpy_in_their_order(
    model: SentenceEncoder, wanted: Floats
) -> None:
    found = model.encode(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    # Another run, with other neighbours.
    np.testing.assert_allclose(model.encode(TEXTS[::-1]), wanted[::-1], rtol=0, atol=TOLERANCE)
    assert np.array_equal(model.encode(TEXTS), found)


def test_any_number_of_texts_may_be_given(model: SentenceEncoder, wanted: Floats) -> None:
    size = CONFIG.hidden_size
    assert model.encode([]).shape == (0, size)
    assert model.encode(TEXTS[0]).shape == (1, size)
    np.testing.assert_allclose(model.encode(TEXTS[0]), wanted[:1], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(model.encode(TEXTS * 3), [*wanted] * 3, rtol=0, atol=TOLERANCE)


def test_a_long_text_is_cut_and_keeps_its_last_special_token(model: SentenceEncoder) -> None:
    ids = model.tokenizer.encode(TEXTS[3])
    assert len(ids) == MAX_TOKENS
    assert [TOKENS[ids[0]], TOKENS[ids[1]], TOKENS[ids[-1]]] == ["[CLS]", "blue", "[SEP]"]
    assert np.array_equal(model.encode(TEXTS[3]), model.encode(TEXTS[3] + "the sea"))


def test_capitals_are_other_letters_unless_the_folder_says_so(
    model: SentenceEncoder, folder: Path, tmp_path: Path
) -> None:
    assert not np.allclose(model.encode("SEA"), model.encode("sea"))
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    with SentenceEncoder(tmp_path, batch=2, device="numpy") as other:
        assert np.array_equal(other.encode("SEA"), other.encode("sea"))
        assert other.bert.length == CONFIG.max_position_embeddings


def test_weights_of_16_bits_change_little(folder: Path, wanted: Floats) -> None:
    with SentenceEncoder(folder, batch=4, dtype="bf16", device="cpu", workers=2) as model:
        found = model.encode(TEXTS)
    assert (found * wanted).sum(axis=1).min() > 0.999


def test_ranks_get_what_one_gets(folder: Path, wanted: Floats) -> None:
    def work(communicator: Communicator) -> npt.NDArray[np.float32]:
        with (
            world.use(communicator),
            SentenceEncoder(folder, batch=3, device="cpu", workers=1) as model,
        ):
            return model.encode(TEXTS)

    for found in on_ranks(2, work):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("texts", "error", "text"),
    [
        (["a", 5], TypeError, "text 1 is a int, wanted a str"),
        ([["a"]], TypeError, "text 0 is a list, wanted a str"),
        (b"a", TypeError, "text 0 is a int"),
        (["a", "b", "c\ud800"], ValueError, r"text 2 has '\\ud800' at 1, which is no character"),
    ],
)
def test_what_is_no_text_is_refused(
    model: SentenceEncoder, texts: list[str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"encode: {text}"):
        model.encode(texts)
    assert model.encode("a").shape == (1, CONFIG.hidden_size)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**table, "vocab_size": 20}))
    with pytest.raises(ark.ModelConfigError, match=f"has {len(TOKENS)} tokens, and its model 20;"):
        SentenceEncoder(tmp_path)


def test_a_folder_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    table = {**json.loads((folder / "config.json").read_text()), "architectures": ["LlamaModel"]}
    (tmp_path / "config.json").write_text(json.dumps(table))
    with pytest.raises(ark.ModelConfigError, match=r"architectures is \['LlamaModel'\], wanted"):
        SentenceEncoder(tmp_path)


# Each sentence is closest to its neighbour.
PAIRS = [
    ("A man is eating food.", "Somebody has a meal."),
    ("The stock market fell sharply today.", "Shares lost much of their value."),
    ("How do I bake bread at home?", "A simple recipe for a loaf."),
]
LONG = "The old harbour was quiet that morning, and the boats lay still. " * 30
PROGRAM = """
import sys, json
import numpy as np
import ark_dist as ark

folder, texts, path = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
with ark.SentenceEncoder(folder, batch=4, device="cpu", workers=1) as model:
    found = model.encode(texts)
    np.save(f"{path}/{ark.rank()}.npy", found)
"""


@pytest.mark.long
@pytest.mark.real
def test_minilm_gives_the_vectors_of_numpy_on_any_number_of_ranks(tmp_path: Path) -> None:
    try:
        folder = fetch_folder(MINILM)
    except CacheError as error:
        pytest.skip(f"no network: {error}")
    texts = [*(text for pair in PAIRS for text in pair), LONG]
    tokenizer = load_tokenizer(folder, max_tokens=256)
    rows = [tokenizer.encode(text) for text in texts]
    assert len(rows[-1]) == 256
    reference = Reference(read_bert_config(folder), ark.load(folder))
    wanted = reference.vectors(rows)
    for size in (1, 2, 3, 4):
        out = tmp_path / str(size)
        out.mkdir()
        done = run_mpi(size, PROGRAM, str(folder), json.dumps(texts), str(out), timeout_s=120)
        assert done.returncode == 0, done
        for rank in range(size):
            found = np.load(out / f"{rank}.npy")
            print(f"{size} ranks: largest error {np.abs(found - wanted).max():.1e}")
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    cosines = wanted @ wanted.T
    alike = {(2 * i, 2 * i + 1) for i in range(len(PAIRS))}
    least = min(cosines[pair] for pair in alike)
    others = [pair for pair in combinations(range(2 * len(PAIRS)), 2) if pair not in alike]
    assert least > max(cosines[pair] for pair in others) + 0.1


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize("size", [1, 2])
def test_the_example_finds_the_nearest_sentences(size: int) -> None:
    try:
        fetch_folder(MINILM)
    except CacheError as error:
        pytest.skip(f"no network: {error}")
    done = run_mpi(size, EXAMPLE, timeout_s=120)
    assert done.returncode == 0, done
    found = re.findall(r"^(.*?)  +0\.\d\d (.*)$", done.stdout, re.MULTILINE)
    pairs = PAIRS[:2]
    assert found == [nearest for pair in pairs for nearest in (pair, pair[::-1])]
