"""Sequence to sequence: the smoothed loss, beam search, BLEU."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import message
from zoo.data import pairs
from zoo.data.base import Data
from zoo.errors import ConfigError
from zoo.evaluation.translation import bleu, samples_of, translations
from zoo.objectives import SequenceToSequence
from zoo.objectives.beam_search import BOS, EOS, PAD, beam_search

A, B, C = 3, 4, 5  # words


class Toy(nn.Module):
    """One layer of attention over the target so far, one over the source; fp64."""

    def __init__(self, vocab_size: int = 11, width: int = 8, sharpness: float = 4.0, seed: int = 3):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(200, width)
        self.queries, self.keys, self.output = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width), nn.Linear(3 * width, vocab_size)
        self.double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=sharpness / math.sqrt(width), generator=random)
        self.rows = []  # how many rows each step read

    def start(self, source):
        states = self.embedding(source) + self.position.weight[: source.shape[1]]
        memory = {"keys": self.keys(states).chunk(2, -1)[1], "states": states, "mask": (source != PAD)[:, None]}
        return memory, {"read": source[:, :0]}

    def read(self, target, memory, last):
        """Logits of the last `last` positions of target (N, T)."""
        x = self.embedding(target) + self.position.weight[: target.shape[1]]
        own, other = self.queries(x[:, -last:]).chunk(2, -1)
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).tril()[-last:]
        before = F.scaled_dot_product_attention(own, self.keys(x).chunk(2, -1)[0], x, causal)
        seen = F.scaled_dot_product_attention(other, memory["keys"], memory["states"], memory["mask"])
        return self.output(torch.cat([x[:, -last:], before, seen], -1).tanh())

    def forward(self, source, target):
        return self.read(target, self.start(source)[0], target.shape[1])

    def step(self, tokens, memory, cache):
        self.rows.append(len(tokens))
        assert len(tokens) == len(memory["states"]) == len(cache["read"])
        read = torch.cat([cache["read"], tokens[:, None]], 1)
        return self.read(read, memory, 1)[:, 0], {"read": read}


def padded(rows):
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


def sources(vocab_size=11, number=12, seed=0):
    """Sentences of 0 to 7 words, (B, S)."""
    random = torch.Generator().manual_seed(seed)
    return padded([[*torch.randint(3, vocab_size, (i % 8,), generator=random).tolist(), EOS] for i in range(number)])


def words(row):
    """A row of a translation, without its padding."""
    tokens = row.tolist()
    assert not any(tokens[tokens.index(EOS) + 1 :])
    return tokens[: tokens.index(EOS) + 1]


BATCH = {"source": padded([[A, B, EOS], [C, EOS]]), "target": padded([[BOS, B, A, EOS], [BOS, C, EOS]])}


# --- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_distribution(smoothing):
    objective = SequenceToSequence(Toy(), smoothing)
    logits, y = objective.model(BATCH["source"], BATCH["target"][:, :-1]), BATCH["target"][:, 1:]
    q = torch.full_like(logits, smoothing / 9)  # 11 tokens but PAD and the right one
    q.scatter_(2, y[..., None], 1 - smoothing)
    q[..., PAD] = 0
    q[y == PAD] = 0
    torch.testing.assert_close(q.sum(-1), (y != PAD).double())
    expected = -(q * logits.log_softmax(-1)).sum()
    terms, logs = objective(BATCH, "model")
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-13, atol=0)
    gradients = (torch.autograd.grad(loss, list(objective.parameters())) for loss in (terms["loss"], expected))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    nats = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=PAD, reduction="sum")
    torch.testing.assert_close(logs["nats_per_token"], nats.detach())
    assert not logs["nats_per_token"].requires_grad


def test_losses_and_counts_add_up_over_the_items_and_padding_changes_nothing():
    objective = SequenceToSequence(Toy(), 0.1)
    wide = {key: F.pad(value, (0, 3), value=PAD) for key, value in BATCH.items()}
    parts = [wide, BATCH, *({key: value[i : i + 1] for key, value in wide.items()} for i in (0, 1))]
    losses = [objective(part, "model")[0]["loss"] for part in parts]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(losses[2] + losses[3], losses[1], rtol=1e-13, atol=0)
    assert [objective.count(part, "model") for part in parts] == [{"loss": n, "nats_per_token": n} for n in (5, 5, 3, 2)]


def test_bf16_logits_are_summed_in_fp32():
    objective = SequenceToSequence(Toy().bfloat16(), 0.1)
    terms, logs = objective(BATCH, "model")
    assert terms["loss"].dtype == logs["nats_per_token"].dtype == torch.float32


def test_a_token_that_the_model_rules_out_spoils_no_padding():
    class NeverPads(Toy):
        def forward(self, source, target):
            return super().forward(source, target).index_fill(2, torch.tensor([PAD]), -math.inf)

    terms, _ = SequenceToSequence(NeverPads(), 0.1)(BATCH, "model")
    assert terms["loss"].isfinite()


def test_evaluation_counts_tokens_and_sequences_without_smoothing():
    class Foretells(nn.Module):
        """Every token is followed by the next larger one, EOS by itself."""

        def forward(self, source, target):
            return 5.0 * F.one_hot(torch.where(target == EOS, EOS, target + 1), 9)

    target = padded([[BOS, EOS], [BOS, EOS, EOS], [BOS, A, B, C, EOS]])  # 1 of 1, 2 of 2, 2 of 4 right
    objective = SequenceToSequence(Foretells(), 0.3)
    statistics = objective.evaluate({"source": target, "target": target})
    assert {value.dtype for value in statistics.values()} == {torch.float64}
    assert {value.shape for value in statistics.values()} == {()}
    metrics = objective.summarise({name: value.item() for name, value in statistics.items()})
    loss = math.log(math.e**5 + 8) - 5 * 5 / 7
    expected = {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 500 / 7, "teacher_forced_exact": 200 / 3}
    assert metrics == pytest.approx(expected, rel=1e-6)
    assert objective.summarise({"nats": 1e4, "tokens": 1, "correct": 0, "exact": 0, "sequences": 1})["perplexity"] == math.inf


@pytest.mark.parametrize("source, target", [((3,), (3, 4)), ((3, 4), (3,)), ((3, 4), (2, 4)), ((3, 4), (3, 1))])
def test_wrong_shapes_are_refused(source, target):
    batch = {"source": torch.full(source, A), "target": torch.full(target, A)}
    assert str(target) in message(lambda: SequenceToSequence(Toy())(batch, "model"), ValueError)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_is_a_share(smoothing):
    assert str(smoothing) in message(lambda: SequenceToSequence(Toy(), smoothing), ValueError)


@pytest.mark.parametrize("vocab_size", [10, 12])
def test_a_model_of_another_vocabulary_is_refused(vocab_size):
    model = Toy(vocab_size).train()
    assert "set model.vocab_size=11" in message(lambda: SequenceToSequence(model).check({"vocab_size": 11}), ValueError)
    assert model.training


def test_a_model_that_fits_is_accepted():
    SequenceToSequence(Toy()).check({"vocab_size": 11})
    SequenceToSequence(Toy()).check({"num_classes": 3})  # of data without tokens nothing is known


# --- beam search


def log_probability(model, source, target):
    """log P(target | source) of one sentence, by a forward pass."""
    logits = model(source[None], torch.tensor([[BOS, *target[:-1]]]))[0]
    return logits.log_softmax(-1)[range(len(target)), target].sum().item()


def penalised(model, source, target, alpha):
    return log_probability(model, source, target) / ((5 + len(target)) / 6) ** alpha


def plain_search(model, source, beam, alpha, extra):
    """Beam search as its docstring tells it: one sentence, lists, no cache, on to the limit."""
    limit, vocab_size = int((source != PAD).sum()) + extra, model.embedding.num_embeddings
    live, results = [(0.0, [])], []
    for length in range(1, limit + 1):
        logits = model(source[None].expand(len(live), -1), torch.tensor([[BOS, *target] for _, target in live]))[:, -1].log_softmax(-1)
        extensions = [(s + row[k].item(), [*target, k]) for (s, target), row in zip(live, logits) for k in range(EOS, vocab_size)]
        extensions.sort(key=lambda extension: -extension[0])
        ended = [(s / ((5 + length) / 6) ** alpha, target) for s, target in (extensions if length == limit else extensions[:beam])
                 if target[-1] == EOS]  # fmt: skip
        results += ended
        live = [extension for extension in extensions if extension[1][-1] != EOS][:beam]
    return max(results)


@pytest.mark.parametrize("seed", [3, 5, 9, 12])
@pytest.mark.parametrize("beam, alpha, extra", [(2, 0.0, 9), (4, 0.6, 8), (3, 2.0, 6), (12, 1.0, 5)])
def test_all_sentences_at_once_find_what_plain_code_finds_for_each(beam, alpha, extra, seed):
    model, source = Toy(seed=seed), sources(seed=seed)
    found, scores = beam_search(model, source, beam, alpha, extra)
    for row, tokens, score in zip(source, found, scores):
        expected_score, expected = plain_search(model, row[row != PAD], beam, alpha, extra)
        assert words(tokens) == expected
        assert score.item() == pytest.approx(expected_score, rel=1e-12)
        assert score.item() == pytest.approx(penalised(model, row, expected, alpha), rel=1e-12)
    assert len({len(words(tokens)) for tokens in found}) > 2
    assert found.shape[1] == max(len(words(tokens)) for tokens in found)


@pytest.mark.parametrize("beam", [1, 4])
def test_a_batch_finds_what_its_sentences_find_alone(beam):
    model, source = Toy(), sources(number=40)
    found, scores = beam_search(model, source, beam)
    for row, tokens, score in zip(source, found, scores):
        alone, its_score = beam_search(model, row[row != PAD][None], beam)
        assert words(alone[0]) == words(tokens)
        assert its_score.item() == pytest.approx(score.item(), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_finds_the_best_of_all_translations(alpha):
    model, source = Toy(6, sharpness=2.0, seed=1), sources(6, number=3)
    found, scores = beam_search(model, source, beam=500, alpha=alpha, extra=3)
    for row, tokens, score in zip(source, found, scores):
        limit = int((row != PAD).sum()) + 3
        everything = [[*target, EOS] for length in range(limit) for target in itertools.product((A, B, C), repeat=length)]
        best = max((penalised(model, row, target, alpha), target) for target in everything)
        assert (score.item(), words(tokens)) == (pytest.approx(best[0], rel=1e-12), best[1])


@pytest.mark.parametrize("alpha", [0.0, 0.6, 5.0])
def test_one_hypothesis_is_greedy_decoding(alpha):
    model, source = Toy(), sources()
    found, scores = beam_search(model, source, beam=1, alpha=alpha, extra=6)
    lengths = set()
    for row, tokens, score in zip(source, found, scores):
        target = []
        while EOS not in target:
            logits = model(row[None], torch.tensor([[BOS, *target]]))[0, -1]
            last = len(target) + 1 == int((row != PAD).sum()) + 6
            target.append(EOS if last else EOS + int(logits[EOS:].argmax()))
        assert words(tokens) == target
        assert score.item() == pytest.approx(log_probability(model, row, target), rel=1e-12)
        lengths.add(len(target))
    assert len(lengths) > 2


class Fixed(nn.Module):
    """The same distribution at every step, whatever the source."""

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities, self.steps = torch.tensor(probabilities, dtype=torch.double), 0

    def start(self, source):
        return {"source": source}, {}

    def step(self, tokens, memory, cache):
        self.steps += 1
        return self.probabilities.log().expand(len(tokens), -1), cache


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_padding_and_beginning_are_never_written(beam):
    found, scores = beam_search(Fixed([0.5, 0.3, 0.01, 0.15, 0.04]), sources(5), beam, extra=3)
    assert all(set(words(row)) <= {EOS, A, B} and words(row)[-1] == EOS and EOS not in words(row)[:-1] for row in found)
    assert scores.isfinite().all()


def test_a_translation_ends_at_the_limit_of_its_own_sentence():
    source = sources(5)
    found, _ = beam_search(Fixed([0.0, 0.0, 1e-9, 0.6, 0.4]), source, extra=2, alpha=10.0)
    assert [len(words(row)) for row in found] == ((source != PAD).sum(1) + 2).tolist()
    found, _ = beam_search(Fixed([0.0, 0.0, 0.1, 0.6, 0.3]), torch.tensor([[EOS]]), extra=0)
    assert found.tolist() == [[EOS]]


def test_a_sentence_is_done_once_nothing_better_can_follow():
    """EOS has p = 0.9: with alpha = 0 the first step decides. With alpha = 2, 0.9 at one token scores ln 0.9, and the best live hypothesis
    has ln 0.06, which at the limit of 9 tokens could become ln 0.06 / (14 / 6)^2 = -0.52 < ln 0.9; at 59 tokens -0.025 > ln 0.9."""
    for alpha, extra, steps in ((0.0, 50, 1), (2.0, 8, 1), (2.0, 58, 2)):
        model = Fixed([0.0, 0.0, 0.9, 0.06, 0.04])
        found, scores = beam_search(model, torch.tensor([[EOS]]), alpha=alpha, extra=extra)
        assert found.tolist() == [[EOS]] and scores.item() == pytest.approx(math.log(0.9))
        assert (model.steps == 1) == (steps == 1)


def test_more_hypotheses_than_words_are_no_trouble():
    found, scores = beam_search(Fixed([0.0, 0.0, 0.3, 0.7]), sources(4), beam=8, alpha=0.0, extra=3)
    assert all(words(row) == [EOS] for row in found) and scores.tolist() == pytest.approx([math.log(0.3)] * len(found))


@pytest.mark.parametrize("source, options", [
    (torch.tensor([A, EOS]), {}),
    (torch.tensor([[A, EOS], [PAD, PAD]]), {}),
    (sources(), {"beam": 0}),
    (sources(), {"alpha": -0.1}),
    (sources(), {"extra": -1}),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused(source, options):
    message(lambda: SequenceToSequence(Toy()).translate(source, **options), ValueError)


def test_finished_sentences_leave_the_batch():
    model = Toy()
    beam_search(model, sources(number=40))
    assert model.rows[0] == 160 and model.rows == sorted(model.rows, reverse=True) and model.rows[-1] < 80


def test_the_search_waits_for_the_device_once_a_step():
    class Waits(TorchDispatchMode):
        times = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.times += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*args, **(kwargs or {}))

    model = Toy()
    with Waits() as waits:
        beam_search(model, sources())
    assert len(model.rows) > 5
    assert len(model.rows) <= waits.times <= len(model.rows) + 2  # the check before, the width after


def test_the_searched_tokens_are_those_of_the_data():
    assert (PAD, BOS, EOS) == (pairs.PAD, pairs.BOS, pairs.EOS)


# --- against transformers


class Marian(nn.Module):
    """transformers' model; start and step use its forward pass, which reads all tokens anew in each step."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, source, target):
        return self.model(source, attention_mask=(source != PAD).long(), decoder_input_ids=target, use_cache=False).logits

    def start(self, source):
        mask = (source != PAD).long()
        return {"states": self.model.model.encoder(source, mask).last_hidden_state, "mask": mask}, {"read": source[:, :0]}

    def step(self, tokens, memory, cache):
        read = torch.cat([cache["read"], tokens[:, None]], 1)
        output = self.model(encoder_outputs=(memory["states"],), attention_mask=memory["mask"], decoder_input_ids=read, use_cache=False)
        return output.logits[:, -1], {"read": read}


