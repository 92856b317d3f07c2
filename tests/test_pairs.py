"""Pairs of sentences: what is read, what is left out, batches of so many tokens."""

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo.data
from tests.helpers import message, offline  # noqa: F401
from tests.toys import toy
from zoo.data import pairs as module
from zoo.data.dates import MONTHS, written_dates
from zoo.data.loader import share
from zoo.data.pairs import BOS, EOS, PAD, Buckets, cuts
from zoo.errors import ConfigError
from zoo.training.loop import run

CPU = torch.device("cpu")
SENTENCES = [(f"der Satz {i} " * (1 + i % 5), f"the sentence {i} " * (1 + i % 7)) for i in range(60)]


def written(folder: Path, **texts: tuple[list[str], list[str]]) -> Path:
    """train=(sources, targets) -> train.de and train.en, and so on."""
    folder.mkdir(exist_ok=True)
    for name, sides in texts.items():
        for language, lines in zip(("de", "en"), sides):
            (folder / f"{name}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def sides(pairs) -> tuple[list[str], list[str]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def parallel(folder: Path, **options):
    options = {"vocab_size": 300, "batch_tokens": 200, "source": "de", "target": "en"} | options
    return zoo.data.parallel_files(0, path=str(folder), root=str(folder), **options)


# ---- what a batch is ----


def test_a_batch_holds_both_sides_with_their_marks(tmp_path):
    data = parallel(written(tmp_path, train=sides(SENTENCES)))
    batch = data.train.fetch({"index": torch.tensor([3, 4])})
    assert batch["target"][:, 0].tolist() == [BOS, BOS]
    for side, number in (("source", 0), ("target", 1)):
        for row, pair in zip(batch[side], SENTENCES[3:5]):
            real = row[row != PAD]
            assert real[-1] == EOS and (real == EOS).sum() == 1 and (row[len(real) :] == PAD).all()
            assert data.decode(row[None]) == [pair[number].strip()]
        assert batch[side].shape[1] == max((row != PAD).sum() for row in batch[side])  # no wider than it must be
    assert data.encode(SENTENCES[3][0]).tolist() == [i for i in batch["source"][0].tolist() if i != PAD]
    assert data.facts["vocab_size"] == 300 and data.train.texts("target")[3] == SENTENCES[3][1].strip()


@pytest.mark.parametrize("text", ["Straße ☃ 😀 naïve", "no\u2028line ends here", "  spaces  inside stay ", "ÄÖÜ äöü ß €", "\ufeffmark", ""])
def test_any_text_comes_back(tmp_path, text):
    data = parallel(written(tmp_path, train=sides(SENTENCES)))
    assert data.decode(data.encode(text)[None]) == [text.strip()]


def test_lines_end_at_newlines_only(tmp_path):
    strange = ["a\u2028b", "c\x0bd", "e\u0085f"]
    data = parallel(written(tmp_path, train=(strange, ["x", "y", "z"])))
    assert data.train.texts("source") == strange


def test_gzipped_files_are_read_alike(tmp_path):
    plain = parallel(written(tmp_path / "plain", train=sides(SENTENCES)))
    packed = written(tmp_path / "packed", train=sides(SENTENCES))
    for file in list(packed.iterdir()):
        file.with_suffix(file.suffix + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert parallel(packed).digest == plain.digest


# ---- what is left out ----


def test_what_cannot_be_learnt_from_is_left_out_and_counted(tmp_path):
    train = [*SENTENCES, ("", "empty source"), ("leeres Ziel", ""), ("", ""), ("lang " * 300, "long")]
    test = [("", "nothing said"), ("kurz " * 100, "short"), ("gut", "good")]
    data = parallel(written(tmp_path, train=sides(train), test=sides(test)), max_length=64)
    assert len(data.train) == 60 and data.train.lengths.max() <= 64
    assert len(data.test) == 3 and data.test.lengths[:, 0].tolist()[:2] == [1, 64] and data.test.texts("source")[1] == ("kurz " * 100).strip()
    assert data.notes == (
        "train: left out 3 pairs with an empty side",
        "train: left out 1 pairs with a side of more than 64 tokens (data.max_length)",
        "test: cut 1 pairs to 64 tokens a side (data.max_length)",
    )
    assert all(row[row != PAD][-1] == EOS for row in data.test.sources.padded(torch.arange(3)))


def test_files_that_are_not_parallel(tmp_path):
    one_more = (["a", "b"], ["x", "y", "z"])
    assert "train: 2 source lines and 3 target lines: line i" in message(lambda: parallel(written(tmp_path, train=one_more)))
    (tmp_path / "train.en").unlink()
    assert "has no train.en (nor train.en.gz)" in message(lambda: parallel(tmp_path))
    (tmp_path / "train.en").write_bytes(b"\xff\xfe")
    assert "train.en cannot be read as a text in UTF-8" in message(lambda: parallel(tmp_path))
    (tmp_path / "train.en").unlink()
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"x\ny\n")[:-6])
    assert "train.en.gz cannot be read" in message(lambda: parallel(tmp_path))
    assert "no training pair has words on both sides" in message(lambda: parallel(written(tmp_path / "empty", train=(["", "a"], ["b", ""]))))


