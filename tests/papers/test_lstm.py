"""LSTM: numbers of weights, the cells against their equations and against torch, gradients, the language model. The tasks: test_lstm_tasks.py."""

import math

import pytest
import torch
from torch import nn

from zoo.objectives.language_modelling import LanguageModel
from zoo.papers import lstm
from zoo.papers.lstm import BlockNetwork, Cell1997, ForgetGateCell, LstmLanguageModel, Regressor, modern_cell
from zoo.papers.lstm.convert import from_torch, to_torch

EXACT = dict(rtol=1e-10, atol=1e-10)


def randomised(module: nn.Module) -> nn.Module:
    """In fp64, with weights of order 1: none of them can be swapped or forgotten unnoticed."""
    module.double()
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    return module


def unroll(cell: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict]:
    carry, outputs = cell.initial_carry(len(x)), []
    for x_t in x.unbind(1):
        y, carry = cell(x_t, carry)
        outputs.append(y)
    return torch.stack(outputs, 1), carry


def tiny_model(**options) -> LstmLanguageModel:
    return randomised(LstmLanguageModel(**{"vocab_size": 11, "hidden": 6, "layers": 2, **options}))


def text(batch: int = 3, length: int = 8) -> dict[str, torch.Tensor]:
    stream = torch.randint(11, (batch, length + 1))
    return {"tokens": stream[:, :-1], "targets": stream[:, 1:].clone(), "reset": torch.zeros(batch, dtype=torch.bool)}


def part(batch: dict[str, torch.Tensor], span: slice) -> dict[str, torch.Tensor]:
    return {"tokens": batch["tokens"][:, span], "targets": batch["targets"][:, span], "reset": batch["reset"]}


def random_carry(model: LstmLanguageModel, batch: int = 3) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(value) for name, value in model.initial_carry(batch).items()}


# ---- sizes ----


@pytest.mark.parametrize("preset, weights", [
    ("reber_4x1", 264), ("reber_3x2", 276), ("adding_1997", 93), ("multiplication_1997", 93), ("temporal_order_6a", 156),
    ("temporal_order_6b", 308), ("continual_reber", 424), ("continual_reber_1997", 360),
    ("adding_lstm", 17_217), ("adding_rnn", 4_353), ("reber_lstm", 18_887),
    ("zaremba_small", 4_651_600), ("zaremba_medium", 19_775_200), ("zaremba_large", 66_022_000),
])  # fmt: skip
def test_numbers_of_weights_equal_the_papers(preset, weights):
    with torch.device("meta"):
        assert sum(p.numel() for p in getattr(lstm, preset)().parameters()) == weights


def test_initial_weights_and_gate_biases_are_the_papers():
    """Table 10 of 1997; section 4 of 2000. What a net does not name is drawn like all other weights."""
    closing, opening = [-0.5, -1.0, -1.5, -2.0], [0.5, 1.0, 1.5, 2.0]
    for preset, bound, biases in (
        ("reber_4x1", 0.2, {"output_gate": [-1, -2, -3, -4]}),
        ("reber_3x2", 0.2, {"output_gate": [-1, -2, -3]}),
        ("adding_1997", 0.1, {"input_gate": [-3, -6]}),
        ("multiplication_1997", 0.1, {}),
        ("temporal_order_6a", 0.1, {"input_gate": [-2, -4]}),
        ("temporal_order_6b", 0.1, {"input_gate": [-2, -4, -6]}),
        ("continual_reber", 0.2, {"input_gate": closing, "output_gate": closing, "forget_gate": opening}),
        ("continual_reber_1997", 0.2, {"input_gate": closing, "output_gate": closing}),
    ):
        net = getattr(lstm, preset)()
        assert {gate: getattr(net.cell, gate).bias.tolist() for gate in biases} == biases
        set_by_hand = {f"cell.{gate}.bias" for gate in biases}
        free = torch.cat([p.flatten() for name, p in net.named_parameters() if name not in set_by_hand])
        assert 0.9 * bound < free.abs().max() <= bound
    assert 0.099 < max(p.abs().max() for p in lstm.zaremba_small(500).parameters()) <= 0.1


