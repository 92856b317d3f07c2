"""Data sets: hashing, order, windows, and what happens to malformed input. The list of the latter was written before the code:

configuration: tokenizer, order unknown; window 0, longer than the text; eval_columns 0; batch_size 0, more columns than tokens; splits that
are two, negative, without training part, of another sum; bpe without vocab_size or below 256; no path.
files: a text that is missing, a folder, not UTF-8, empty; PTB with another file; a tokenizer cut off.
texts to encode: a character and a word that the vocabulary lacks.
"""

import hashlib
import itertools
import os
from pathlib import Path

import pytest
import torch
import yaml

import zoo.data
from tests.helpers import message, offline  # noqa: F401
from zoo.data import pixels, text
from zoo.data.base import Columns, Shuffled, ShuffledWindows
from zoo.data.hashing import GAMMA, ORDER, bits, uniform
from zoo.data.loader import stream, sweep
from zoo.data.text import IGNORED, Stream
from zoo.data.tokenizers import BytePairs, Characters, Words
from zoo.errors import ConfigError
from zoo.signature import parameters

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs" / "data"



# --- hashing


def splitmix(state: int, value: int) -> int:
    word = 2**64 - 1
    z = (state + GAMMA * (value + 1)) & word
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & word
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & word
    return z ^ (z >> 31)


