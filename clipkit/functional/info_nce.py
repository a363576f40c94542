# SPDX-License-Identifier: Apache-2.0
"""One-directional InfoNCE (van den Oord et al. 2018, arXiv 1807.03748, eq. 4) of queries against keys, exact over all
ranks' keys.

With S = scale · Q Kᵀ and y_i the key that belongs to query i: L = (1/N) Σ_i LSE_j(S_ij) - S_i,y_i, and ∂L/∂S = (P -
onehot(y))/N. A row's normaliser is known inside its own tile, so loss and gradients come out of one sweep; keys that
carry no gradient (a teacher's features, a queue) cost no second product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipkit.engine import sweeps
from clipkit.engine.precision import accumulation
from clipkit.errors import value_error
from clipkit.functional._checks import (
    agree,
    as_integers,
    as_scalar,
    check_features,
    check_same,
    common_type,
    readable,
)
from clipkit.functional._ops import fake_gradients, loss_op, nothing, register_gradients, shared, wanted
from clipkit.functional._products import Products, products_wanted
from clipkit.parallel import Layout, announced, gather_rows, group_name, sum_over_ranks


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
    name = group_name(group)
    with announced(name):
        check_features(queries=queries, keys=keys)
        check_same("columns", 1, queries=queries, keys=keys)
        labels = _check_labels(labels, queries, keys)
        query, key = common_type(queries, keys if key_grad else keys.detach())
        multiplier = as_scalar("scale", scale, query)
    wants = wanted(query, key, multiplier)
    return shared(_info_nce(query, key, multiplier, labels, wants, name, backend or "")[0], name)


@loss_op("info_nce")
def _info_nce(
    query: Tensor, key: Tensor, scale: Tensor, labels: Tensor, wants: Sequence[bool], group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, unit gradients of query, key and scale)."""
    queries = agree(query, group, "info_nce", wants=wants, backend=backend)
    keys = Layout.of(key, group)
    want_x, want_y = products_wanted(queries.wants)
    loss, g_key, gt_query = sweeps.softmax_sweep(
        query,
        gather_rows(key, keys),
        scale,
        labels + keys.start,
        want_x=want_x,
        want_y=want_y,
        backend=backend,
    )
    loss = sum_over_ranks(loss, queries) / queries.total
    if not any(queries.wants):
        return loss, *nothing(loss)
    products = Products.collect(g_key, gt_query, keys)
    return loss, *products.gradients(query, key, scale, queries, unit=1 / queries.total, wants=wants)


@_info_nce.register_fake
def _(
    query: Tensor, key: Tensor, scale: Tensor, labels: Tensor, wants: Sequence[bool], group: str, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = query.new_empty((), dtype=accumulation(query))
    return loss, *fake_gradients(wants, loss, query, key, scale)


register_gradients(_info_nce, count=3)


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
