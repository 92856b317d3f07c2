"""BERT: parameter counts, parity with transformers (outputs, losses, gradients), names, objectives, folders, errors, the claim."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.figures import BLUE, ORANGE, bars, mark, panels
from tests.helpers import message
from zoo.hub import from_pretrained
from zoo.papers import bert
from zoo.papers.bert import (
    Bert,
    LeftToRight,
    MaskedLanguageModel,
    SentenceClassification,
    SentenceRegression,
    SpanPrediction,
    Tagging,
)
from zoo.papers.bert.convert import from_official, from_transformers, to_official, to_transformers
from zoo.papers.bert.model import attention
from zoo.papers.bert.objective import IGNORED

COUNTS = {  # with the default head, and with others as transformers counts them
    ("bert_base", "pooler"): 109_482_240,
    ("bert_base", "pretraining"): 110_106_428,
    ("bert_base", "classification"): 109_483_778,
    ("bert_large", "pooler"): 335_141_888,
    ("bert_large", "pretraining"): 336_226_108,
    ("bert_large", "classification"): 335_143_938,
    ("bert_tiny", "pooler"): 4_385_920,
    ("bert_mini", "pooler"): 11_170_560,
    ("bert_small", "pooler"): 28_763_648,
    ("bert_medium", "pooler"): 41_373_184,
}
SIZES = dict(vocab_size=40, depth=2, d_model=24, n_heads=3, d_ff=20, max_length=16, dropout=0.0)
THEIR_SIZES = dict(vocab_size=40, num_hidden_layers=2, hidden_size=24, num_attention_heads=3, intermediate_size=20, max_position_embeddings=16,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3)  # fmt: skip
THEIRS = {
    None: "BertModel",
    "pooler": "BertModel",
    "pretraining": "BertForPreTraining",
    "masked": "BertForMaskedLM",
    "classification": "BertForSequenceClassification",
    "spans": "BertForQuestionAnswering",
    "tagging": "BertForTokenClassification",
}


def tiny(head="pooler", **options) -> Bert:
    return Bert(**SIZES | dict(head=head, outputs=3) | options)


def randomise(model: nn.Module) -> None:
    """Every parameter, so that no swapped tensor hides behind ones and zeros."""
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)


def theirs(head, attn="sdpa", **options):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**THEIR_SIZES | ({"num_labels": 2} if head == "spans" else {}) | options)
    config._attn_implementation = attn
    model = getattr(transformers, THEIRS[head])(config, **{"add_pooling_layer": False} if head is None else {})
    randomise(model)
    return model.double()


def twins(head, **options) -> tuple[Bert, nn.Module]:
    """Ours with their weights, and theirs, in fp64."""
    reference = theirs(head)
    ours = tiny(head, **options).double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    return ours, reference


def text(batch=4, length=11, least=5) -> dict[str, torch.Tensor]:
    """Pairs of segments of several lengths with padding."""
    lengths = torch.randint(least, length, (batch, 1))
    lengths[0] = length
    column = torch.arange(length)
    attend = column < lengths
    tokens = torch.randint(5, 40, (batch, length)).masked_fill(~attend, 0)
    return {"tokens": tokens, "segments": ((column > lengths // 2) & attend).long(), "attend": attend}


def hidden(batch: dict[str, torch.Tensor], share=0.3) -> dict[str, torch.Tensor]:
    chosen = (torch.rand(batch["tokens"].shape) < share) & batch["attend"]
    chosen[:, 1] = True
    return batch | {"targets": batch["tokens"].masked_fill(~chosen, IGNORED), "tokens": batch["tokens"].masked_fill(chosen, 4)}


def their_inputs(batch):
    return {"input_ids": batch["tokens"], "token_type_ids": batch["segments"], "attention_mask": batch["attend"].long()}


def close(a, b, tolerance=1e-10):
    return (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def same_gradients(ours: nn.Module, reference: nn.Module) -> None:
    expected = from_transformers({name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in reference.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] is None or not close(found[name], expected[name])] == []


# ---- the network ----


@pytest.mark.parametrize("preset, head", COUNTS)
def test_parameter_counts(preset, head):
    with torch.device("meta"):
        model = getattr(bert, preset)(**({} if head == "pooler" else {"head": head}))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[preset, head]


def test_the_counts_above_are_those_of_every_preset():
    assert {preset for preset, _ in COUNTS} == {name for name in bert.__all__ if name.startswith("bert_")}


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_hidden_states_pooled_output_and_gradients_equal_transformers(attn):
    reference = theirs("pooler", attn)
    ours = tiny("pooler").double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    batch = text()
    expected = reference(**their_inputs(batch))
    x, pooled = ours.forward_features(**batch), ours(**batch)
    assert close(x[batch["attend"]], expected.last_hidden_state[batch["attend"]]) and close(pooled, expected.pooler_output)
    for states, pool in ((x, pooled), (expected.last_hidden_state, expected.pooler_output)):
        (states[batch["attend"]].square().sum() + pool.sin().sum()).backward()
    same_gradients(ours, reference)


def test_in_fp32_without_segments_or_padding_hidden_states_equal_transformers():
    ours, reference = (model.float() for model in twins(None))
    tokens = torch.randint(5, 40, (3, 16))
    assert close(ours(tokens), reference(tokens).last_hidden_state, 1e-5)


def test_pretraining_loss_and_gradients_equal_transformers():
    ours, reference = twins("pretraining")
    batch = hidden(text()) | {"next": torch.tensor([0, 1, 1, 0])}
    expected = reference(**their_inputs(batch), labels=batch["targets"], next_sentence_label=batch["next"]).loss
    objective = MaskedLanguageModel(ours, predictions=9)
    terms, counts = objective(batch, "model")[0], objective.count(batch, "model")
    loss = sum(terms[name] / counts[name] for name in terms)
    assert close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(ours, reference)
    metrics = objective.summarise({name: value.item() for name, value in objective.evaluate(batch).items()})
    assert metrics["loss"] == pytest.approx(expected.item())


def test_masked_loss_without_pairs_equals_transformers():
    ours, reference = twins("masked")
    batch = hidden(text())
    expected = reference(**their_inputs(batch), labels=batch["targets"])
    objective = MaskedLanguageModel(ours)
    loss = objective(batch, "model")[0]["masked"] / objective.count(batch, "model")["masked"]
    assert close(ours(batch["tokens"], batch["segments"], batch["attend"])[batch["attend"]], expected.logits[batch["attend"]])
    assert close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    same_gradients(ours, reference)


def test_classification_loss_and_gradients_equal_transformers():
    ours, reference = twins("classification")
    batch = text() | {"label": torch.tensor([0, 2, 1, 2])}
    expected = reference(**their_inputs(batch), labels=batch["label"]).loss
    loss = SentenceClassification(ours)(batch, "model")[0]["loss"] / 4
    assert close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(ours, reference)


def test_regression_loss_equals_transformers():
    reference = theirs("classification", num_labels=1)
    ours = tiny("classification", outputs=1).double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    batch = text() | {"label": torch.randn(4).double()}
    expected = reference(**their_inputs(batch), labels=batch["label"]).loss
    assert close(SentenceRegression(ours)(batch, "model")[0]["loss"] / 4, expected)


def test_span_loss_and_gradients_equal_transformers():
    ours, reference = twins("spans")
    batch = text() | {"start": torch.tensor([1, 2, 0, 3]), "end": torch.tensor([4, 2, 0, 4])}
    expected = reference(**their_inputs(batch), start_positions=batch["start"], end_positions=batch["end"]).loss
    objective = SpanPrediction(ours)
    loss = sum(objective.weights[name] * value / 4 for name, value in objective(batch, "model")[0].items())
    # Both score the padding, too, whose hidden states have no meaning: ours and theirs are the same there as well.
    assert close(loss, expected)
    loss.backward()
    expected.backward()
    word = "embeddings.word.weight"
    expected_word = from_transformers({name: p.grad for name, p in reference.named_parameters()})[word]
    assert close(ours.embeddings.word.weight.grad[1:], expected_word[1:])  # theirs has no gradient for [PAD] by decree
    ours.embeddings.word.weight.grad[0], expected_word[0] = 0.0, 0.0
    same_gradients(ours, reference)


def test_tagging_loss_and_gradients_equal_transformers():
    ours, reference = twins("tagging")
    batch = text()
    batch["tags"] = torch.randint(0, 3, batch["tokens"].shape).masked_fill(~batch["attend"], IGNORED)
    batch["tags"][:, 0] = IGNORED
    expected = reference(**their_inputs(batch), labels=batch["tags"]).loss
    objective = Tagging(ours)
    loss = objective(batch, "model")[0]["loss"] / objective.count(batch, "model")["loss"]
    assert close(loss, expected)
    loss.backward()
    expected.backward()
    same_gradients(ours, reference)


def test_the_approximate_gelu_is_the_one_that_configurations_call_gelu_new():
    reference = theirs(None, hidden_act="gelu_new")
    ours = tiny(None, gelu="tanh").double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    tokens = torch.randint(5, 40, (2, 9))
    assert close(ours(tokens), reference(tokens).last_hidden_state)
    assert not close(tiny(None).double()(tokens), ours(tokens), 1e-3)


def test_attention_weights_are_those_of_transformers_and_of_the_fused_form():
    ours, _ = twins("pooler")
    reference = theirs("pooler", "eager")
    ours.load_state_dict(from_transformers(reference.state_dict()))
    batch, maps = text(), []
    x = ours.forward_features(**batch, maps=maps)
    assert close(x, ours.forward_features(**batch))
    expected = reference(**their_inputs(batch), output_attentions=True).attentions
    assert len(maps) == len(expected) == 2
    assert all(close(a, b) for a, b in zip(maps, expected))
    q, k, v = torch.randn(3, 2, 3, 5, 7).double()
    assert close(attention(q, k, v, maps=[]), F.scaled_dot_product_attention(q, k, v))


def test_padding_changes_nothing_and_both_directions_are_seen():
    ours = tiny(None).double()
    randomise(ours)
    batch = text(batch=1, length=11)
    short = {name: value[:, :7] for name, value in batch.items()}
    padded = batch | {"attend": torch.arange(11)[None] < 7}
    assert close(ours(**padded)[:, :7], ours(**short))
    other = short["tokens"].clone()
    other[:, -1] = (other[:, -1] + 1) % 40
    assert not close(ours(other, short["segments"], short["attend"])[:, 0], ours(**short)[:, 0], 1e-3)


def test_a_causal_model_sees_nothing_of_what_follows():
    ours = tiny("masked", causal=True).double()
    randomise(ours)
    batch = text(batch=2)
    before = ours(**batch)
    for t in range(1, 5):
        changed = batch | {"tokens": torch.cat([batch["tokens"][:, :t], torch.randint(5, 40, (2, 11 - t))], 1)}
        assert close(ours(**changed)[:, :t], before[:, :t])
    assert not close(ours(**changed)[:, 5:], before[:, 5:], 1e-3)


def test_the_first_segment_is_meant_where_none_is_given():
    ours = tiny(None)
    tokens = torch.randint(5, 40, (2, 9))
    assert torch.equal(ours(tokens), ours(tokens, torch.zeros_like(tokens)))
    assert not torch.allclose(ours(tokens), ours(tokens, torch.ones_like(tokens)))


def test_initial_weights_are_normal_cut_off_at_two_standard_deviations():
    model = Bert(**SIZES | dict(vocab_size=2000, d_model=96, d_ff=300, head="pretraining"))
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = module.weight
            assert weight.abs().max() <= 0.04
            if weight.numel() > 5000:  # a normal distribution that is cut off there has 0.88 of its standard deviation
                assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.05)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-12
    assert not model.head.bias.any()


def test_dropout_is_everywhere_that_the_paper_has_it():
    """Embeddings, attention weights, both sub-layers, and in fine-tuning the pooled output: each alone makes two passes differ."""
    model = Bert(**SIZES | dict(head="classification", dropout=0.5))
    randomise(model)
    places = {"embeddings.dropout", "head.dropout", *(f"layers.{i}.dropout" for i in range(2))}
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Dropout)} == places
    assert all(module.p == 0.5 for module in model.modules() if isinstance(module, nn.Dropout))
    batch = text()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) or name.endswith("attention"):
            model.eval()
            assert torch.equal(model(**batch), model(**batch))
            module.train()
            assert not torch.equal(model(**batch), model(**batch)), name


@pytest.mark.parametrize("arguments, said", [
    (dict(depth=0), "depth must be at least 1, not 0"),
    (dict(vocab_size=-3), "vocab_size must be at least 1, not -3"),
    (dict(max_length=0), "max_length must be at least 1, not 0"),
    (dict(outputs=0), "outputs must be at least 1, not 0"),
    (dict(n_heads=5), "d_model 24 does not divide into n_heads 5 heads of equal width"),
    (dict(dropout=1.0), r"dropout must be in \[0, 1\), not 1.0"),
    (dict(gelu="relu"), "unknown gelu 'relu': use 'erf' or 'tanh'"),
    (dict(head="nsp"), "unknown head 'nsp': use 'pooler', 'pretraining', 'masked', 'classification', 'spans', 'tagging' or None"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Bert(**SIZES | arguments)


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="17 tokens are more than the 16 positions of the model: cut the texts, or raise max_length"):
        tiny()(torch.zeros(1, 17, dtype=torch.long))


# ---- names ----


@pytest.mark.parametrize("head", THEIRS)
def test_to_transformers_undoes_from_transformers(head):
    reference = theirs(head).state_dict()
    ours = from_transformers(reference)
    assert ours.keys() == tiny(head).state_dict().keys()
    back = to_transformers(ours, spans=head == "spans")
    assert back.keys() == reference.keys()
    assert all(torch.equal(back[name], reference[name]) for name in reference)


def test_names_of_old_files_are_known():
    reference = theirs("pretraining").state_dict()
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for name, v in reference.items()}
    old["bert.embeddings.position_ids"] = torch.arange(16)[None]
    found, expected = from_transformers(old), from_transformers(reference)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_foreign_name_is_refused():
    with pytest.raises(ValueError, match="'bert.rotary.weight' has no place in the model that these names of transformers are for"):
        from_transformers({"bert.rotary.weight": torch.zeros(1)})


LAYER = "bert/encoder/layer_0"
LINEAR = (f"{LAYER}/attention/self/query", f"{LAYER}/attention/self/key", f"{LAYER}/attention/self/value", f"{LAYER}/attention/output/dense",
          f"{LAYER}/intermediate/dense", f"{LAYER}/output/dense", "bert/pooler/dense", "cls/predictions/transform/dense")  # fmt: skip
NORMS = ("bert/embeddings", f"{LAYER}/attention/output", f"{LAYER}/output", "cls/predictions/transform")
OFFICIAL = {
    *(f"bert/embeddings/{kind}_embeddings" for kind in ("word", "position", "token_type")),
    *(f"{name}/{part}" for name in LINEAR for part in ("kernel", "bias")),
    *(f"{name}/LayerNorm/{part}" for name in NORMS for part in ("gamma", "beta")),
    "cls/predictions/output_bias",
    "cls/seq_relationship/output_weights",
    "cls/seq_relationship/output_bias",
}


def test_the_authors_names_and_back():
    """The variables of uncased_L-12_H-768_A-12, of one layer."""
    ours = tiny("pretraining", depth=1)
    randomise(ours)
    state = ours.state_dict()
    official = to_official(state)
    assert set(official) == OFFICIAL
    assert official["bert/encoder/layer_0/intermediate/dense/kernel"].shape == (24, 20)  # (in, out)
    assert torch.equal(official["bert/encoder/layer_0/intermediate/dense/kernel"], state["layers.0.fc1.weight"].T)
    assert torch.equal(official["bert/encoder/layer_0/attention/self/key/kernel"], state["layers.0.attention.qkv.weight"][24:48].T)
    assert torch.equal(official["cls/seq_relationship/output_weights"], state["next.weight"])  # (out, in) here, as the authors have it
    assert torch.equal(official["bert/embeddings/LayerNorm/gamma"], state["embeddings.norm.weight"])
    arrays = {name: value.numpy() for name, value in official.items()}
    arrays |= {f"{name}/adam_m": value for name, value in arrays.items()} | {"global_step": torch.tensor(7).numpy()}
    back = from_official(arrays)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


# ---- folders ----


def saved(model, folder):
    model.float().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("head", THEIRS)
def test_a_folder_of_transformers_loads_and_gives_its_hidden_states(head, tmp_path):
    transformers = pytest.importorskip("transformers")
    saved(theirs(head), tmp_path)
    reference = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=head in ("pooler", "pretraining", "classification")).eval()
    ours, batch = from_pretrained(tmp_path), text()
    assert ours.kind == head and not ours.training
    with torch.no_grad():
        found, expected = ours.forward_features(**batch), reference(**their_inputs(batch)).last_hidden_state
    assert close(found[batch["attend"]], expected[batch["attend"]], 1e-5)


def test_a_folder_may_hold_half_precision_and_buffers_of_old(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = saved(theirs(None), tmp_path) / "model.safetensors"
    state = load_file(weights)
    save_file({name: value.half() for name, value in state.items()} | {"embeddings.position_ids": torch.arange(16)[None]}, weights)
    ours = from_pretrained(tmp_path)
    assert ours.embeddings.word.weight.dtype == torch.float32
    assert torch.equal(ours.embeddings.word.weight.half(), state["embeddings.word_embeddings.weight"].half())


def test_folders_that_cannot_be_used_are_told_in_a_sentence(tmp_path):
    from safetensors.torch import load_file, save_file

    assert "there is no" in message(lambda: from_pretrained(tmp_path / "nowhere"))
    saved(theirs(None), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, state = json.loads(config.read_text()), load_file(weights)
    for change, said in [
        ({"model_type": "t5"}, "model_type 't5' is not among bert, roberta"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not among gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, but BERT's is 1e-12"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not BERT's"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"hidden_size": 23}, "d_model 23 does not divide into n_heads 3"),
        ({"intermediate_size": 21}, "by config.json it should be (21, 24)"),
        ({"num_hidden_layers": 3}, "has no weights for 'layers.2."),
        ({"num_hidden_layers": 1}, "for which the model has no place"),
    ]:
        config.write_text(json.dumps(good | change))
        assert said in message(lambda: from_pretrained(tmp_path))
    config.write_text(json.dumps({k: v for k, v in good.items() if k != "hidden_size"}))
    assert "config.json does not say hidden_size" in message(lambda: from_pretrained(tmp_path))
    for wrong, said in (("[]", "is not a map"), ("{", "cannot be read")):
        config.write_text(wrong)
        assert said in message(lambda: from_pretrained(tmp_path))
    config.write_text(json.dumps(good))
    save_file(state | {"rotary": torch.zeros(1)}, weights)
    assert "'rotary' has no place" in message(lambda: from_pretrained(tmp_path))
    weights.write_bytes(b"\x80\x04not safetensors")
    assert "cannot be read as safetensors" in message(lambda: from_pretrained(tmp_path))
    weights.unlink()
    assert "has no model.safetensors" in message(lambda: from_pretrained(tmp_path))


def test_a_run_may_start_from_a_folder_of_transformers(tmp_path):
    from zoo.training.init import start_from

    reference = theirs("pretraining")
    saved(reference, tmp_path)
    objective = SentenceClassification(tiny("classification"))
    start_from(objective, str(tmp_path), ["head.*"])
    expected = from_transformers(reference.float().state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in objective.model.state_dict().items() if not name.startswith("head."))


# ---- objectives ----


class Syncs(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_gathering_the_hidden_tokens_changes_nothing_and_waits_for_nothing():
    model = tiny("pretraining").double()
    randomise(model)
    batch = hidden(text(batch=6), 0.2) | {"next": torch.tensor([0, 1, 1, 0, 1, 0])}
    most = int((batch["targets"] != IGNORED).sum(1).max())
    results = []
    for predictions in (None, most, most + 2, 50):
        model.zero_grad()
        objective = MaskedLanguageModel(model, predictions)
        with Syncs() as syncs:
            terms, _ = objective(batch, "model")
            sum(terms.values()).backward()
            counts = objective.count(batch, "model")
        assert syncs.count == 0
        assert counts["masked"] == (batch["targets"] != IGNORED).sum() and counts["next"] == 6
        results.append([*terms.values(), *(p.grad.clone() for p in model.parameters()), *objective.evaluate(batch).values()])
    for other in results[1:]:
        assert all(close(a, b) for a, b in zip(other, results[0]))


def test_data_that_do_not_fit_the_model_are_refused_before_training():
    facts = {"vocab_size": 40, "length": 16, "predictions": 3, "next": 1}
    objective = MaskedLanguageModel(tiny("pretraining"), 3)
    objective.check(facts)
    said = lambda facts, objective=objective: message(lambda: objective.check(facts), ValueError)
    assert "set model.vocab_size=41" in said(facts | {"vocab_size": 41})
    assert "texts of up to 17 tokens, the model 16 positions" in said(facts | {"length": 17})
    assert "hide up to 4 tokens of a sequence, more than objective.predictions=3" in said(facts | {"predictions": 4})
    assert "no pairs of sentences (data.form), which model.head=pretraining" in said(facts | {"next": 0})
    assert "set model.head=pretraining" in said(facts, MaskedLanguageModel(tiny("masked")))
    assert "set model.head=masked" in said(facts, LeftToRight(tiny("pretraining", causal=True)))
    task = {"vocab_size": 40, "length": 16, "num_classes": 2}
    SentenceClassification(tiny("classification", outputs=2)).check(task)
    assert "set model.head=classification and model.outputs=2" in said(task, SentenceClassification(tiny("classification")))
    assert "set model.head=classification" in said(task, SentenceClassification(tiny(None)))
    assert "predictions must be at least 1" in message(lambda: MaskedLanguageModel(tiny("masked"), 0), ValueError)
    assert "set model.causal=true" in message(lambda: LeftToRight(tiny("masked")), ValueError)
    assert "longest must be at least 1" in message(lambda: SpanPrediction(tiny("spans"), 0), ValueError)


def test_left_to_right_is_the_nats_of_each_token_given_those_before_it():
    model = tiny("masked", causal=True).double()
    randomise(model)
    whole = text()
    batch = hidden(whole)
    objective = LeftToRight(model)
    expected, tokens = 0.0, 0
    for row, attend in zip(whole["tokens"], whole["attend"]):
        for t in range(1, int(attend.sum())):
            segments = whole["segments"][[int((whole["tokens"] == row).all(1).nonzero()[0])]][:, :t]
            expected += F.cross_entropy(model(row[None, :t], segments)[0, -1], row[t])
            tokens += 1
    assert close(objective(batch, "model")[0]["loss"], expected)
    assert objective.count(batch, "model")["loss"] == tokens


def test_classification_metrics_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")

    class Given(nn.Module):
        vocab_size, max_length = 40, 16

        def forward(self, tokens, segments, attend):
            return F.one_hot(tokens[:, 0] % 2, 2).double()

    batch = {"tokens": torch.randint(0, 40, (60, 3)), "label": torch.randint(0, 2, (60,))}
    objective, totals = SentenceClassification(Given()), {}
    for part in torch.arange(60).split(17):
        for name, value in objective.evaluate({k: v[part] for k, v in batch.items()}).items():
            totals[name] = totals.get(name, 0.0) + value.item()
    found, truth, guess = objective.summarise(totals), batch["label"].numpy(), (batch["tokens"][:, 0] % 2).numpy()
    assert found["accuracy"] == pytest.approx(100 * metrics.accuracy_score(truth, guess))
    assert found["f1"] == pytest.approx(100 * metrics.f1_score(truth, guess))
    assert found["matthews"] == pytest.approx(100 * metrics.matthews_corrcoef(truth, guess))
    assert found["error"] == pytest.approx(100 - found["accuracy"])
    always = objective.summarise({"items": 4.0, "right": 3.0, "nats": 1.0, "00": 0.0, "01": 1.0, "10": 0.0, "11": 3.0})
    assert always["matthews"] == 0.0 and always["f1"] == pytest.approx(100 * 6 / 7)


def test_regression_metrics_equal_the_formulas():
    model = tiny("classification", outputs=1).double()
    randomise(model)
    batch = text(batch=9) | {"label": torch.randn(9).double()}
    objective = SentenceRegression(model)
    found = objective.summarise({name: value.item() for name, value in objective.evaluate(batch).items()})
    answers = objective.answers(batch)
    assert found["mse"] == pytest.approx(F.mse_loss(answers, batch["label"]).item())
    assert found["pearson"] == pytest.approx(100 * torch.corrcoef(torch.stack([answers, batch["label"]]))[0, 1].item())


def test_the_best_span_is_that_of_all_allowed_ones():
    model = tiny("spans").double()
    randomise(model)
    batch = text(batch=8)
    objective = SpanPrediction(model, longest=4)
    within = torch.arange(batch["tokens"].shape[1]) >= 2
    start, end = objective.logits(batch)
    for places in (within.expand_as(batch["tokens"]), None):
        first, last, score = objective.spans(batch, places)
        for b in range(8):
            length, least = int(batch["attend"][b].sum()), 0 if places is None else 2
            allowed = [(i, j) for i, j in itertools.product(range(least, length), repeat=2) if i <= j < i + 4]
            assert max(allowed, key=lambda ij: start[b, ij[0]] + end[b, ij[1]]) == (first[b], last[b])
        assert torch.equal(score, start.gather(1, first[:, None])[:, 0] + end.gather(1, last[:, None])[:, 0])
    right = batch | {"start": first, "end": last}
    assert objective.summarise({k: v.item() for k, v in objective.evaluate(right).items()}) == {"exact": 100, "f1": 100}
    off = batch | {"start": first, "end": last + 1}
    scores = objective.summarise({k: v.item() for k, v in objective.evaluate(off).items()})
    sizes = (last - first + 1).double()
    assert scores["exact"] == 0 and scores["f1"] == pytest.approx(100 * (2 * sizes / (2 * sizes + 1)).mean().item())


def test_tagging_counts_only_what_has_a_tag():
    model = tiny("tagging").double()
    batch = text()
    guess = model(**batch).argmax(-1)
    tags = torch.full_like(guess, IGNORED)
    tags[:, 2] = guess[:, 2]
    tags[0, 3] = (guess[0, 3] + 1) % 3
    batch["tags"] = tags
    objective = Tagging(model)
    found = objective.summarise({k: v.item() for k, v in objective.evaluate(batch).items()})
    assert found["accuracy"] == pytest.approx(80)


def named(tags: list[str], kinds: list[str]) -> list[int]:
    """O, B-x and I-x as `Tagging` numbers them."""
    return [0 if tag == "O" else 2 * kinds.index(tag[2:]) + (1 if tag[0] == "B" else 2) for tag in tags]


CHUNKED = [  # right tags, ours, and how many chunks: right, ours, both
    ("B-X I-X O B-Y", "B-X I-X O B-Y", (2, 2, 2)),
    ("B-X I-X O B-Y", "B-X O O B-Y", (2, 2, 1)),  # one that ends too early
    ("B-X I-X I-X O", "O B-X I-X O", (1, 1, 0)),  # that begins too late
    ("B-X I-X B-X I-X", "B-X I-X I-X I-X", (2, 1, 0)),  # two that became one
    ("B-X I-X O O", "B-Y I-Y O O", (1, 1, 0)),  # of another kind
    ("O B-X I-X O", "O I-X I-X O", (1, 1, 1)),  # an I after something else begins one, too
    ("B-X I-X I-Y O", "B-X I-X I-Y I-Y", (2, 2, 1)),
    ("O O O O", "O O B-X O", (0, 1, 0)),
    ("O O O B-X", "O O O B-X", (1, 1, 1)),
]


def counts_of_chunks(rows: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    """What `Tagging` counts where these are the right tags and the model's, a word each, the second piece of the second word in between."""
    spread = lambda tags, other: torch.tensor([[other, tags[0], tags[1], other, *tags[2:], other] for tags in tags])
    right, ours = spread([r for r, _ in rows], IGNORED), spread([o for _, o in rows], 1)
    model = lambda tokens, segments, attend: F.one_hot(ours, 5).double()
    batch = {"tokens": torch.zeros_like(right), "tags": right}
    objective = Tagging(nn.Identity(), chunks=True)
    del objective.model  # a function in its place
    objective.model = model
    totals = {name: value.item() for name, value in objective.evaluate(batch).items()}
    return totals | objective.summarise(totals)