def test_wrong_settings(tmp_path):
    folder = written(tmp_path, train=sides(SENTENCES))
    assert "must name the two sides" in message(lambda: parallel(folder, source="en"), ConfigError)
    assert "data.vocab_size must be at least" in message(lambda: parallel(folder, vocab_size=100), ConfigError)
    assert "data.max_length must be" in message(lambda: parallel(folder, max_length=1), ConfigError)
    said = message(lambda: parallel(folder, batch_tokens=20).train.plan(None), ConfigError)
    assert said.startswith("data.batch_tokens 20 is less than the longest side of a training pair, ")


# ---- batches of so many tokens ----


def drawn_lengths(n: int, seed: int = 0) -> torch.Tensor:
    """A translation is about as long as its source."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(2, 40, (n,), generator=generator)
    return torch.stack([source, (source + torch.randint(-4, 5, (n,), generator=generator)).clamp(min=2)], 1)


@pytest.mark.parametrize("n", [*range(1, 18), 1000])
def test_an_epoch_has_every_pair_once(n):
    plan = Buckets(drawn_lengths(n), 256, seed=0)
    for epoch in range(3):
        numbers = range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch)
        rows = [plan.batch(number)["index"] for number in numbers]
        assert Counter(torch.cat(rows).tolist()) == Counter(range(n))
        assert min(map(len, rows)) == plan.fewest


def test_batches_stay_within_their_tokens_with_hardly_any_padding():
    lengths = drawn_lengths(5000)
    plan = Buckets(lengths, 512, seed=0)
    padded = real = 0
    for number in range(plan.batches_per_epoch):
        rows = lengths[plan.batch(number)["index"]]
        assert len(rows) * rows.max() <= 512
        padded, real = padded + len(rows) * rows.amax(0).sum(), real + rows.sum()
    assert real / padded > 0.9
    shuffled = [lengths[torch.randperm(5000)[:20]] for _ in range(50)]  # what length buckets are for
    assert sum(r.sum() for r in shuffled) / sum(len(r) * r.amax(0).sum() for r in shuffled) < 0.6


def test_a_short_remainder_shares_with_its_neighbour():
    found = cuts(torch.full((21, 2), 10), 100)
    assert [cut.stop - cut.start for cut in found] == [5, 6, 10]
    assert [(cut.start, cut.stop) for cut in cuts(torch.full((3, 2), 10), 100)] == [(0, 3)]


def test_the_plan_is_a_function_of_seed_and_number():
    lengths = drawn_lengths(300)
    one, other = Buckets(lengths, 256, seed=3), Buckets(lengths, 256, seed=3)
    ahead = [other.batch(number)["index"] for number in (70, 2, 35)]
    assert all(one.batch(number)["index"].equal(index) for number, index in zip((70, 2, 35), ahead))
    first, second = (torch.cat([one.batch(e * one.batches_per_epoch + i)["index"] for i in range(5)]) for e in (0, 1))
    assert first.tolist() != second.tolist()
    assert first.tolist() != torch.cat([Buckets(lengths, 256, seed=4).batch(i)["index"] for i in range(5)]).tolist()


def test_ranks_share_a_batch_of_any_size():
    rows = {"index": torch.arange(7)}
    parts = [share(rows, rank, 3)["index"] for rank in range(3)]
    assert torch.cat(parts).tolist() == list(range(7)) and [len(part) for part in parts] == [2, 2, 3]


def test_evaluation_sees_every_pair_once(tmp_path):
    for options in ({"batch_tokens": 200}, {"batch_tokens": None}):
        data = parallel(written(tmp_path, train=sides(SENTENCES), test=sides(SENTENCES[:17])), **options)
        seen = [i for (address,) in data.test.sweeps(None if options["batch_tokens"] else 5) for i in address["index"].tolist()]
        assert sorted(seen) == list(range(17))


def test_batches_of_pairs():
    data = zoo.data.dates(0, root="/nowhere", items=50)
    assert data.train.plan(8).batch(0)["index"].shape == (8,)


# ---- the sets ----


def test_dates():
    train, valid, test = (written_dates(name, 3000) for name in ("train", "valid", "test"))
    assert not set(train[1]) & set(valid[1]) and not set(train[1]) & set(test[1]) and not set(valid[1]) & set(test[1])
    assert len(set(train[1])) > 2500 and all(len(iso) == 10 for iso in train[1])
    written, iso = next((a, b) for a, b in zip(*train) if a.startswith("the 22nd of"))
    assert written == f"the 22nd of {MONTHS[int(iso[5:7]) - 1]}, {iso[:4]}" and iso.endswith("-22")


ROOT = Path(__import__("os").environ.get("ZOO_DATA", "/nowhere"))


@pytest.mark.skipif(not (ROOT / "multi30k" / "train.de.gz").is_file(), reason="Multi30k is not in ZOO_DATA")
def test_multi30k(tmp_path):
    (tmp_path / "multi30k").symlink_to(ROOT / "multi30k")
    for test, pairs in {"2016_flickr": 1000, "2017_flickr": 1000, "2017_mscoco": 461, "2018_flickr": 1071}.items():
        data = zoo.data.multi30k(0, root=str(tmp_path), test=f"test_{test}", vocab_size=400, max_length=400, batch_tokens=4096)
        assert [len(split) for split in (data.train, data.valid, data.test)] == [29_000, 1014, pairs] and data.facts["vocab_size"] == 400
    assert data.valid.texts("source")[0] == "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen"
    assert data.valid.texts("target")[0] == "A group of men are loading cotton onto a truck"


def archive(path: Path, texts: dict[str, list[str]]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, lines in texts.items():
            content = "".join(f"{line}\n" for line in lines).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_wmt14_is_read_from_its_archives(tmp_path, monkeypatch):
    folder = tmp_path / "wmt14"
    folder.mkdir()
    for name, (file, *_) in module.WMT14_TRAINING.items():
        archive(folder / file, {f"{name}.{side}": [f"{name} {side} {i}" for i in range(3)] for side in ("de", "en")})
    news = {f"dev/newstest2013.{side}": [f"news {side}"] for side in ("de", "en")}
    for side, kind in (("en", "src"), ("de", "ref")):
        news[f"dev/newstest2014-deen-{kind}.{side}.sgm"] = ["<doc>", f'<seg id="1">5 &lt; 6 &amp; {side}</seg>', "</doc>"]
    archive(folder / "dev.tgz", news)
    monkeypatch.setattr(module, "provide", lambda file, folder, title: folder / file.name)
    data = zoo.data.wmt14(0, root=str(tmp_path), vocab_size=300, batch_tokens=500)
    assert len(data.train) == 9 and data.train.texts("source")[0] == "training/europarl-v7.de-en en 0"
    assert data.valid.texts("target") == ["news de"] and data.test.texts("source") == ["5 < 6 & en"]
    archive(folder / "dev.tgz", {})
    assert "dev.tgz: dev/newstest2013.en cannot be read from it" in message(lambda: zoo.data.wmt14(0, root=str(tmp_path)))


def test_without_the_files_one_sentence(tmp_path, offline):  # noqa: F811
    assert "Multi30k: train.de.gz is not in" in message(lambda: zoo.data.multi30k(0, root=str(tmp_path)))
    assert "WMT14: training-parallel-europarl-v7.tgz is not in" in message(lambda: zoo.data.wmt14(0, root=str(tmp_path)))


def test_rows_stay_small_in_memory(tmp_path):
    data = parallel(written(tmp_path, train=sides(SENTENCES)))
    assert data.train.sources.flat.dtype == torch.int32
    rows = data.decode.__self__.rows(["a b", ""])  # of the vocabulary
    assert [row.dtype for row in rows] == [np.int32, np.int32] and rows[1].tolist() == [EOS]


# ---- token batches in a run ----


def test_what_does_not_go_with_batches_of_tokens(tmp_path):
    few = ["data.batch_tokens=64", "data.max_length=64", "trainer.accumulate=2"]
    said = message(lambda: run(toy("translation", tmp_path, *few)), ConfigError)
    assert "batches of as few as 1 items, too few for 1 ranks x trainer.accumulate 2" in said
    both = message(lambda: toy("translation", tmp_path, "data.batch_size=8"), ConfigError)
    assert both == "data.batch_size and data.batch_tokens are both given: set one of them to null"
    assert "data.batch_size is missing" in message(lambda: toy("translation", tmp_path, "data.batch_tokens=null"), ConfigError)
    said = message(lambda: toy("classifier", tmp_path, "data.batch_size=null", "+data.batch_tokens=100"), ConfigError)
    assert said == "data.batch_tokens is for sets of pairs of sentences, not zoo.data.digits: give data.batch_size"


def test_the_mean_of_the_last_checkpoints(tmp_path):
    from zoo.evaluation.trained import load_trained
    from zoo.training.checkpoint import load_checkpoint, steps
    from zoo.training.distributed import World

    cfg = toy("translation", tmp_path, "trainer.keep=3")
    assert run(cfg) == 0
    kept = [load_checkpoint(path)[0]["weights"] for path in steps(tmp_path / "checkpoints")]
    trained = load_trained(cfg, World(0, 1, CPU, "none"), tmp_path, "auto", None, None, average=2)
    for name, value in trained.objective.state_dict().items():
        torch.testing.assert_close(value, (kept[-1][name] + kept[-2][name]) / 2)
    assert trained.weights == f"mean of the checkpoints of steps 4, 6 ({tmp_path})"
    said = message(lambda: load_trained(cfg, World(0, 1, CPU, "none"), tmp_path, "auto", None, None, average=5), ConfigError)
    assert said == f"{tmp_path} keeps 3 checkpoint(s), not average=5: train with trainer.keep=5 and trainer.save_every"


def test_translations_from_the_command_line(tmp_path, capsys):
    from zoo.evaluation.command import evaluate_command, sample_command

    run_dir = tmp_path / "run"
    source = [f"run={run_dir}", "device=cpu", "model._target_=tests.toys.Translator"]
    assert run(toy("translation", run_dir, "data.max_length=40", "+evaluation.bleu._target_=zoo.evaluation.translation.bleu")) == 0
    (tmp_path / "lines.txt").write_text("May 4, 1996\n\n" + "long " * 30 + "\n4.5.1996 Grüße, ☃", encoding="utf-8")
    capsys.readouterr()
    assert sample_command([*source, f"input={tmp_path / 'lines.txt'}", "beam=2", "extra=3"]) == 0
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 4 and out.out.splitlines()[1] == "" and "1 of 4 texts were cut to 40 tokens" in out.err
    assert sample_command([*source, "text=Mai, ä."]) == 0
    assert "give text=" in message(lambda: sample_command(source), ConfigError)
    assert "lines2.txt cannot be read" in message(lambda: sample_command([*source, f"input={tmp_path}/lines2.txt"]))
    assert "beam must be at least 1" in message(lambda: sample_command([*source, "text=x", "beam=0"]), ConfigError)
    assert evaluate_command([*source, "average=2"]) == 0
    result = json.loads((run_dir / "metrics.json").read_text())
    assert result["texts"]["bleu_signature"].startswith("nrefs:1|case:mixed") and set(result["metrics"]) > {"bleu", "exact", "perplexity"}
    assert "reference    " in (run_dir / "pictures" / "translations.txt").read_text(encoding="utf-8")
