"""RoBERTa: parameter counts, parity with transformers (outputs, losses, gradients), positions, names, folders, errors, dynamic masking."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.figures import curves, panels
from zoo.data.masked import Hiding
from zoo.data.wordpiece import ByteLevel
from zoo.hub import from_pretrained
from zoo.papers import roberta
from zoo.papers.bert import MaskedLanguageModel, SentenceClassification, SpanPrediction, Tagging
from zoo.papers.bert.objective import IGNORED
from zoo.papers.roberta import Roberta
from zoo.papers.roberta.convert import from_transformers, to_transformers

COUNTS = {  # as transformers counts them
    ("roberta_base", "masked"): 124_697_433,
    ("roberta_base", "classification"): 124_647_170,
    ("roberta_large", "masked"): 355_412_057,
    ("roberta_large", "classification"): 355_361_794,
}
SIZES = dict(vocab_size=40, depth=2, d_model=24, n_heads=3, d_ff=20, max_length=16, dropout=0.0)
THEIR_SIZES = dict(vocab_size=40, num_hidden_layers=2, hidden_size=24, num_attention_heads=3, intermediate_size=20, max_position_embeddings=18,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1, layer_norm_eps=1e-5)  # fmt: skip
THEIRS = {
    None: "RobertaModel",
    "masked": "RobertaForMaskedLM",
    "classification": "RobertaForSequenceClassification",
    "spans": "RobertaForQuestionAnswering",
    "tagging": "RobertaForTokenClassification",
}


def tiny(head="masked", **options) -> Roberta:
    return Roberta(**SIZES | dict(head=head, outputs=3) | options)


def theirs(head, attn="sdpa"):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(**THEIR_SIZES, num_labels=2 if head == "spans" else 3)
    config._attn_implementation = attn
    model = getattr(transformers, THEIRS[head])(config, **{"add_pooling_layer": False} if head is None else {})
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model.double()


def twins(head) -> tuple[Roberta, nn.Module]:
    reference = theirs(head)
    ours = tiny(head).double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    return ours, reference


def text(batch=4, length=11, side="right") -> dict[str, torch.Tensor]:
    lengths = torch.randint(5, length, (batch, 1))
    lengths[0] = length
    column = torch.arange(length)
    attend = column < lengths if side == "right" else column >= length - lengths
    return {"tokens": torch.randint(5, 40, (batch, length)).masked_fill(~attend, 1), "attend": attend}


def their_inputs(batch):
    return {"input_ids": batch["tokens"], "attention_mask": batch["attend"].long()}


def close(a, b, tolerance=1e-10):
    return (a - b).abs().max() <= tolerance * (1 + b.abs().max())


def same_gradients(ours: nn.Module, reference: nn.Module) -> None:
    expected = from_transformers({name: p.grad for name, p in reference.named_parameters()})
    found = {name: p.grad.clone() for name, p in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for table in ("embeddings.word.weight", "embeddings.position.weight"):  # theirs have no gradient for padding, by decree
        expected[table][1], found[table][1] = 0.0, 0.0
    assert [name for name in found if not close(found[name], expected[name])] == []


@pytest.mark.parametrize("preset, head", COUNTS)
def test_parameter_counts(preset, head):
    with torch.device("meta"):
        model = getattr(roberta, preset)(head=head)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[preset, head]
    assert model.embeddings.position.num_embeddings == 514


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_masked_logits_loss_and_gradients_equal_transformers(attn, side):
    reference = theirs("masked", attn)
    ours = tiny().double()
    ours.load_state_dict(from_transformers(reference.state_dict()))
    batch = text(side=side)
    batch["targets"] = batch["tokens"].masked_fill(~(batch["attend"] & (torch.rand(4, 11) < 0.4)), IGNORED)
    expected = reference(**their_inputs(batch), labels=batch["targets"])
    assert close(ours(batch["tokens"], attend=batch["attend"])[batch["attend"]], expected.logits[batch["attend"]])
    objective = MaskedLanguageModel(ours, predictions=10)
    loss = objective(batch, "model")[0]["masked"] / objective.count(batch, "model")["masked"]
    assert close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    same_gradients(ours, reference)


def test_other_heads_and_their_losses_equal_transformers():
    batch = text()
    tags = torch.randint(0, 3, (4, 11)).masked_fill(~batch["attend"], IGNORED)
    start, end = torch.tensor([1, 2, 0, 3]), torch.tensor([4, 2, 0, 4])
    for head, objective, mine, labels in (
        ("classification", SentenceClassification, {"label": torch.tensor([0, 2, 1, 2])}, lambda b: {"labels": b["label"]}),
        ("spans", SpanPrediction, {"start": start, "end": end}, lambda b: {"start_positions": b["start"], "end_positions": b["end"]}),
        ("tagging", Tagging, {"tags": tags}, lambda b: {"labels": b["tags"]}),
    ):
        ours, reference = twins(head)
        expected = reference(**their_inputs(batch), **labels(mine)).loss
        found = objective(ours)
        counts = found.count(batch | mine, "model") if hasattr(found, "count") else {}
        terms = found(batch | mine, "model")[0]
        loss = sum(getattr(found, "weights", {}).get(term, 1.0) * value / counts.get(term, 4) for term, value in terms.items())
        assert close(loss, expected), head
        loss.backward()
        expected.backward()
        same_gradients(ours, reference)


def test_in_fp32_hidden_states_equal_transformers_and_segments_are_not_looked_at():
    ours, reference = (model.float() for model in twins(None))
    tokens = torch.randint(5, 40, (3, 16))
    assert close(ours(tokens, torch.ones_like(tokens)), reference(tokens).last_hidden_state, 1e-5)


def test_positions_count_words_from_two_on_and_padding_has_none():
    model = tiny(None)
    seen = []
    model.embeddings.position.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(torch.tensor([[0, 7, 8, 2, 1, 1], [1, 1, 0, 7, 2, 1]]))
    assert seen[0].tolist() == [[2, 3, 4, 5, 1, 1], [1, 1, 2, 3, 4, 1]]


@pytest.mark.parametrize("head", THEIRS)
def test_names_go_there_and_back_and_folders_load(head, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = theirs(head).float()
    reference = model.state_dict()
    ours = from_transformers(reference)
    assert ours.keys() == tiny(head).state_dict().keys()
    back = to_transformers(ours, spans=head == "spans")
    assert back.keys() == reference.keys() and all(torch.equal(back[name], reference[name]) for name in reference)
    model.save_pretrained(tmp_path)
    loaded, batch = from_pretrained(tmp_path), text()
    assert loaded.kind == head
    encoder = transformers.RobertaModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    with torch.no_grad():
        found, expected = loaded.forward_features(**batch), encoder(**their_inputs(batch)).last_hidden_state
    assert close(found[batch["attend"]], expected[batch["attend"]], 1e-5)


def test_a_pooler_that_a_file_has_is_left_out():
    transformers = pytest.importorskip("transformers")
    state = transformers.RobertaModel(transformers.RobertaConfig(**THEIR_SIZES)).state_dict()
    assert any(name.startswith("pooler") for name in state)
    tiny(None).load_state_dict(from_transformers(state))
    with pytest.raises(ValueError, match=r"'lm_head.extra' has no place in the model"):
        from_transformers({"lm_head.extra": torch.zeros(1)})


def test_every_parameter_receives_a_gradient():
    for head in THEIRS:
        model = tiny(head)
        model(text()["tokens"]).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == [], head


@pytest.mark.parametrize("arguments, said", [
    (dict(depth=0), "depth must be at least 1, not 0"),
    (dict(n_heads=5), "d_model 24 does not divide into n_heads 5 heads of equal width"),
    (dict(pad=40), "pad 40 is not a token of a vocabulary of 40"),
    (dict(dropout=-0.1), r"dropout must be in \[0, 1\), not -0.1"),
    (dict(head="pretraining"), "unknown head 'pretraining': use 'masked', 'classification', 'spans', 'tagging' or None"),
])  # fmt: skip
def test_wrong_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Roberta(**SIZES | arguments)


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="17 tokens are more than the 16 positions of the model: cut the texts, or raise max_length"):
        tiny()(torch.zeros(1, 17, dtype=torch.long))


# ---- dynamic masking ----


class Letters(ByteLevel):
    """Twelve tokens with RoBERTa's special ones around them."""

    def __init__(self):
        self.size, self.mask = 17, 16


