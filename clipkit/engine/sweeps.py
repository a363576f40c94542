# SPDX-License-Identifier: Apache-2.0
"""The engine's interface: the sweeps over a pairwise form S = scale · X Yᵀ that the losses are made of.

Shapes everywhere: x [n, d] are this rank's rows, y [m, d] all columns, `scale` a 0-D tensor. Arithmetic, statistics and
results are fp32 (float64 for float64 inputs): 16-bit inputs are multiplied exactly and accumulated in fp32, and the
scale multiplies the fp32 product. `diagonal=k` says that row i's positive is column k + i. Products of gradients, "G
Y", come without the scale.

A backend implements some of these functions under the same names and arguments; `dispatch.choose` finds the one to
call.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from clipkit.engine.dispatch import choose
from clipkit.engine.workspace import Workspace


def log_sum_exps(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    diagonal: int | None,
    workspace: Workspace | None = None,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """Row and column log-sum-exps of S, [n] and [m]; with `diagonal`, positives are left out (-inf where nothing is
    left). The products may stay in `workspace`.
    """
    return choose("log_sum_exps", x, backend)(x, y, scale, diagonal=diagonal, workspace=workspace)


def anchor_statistics(
    x: Tensor, y: Tensor, scale: Tensor, *, diagonal: int | None, backend: str = ""
) -> tuple[Tensor, Tensor]:
    """(log-sum-exp [n] of scale_i <x_i, y_j> along the columns, mean [n] of <x_i, y_j> under that row's softmax).

    `scale` is 0-D, or [n] with a multiplier for each row. With `diagonal`, positives are left out of both; where
    nothing is left they are -inf and 0.
    """
    return choose("anchor_statistics", x, backend)(x, y, scale, diagonal=diagonal)


def exponential_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    row_offset: Tensor | None,
    column_offset: Tensor | None,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    diagonal: int,
    diagonal_weight: Tensor,
    want_x: bool = True,
    want_y: bool = True,
    workspace: Workspace | None = None,
    backend: str = "",
) -> tuple[Tensor | None, Tensor | None]:
    """(G Y [n, d], Gᵀ X [m, d]) for G_ij = e^(r_i S_ij - row_offset_i) + e^(c_j S_ij - column_offset_j), and G =
    diagonal_weight_i on positives.

    Without `row_offset` or without `column_offset` that term is absent. r is `row_scale` [n] and c `column_scale` [m],
    ones where absent; a logit is (scale · r_i) · <x_i, y_j>, so that a scale means the same in either place. The
    positives' weights come from outside because they are differences near zero (P_ii - 1) that only their own formula
    gets right. Offsets are such that no weight exceeds 2 in size: a backend may hold G in the type of 16-bit features.
    `workspace` is the one that `log_sum_exps` of this form was given.
    """
    return choose("exponential_products", x, backend)(
        x,
        y,
        scale,
        row_offset=row_offset,
        column_offset=column_offset,
        row_scale=row_scale,
        column_scale=column_scale,
        diagonal=diagonal,
        diagonal_weight=diagonal_weight,
        want_x=want_x,
        want_y=want_y,
        workspace=workspace,
    )


def sigmoid_sweep(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *, diagonal: int, want_gradients: bool, backend: str = ""
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(Σ softplus(-z X), G Y, Gᵀ X, Σ G) for X = S + bias, z = +1 on positives and -1 elsewhere, G = -z σ(-z X)."""
    return choose("sigmoid_sweep", x, backend)(x, y, scale, bias, diagonal=diagonal, want_gradients=want_gradients)


def labelled_sigmoid_sweep(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    target_offsets: Tensor,
    target_indices: Tensor,
    *,
    want_gradients: bool,
    backend: str = "",
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(Σ softplus(-z X), G W, Gᵀ x, Σ_rows G) for X = x Wᵀ + bias, positives of row i being target_indices[offsets_i :
    offsets_i+1].
    """
    return choose("labelled_sigmoid_sweep", x, backend)(
        x, weight, bias, target_offsets, target_indices, want_gradients=want_gradients
    )


def softmax_sweep(
    x: Tensor, y: Tensor, scale: Tensor, labels: Tensor, *, want_x: bool, want_y: bool, backend: str = ""
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(Σ_i LSE_i - S_i,label, G Y, Gᵀ X) for G = row softmax minus one-hot(labels), labels [n] int64 columns."""
    return choose("softmax_sweep", x, backend)(x, y, scale, labels, want_x=want_x, want_y=want_y)


class PairDivergence(NamedTuple):
    """How far a student's form is from a teacher's, over all pairs given: two sums, and the products of the gradient.

    With P, Q the student's row and column softmax and Pt, Qt the teacher's:
    divergence = Σ_ij Pt_ij φ(log P_ij/Pt_ij) + Qt_ij φ(log Q_ij/Qt_ij) for φ(r) = e^r - 1 - r, which over whole rows
    and columns is the sum of their KL(teacher ‖ student); entropy = -Σ_ij Pt_ij log Pt_ij + Qt_ij log Qt_ij; g_y = G Y
    [n, d] and gt_x = Gᵀ X [m, d] for G = P - Pt + Q - Qt, or None where not wanted.
    """

    divergence: Tensor
    entropy: Tensor
    g_y: Tensor | None
    gt_x: Tensor | None


def pair_divergence(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    x_teacher: Tensor,
    y_teacher: Tensor,
    teacher_scale: Tensor,
    *,
    row_student: Tensor,
    row_teacher: Tensor,
    column_student: Tensor,
    column_teacher: Tensor,
    want_x: bool = True,
    want_y: bool = True,
    backend: str = "",
) -> PairDivergence:
    """Divergence, entropy and products of a student's and a teacher's form in one sweep, from their four log-sum-exps
    (`log_sum_exps` of either form, columns merged over ranks).

    No term is negative, and an error in a log-sum-exp enters squared, so a divergence far below the rounding of the
    logits is right if each term is. With r = (S - T) - (LSE_student - LSE_teacher), in this order: for |r| < 1/2 the
    term is Pt φ(r), φ by its series, and P - Pt is Pt (r + φ(r)); beyond, P - Pt is the difference of the
    exponentials, which cannot overflow, and the term is (P - Pt) - Pt r.
    """
    return choose("pair_divergence", x, backend)(
        x,
        y,
        scale,
        x_teacher,
        y_teacher,
        teacher_scale,
        row_student=row_student,
        row_teacher=row_teacher,
        column_student=column_student,
        column_teacher=column_teacher,
        want_x=want_x,
        want_y=want_y,
    )


class Direction(NamedTuple):
    """A direction in which a pairwise form is differentiated: rows move along x [n, d], columns along y [m, d].

    The form's own derivative is R_ij = scale (x_i · Y_j + X_i · y_j).
    """

    x: Tensor
    y: Tensor


class Softmaxes(NamedTuple):
    """The row and column softmax P and Q of a form, and the means of how it moves: rows [n], columns [m].

    Row i's positive is column diagonal + i. There P - I, Q - I and the moved matrix M are differences near zero that
    only their own formulas get right: they are -row_miss, -column_miss and positive_weight, [n] each.
    """

    row_lse: Tensor
    column_lse: Tensor
    row_mean: Tensor
    column_mean: Tensor
    row_miss: Tensor
    column_miss: Tensor
    positive_weight: Tensor
    diagonal: int


def curvature_sums(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    *,
    row_lse: Tensor,
    column_lse: Tensor,
    diagonal: int,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """(Σ_j P_ij R_ij [n], Σ_i Q_ij R'_ij [m]) over all pairs but the positives: R along `along_rows`, R' along
    `along_columns`, P and Q the row and column softmax.

    A positive's part is its caller's: of learned pairs it would drown the others, which the gradient is made of.
    """
    return choose("curvature_sums", x, backend)(
        x, y, scale, along_rows, along_columns, row_lse=row_lse, column_lse=column_lse, diagonal=diagonal
    )


def curvature_products(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    along_rows: Direction,
    along_columns: Direction,
    softmaxes: Softmaxes,
    *,
    backend: str = "",
) -> tuple[Tensor, Tensor]:
    """The Hessian-vector sweep of the CLIP loss (`clipkit.functional.gd`), without the scale.

    With M = P∘(R - row_mean) + Q∘(R' - column_mean), P - I and Q - I, and on positives what `softmaxes` says:
    (M Y + (P-I) along_rows.y + (Q-I) along_columns.y,  Mᵀ X + (P-I)ᵀ along_rows.x + (Q-I)ᵀ along_columns.x).
    """
    return choose("curvature_products", x, backend)(x, y, scale, along_rows, along_columns, softmaxes)