def test_hash_equals_plain_integer_arithmetic():
    assert splitmix(0, 0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 seeded with 0
    seed, epochs, indices = 2**31 - 1, torch.tensor([0, 3, 10**9]), torch.tensor([5, 0, 2**40])
    found = bits(seed, epochs, indices, 4, ORDER)
    for row, (epoch, index) in zip(found.tolist(), zip(epochs.tolist(), indices.tolist())):
        state = splitmix(splitmix(splitmix(splitmix(0, ORDER), seed), epoch), index)
        assert [x % 2**64 for x in row] == [splitmix(state, slot) for slot in range(4)]


def test_hash_looks_random_along_every_argument():
    n = 20_000
    zero, count = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    streams = {
        "index": uniform(0, zero, count, 3),
        "epoch": uniform(0, count, zero, 3),
        "slot": uniform(0, zero[:1], zero[:1], n).T,
        "seed": torch.cat([uniform(seed, zero[:1], zero[:1], 3) for seed in range(500)]),
    }
    for name, numbers in streams.items():
        assert numbers.dtype == torch.double and (numbers >= 0).all() and (numbers < 1).all()
        for column in numbers.unbind(1):
            m = len(column)
            assert abs(column.mean() - 0.5) < 4 * (1 / 12 / m) ** 0.5, name
            counts = torch.histc(column, 64, 0, 1)
            chi_square = ((counts - m / 64).square() / (m / 64)).sum()  # 63 degrees of freedom, standard deviation 11.2
            assert 63 - 45 < chi_square < 63 + 45, name
            neighbours = torch.stack([column[:-1], column[1:]])
            assert abs(torch.corrcoef(neighbours)[0, 1]) < 4 / m**0.5, name
    corr = torch.corrcoef(streams["index"].T) - torch.eye(3)
    assert corr.abs().max() < 4 / n**0.5
    assert len(streams["index"].unique()) == 3 * n


def test_each_input_bit_changes_half_of_the_output_bits():
    base = torch.arange(500) * 7919
    for argument in range(2):
        for bit in range(0, 62, 4):
            inputs = [base.clone(), base.clone()]
            inputs[argument] ^= 1 << bit
            changed = bits(1, *inputs, 1) ^ bits(1, base, base, 1)
            share = sum(((changed >> shift) & 1).double().mean() for shift in range(64)) / 64
            assert abs(share - 0.5) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_nothing_differs_and_nothing_waits():
    epochs, indices = torch.arange(1000) % 7, torch.arange(1000)
    assert uniform(3, epochs.cuda(), indices.cuda(), 3).cpu().equal(uniform(3, epochs, indices, 3))
    digits = lambda: zoo.data.digits(seed=0, augment=["pad_crop", "flip"], normalise="standard")
    addresses = [plan.batch(2) for plan in (digits().train.plan(50), manual(window=32).train.plan(8))]
    for make, address in zip((digits, lambda: manual(window=32)), addresses):
        here, there = make().train, make().train.to(torch.device("cuda"))
        there.fetch(address)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = there.fetch(address)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name, value in here.fetch(address).items():
            torch.testing.assert_close(batch[name].cpu(), value)


# --- order


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_item_exactly_once_an_epoch(ranks):
    for items, size in itertools.product(range(1, 18), range(1, 6)):
        plan = Shuffled(items, size * ranks, seed=1)
        assert plan.batches_per_epoch == items / (size * ranks)
        seen: dict[int, list[int]] = {}
        for number in range(-(-3 * items // (size * ranks))):
            for rank in range(ranks):
                rows = {name: value[rank * size : (rank + 1) * size] for name, value in plan.batch(number).items()}
                assert len(rows["index"]) == size
                for epoch, index in zip(rows["epoch"].tolist(), rows["index"].tolist()):
                    seen.setdefault(epoch, []).append(index)
        assert [sorted(seen[epoch]) for epoch in range(3)] == 3 * [list(range(items))]


def test_order_is_a_function_of_seed_and_number():
    fresh = lambda seed, number: Shuffled(1000, 64, seed).batch(number)
    plan = Shuffled(1000, 64, seed=5)
    for number in (0, 15, 400, 3):  # 15 straddles two epochs
        assert all(plan.batch(number)[name].equal(fresh(5, number)[name]) for name in ("index", "epoch"))
    assert not fresh(5, 0)["index"].equal(fresh(6, 0)["index"])
    assert not plan.order(0).equal(plan.order(1))
    position = torch.corrcoef(torch.stack([plan.order(0).double(), torch.arange(1000.0).double()]))[0, 1]
    assert abs(position) < 0.13


def test_order_and_augmentation_are_independent():
    plan = Shuffled(4000, 1, seed=0)
    order = plan.order(0)
    place = torch.empty(4000, dtype=torch.double)
    place[order] = torch.arange(4000).double()
    numbers = uniform(0, torch.zeros(4000, dtype=torch.int64), torch.arange(4000), 3)
    assert torch.corrcoef(torch.cat([place[None], numbers.T]))[0, 1:].abs().max() < 0.06


# --- text


def manual(**keys) -> zoo.data.Data:
    return zoo.data.manual(**{"seed": 0, "root": "/nowhere", **keys})


def test_the_manual_has_the_same_vocabulary_everywhere():
    data = manual()
    assert data.facts == {"vocab_size": 97} and len(data.digest) == 64
    total = sum(len(split.tokens) for split in (data.train, data.valid, data.test))
    assert 300_000 < total < 900_000 and abs(len(data.train.tokens) / total - 0.9) < 1e-4
    assert data.decode(data.encode("if x:\n  y — z")[None]) == ["if x:\n  y \ufffd z"]
    unknown = (torch.cat([split.tokens for split in (data.train, data.valid, data.test)]) == 96).double().mean()
    assert unknown < 0.005
    assert manual(splits=[0.8, 0.2, 0]).test is None


def test_columns_are_zarembas():
    tokens = torch.arange(100, 203)  # 103 tokens
    split = Stream(tokens, window=6)
    plan = split.plan(4)  # columns of 25, four windows of 6 each
    assert plan.batches_per_epoch == 4
    for number in range(9):
        batch, window = split.fetch(plan.batch(number)), number % 4
        expected = torch.stack([tokens[c * 25 + window * 6 :][:7] for c in range(4)])
        assert batch["tokens"].equal(expected[:, :-1]) and batch["targets"].equal(expected[:, 1:])
        assert batch["reset"].tolist() == [window == 0] * 4 and batch["tokens"].dtype == torch.int64
    assert Columns(929_589, 35, 20).batches_per_epoch == 1327


def test_shuffled_windows_cover_the_stream_in_another_order_each_epoch():
    tokens = torch.arange(203)
    split = Stream(tokens, window=10, order="shuffled")
    plan = split.plan(19)
    assert plan.batches_per_epoch == 1.0
    phases = set()
    for number in range(30):
        batch = split.fetch(plan.batch(number))
        assert batch["reset"].all() and batch["targets"].equal(batch["tokens"] + 1) and batch["targets"].max() < 203
        starts = batch["tokens"][:, 0]
        phases.add(int(starts.min()))
        assert starts.sort().values.equal(torch.arange(19) * 10 + starts.min())  # no token twice
    assert phases == set(range(10))
    for tokens_, window, batch_size in ((20, 10, 1), (21, 10, 3), (8, 1, 2)):  # the shortest that work
        stream_ = Stream(torch.arange(tokens_), window, "shuffled")
        for number in range(40):
            batch = stream_.fetch(stream_.plan(batch_size).batch(number))
            assert batch["targets"].equal(batch["tokens"] + 1)


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 50])
def test_evaluation_counts_every_target_once_and_carries_on(columns):
    for length, window, size, ranks in itertools.product((2, 3, 17, 40), (1, 4, 64), (1, 2, 100), (1, 2)):
        split = Stream(torch.arange(length), window, eval_columns=columns)
        seen = []
        for rank in range(ranks):
            last = None
            for _, step, batch in sweep(split, size, CPU, rank, ranks):
                real = batch["targets"] != IGNORED
                assert real.any() and batch["tokens"].shape[1] == window and len(batch["tokens"]) <= size
                assert (batch["reset"] == (step == 0)).all()
                assert (batch["tokens"][real] + 1).equal(batch["targets"][real])
                if step:  # each row goes on with the token that was its last target
                    rows = real[:, 0]
                    assert batch["tokens"][rows, 0].equal(last[rows])
                last = batch["targets"][:, -1]
                seen += batch["targets"][real].tolist()
        assert sorted(seen) == list(range(1, length))
        assert len(split) == -(-(length - 1) // window)


def test_resuming_and_ranks_of_a_text():
    split = manual().train
    plan = split.plan(6)
    straight = list(itertools.islice(stream(split, plan, 0, CPU), 8))
    for rank in range(3):
        part = slice(2 * rank, 2 * rank + 2)
        for number, batch in zip(range(5, 8), stream(split, plan, 5, CPU, rank, 3)):
            assert all(batch[name].equal(straight[number][name][part]) for name in batch)


def test_characters():
    characters = Characters("hello\n")
    assert characters.symbols == ["\n", "e", "h", "l", "o"] and characters.size == 5
    assert characters.decode(characters.encode("hello\nhole")[None]) == ["hello\nhole"]
    assert characters.encode("").tolist() == []
    assert "the character 'x' is not among the 5" in message(lambda: characters.encode("hex"))
    assert "'\U0001f600'" in message(lambda: characters.encode("\U0001f600"))
    assert Characters("ab", unknown=True).encode("a\U0001f600bz").tolist() == [0, 2, 1, 2]


def test_words():
    words = Words(" the cat \n the dog <unk> \n")
    assert words.words == ["<eos>", "the", "<unk>", "cat", "dog"]
    ids = words.encode("the cat \n a dog\n\n")
    assert ids.tolist() == [1, 3, 0, 2, 4, 0, 0]
    assert words.decode(ids[None]) == ["the cat\n<unk> dog\n\n"]
    assert "the word 'a' is not in the training text" in message(lambda: Words("the cat").encode("a cat"))


def test_byte_pairs_are_learnt_once_and_encode_anything(tmp_path, monkeypatch):
    training = "the cat sat on the mat, the dog sat on the log\n" * 50
    one = BytePairs.trained(training, 270, tmp_path / "tokenizers")
    (path,) = (tmp_path / "tokenizers").iterdir()
    assert one.size == 270 and len(one.encode(training)) < len(training) / 2
    for text_ in (training, "Ünknown — \U0001f600\n\ttabs  and   spaces ", ""):
        assert one.decode(one.encode(text_)[None]) == [text_]
    content = path.read_bytes()
    kept = path.stat().st_mtime_ns
    assert BytePairs.trained(training, 270, path.parent).encode(training).equal(one.encode(training)) and path.stat().st_mtime_ns == kept
    for damage in (content[:-10], content.replace(b"the", b"teh"), b"", b"\xff\xfe"):
        path.write_bytes(damage)
        again = BytePairs.trained(training, 270, path.parent)
        assert again.encode(training).equal(one.encode(training)) and path.read_bytes() == content  # training is deterministic, too
    BytePairs.trained(training, 271, path.parent)
    BytePairs.trained(training + "x", 270, path.parent)
    assert len(list(path.parent.iterdir())) == 3
    (tmp_path / "file").write_text("")
    assert BytePairs.trained(training, 270, tmp_path / "file" / "below").size == 270  # a folder that can't be written to costs time only


def test_byte_pairs_learn_from_the_training_part_alone(tmp_path):
    (tmp_path / "book.txt").write_text("abab " * 400 + "xyxy " * 100)
    keys = {"tokenizer": "bpe", "vocab_size": 258, "splits": [0.8, 0.1, 0.1]}
    data = zoo.data.text_file(seed=0, path=str(tmp_path / "book.txt"), root=str(tmp_path), **keys)
    assert data.facts == {"vocab_size": 258}
    assert len(data.train.tokens) < 1300 and len(data.test.tokens) == 250


def test_text_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(("abc\r\n" * 99 + "abcd\r\n").encode())
    data = zoo.data.text_file(seed=0, path=str(path), root=str(tmp_path))
    assert data.facts == {"vocab_size": 6} and data.decode(data.train.tokens[None, :5]) == ["abc\r\n"]  # the file, byte for byte
    assert "the character 'z'" in message(lambda: data.encode("z"))


WRONG_TEXTS = [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe\xfd", "UTF-8"), ("folder", "Is a directory")]


@pytest.mark.parametrize("content, said", WRONG_TEXTS)
def test_wrong_text_files_are_named(tmp_path, content, said):
    path = tmp_path / "book.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    found = message(lambda: zoo.data.text_file(seed=0, path=str(path), root=str(tmp_path)))
    assert said in found and str(path) in found


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"tokenizer": "words"}, "data.tokenizer must be one of char, bpe, gpt2, not 'words'"),
        ({"tokenizer": "bpe"}, "data.vocab_size must be a whole number from 1, not None"),
        ({"tokenizer": "bpe", "vocab_size": 255}, "data.vocab_size must be at least 256, the number of bytes, not 255"),
        ({"order": "random"}, "data.order must be one of columns, shuffled, not 'random'"),
        ({"window": 0}, "data.window must be a whole number from 1, not 0"),
        ({"eval_columns": 0}, "data.eval_columns must be a whole number from 1, not 0"),
        ({"splits": [0.9, 0.1]}, "data.splits must be the shares of train, valid and test, such as"),
        ({"splits": [0.9, 0.2, -0.1]}, "data.splits must be"),
        ({"splits": [0, 0.5, 0.5]}, "data.splits must be"),
        ({"splits": [0.9, 0.1, 0.1]}, "data.splits must be"),
    ],
)
def test_wrong_text_keys_are_named(keys, said):
    assert said in message(lambda: manual(**keys), ConfigError)