@pytest.fixture(scope="module")
def marian():
    """A model that has begun to learn how to copy: lengths are about right, words are guessed."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=BOS, decoder_start_token_id=BOS,
        forced_eos_token_id=None, decoder_vocab_size=20, dropout=0.0, init_std=0.2,
    )  # fmt: skip
    objective = SequenceToSequence(Marian(transformers.MarianMTModel(config).double()))
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    for step in range(50):
        source = sources(20, number=24, seed=step)
        batch = {"source": source, "target": F.pad(source, (1, 0), value=BOS)}
        optimizer.zero_grad()
        (objective(batch, "model")[0]["loss"] / objective.count(batch, "model")["loss"]).backward()
        optimizer.step()
    return objective.model.eval()


@pytest.mark.parametrize("beam", [1, 4])
def test_translations_are_those_of_transformers(marian, beam):
    """With length_penalty = 0 there and alpha = 0 here both rank by log P, and both count what ended among the K best extensions. Theirs
    ends a sentence once nothing can enter its list of the K best (early_stopping=False), ours once nothing can become the first of them,
    which is all that is returned. At the longest length the two have other rules: nothing comes near it here."""
    source = sources(20, number=24)
    ours, scores = beam_search(marian, source, beam, alpha=0.0, extra=40)
    theirs = marian.model.generate(
        source, attention_mask=(source != PAD).long(), num_beams=beam, length_penalty=0.0 if beam > 1 else None, early_stopping=False,
        do_sample=False, max_new_tokens=48, suppress_tokens=[PAD, BOS], return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = [words(row) for row in ours]
    assert found == [row[1 : row.index(EOS) + 1] for row in theirs.sequences.tolist()]
    assert max(map(len, found)) < 20 and len({len(row) for row in found}) > 4 and len(set(map(tuple, found))) > 12
    if beam > 1:
        torch.testing.assert_close(scores.float(), theirs.sequences_scores, rtol=1e-5, atol=1e-5)  # theirs are summed in fp32
        greedy, _ = beam_search(marian, source, 1, extra=40)
        assert any(words(row) != other for row, other in zip(greedy, found))


# --- BLEU


class Split:
    def __init__(self, sources, targets):
        self.sides = {"source": sources, "target": targets}

    def texts(self, side):
        return self.sides[side]


class Echo(nn.Module):
    """Translates a sentence into itself, its words doubled after the fourth."""

    def __init__(self):
        super().__init__()
        self.anything, self.shapes = nn.Parameter(torch.zeros(())), []

    def translate(self, source, beam, alpha, extra):
        self.shapes.append(tuple(source.shape))
        return torch.cat([source, source.clone().masked_fill_(source <= EOS, PAD)[:, 4:]], 1)


def letters(split):
    """Pairs of texts in which each letter is a word."""
    return Data(
        train=split, valid=None, test=split, facts={"max_length": 8},
        decode=lambda ids: [" ".join(chr(94 + i) for i in row if i > EOS) for row in ids.tolist()],
        encode=lambda text: torch.tensor([*(ord(word) - 94 for word in text.split()), EOS]),
    )  # fmt: skip


TEXTS = ["a b c d", "a b c d e f", "", "b c d e f g h"]
REFERENCES = ["a b c d", "a b c d e f e f", "", "b c d e g g h f g"]
FOUND = ["a b c d", "a b c d e f e f", "", "b c d e f g h f g h"]


def test_bleu_is_that_of_sacrebleu_on_text_in_the_order_of_the_split():
    sacrebleu = pytest.importorskip("sacrebleu")
    objective, data = Echo(), letters(Split(TEXTS, REFERENCES))
    metrics = bleu(objective, data, torch.Generator(), batch_size=2)
    assert metrics["bleu"] == sacrebleu.corpus_bleu(FOUND, [REFERENCES]).score and 50 < metrics["bleu"] < 100
    assert metrics["exact"] == 75
    assert metrics["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert objective.shapes == [(2, 8), (1, 5)]  # the longest first


def test_samples_are_sources_references_and_translations():
    data = letters(Split(TEXTS, REFERENCES))
    assert samples_of(Echo(), data, "test", 2) == [(TEXTS[0], REFERENCES[0], FOUND[0]), (TEXTS[1], REFERENCES[1], FOUND[1])]
    assert samples_of(Echo(), data, "train", 9) == list(zip(TEXTS, REFERENCES, FOUND))


def test_texts_that_are_too_long_are_cut_and_counted():
    texts = ["a a a a b b b b b", "", " ", "a b"]
    assert translations(Echo(), letters(Split([], [])), texts) == (["a a a a b b b b b b", "", "", "a b"], 1)


def test_the_text_of_real_pairs_goes_there_and_back(tmp_path):
    class Copy(Echo):
        def translate(self, source, beam, alpha, extra):
            return source

    data = pairs.dates(seed=0, root=str(tmp_path), items=10)
    texts = data.test.texts("target")[:5]
    assert translations(Copy(), data, texts, batch_size=2) == (texts, 0)


def test_data_without_texts_have_no_bleu():
    assert "split=valid" in message(lambda: bleu(Echo(), letters(Split([], [])), torch.Generator(), split="valid"), ConfigError)
    data = Data(train=object(), valid=None, test=object(), facts={})
    assert "no pairs of texts" in message(lambda: bleu(Echo(), data, torch.Generator()), ConfigError)