def sentences(count: int, generator: torch.Generator) -> torch.Tensor:
    """<s>, ten letters, </s>: each letter is followed by one of the next two, by chance."""
    steps = torch.randint(1, 3, (count, 9), generator=generator)
    first = torch.randint(12, (count, 1), generator=generator)
    letters = torch.cat([first, first + steps.cumsum(1)], 1) % 12
    return F.pad(F.pad(letters + 4, (1, 0), value=0), (0, 1), value=2)


@pytest.mark.claim
def test_masks_that_are_drawn_anew_serve_better_than_the_same_ones(claim):
    """Section 4.1, in small: where the same examples come round many times, other hidden tokens each time keep them from being learnt by heart."""
    seed, found = claim.seed(5), {}
    generator, pieces = torch.Generator().manual_seed(seed), Letters()
    train, valid = sentences(96, generator), sentences(400, generator)
    everywhere = torch.ones_like(train, dtype=torch.bool)
    hide = Hiding(0.15, 2, (0.8, 0.1, 0.1), None)
    shown, targets = hide(valid, torch.ones_like(valid, dtype=torch.bool), pieces, torch.rand(400, 36, generator=generator, dtype=torch.double))
    held_out = {"tokens": shown, "targets": targets, "attend": torch.ones_like(valid, dtype=torch.bool)}
    masks = torch.rand(100, 96, 36, generator=generator, dtype=torch.double)
    for name in ("static", "dynamic"):
        torch.manual_seed(seed)
        model = Roberta(vocab_size=17, depth=2, d_model=64, n_heads=4, d_ff=128, max_length=12, dropout=0.0)
        objective, found[name] = MaskedLanguageModel(model, predictions=2), {}
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), fused=True)
        for epoch in range(100):
            shown, targets = hide(train, everywhere, pieces, masks[epoch if name == "dynamic" else 0])
            for rows in torch.randperm(96, generator=generator).split(32):
                batch = {"tokens": shown[rows], "targets": targets[rows], "attend": everywhere[rows]}
                (objective(batch, "model")[0]["masked"] / objective.count(batch, "model")["masked"]).backward()
                optimizer.step()
                optimizer.zero_grad()
            if epoch % 5 == 4:
                with torch.no_grad():
                    statistics = objective.evaluate(held_out)
                found[name][epoch + 1] = objective.summarise({k: v.item() for k, v in statistics.items()})["masked_loss"]
    losses = {name: each[100] for name, each in found.items()}

    def draw():
        figure, axis = panels("Masks that stay the same are learnt by heart")
        lines = {"new masks\neach epoch": found["dynamic"], "the same\nmasks": found["static"]}
        curves(axis, {name: (list(each), list(each.values())) for name, each in lines.items()},
               xlabel="epochs over 96 sentences", ylabel="loss on other sentences (nats a gap)", ylim=(0, None))  # fmt: skip
        return figure

    claim(draw, seed=seed, **{f"validation_nats_{name}": loss for name, loss in losses.items()})
    # Thresholds by seeds 0 to 2: static 4.7, 5.3, 5.1; dynamic 1.16, 1.14, 0.94. Seed 3, unseen: 5.5, 0.75.
    assert losses["dynamic"] < losses["static"] - 1, losses