def test_a_text_that_is_too_short_is_named():
    assert "a split of 1 tokens has nothing to predict" in message(lambda: Stream(torch.zeros(1, dtype=torch.int64), 1))
    for tokens, window, size in ((10, 5, 2), (10, 10, 1), (3, 1, 2), (2, 1, 5)):
        said = message(lambda: Columns(tokens, window, size), ConfigError)  # noqa: B023
        assert said == f"{tokens} training tokens are too few for data.batch_size {size} columns with data.window {window}"
    said = message(lambda: ShuffledWindows(11, 6, 1, 0), ConfigError)
    assert said == "data.window 6 is too long: 11 training tokens allow 5 at most"


def test_ptb_reads_its_three_files(tmp_path, monkeypatch):
    (tmp_path / "ptb").mkdir()
    for name, content in (("train", " a b <unk> \n a \n"), ("valid", " a c \n"), ("test", " b \n")):
        path = tmp_path / "ptb" / f"ptb.{name}.txt"
        path.write_text(content)
        file = text.Published(path.name, len(content), hashlib.sha256(content.encode()).hexdigest(), ())
        monkeypatch.setitem(text.PTB, name, file)
    data = zoo.data.ptb(seed=0, root=str(tmp_path), window=2)
    assert data.facts == {"vocab_size": 4} and [len(s.tokens) for s in (data.train, data.valid, data.test)] == [6, 3, 2]
    assert data.decode(data.valid.tokens[None]) == ["a <unk>\n"]
    (tmp_path / "ptb" / "ptb.test.txt").write_text(" other \n")
    assert "ptb.test.txt is not the published file" in message(lambda: zoo.data.ptb(seed=0, root=str(tmp_path)))