def test_chunks_count_where_kind_and_both_ends_are_right():
    rows = [(named(right.split(), ["X", "Y"]), named(ours.split(), ["X", "Y"])) for right, ours, _ in CHUNKED]
    for row, (_, _, counts) in zip(rows, CHUNKED):
        found = counts_of_chunks([row])
        assert (found["chunks"], found["answers"], found["hits"]) == counts
    found, (chunks, answers, hits) = counts_of_chunks(rows), (sum(column) for column in zip(*(counts for _, _, counts in CHUNKED)))
    assert found["precision"] == pytest.approx(100 * hits / answers) and found["recall"] == pytest.approx(100 * hits / chunks)
    assert found["f1"] == pytest.approx(2 / (1 / found["precision"] + 1 / found["recall"])) and found["tokens"] == 4 * len(rows)
    assert counts_of_chunks([(named(["O", "O", "O", "O"], []), named(["O", "O", "O", "O"], []))])["f1"] == 0


def test_chunks_are_counted_as_seqeval_does():
    metrics = pytest.importorskip("seqeval.metrics")
    generator = torch.Generator().manual_seed(0)
    tags = torch.randint(5, (2, 50, 9), generator=generator)
    tags[1] = torch.where(torch.rand(50, 9, generator=generator) < 0.6, tags[0], tags[1])
    found = counts_of_chunks([tuple(row) for row in tags.transpose(0, 1).tolist()])
    right, ours = ([[["O", "B-X", "I-X", "B-Y", "I-Y"][i] for i in row] for row in side] for side in tags.tolist())
    for name, theirs in [("f1", metrics.f1_score), ("precision", metrics.precision_score), ("recall", metrics.recall_score)]:
        assert found[name] == pytest.approx(100 * theirs(right, ours))


