"""Long Short-Term Memory (Hochreiter and Schmidhuber, Neural Computation 9(8), 1997), its forget gate (Gers, Schmidhuber and Cummins,
Neural Computation 12(10), 2000) and the regularised language model of Zaremba, Sutskever and Vinyals (2014, arXiv:1409.2329).

B batch, T time steps, I input units, K output units, H hidden width of a modern layer, L layers, V vocabulary.
1997's letters: in and out the gates of a memory block, c its cells, s their internal state, y an activation, g and h squashing functions.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Carry = dict[str, Tensor]  # recurrent state, items first


def centred_g(x: Tensor) -> Tensor:
    """g(x) = 4 σ(x) - 2, in [-2, 2] (1997, appendix A.1)."""
    return 4 * torch.sigmoid(x) - 2


def centred_h(x: Tensor) -> Tensor:
    """h(x) = 2 σ(x) - 1, in [-1, 1] (1997, appendix A.1)."""
    return 2 * torch.sigmoid(x) - 1


def by_block(gate: Tensor, cells: Tensor) -> Tensor:  # (..., blocks), (..., cells) -> (..., cells)
    """gate x cells: all cells of a block share its gate."""
    return (gate[..., None] * cells.view(*gate.shape, -1)).flatten(-2)


@torch.no_grad()
def activations_before(cell: nn.Module, x: Tensor, carry: Carry) -> Tensor:  # (B, T, I) -> (B, T, hidden)
    """y(t-1) for each step t."""
    before = []
    for x_t in x.unbind(1):
        before.append(carry["y"])
        _, carry = cell(x_t, carry)
    return torch.stack(before, dim=1)


class Cell1997(nn.Module):
    """One step of a hidden layer of memory blocks, without a forget gate (1997, section 4):

    z(t) = [x(t), y(t-1)]                                    y: all cells and, with `gate_feedback`, all gates (section 5: x(t) acts at once)
    y_in(t) = σ(W_in z(t)),  y_out(t) = σ(W_out z(t))        one of each a block, shared by its cells
    s_c(t) = s_c(t-1) + y_in(t) g(W_c z(t)),  s_c(0) = 0     the constant error carousel: its self-weight is 1
    y_c(t) = y_out(t) h(s_c(t))

    Args:
        blocks, block_size: memory blocks and cells in each.
        cell_bias: gates always have a bias, cells only in some of the paper's experiments.
        truncated: the paper's gradient. Errors that arrive at net inputs change the weights there but go no further back, so that only s_c
            carries them through time. False: the full gradient.
    """

    def __init__(self, inputs: int, blocks: int, block_size: int = 1, cell_bias: bool = True, gate_feedback: bool = True,
                 truncated: bool = True):  # fmt: skip
        super().__init__()
        self.inputs, self.gate_feedback, self.truncated = inputs, gate_feedback, truncated
        self.cells = blocks * block_size
        self.hidden = self.cells + 2 * blocks if gate_feedback else self.cells
        self.input_gate = nn.Linear(inputs + self.hidden, blocks)
        self.output_gate = nn.Linear(inputs + self.hidden, blocks)
        self.cell_input = nn.Linear(inputs + self.hidden, self.cells, bias=cell_bias)

    def initial_carry(self, batch_size: int) -> Carry:
        weight, sizes = self.cell_input.weight, {"y": self.hidden, "s": self.cells}
        return {name: torch.zeros(batch_size, size, dtype=weight.dtype, device=weight.device) for name, size in sizes.items()}

    def write(self, x: Tensor, y_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y_in, y_out (..., blocks), and what comes to s_c, y_in g(W_c z) (..., cells)."""
        z = torch.cat([x, y_before.detach() if self.truncated else y_before], dim=-1)
        y_in, y_out = torch.sigmoid(self.input_gate(z)), torch.sigmoid(self.output_gate(z))
        return y_in, y_out, by_block(y_in, centred_g(self.cell_input(z)))

    def read(self, y_in: Tensor, y_out: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """y_c (..., cells), and y (..., hidden), what the layer sees of itself."""
        y_c = by_block(y_out, centred_h(s))
        return y_c, torch.cat([y_c, y_in, y_out], dim=-1) if self.gate_feedback else y_c

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:  # (B, I) -> (B, cells)
        y_in, y_out, written = self.write(x, carry["y"])
        s = carry["s"] + written
        y_c, y = self.read(y_in, y_out, s)
        return y_c, {"y": y, "s": s}

    def sequence(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:  # (B, T, I) -> (B, T, cells)
        """All steps together, by the truncated gradient: to it, y(t-1) is an input like x(t)."""
        y_in, y_out, written = self.write(x, activations_before(self, x, carry))
        s = carry["s"][:, None] + written.cumsum(1)
        y_c, y = self.read(y_in, y_out, s)
        return y_c, {"y": y[:, -1], "s": s[:, -1]}


class ForgetGateCell(nn.Module):
    """One step of a hidden layer of memory blocks with forget gates φ (2000, section 3); gates do not see gates:

    z(t) = [x(t), y_c(t-1)]
    y_φ(t) = σ(W_φ z(t)),  y_in(t) = σ(W_in z(t)),  y_out(t) = σ(W_out z(t))
    s_c(t) = y_φ(t) s_c(t-1) + y_in(t) g(W_c z(t)),  s_c(0) = 0
    y_c(t) = y_out(t) h(s_c(t))

    With blocks of one cell, g = h = tanh, biased cells and the full gradient it is `torch.nn.LSTMCell` (`modern_cell`).

    Args: see Cell1997; g and h squash a cell's input and its state.
    """

    def __init__(self, inputs: int, blocks: int, block_size: int = 1, cell_bias: bool = False, truncated: bool = True,
                 g: Callable[[Tensor], Tensor] = centred_g, h: Callable[[Tensor], Tensor] = centred_h):  # fmt: skip
        super().__init__()
        self.inputs, self.truncated, self.g, self.h = inputs, truncated, g, h
        self.cells = blocks * block_size
        self.input_gate = nn.Linear(inputs + self.cells, blocks)
        self.forget_gate = nn.Linear(inputs + self.cells, blocks)
        self.output_gate = nn.Linear(inputs + self.cells, blocks)
        self.cell_input = nn.Linear(inputs + self.cells, self.cells, bias=cell_bias)

    def initial_carry(self, batch_size: int) -> Carry:
        weight = self.cell_input.weight
        return {name: torch.zeros(batch_size, self.cells, dtype=weight.dtype, device=weight.device) for name in ("y", "s")}

    def write(self, x: Tensor, y_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y_φ, y_out (..., blocks), and what comes to s_c, y_in g(W_c z) (..., cells)."""
        z = torch.cat([x, y_before.detach() if self.truncated else y_before], dim=-1)
        y_in, y_forget, y_out = (torch.sigmoid(gate(z)) for gate in (self.input_gate, self.forget_gate, self.output_gate))
        return y_forget, y_out, by_block(y_in, self.g(self.cell_input(z)))

    def forward(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:  # (B, I) -> (B, cells)
        y_forget, y_out, written = self.write(x, carry["y"])
        s = by_block(y_forget, carry["s"]) + written
        y_c = by_block(y_out, self.h(s))
        return y_c, {"y": y_c, "s": s}

    def sequence(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:  # (B, T, I) -> (B, T, cells)
        """All steps together, by the truncated gradient: to it, y(t-1) is an input like x(t). Only s goes from step to step."""
        y_forget, y_out, written = self.write(x, activations_before(self, x, carry))
        states = [carry["s"]]
        for forget, new in zip(y_forget.unbind(1), written.unbind(1)):
            states.append(by_block(forget, states[-1]) + new)
        y_c = by_block(y_out, self.h(torch.stack(states[1:], dim=1)))
        return y_c, {"y": y_c[:, -1], "s": states[-1]}


class BlockNetwork(nn.Module):
    """The three-layer net of the 1997 and 2000 experiments: y_k(t) = σ(W_k y_c(t)); with `shortcut` output units see x(t), too (2000).

    Args:
        cell: the hidden layer.
        init_range: weights and biases start in U[-init_range, init_range] ...
        gate_biases: ... except these, one value a block: {"input_gate": (-3.0, -6.0)}.

    Raises:
        ValueError: if the inputs are not (B, T, I).
    """

    def __init__(self, cell: Cell1997 | ForgetGateCell, outputs: int, output_bias: bool = True, shortcut: bool = False,
                 init_range: float = 0.1, gate_biases: Mapping[str, Sequence[float]] = {}):  # fmt: skip
        super().__init__()
        self.cell, self.shortcut = cell, shortcut
        self.output = nn.Linear(cell.cells + (cell.inputs if shortcut else 0), outputs, bias=output_bias)
        self.reset_parameters(init_range, gate_biases)

    @torch.no_grad()
    def reset_parameters(self, init_range: float, gate_biases: Mapping[str, Sequence[float]]) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)
        for gate, biases in gate_biases.items():
            bias = getattr(self.cell, gate).bias
            bias.copy_(torch.tensor(biases, dtype=bias.dtype))

    def initial_carry(self, batch_size: int) -> Carry:
        return self.cell.initial_carry(batch_size)

    def forward(self, x: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:  # (B, T, I) -> (B, T, K)
        if x.ndim != 3 or x.shape[2] != self.cell.inputs:
            raise ValueError(f"inputs must be (batch, time, {self.cell.inputs}), not {tuple(x.shape)}")
        carry = self.initial_carry(len(x)) if carry is None else carry
        y, carry = (self.cell.sequence if self.cell.truncated else self.step_by_step)(x, carry)  # (B, T, cells)
        return torch.sigmoid(self.output(torch.cat([y, x], dim=-1) if self.shortcut else y)), carry

    def step_by_step(self, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:  # (B, T, I) -> (B, T, cells)
        cells = []
        for x_t in x.unbind(1):
            y_c, carry = self.cell(x_t, carry)
            cells.append(y_c)
        return torch.stack(cells, dim=1), carry


def single_bias(recurrent: nn.LSTM | nn.RNN) -> None:
    """The equations have one bias a layer, torch adds two, b_ih + b_hh: here b_hh is a buffer of zeros, neither counted nor learned."""
    for name, bias in list(recurrent.named_parameters()):
        if name.startswith("bias_hh"):
            delattr(recurrent, name)
            recurrent.register_buffer(name, torch.zeros_like(bias))
            setattr(recurrent, name, getattr(recurrent, name))  # which also enters it in the list that torch hands to the kernel


class Regressor(nn.Module):
    """Linear output units on torch's fused layers (`nn.LSTM`, or `nn.RNN` to compare): the fast path for the tasks of 1997 and 2000.

    Args:
        forget_bias: start of the LSTM's forget gates (Jozefowicz et al. 2015 advise 1); other biases start at zero, weights as in torch.
            From 100 or so on the gates are 1 and stay 1, as if there were none: their activations and gradients are rounded.

    Raises:
        ValueError: if the inputs are not (B, T, I).
    """

    def __init__(self, recurrent: nn.LSTM | nn.RNN, outputs: int = 1, forget_bias: float = 1.0):
        super().__init__()
        single_bias(recurrent)
        self.recurrent, self.states = recurrent, ("h", "c") if isinstance(recurrent, nn.LSTM) else ("h",)
        self.output = nn.Linear(recurrent.hidden_size, outputs)
        self.reset_parameters(forget_bias)

    @torch.no_grad()
    def reset_parameters(self, forget_bias: float) -> None:
        for name, parameter in self.recurrent.named_parameters():
            if name.startswith("bias_ih"):
                parameter.zero_()
                if isinstance(self.recurrent, nn.LSTM):
                    # Departure: neither the 1997 nor the 2000 paper starts forget gates at 1.
                    parameter.chunk(4)[1].fill_(forget_bias)  # torch's order: input, forget, cell, output

    def initial_carry(self, batch_size: int) -> Carry:
        """Zeros: {"h": (B, L, H)} and, for an LSTM, {"c": (B, L, H)}."""
        weight, shape = self.output.weight, (batch_size, self.recurrent.num_layers, self.recurrent.hidden_size)
        return {name: torch.zeros(shape, dtype=weight.dtype, device=weight.device) for name in self.states}

    def forward(self, x: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:  # (B, T, I) -> (B, T, K)
        if x.ndim != 3 or x.shape[2] != self.recurrent.input_size:
            raise ValueError(f"inputs must be (batch, time, {self.recurrent.input_size}), not {tuple(x.shape)}")
        carry = self.initial_carry(len(x)) if carry is None else carry
        state = [carry[name].transpose(0, 1).contiguous() for name in self.states]  # torch wants layers first
        y, state = self.recurrent(x, state[0] if len(state) == 1 else tuple(state))
        state = (state,) if isinstance(state, Tensor) else state
        return self.output(y), {name: value.transpose(0, 1).to(x.dtype) for name, value in zip(self.states, state)}  # autocast makes them bf16


class LstmLanguageModel(nn.Module):
    """Zaremba et al., section 3: L layers of LSTM cells with dropout D on the connections between layers, never on those through time.

    i, f, o = σ(W [D(h^{l-1}(t)), h^l(t-1)] + b),  g = tanh(W_g [D(h^{l-1}(t)), h^l(t-1)] + b_g)
    c^l(t) = f c^l(t-1) + i g,  h^l(t) = o tanh(c^l(t))              h^0(t): embedding of token t
    logits(t) = W_y D(h^L(t)) + b_y                                  W_y is not tied to the embedding

    Args:
        hidden: width of the embedding and of every layer.
        dropout: probability of dropping an activation.
        init_range: every weight and bias starts in U[-init_range, init_range].

    Raises:
        ValueError: if tokens are not (B, T), or the carry belongs to another batch or model.
    """

    def __init__(self, vocab_size: int, hidden: int, layers: int = 2, dropout: float = 0.0, init_range: float = 0.1):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        single_bias(self.lstm)
        self.decoder = nn.Linear(hidden, vocab_size)
        self.reset_parameters(init_range)

    def reset_parameters(self, init_range: float) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

    def initial_carry(self, batch_size: int) -> Carry:
        """Zeros: {"h": (B, L, H), "c": (B, L, H)}."""
        weight, shape = self.decoder.weight, (batch_size, self.lstm.num_layers, self.lstm.hidden_size)
        return {name: torch.zeros(shape, dtype=weight.dtype, device=weight.device) for name in ("h", "c")}

    def forward_features(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:  # (B, T) -> (B, T, H)
        if tokens.ndim != 2:
            raise ValueError(f"tokens must be (batch, time), not {tuple(tokens.shape)}")
        carry = self.initial_carry(len(tokens)) if carry is None else carry
        expected = (len(tokens), self.lstm.num_layers, self.lstm.hidden_size)
        for name in ("h", "c"):
            if carry[name].shape != expected:
                raise ValueError(f"carry {name!r} must be (batch, layers, hidden) {expected}, not {tuple(carry[name].shape)}")
        state = tuple(carry[name].transpose(0, 1).contiguous() for name in ("h", "c"))  # torch wants layers first
        y, (h, c) = self.lstm(self.dropout(self.embedding(tokens)), state)
        carry = {"h": h.transpose(0, 1).to(carry["h"].dtype), "c": c.transpose(0, 1).to(carry["c"].dtype)}  # autocast makes them bf16
        # y is a transposed view: in inference mode a linear layer would copy its weight for each item of the batch
        return self.dropout(y.contiguous()), carry

    def forward(self, tokens: Tensor, carry: Carry | None = None) -> tuple[Tensor, Carry]:  # -> (B, T, V) logits
        features, carry = self.forward_features(tokens, carry)
        return self.decoder(features), carry


def modern_cell(inputs: int, hidden: int) -> ForgetGateCell:
    """`torch.nn.LSTMCell`, written out."""
    return ForgetGateCell(inputs, hidden, cell_bias=True, truncated=False, g=torch.tanh, h=torch.tanh)


# The nets of 1997's experiments and of 2000; numbers of weights as printed in their tables, initial gate biases in 1997's table 10.
def reber_4x1(truncated: bool = True) -> BlockNetwork:
    """Embedded Reber grammar (experiment 1), 4 blocks of 1 cell: 264 weights. Output gates open one after another, as they are needed."""
    cell = Cell1997(7, blocks=4, block_size=1, cell_bias=False, truncated=truncated)
    return BlockNetwork(cell, outputs=7, output_bias=False, init_range=0.2, gate_biases={"output_gate": (-1.0, -2.0, -3.0, -4.0)})


def reber_3x2(truncated: bool = True) -> BlockNetwork:
    """Embedded Reber grammar (experiment 1), 3 blocks of 2 cells: 276 weights."""
    cell = Cell1997(7, blocks=3, block_size=2, cell_bias=False, truncated=truncated)
    return BlockNetwork(cell, outputs=7, output_bias=False, init_range=0.2, gate_biases={"output_gate": (-1.0, -2.0, -3.0)})


def adding_1997(truncated: bool = True) -> BlockNetwork:
    """Adding problem (experiment 4): 93 weights. Closed input gates keep the state from drifting at first."""
    return BlockNetwork(Cell1997(2, blocks=2, block_size=2, truncated=truncated), outputs=1, gate_biases={"input_gate": (-3.0, -6.0)})


def multiplication_1997(truncated: bool = True) -> BlockNetwork:
    """Multiplication problem (experiment 5): 93 weights, all of them random at first."""
    return BlockNetwork(Cell1997(2, blocks=2, block_size=2, truncated=truncated), outputs=1)


def temporal_order_6a(truncated: bool = True) -> BlockNetwork:
    """Temporal order of two symbols (experiment 6a): 156 weights."""
    return BlockNetwork(Cell1997(8, blocks=2, block_size=2, truncated=truncated), outputs=4, gate_biases={"input_gate": (-2.0, -4.0)})


def temporal_order_6b(truncated: bool = True) -> BlockNetwork:
    """Temporal order of three symbols (experiment 6b): 308 weights."""
    return BlockNetwork(Cell1997(8, blocks=3, block_size=2, truncated=truncated), outputs=8, gate_biases={"input_gate": (-2.0, -4.0, -6.0)})


CLOSING, OPENING = (-0.5, -1.0, -1.5, -2.0), (0.5, 1.0, 1.5, 2.0)  # gate biases of 2000, a block each


def continual_reber(truncated: bool = True) -> BlockNetwork:
    """Continual embedded Reber grammar (2000), with forget gates: 424 weights."""
    cell = ForgetGateCell(7, blocks=4, block_size=2, truncated=truncated)
    gate_biases = {"input_gate": CLOSING, "output_gate": CLOSING, "forget_gate": OPENING}
    return BlockNetwork(cell, outputs=7, shortcut=True, init_range=0.2, gate_biases=gate_biases)


def continual_reber_1997(truncated: bool = True) -> BlockNetwork:
    """The same net without forget gates, "standard LSTM" in table 2 of 2000: 424 - 4 (7 + 8 + 1) = 360 weights."""
    cell = Cell1997(7, blocks=4, block_size=2, cell_bias=False, gate_feedback=False, truncated=truncated)
    return BlockNetwork(cell, outputs=7, shortcut=True, init_range=0.2, gate_biases={"input_gate": CLOSING, "output_gate": CLOSING})


def adding_lstm(hidden: int = 64, forget_bias: float = 1.0) -> Regressor:
    """The adding problem by a modern LSTM layer."""
    return Regressor(nn.LSTM(2, hidden, batch_first=True), forget_bias=forget_bias)


def adding_rnn(hidden: int = 64) -> Regressor:
    """The same by a tanh network, whose gradient vanishes: the paper's point of comparison."""
    return Regressor(nn.RNN(2, hidden, batch_first=True))


def reber_lstm(hidden: int = 64, forget_bias: float = 1.0) -> Regressor:
    """The embedded Reber grammar, in strings or continual, by a modern LSTM layer."""
    return Regressor(nn.LSTM(7, hidden, batch_first=True), outputs=7, forget_bias=forget_bias)


# Zaremba et al., section 4.1. Parameters at 10,000 words: 4,651,600, 19,775,200, 66,022,000.
def zaremba_small(vocab_size: int = 10_000, dropout: float = 0.0) -> LstmLanguageModel:
    """Non-regularised LSTM: U[-0.1, 0.1]."""
    return LstmLanguageModel(vocab_size, hidden=200, dropout=dropout, init_range=0.1)


def zaremba_medium(vocab_size: int = 10_000, dropout: float = 0.5) -> LstmLanguageModel:
    return LstmLanguageModel(vocab_size, hidden=650, dropout=dropout, init_range=0.05)


def zaremba_large(vocab_size: int = 10_000, dropout: float = 0.65) -> LstmLanguageModel:
    return LstmLanguageModel(vocab_size, hidden=1500, dropout=dropout, init_range=0.04)
