# SPDX-License-Identifier: Apache-2.0
"""One-directional InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4) of queries against keys, exact over all
ranks' keys.

With S = scale · Q Kᵀ and y_i the key that belongs to query i: L = (1/N) Σ_i LSE_j(S_ij) - S_i,y_i, and ∂L/∂S = (P -
onehot(y))/N. A row's normaliser is known inside its own tile, so loss and gradients come out of one sweep; keys that
carry no gradient (a teacher's features, a queue) cost no second product.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.errors import value_error
from clipkit.functional._checks import (
    as_integers,
    as_scalar,
    check_features,
    check_nonempty,
    check_same,
    common_type,
    readable,
)
from clipkit.functional._ops import loss_op, nothing, only_if, register_unit_gradients, wants_gradient
from clipkit.functional._products import Products
from clipkit.parallel import Layout, gather_rows, group_name, sum_over_ranks


def info_nce(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    *,
    labels: Tensor | None = None,
    key_grad: bool = True,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each query over all keys of all ranks, averaged over the global queries, in nats.

    Args:
        queries: this rank's queries [n, d].
        keys: this rank's keys [m, d]; every query is compared with the keys of every rank.
        scale: the multiplier of the inner products: a float, a 0-D or a [1] tensor.
        labels: integers [n], the key of each query as an index into this rank's own keys; None means query i belongs to
            key i.
        key_grad: False treats keys as constants.
        group: the process group whose keys are compared; None for this process alone.
        backend: the engine's backend by name; None for the device's default.

    Returns:
        0-D fp32 (float64 for float64 inputs), equal on every rank; gradients as `clip_loss` describes.

    Raises:
        TypeError: an argument of a wrong kind or dtype.
        ValueError: shapes that do not fit together, or a label outside [0, m) (checked where it needs no wait for a
        device).
    """
    check_features(queries=queries, keys=keys)
    check_same("columns", 1, queries=queries, keys=keys)
    labels = _check_labels(labels, queries, keys)
    query, key = common_type(queries, keys if key_grad else keys.detach())
    multiplier = as_scalar("scale", scale, query)
    want_query, want_key = wants_gradient(query, multiplier), wants_gradient(key)
    return _info_nce(query, key, multiplier, labels, want_query, want_key, group_name(group), backend or "")[0]


@loss_op("info_nce")
def _info_nce(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    labels: Tensor,
    want_query: bool,
    want_key: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of query, key and scale in the accumulation type; empty where not wanted)."""
    queries, keys = Layout.of(query, group, (want_query, want_key)), Layout.of(key, group)
    check_nonempty(queries.total)
    loss, g_key, gt_query = sweeps.softmax_sweep(
        query,
        gather_rows(key, keys),
        scale,
        labels + keys.start,
        want_x=queries.wants[0],
        want_y=queries.wants[1],
        backend=backend,
    )
    loss = sum_over_ranks(loss, queries) / queries.total
    if g_key is None and gt_query is None:
        return loss, nothing(loss), nothing(loss), nothing(loss)
    unit = torch.full_like(loss, 1 / queries.total)
    products = Products(g_key, gt_query).collect(keys)
    grad_query, grad_key, grad_scale = products.unit_gradients(query, key, scale, unit, queries)
    want_scale = want_query or want_key
    return loss, only_if(want_query, grad_query), only_if(want_key, grad_key), only_if(want_scale, grad_scale)


@_info_nce.register_fake
def _(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    labels: Tensor,
    want_query: bool,
    want_key: bool,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulation(query)
    loss = query.new_empty((), dtype=dtype)
    return (
        loss,
        torch.empty_like(query, dtype=dtype) if want_query else nothing(loss),
        torch.empty_like(key, dtype=dtype) if want_key else nothing(loss),
        torch.empty_like(loss) if want_query or want_key else nothing(loss),
    )


register_unit_gradients(_info_nce)


def _check_labels(labels: Tensor | None, queries: Tensor, keys: Tensor) -> Tensor:
    count, available = queries.shape[0], keys.shape[0]
    if labels is None:
        if count > available:
            raise value_error(
                "keys",
                got=f"{available} keys for {count} queries",
                want="a key for each query",
                fix="pass labels, or at least as many keys as queries",
            )
        return torch.arange(count, device=queries.device)
    labels = as_integers("labels", labels)
    if labels.shape != (count,) or labels.device != queries.device:
        raise value_error(
            "labels",
            got=f"shape {tuple(labels.shape)} on {labels.device}",
            want=f"shape ({count},) on {queries.device}: one key index per query",
            fix="give the index of each query's key within this rank's keys",
        )
    if readable(labels) and count and not (int(labels.min()) >= 0 and int(labels.max()) < available):
        raise value_error(
            "labels",
            got=f"values from {int(labels.min())} to {int(labels.max())}",
            want=f"indices in [0, {available})",
            fix="count within this rank's own keys; the rank's offset is added inside",
        )
    return labels