# --- configurations


def test_every_configuration_fits_its_function():
    for name in ("digits", "mnist", "fashion_mnist", "cifar10", "images", "imagenet", "manual", "tiny_shakespeare", "text_file", "ptb"):
        path = CONFIGS / f"{name}.yaml"
        keys = yaml.safe_load(path.read_text())
        accepted = parameters(keys["_target_"])
        own = {"_target_", "batch_size", "workers", "num_classes", "image_size", "channels", "vocab_size", "root"}
        assert set(keys) - own <= set(accepted), path.name
        assert {"batch_size", "workers"} <= set(keys), path.name
        required = {name for name, parameter in accepted.items() if parameter.required} - {"seed"}
        assert required <= set(keys), path.name
        assert "root" not in keys or keys["root"] == "${oc.env:ZOO_DATA,'~/.cache/paper-zoo'}", path.name


@pytest.mark.parametrize("name", ["digits", "manual"])
def test_the_facts_of_the_embedded_sets(name, tmp_path):
    keys = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    check_facts(keys, str(tmp_path))


def check_facts(keys: dict, root: str) -> zoo.data.Data:
    function = getattr(zoo.data, keys["_target_"].rpartition(".")[2])
    accepted = parameters(keys["_target_"])
    given = {"seed": 0, "root": root} | {key: value for key, value in keys.items() if key != "root"}
    data = function(**{key: value for key, value in given.items() if key in accepted})
    for fact, value in data.facts.items():
        assert keys[fact] == value
    return data


