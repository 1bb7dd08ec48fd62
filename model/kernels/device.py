# pyright: reportMissingImports=false, reportArgumentType=false, reportGeneralTypeIssues=false
"""The Triton kernels; nothing but `launch` imports this module, since Triton comes with CUDA builds of PyTorch alone.

Arithmetic is in fp32, sizes of blocks are fixed and no kernel adds atomically, so the same inputs give the same bits in
every session. Capital names are addresses and compile-time sizes. Sums over all rows (the gradient of a norm's weight)
are left as one partial sum a program, which PyTorch adds up.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr


@triton.jit
def add_norm_forward(
    X,
    UPDATE,
    WEIGHT,
    SUM,
    NORMED,
    SCALE,
    rows,
    eps,
    WIDTH: constexpr,
    BLOCK: constexpr,
    ROWS: constexpr,
    ADDS: constexpr,
):
    """SUM = X + UPDATE (if ADDS), NORMED = SUM / rms(SUM) * WEIGHT, SCALE = 1 / rms(SUM)."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    place = row[:, None] * WIDTH + column
    inside = (row[:, None] < rows) & (column < WIDTH)
    x = tl.load(X + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(UPDATE + place, mask=inside, other=0.0).to(tl.float32)
        x = x.to(SUM.dtype.element_ty).to(tl.float32)  # what the backward pass will read
        tl.store(SUM + place, x.to(SUM.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / WIDTH + eps)
    weight = tl.load(WEIGHT + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    tl.store(NORMED + place, (x * scale[:, None] * weight).to(NORMED.dtype.element_ty), mask=inside)
    tl.store(SCALE + row, scale, mask=row < rows)


@triton.jit
def add_norm_backward(
    SUM,
    WEIGHT,
    SCALE,
    GRAD_NORMED,
    GRAD_SUM,
    GRAD_X,
    GRAD_WEIGHT,
    rows,
    WIDTH: constexpr,
    BLOCK: constexpr,
    ROWS: constexpr,
    LOOPS: constexpr,
    ADDS: constexpr,
):
    """GRAD_X from GRAD_NORMED, plus GRAD_SUM (if ADDS); a program goes over LOOPS times ROWS rows."""
    column = tl.arange(0, BLOCK)
    weight = tl.load(WEIGHT + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    for loop in range(LOOPS):
        row = (tl.program_id(0) * LOOPS + loop) * ROWS + tl.arange(0, ROWS)
        place = row[:, None] * WIDTH + column
        inside = (row[:, None] < rows) & (column < WIDTH)
        scale = tl.load(SCALE + row, mask=row < rows, other=0.0)[:, None]
        normed = tl.load(SUM + place, mask=inside, other=0.0).to(tl.float32) * scale
        grad = tl.load(GRAD_NORMED + place, mask=inside, other=0.0).to(tl.float32)
        grad_weight += tl.sum(normed * grad, 0)
        grad *= weight
        along = tl.sum(normed * grad, 1)[:, None] / WIDTH
        grad = (grad - normed * along) * scale
        if ADDS:
            grad += tl.load(GRAD_SUM + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(GRAD_X + place, grad.to(GRAD_X.dtype.element_ty), mask=inside)
    tl.store(GRAD_WEIGHT + tl.program_id(0) * WIDTH + column, grad_weight, mask=column < WIDTH)


@triton.jit
def norm_rotate_forward(
    X,
    WEIGHT,
    COS,
    SIN,
    Y,
    SCALE,
    rows,
    eps,
    positions,
    HEADS: constexpr,
    HALF: constexpr,
    BLOCK: constexpr,
    ROWS: constexpr,
):
    """Y = rotated (X / rms(X) * WEIGHT); a row is one head of one token, in two halves that turn into each other."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column < HALF)
    place = row[:, None] * (2 * HALF) + column
    left = tl.load(X + place, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(X + place + HALF, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / (2 * HALF) + eps)
    left *= scale[:, None] * tl.load(WEIGHT + column, mask=column < HALF, other=0.0).to(tl.float32)
    right *= scale[:, None] * tl.load(WEIGHT + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    angle = (row // HEADS % positions)[:, None] * (2 * HALF) + HALF + column  # the right halves: cos and sin
    cos = tl.load(COS + angle, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(SIN + angle, mask=inside, other=0.0).to(tl.float32)
    tl.store(Y + place, (left * cos - right * sin).to(Y.dtype.element_ty), mask=inside)
    tl.store(Y + place + HALF, (right * cos + left * sin).to(Y.dtype.element_ty), mask=inside)
    tl.store(SCALE + row, scale, mask=row < rows)


@triton.jit
def norm_rotate_backward(
    X,
    WEIGHT,
    COS,
    SIN,
    SCALE,
    GRAD_Y,
    GRAD_X,
    GRAD_WEIGHT,
    rows,
    positions,
    HEADS: constexpr,
    HALF: constexpr,
    BLOCK: constexpr,
    ROWS: constexpr,
    LOOPS: constexpr,
):
    """Rotate GRAD_Y back, then go back through the norm; a program goes over LOOPS times ROWS rows."""
    column = tl.arange(0, BLOCK)
    weight_left = tl.load(WEIGHT + column, mask=column < HALF, other=0.0).to(tl.float32)
    weight_right = tl.load(WEIGHT + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    grad_weight_left = tl.zeros((BLOCK,), tl.float32)
    grad_weight_right = tl.zeros((BLOCK,), tl.float32)
    for loop in range(LOOPS):
        row = (tl.program_id(0) * LOOPS + loop) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column < HALF)
        place = row[:, None] * (2 * HALF) + column
        angle = (row // HEADS % positions)[:, None] * (2 * HALF) + HALF + column
        cos = tl.load(COS + angle, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(SIN + angle, mask=inside, other=0.0).to(tl.float32)
        turned_left = tl.load(GRAD_Y + place, mask=inside, other=0.0).to(tl.float32)
        turned_right = tl.load(GRAD_Y + place + HALF, mask=inside, other=0.0).to(tl.float32)
        grad_left = turned_left * cos + turned_right * sin
        grad_right = turned_right * cos - turned_left * sin
        scale = tl.load(SCALE + row, mask=row < rows, other=0.0)[:, None]
        left = tl.load(X + place, mask=inside, other=0.0).to(tl.float32) * scale
        right = tl.load(X + place + HALF, mask=inside, other=0.0).to(tl.float32) * scale
        grad_weight_left += tl.sum(left * grad_left, 0)
        grad_weight_right += tl.sum(right * grad_right, 0)
        grad_left *= weight_left
        grad_right *= weight_right
        along = ((tl.sum(left * grad_left, 1) + tl.sum(right * grad_right, 1)) / (2 * HALF))[:, None]
        tl.store(GRAD_X + place, ((grad_left - left * along) * scale).to(GRAD_X.dtype.element_ty), mask=inside)
        grad_right = (grad_right - right * along) * scale
        tl.store(GRAD_X + place + HALF, grad_right.to(GRAD_X.dtype.element_ty), mask=inside)
    part = tl.program_id(0) * (2 * HALF) + column
    tl.store(GRAD_WEIGHT + part, grad_weight_left, mask=column < HALF)
    tl.store(GRAD_WEIGHT + part + HALF, grad_weight_right, mask=column < HALF)


@triton.jit
def swiglu_forward(GATE_UP, HIDDEN, elements, WIDTH: constexpr, BLOCK: constexpr):
    """HIDDEN = silu(gate) * up; a row of GATE_UP is WIDTH gates and then WIDTH ups."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    source = place + place // WIDTH * WIDTH
    gate = tl.load(GATE_UP + source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(GATE_UP + source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    tl.store(HIDDEN + place, (gate * tl.sigmoid(gate) * up).to(HIDDEN.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(GATE_UP, HIDDEN, GRAD_GATE_UP, elements, WIDTH: constexpr, BLOCK: constexpr):
    """GRAD_GATE_UP from the gradient in HIDDEN, which is replaced by silu(gate) * up."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    source = place + place // WIDTH * WIDTH
    gate = tl.load(GATE_UP + source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(GATE_UP + source + WIDTH, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(HIDDEN + place, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(GRAD_GATE_UP + source, grad_gate.to(GRAD_GATE_UP.dtype.element_ty), mask=inside)
    tl.store(GRAD_GATE_UP + source + WIDTH, (grad * gate * sigmoid).to(GRAD_GATE_UP.dtype.element_ty), mask=inside)
    tl.store(HIDDEN + place, (gate * sigmoid * up).to(HIDDEN.dtype.element_ty), mask=inside)


@triton.jit
def router_forward(X, WEIGHT, LOGITS, rows, WIDTH: constexpr, BLOCK: constexpr, ROWS: constexpr, EXPERTS: constexpr):
    """LOGITS = X times WEIGHT transposed, for a few experts."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (row[:, None] < rows) & (column < WIDTH)
    x = tl.load(X + row[:, None] * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    for expert in range(EXPERTS):
        weight = tl.load(WEIGHT + expert * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        tl.store(LOGITS + row * EXPERTS + expert, tl.sum(x * weight, 1), mask=row < rows)


@triton.jit
def router_backward(
    X,
    WEIGHT,
    GRAD,
    GRAD_X,
    GRAD_WEIGHT,
    rows,
    WIDTH: constexpr,
    BLOCK: constexpr,
    LOOPS: constexpr,
    EXPERTS: constexpr,
    MANY: constexpr,
):
    """GRAD_X = GRAD times WEIGHT, GRAD_WEIGHT = GRAD transposed times X; a program goes over LOOPS rows."""
    column, expert = tl.arange(0, BLOCK), tl.arange(0, MANY)
    place = expert[:, None] * WIDTH + column
    inside = (expert[:, None] < EXPERTS) & (column < WIDTH)
    weight = tl.load(WEIGHT + place, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((MANY, BLOCK), tl.float32)
    first = tl.program_id(0) * LOOPS
    for row in range(first, tl.minimum(first + LOOPS, rows)):
        x = tl.load(X + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        grad = tl.load(GRAD + row * EXPERTS + expert, mask=expert < EXPERTS, other=0.0)[:, None]
        grad_x = tl.sum(grad * weight, 0).to(GRAD_X.dtype.element_ty)
        tl.store(GRAD_X + row * WIDTH + column, grad_x, mask=column < WIDTH)
        grad_weight += grad * x[None, :]
    tl.store(GRAD_WEIGHT + tl.program_id(0) * EXPERTS * WIDTH + place, grad_weight, mask=inside)


@triton.jit
def gather_sum(ROWS, WEIGHTS, ROW, SUM, WIDTH: constexpr, BLOCK: constexpr, TOP_K: constexpr, WEIGHED: constexpr):
    """SUM of a token = the sum of its TOP_K rows, each times its weight (if WEIGHED)."""
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for route in tl.static_range(TOP_K):
        row = tl.load(ROW + token * TOP_K + route)
        part = tl.load(ROWS + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        if WEIGHED:
            part *= tl.load(WEIGHTS + token * TOP_K + route)
        total += part
    tl.store(SUM + token * WIDTH + column, total.to(SUM.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def combine_backward(
    GRAD, ROWS, WEIGHTS, ROW, SOURCE, GRAD_ROWS, GRAD_WEIGHTS, WIDTH: constexpr, BLOCK: constexpr, TOP_K: constexpr
):
    """GRAD_ROWS of a row = its token's GRAD times its weight, GRAD_WEIGHTS = GRAD times ROWS; 0 where it only pads."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    token = tl.load(SOURCE + row)
    grad = tl.load(GRAD + token * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    y = tl.load(ROWS + row * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    product = tl.sum(grad * y, 0)
    weight = 0.0
    for route in tl.static_range(TOP_K):
        mine = tl.load(ROW + token * TOP_K + route) == row
        weight += tl.load(WEIGHTS + token * TOP_K + route, mask=mine, other=0.0)
        tl.store(GRAD_WEIGHTS + token * TOP_K + route, product, mask=mine)
    tl.store(GRAD_ROWS + row * WIDTH + column, (grad * weight).to(GRAD_ROWS.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def softmax_error(LOGITS, TARGET, LIKELIHOOD, smallest, VOCABULARY: constexpr, BLOCK: constexpr):
    """LOGITS of a token become softmax minus one-hot, LIKELIHOOD its target's log probability; NaN stays NaN."""
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    row, target = LOGITS + token * VOCABULARY, tl.load(TARGET + token)
    logit = tl.load(row + target).to(tl.float32)  # here: below the sums another warp may have overwritten it
    largest, total = tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        x = tl.load(row + start + column, mask=start + column < VOCABULARY, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - base) + tl.exp(x - base)
        largest = higher
    most = tl.max(largest, 0)
    whole = tl.sum(total * tl.exp(largest - most), 0)
    likelihood = logit - most - tl.log(whole)
    tl.store(LIKELIHOOD + token, tl.where(likelihood < smallest, smallest, likelihood))
    for start in range(0, VOCABULARY, BLOCK):
        inside = start + column < VOCABULARY
        x = tl.load(row + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        error = tl.exp(x - most) / whole - tl.where(start + column == target, 1.0, 0.0)
        tl.store(row + start + column, error.to(LOGITS.dtype.element_ty), mask=inside)