# ---- the cells ----


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def net_input(unit: nn.Linear, row: int, z: list[float]) -> float:
    return sum(w * v for w, v in zip(unit.weight[row].tolist(), z)) + (0.0 if unit.bias is None else unit.bias[row].item())


@pytest.mark.parametrize("gate_feedback", [True, False])
def test_the_1997_cell_is_its_equations_unit_by_unit(gate_feedback):
    cell = randomised(Cell1997(3, blocks=2, block_size=3, cell_bias=False, gate_feedback=gate_feedback))
    x = torch.randn(1, 6, 3).double()
    y, s, expected = [0.0] * cell.hidden, [0.0] * 6, []
    for t in range(6):
        z = x[0, t].tolist() + y
        y_in = [sigmoid(net_input(cell.input_gate, j, z)) for j in range(2)]
        y_out = [sigmoid(net_input(cell.output_gate, j, z)) for j in range(2)]
        for c in range(6):
            s[c] = s[c] + y_in[c // 3] * (4 * sigmoid(net_input(cell.cell_input, c, z)) - 2)
        y_c = [y_out[c // 3] * (2 * sigmoid(s[c]) - 1) for c in range(6)]
        y = y_c + y_in + y_out if gate_feedback else y_c
        expected.append(y_c)
    torch.testing.assert_close(unroll(cell, x)[0][0], torch.tensor(expected, dtype=torch.double), **EXACT)


def test_the_forget_gate_cell_is_its_equations_unit_by_unit():
    cell = randomised(ForgetGateCell(3, blocks=2, block_size=2))
    x = torch.randn(1, 6, 3).double()
    y, s, expected = [0.0] * 4, [0.0] * 4, []
    for t in range(6):
        z = x[0, t].tolist() + y
        forget, inp, out = ([sigmoid(net_input(g, j, z)) for j in range(2)] for g in (cell.forget_gate, cell.input_gate, cell.output_gate))
        s = [forget[c // 2] * s[c] + inp[c // 2] * (4 * sigmoid(net_input(cell.cell_input, c, z)) - 2) for c in range(4)]
        y = [out[c // 2] * (2 * sigmoid(s[c]) - 1) for c in range(4)]
        expected.append(y)
    torch.testing.assert_close(unroll(cell, x)[0][0], torch.tensor(expected, dtype=torch.double), **EXACT)


def test_the_1997_cell_is_an_lstm_cell_whose_forget_gate_is_stuck_at_one():
    """g(x) = 2 tanh(x/2) and h(s) = tanh(s/2): with c = s/2 and the cell's incoming weights halved, the two compute the same."""
    ours = randomised(Cell1997(3, blocks=4, gate_feedback=False, truncated=False))
    theirs = nn.LSTMCell(3, 4).double()
    weight = torch.cat([ours.input_gate.weight, torch.zeros(4, 7), ours.cell_input.weight / 2, ours.output_gate.weight])
    bias = torch.cat([ours.input_gate.bias, torch.full((4,), 1e4), ours.cell_input.bias / 2, ours.output_gate.bias])
    theirs.load_state_dict({"weight_ih": weight[:, :3], "weight_hh": weight[:, 3:], "bias_ih": bias, "bias_hh": torch.zeros_like(bias)})
    x = torch.randn(2, 9, 3).double()
    mine = unroll(ours, x)[0]
    state, outputs = None, []
    for x_t in x.unbind(1):
        state = theirs(x_t, state)
        outputs.append(state[0])
    torch.testing.assert_close(mine, torch.stack(outputs, 1), **EXACT)
    mine.square().sum().backward()
    torch.stack(outputs).square().sum().backward()
    gradient = torch.cat([theirs.weight_ih.grad, theirs.weight_hh.grad], 1).chunk(4)
    torch.testing.assert_close(ours.input_gate.weight.grad, gradient[0], **EXACT)
    torch.testing.assert_close(ours.cell_input.weight.grad, gradient[2] / 2, **EXACT)
    torch.testing.assert_close(ours.output_gate.weight.grad, gradient[3], **EXACT)


def test_the_modern_cell_equals_nn_lstm_in_outputs_and_gradients():
    theirs = randomised(nn.LSTM(5, 4, batch_first=True))
    ours = modern_cell(5, 4).double()
    ours.load_state_dict(from_torch(theirs.state_dict()))
    x = torch.randn(3, 7, 5).double()
    (mine, carry), (reference, (h, c)) = unroll(ours, x), theirs(x)
    torch.testing.assert_close(mine, reference, **EXACT)
    torch.testing.assert_close((carry["y"], carry["s"]), (h[0], c[0]), **EXACT)
    mine.square().sum().backward()
    reference.square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    gradients = from_torch({**gradients, "bias_hh_l0": torch.zeros(16).double()})  # either bias has the gradient of their sum
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], **EXACT)


def test_to_torch_undoes_from_torch():
    ours = randomised(modern_cell(5, 4))
    theirs = nn.LSTM(5, 4, batch_first=True).double()
    theirs.load_state_dict(to_torch(ours.state_dict()))
    x = torch.randn(2, 6, 5).double()
    torch.testing.assert_close(unroll(ours, x)[0], theirs(x)[0], **EXACT)
    for name, value in from_torch(theirs.state_dict()).items():
        assert torch.equal(value, ours.state_dict()[name])


# ---- the gradient ----


def test_the_truncated_gradient_is_the_forward_recursion_of_the_papers_appendix():
    """ds_c/dw is summed up while the net runs; an error at the end needs nothing from the past but these sums (1997, appendix A.1)."""
    net = randomised(lstm.adding_1997())
    x, target = torch.randn(1, 12, 2).double(), 0.3
    output, _ = net(x)
    (0.5 * (output[0, -1, 0] - target) ** 2).backward()

    cell, one = net.cell, torch.ones(1).double()
    with torch.no_grad():
        y, s = torch.zeros(8).double(), torch.zeros(4).double()
        ds_dcell, ds_din = torch.zeros(2, 4, 11).double()  # by the weights of a cell's input, and of its block's input gate
        block = torch.tensor([0, 0, 1, 1])
        for t in range(12):
            z = torch.cat([x[0, t], y])
            y_in, y_out = cell.input_gate(z).sigmoid(), cell.output_gate(z).sigmoid()
            squashed = cell.cell_input(z).sigmoid()
            z = torch.cat([z, one])  # the bias as a unit that is always 1
            g, slope = 4 * squashed - 2, 4 * squashed * (1 - squashed)
            ds_dcell = ds_dcell + torch.outer(slope * y_in[block], z)
            ds_din = ds_din + torch.outer(g * (y_in * (1 - y_in))[block], z)
            s = s + y_in[block] * g
            h = 2 * s.sigmoid() - 1
            y = torch.cat([y_out[block] * h, y_in, y_out])
        k = output[0, -1, 0]
        delta_k = (k - target) * k * (1 - k)
        error_y = net.output.weight[0] * delta_k
        error_s = error_y * y_out[block] * 2 * s.sigmoid() * (1 - s.sigmoid())
        delta_out = (error_y * h).view(2, 2).sum(1) * y_out * (1 - y_out)
    with_bias = lambda unit: torch.cat([unit.weight.grad, unit.bias.grad[:, None]], 1)
    torch.testing.assert_close(with_bias(cell.cell_input), error_s[:, None] * ds_dcell, **EXACT)
    torch.testing.assert_close(with_bias(cell.input_gate), (error_s[:, None] * ds_din).view(2, 2, 11).sum(1), **EXACT)
    torch.testing.assert_close(with_bias(cell.output_gate), torch.outer(delta_out, z), **EXACT)


def state_gradient(cell: nn.Module, steps: int) -> torch.Tensor:
    """d s(T) / d s(0), cells by cells."""
    carry, x = cell.initial_carry(1), torch.randn(1, steps, cell.inputs).double()

    def last_state(start):
        state = {**carry, "s": start}
        for x_t in x.unbind(1):
            _, state = cell(x_t, state)
        return state["s"]

    return torch.autograd.functional.jacobian(last_state, carry["s"])[0, :, 0]


def test_the_carousel_carries_an_error_back_unchanged_and_a_plain_network_does_not():
    assert torch.equal(state_gradient(randomised(Cell1997(3, blocks=2, block_size=2)), 200), torch.eye(4).double())
    full = state_gradient(randomised(Cell1997(3, blocks=2, block_size=2, truncated=False)), 20)
    assert not torch.allclose(full, torch.eye(4).double(), atol=0.1)
    plain = nn.RNN(3, 4, batch_first=True).double()
    start, x = torch.zeros(1, 1, 4).double(), torch.randn(1, 200, 3).double()
    assert torch.autograd.functional.jacobian(lambda h: plain(x, h)[1], start).norm() < 1e-6


def test_a_forget_gate_scales_the_error_by_its_activations():
    cell = randomised(ForgetGateCell(3, blocks=2))
    nn.init.zeros_(cell.forget_gate.weight)
    gradient = state_gradient(cell, 10)
    torch.testing.assert_close(gradient, torch.diag(cell.forget_gate.bias.detach().sigmoid() ** 10), **EXACT)


# ---- the nets ----


@pytest.mark.parametrize("shortcut", [False, True])
def test_output_units_see_the_cells_and_with_a_shortcut_the_input(shortcut):
    net = randomised(BlockNetwork(ForgetGateCell(3, blocks=2, block_size=2), outputs=5, shortcut=shortcut))
    x = torch.randn(2, 6, 3).double()
    y = unroll(net.cell, x)[0]
    seen = torch.cat([y, x], -1) if shortcut else y
    torch.testing.assert_close(net(x)[0], torch.sigmoid(seen @ net.output.weight.T + net.output.bias), **EXACT)


@pytest.mark.parametrize("make", [
    lambda: BlockNetwork(Cell1997(3, blocks=2, block_size=2), outputs=5), lambda: BlockNetwork(ForgetGateCell(3, blocks=2), outputs=5),
    lambda: Regressor(nn.LSTM(3, 4, 2, batch_first=True), outputs=5), lambda: Regressor(nn.RNN(3, 4, batch_first=True), outputs=5),
])  # fmt: skip
def test_a_net_goes_on_where_its_state_was_left(make):
    net, x = randomised(make()), torch.randn(2, 9, 3).double()
    whole, last = net(x)
    begun, carry = net(x[:, :4])
    ended, carry = net(x[:, 4:], carry)
    torch.testing.assert_close((torch.cat([begun, ended], 1), carry), (whole, last), **EXACT)
    assert {name: value.shape for name, value in carry.items()} == {name: value.shape for name, value in net.initial_carry(2).items()}


@pytest.mark.parametrize("make", [
    lambda: Cell1997(3, blocks=2, block_size=2), lambda: Cell1997(3, blocks=3, cell_bias=False, gate_feedback=False),
    lambda: ForgetGateCell(3, blocks=2, block_size=2), lambda: ForgetGateCell(3, blocks=2, g=torch.tanh, h=torch.tanh),
])  # fmt: skip
def test_all_steps_together_have_the_truncated_gradient_of_one_after_another(make):
    net, x = randomised(BlockNetwork(make(), outputs=5)), torch.randn(2, 9, 3).double()
    start = {name: torch.randn_like(value).requires_grad_() for name, value in net.initial_carry(2).items()}
    wanted = [*net.parameters(), start["s"]]

    def found(unrolled) -> tuple:
        y, carry = unrolled(x, start)
        loss = net.output(y).square().sum() + carry["s"].cos().sum()
        return y, carry, torch.autograd.grad(loss, wanted)

    torch.testing.assert_close(found(net.cell.sequence), found(net.step_by_step), **EXACT)


def test_a_large_forget_bias_is_as_good_as_no_forget_gate():
    net = Regressor(nn.LSTM(3, 4, batch_first=True), forget_bias=1000.0)
    start = net.initial_carry(2)["c"].requires_grad_()
    _, carry = net(torch.randn(2, 50, 3), {"h": torch.zeros(2, 1, 4), "c": start})
    carry["c"].sum().backward()
    rows = slice(4, 8)  # torch's order: input, forget, cell, output
    assert not net.recurrent.weight_ih_l0.grad[rows].any() and not net.recurrent.bias_ih_l0.grad[rows].any()
    assert net.recurrent.weight_ih_l0.grad[:4].any()


# ---- the language model ----


def test_the_language_model_is_a_stack_of_modern_cells():
    model = tiny_model(layers=2)
    batch = text()
    x, states = model.embedding(batch["tokens"]), []
    for layer in range(2):
        cell = modern_cell(6, 6).double()
        cell.load_state_dict(from_torch(model.lstm.state_dict(), layer))
        x, carry = unroll(cell, x)
        states.append(carry)
    logits, carry = model(batch["tokens"])
    torch.testing.assert_close(logits, model.decoder(x), **EXACT)
    torch.testing.assert_close(carry["h"], torch.stack([s["y"] for s in states], 1), **EXACT)
    torch.testing.assert_close(carry["c"], torch.stack([s["s"] for s in states], 1), **EXACT)


def test_dropout_leaves_the_connections_through_time_alone():
    model = tiny_model(dropout=1.0)  # nothing passes between layers: logits are the bias, states evolve whatever the tokens
    start = random_carry(model)
    (logits, one), (_, other) = model(text()["tokens"], start), model(text()["tokens"], start)
    assert torch.equal(logits, model.decoder.bias.expand_as(logits))
    assert torch.equal(one["h"], other["h"]) and not torch.equal(one["h"], start["h"])


def test_torchs_second_bias_is_zero_and_does_not_learn():
    model = tiny_model()
    model(text()["tokens"])[0].sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for layer in range(2):
        assert not getattr(model.lstm, f"bias_hh_l{layer}").any() and getattr(model.lstm, f"bias_ih_l{layer}").grad.any()
    assert set(model.lstm.state_dict()) == set(nn.LSTM(6, 6, 2).state_dict())


def test_a_long_window_equals_two_short_ones_with_the_state_carried():
    objective, batch = LanguageModel(tiny_model()), text(length=8)
    carry = random_carry(objective.model)
    terms, _, last = objective(batch, "model", carry)
    first, second = (part(batch, span) for span in (slice(3), slice(3, 8)))
    begun, _, carry = objective(first, "model", carry)
    ended, _, carry = objective(second, "model", carry)
    torch.testing.assert_close(begun["loss"] + ended["loss"], terms["loss"], **EXACT)
    torch.testing.assert_close(carry, last, **EXACT)
    assert not any(value.requires_grad for value in carry.values())


def test_reset_forgets_the_state_of_its_row_only():
    objective, batch = LanguageModel(tiny_model()), text()
    carry = random_carry(objective.model)
    carry["c"][1, 0, 0] = math.nan  # a state that went wrong is forgotten, too
    batch["reset"] = torch.tensor([False, True, False])
    _, _, after = objective(batch, "model", carry)
    for row, start in ((0, carry), (1, objective.initial_carry(3))):
        _, alone = objective.model(batch["tokens"][row : row + 1], {name: value[row : row + 1] for name, value in start.items()})
        torch.testing.assert_close(after["c"][row], alone["c"][0], **EXACT)


@pytest.mark.parametrize("reduction, counted", [("token", 21), ("sequence", 3)])
def test_reduction_chooses_what_the_summed_loss_is_divided_by(reduction, counted):
    objective, batch = LanguageModel(tiny_model(), reduction, unit="char"), text()
    batch["targets"][1, -3:] = -100
    terms, logs, _ = objective(batch, "model", objective.initial_carry(3))
    logits, _ = objective.model(batch["tokens"])
    chosen = logits.log_softmax(-1).gather(2, batch["targets"].clamp(min=0)[..., None])[..., 0]
    expected = -chosen[batch["targets"] != -100].sum()
    torch.testing.assert_close((terms["loss"], logs["nats_per_char"]), (expected, expected), **EXACT)
    counts = objective.count(batch, "model")
    assert int(counts["loss"]) == counted and int(counts["nats_per_char"]) == 21


def test_micro_batches_add_up_to_the_gradient_of_the_whole():
    objective, batch = LanguageModel(tiny_model()), text(batch=4)
    carry = random_carry(objective.model, 4)
    objective(batch, "model", carry)[0]["loss"].backward()
    whole = [p.grad.clone() for p in objective.parameters()]
    objective.zero_grad()
    for rows in (slice(0, 1), slice(1, 4)):
        piece, state = ({name: value[rows] for name, value in d.items()} for d in (batch, carry))
        objective(piece, "model", state)[0]["loss"].backward()
    torch.testing.assert_close([p.grad for p in objective.parameters()], whole, **EXACT)


@torch.no_grad()
def test_evaluation_in_pieces_equals_one_pass_and_names_its_metric():
    objective, batch = LanguageModel(tiny_model(), unit="word").eval(), text(length=10)
    batch["targets"][2, -4:] = -100
    whole, _ = objective.evaluate(batch, objective.initial_carry(3))
    carry, pieces = objective.initial_carry(3), []
    for piece in (slice(0, 4), slice(4, 5), slice(5, 10)):
        statistics, carry = objective.evaluate(part(batch, piece), carry)
        pieces.append(statistics)
    total = {name: sum(float(p[name]) for p in pieces) for name in whole}
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in whole.values())
    assert total["tokens"] == 26 and total["nats"] == pytest.approx(float(whole["nats"]), rel=1e-12)
    metrics = objective.summarise(total)
    assert set(metrics) == {"loss", "perplexity", "bits_per_word"}
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"])) == pytest.approx(2 ** metrics["bits_per_word"])
    assert objective.summarise({"nats": 1e6, "tokens": 1.0})["perplexity"] == math.inf


def test_samples_are_decided_by_the_generator():
    objective = LanguageModel(tiny_model()).eval()
    draw = lambda seed, **options: objective.sample(4, torch.Generator().manual_seed(seed), length=9, **options)
    assert draw(0).shape == (4, 9) and draw(0).dtype == torch.int64 and draw(0).min() >= 0 and draw(0).max() < 11
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    prompt = torch.tensor([3, 1, 4])
    assert torch.equal(draw(0, prompt=prompt), draw(0, prompt=prompt.expand(4, 3)))


def test_cold_samples_follow_the_most_probable_continuation_of_the_prompt():
    objective, prompt = LanguageModel(tiny_model()).eval(), torch.tensor([[3, 1, 4]])
    drawn = objective.sample(1, torch.Generator().manual_seed(0), length=5, temperature=1e-3, prompt=prompt)
    for _ in range(5):
        prompt = torch.cat([prompt, objective.model(prompt)[0][:, -1:].argmax(-1)], dim=1)
    assert torch.equal(drawn, prompt[:, 3:])


def test_under_autocast_the_state_keeps_its_precision():
    model = tiny_model().float()
    with torch.autocast("cpu", torch.bfloat16):
        logits, carry = model(text()["tokens"])
        terms, _, _ = LanguageModel(model)(text(), "model", carry)
    assert logits.dtype == torch.bfloat16 and {value.dtype for value in carry.values()} == {torch.float32} == {terms["loss"].dtype}


def test_wrong_shapes_and_options_are_refused_in_a_sentence():
    model, batch, long = tiny_model(), text(), torch.zeros(3, 4).long()
    objective, generator = LanguageModel(model), torch.Generator()
    train = lambda **other: objective({**batch, **other}, "model", objective.initial_carry(3))
    for message, call in {
        r"tokens must be \(batch, time\), not \(8,\)": lambda: model(batch["tokens"][0]),
        r"carry 'h' must be \(batch, layers, hidden\) \(3, 2, 6\), not \(2, 2, 6\)": lambda: model(long, model.initial_carry(2)),
        r"targets must have the shape of tokens \(3, 8\), not \(3, 4\)": lambda: train(targets=long),
        r"reset must be one value for each of the 3 sequences, not of shape \(2,\)": lambda: train(reset=batch["reset"][:2]),
        r"reduction must be token or sequence, not 'mean'": lambda: LanguageModel(model, "mean"),
        r"unit must be token, char or word, not 'byte'": lambda: LanguageModel(model, unit="byte"),
        r"temperature must be above 0 and length at least 1, not 0 and 100": lambda: objective.sample(1, generator, temperature=0),
        r"prompt must be \(P,\) or \(2, P\) with P at least 1, not \(3, 4\)": lambda: objective.sample(2, generator, prompt=long),
        r"inputs must be \(batch, time, 2\), not \(4, 5, 3\)": lambda: lstm.adding_1997()(torch.zeros(4, 5, 3)),
        r"inputs must be \(batch, time, 2\), not \(5, 2\)": lambda: lstm.adding_lstm()(torch.zeros(5, 2)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