REAL = Path(os.environ.get("ZOO_DATA", "~/.cache/paper-zoo")).expanduser()


@pytest.mark.parametrize(
    "name, place, sizes",
    [
        ("mnist", "MNIST/raw", (60_000, None, 10_000)),
        ("fashion_mnist", "FashionMNIST/raw", (60_000, None, 10_000)),
        ("cifar10", "cifar-10-batches-bin", (45_000, 5_000, 10_000)),
        ("tiny_shakespeare", "tinyshakespeare/input.txt", (1_003_854, None, 111_540)),
        ("ptb", "ptb", (929_589, 73_760, 82_430)),
    ],
)
def test_the_real_sets(name, place, sizes):
    if not (REAL / place).exists():
        pytest.skip(f"{name} is not in {REAL}")
    data = check_facts(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), str(REAL))
    splits = (data.train, data.valid, data.test)
    assert tuple(split and len(getattr(split, "tokens", split)) for split in splits) == sizes
    assert len(data.train.fetch(data.train.plan(16).batch(0))["reset" if data.decode else "label"]) == 16
    if name == "mnist":  # the constants that everybody uses
        unit = pixels.Normaliser.of("standard", data.train.images)
        assert abs(unit.mean.item() - 0.1307) < 1e-4 and abs(unit.std.item() - 0.3081) < 1e-4
    if name == "tiny_shakespeare":
        assert data.decode(data.train.tokens[None, :14]) == ["First Citizen:"]