def test_heads_that_do_not_go_with_the_data_are_refused():
    said = lambda objective, **facts: message(lambda: objective.check(facts), ValueError)
    assert "set model.head=tagging and model.outputs=23" in said(Tagging(tiny("tagging")), num_classes=23)
    assert "output is (1, 3) and a span has a first and a last token: set model.head=spans" in said(SpanPrediction(tiny("classification")))
    assert "one number: set model.head=classification and model.outputs=1" in said(SentenceRegression(tiny("classification")), num_classes=1)
    assert "labels are classes, not numbers" in said(SentenceRegression(tiny("classification", outputs=1)), num_classes=2)
    assert "labels are numbers, not classes" in said(SentenceClassification(tiny("classification", outputs=1)), num_classes=1)
    assert "is not one tensor" in said(Tagging(tiny("pretraining")), num_classes=3)
    for objective, facts in [
        (Tagging(tiny("tagging")), {"num_classes": 3}),
        (SpanPrediction(tiny("spans")), {}),
        (SentenceRegression(tiny("classification", outputs=1)), {"num_classes": 1}),
    ]:
        objective.check(facts)


def test_weights_of_all_heads_learn():
    for head, extra in {
        "pretraining": {"next": torch.tensor([0, 1, 1, 0])},
        "masked": {},
        "classification": {"label": torch.tensor([0, 1, 2, 0])},
        "spans": {"start": torch.tensor([1, 2, 1, 1]), "end": torch.tensor([3, 2, 4, 2])},
        "tagging": {"tags": torch.full((4, 11), 1)},
    }.items():
        objective = {"classification": SentenceClassification, "spans": SpanPrediction, "tagging": Tagging}.get(head, MaskedLanguageModel)(tiny(head))
        sum(objective(hidden(text()) | extra, "model")[0].values()).backward()
        assert [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == [], head


# ---- the claim ----


def riddle(batch: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """[CLS] d m d m d m d [SEP]: the d are drawn from 0 .. 7, each m is the larger one of its two neighbours.

    Whoever knows one neighbour alone, on whichever side, is right in 1/8 sum_d (d + 1)/8 = 56 % of the cases at best.
    """
    digits = torch.randint(8, (batch, 4), generator=generator)
    row = torch.empty(batch, 7, dtype=torch.long)
    row[:, ::2], row[:, 1::2] = digits, torch.maximum(digits[:, :-1], digits[:, 1:])
    tokens = F.pad(row + 3, (1, 1), value=1)
    tokens[:, -1] = 2
    return {"tokens": tokens, "segments": torch.zeros_like(tokens), "attend": torch.ones_like(tokens, dtype=torch.bool)}


def trained_on_riddles(causal: bool, seed: int, steps: int = 1200) -> Bert:
    """By masked or by left-to-right language modelling, all else equal."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    head = dict(head="masked", causal=causal)
    model = Bert(vocab_size=11, depth=2, d_model=64, n_heads=4, d_ff=256, max_length=9, dropout=0.0, **head)
    objective = LeftToRight(model) if causal else MaskedLanguageModel(model, predictions=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min((step + 1) / 100, (steps - step) / (steps - 100))
        batch = riddle(64, generator)
        hide = F.one_hot(torch.randint(1, 8, (64,), generator=generator), 9).bool()  # one of seven: about 15 %
        batch["targets"] = batch["tokens"].masked_fill(~hide, IGNORED)
        batch["tokens"] = batch["tokens"].masked_fill(hide, 0)
        terms, counts = objective(batch, "model")[0], objective.count(batch, "model")
        sum(terms[term] / counts[term] for term in terms).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.mark.claim
def test_a_gap_needs_both_of_its_sides(claim):
    """Section 1: what stands on both sides of a gap tells what is in it; one side alone does not, which is all that a left-to-right model sees."""
    seed, accuracy, guesses = claim.seed(11), {}, {}
    for name, causal in (("bidirectional", False), ("left_to_right", True)):
        model, batch, right = trained_on_riddles(causal, seed), riddle(500, torch.Generator().manual_seed(seed + 1)), 0.0
        for place in (2, 4, 6):
            shown = batch["tokens"] if causal else batch["tokens"].index_fill(1, torch.tensor([place]), 0)
            with torch.no_grad():
                logits = model(shown, places=torch.full((500, 1), place - causal))[:, 0]
            right += (logits.argmax(-1) == batch["tokens"][:, place]).double().mean().item() / 3
            if place == 4:
                telling = (batch["tokens"][:, 3] == 5) & (batch["tokens"][:, 5] == 8)  # 2 _ 5
                guesses[name] = logits[telling.nonzero()[0, 0]].softmax(-1)[3:]
        accuracy[name] = right

    def draw():
        figure, (left, right) = panels("What is in a gap hangs on both of its sides", 2, width_ratios=(3, 2))
        for shift, name, colour in ((-0.2, "bidirectional", BLUE), (0.2, "left_to_right", ORANGE)):
            left.bar(torch.arange(8).numpy() + shift, guesses[name].numpy(), 0.4, color=colour, label=name.replace("_", " "))
        left.set(xticks=range(8), xlabel="digit", ylabel="probability", title="the gap in  2 _ 5  (the larger of its neighbours)", ylim=(0, 1))
        left.legend(loc="upper left", fontsize=8)
        bars(right, {"both sides": 100 * accuracy["bidirectional"], "left to right": 100 * accuracy["left_to_right"]},
             xlabel="gaps filled right (%)", xlim=(0, 118))  # fmt: skip
        mark(right, 100 * 36 / 64, "best from one side")
        return figure

    claim(draw, seed=seed, best_from_one_side=36 / 64, **{f"accuracy_{name}": value for name, value in accuracy.items()})
    # Thresholds by seeds 0 to 2: both sides 1, 1, 1; left to right 0.55, 0.57, 0.54. Seed 3, unseen: 0.975, 0.56.
    assert accuracy["bidirectional"] > 0.95, accuracy
    assert accuracy["left_to_right"] < 0.65, accuracy
