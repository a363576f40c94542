# SPDX-License-Identifier: Apache-2.0
"""Arguments that do not fit together are refused by name before anything is computed."""

from __future__ import annotations

import pytest
import torch

from clipkit.encoders.fused import add_norm, add_post_norm, rotate, swiglu_norm

KEY = torch.zeros(2, 5, 3, 8)
TABLE = torch.zeros(4, 4)
ROWS, VECTOR = torch.zeros(2, 6), torch.zeros(6)
REFUSED = [
    ("key", lambda: rotate(KEY[0], KEY[0], TABLE, TABLE)),
    ("key", lambda: rotate(KEY[..., :7], KEY[..., :7], TABLE, TABLE)),
    ("key", lambda: rotate(KEY[:, :0], KEY[:, :0], TABLE, TABLE)),
    ("key", lambda: rotate(KEY.long(), KEY.long(), TABLE, TABLE)),
    ("query", lambda: rotate(KEY[:, :2], KEY, TABLE, TABLE)),
    ("query", lambda: rotate(KEY[:, :, :2], KEY, TABLE, TABLE)),
    ("query", lambda: rotate(KEY.bfloat16(), KEY, TABLE, TABLE)),
    ("cosines", lambda: rotate(KEY, KEY, TABLE.double(), TABLE)),
    ("cosines", lambda: rotate(KEY, KEY, TABLE[:3], TABLE[:3])),
    ("cosines", lambda: rotate(KEY, KEY, TABLE[:, :3], TABLE[:, :3])),
    ("sines", lambda: rotate(KEY, KEY, TABLE, TABLE.half())),
    ("sines", lambda: rotate(KEY, KEY, TABLE, TABLE[:3])),
    ("places", lambda: rotate(KEY, KEY, TABLE, TABLE, torch.zeros(2, 4, dtype=torch.int32))),
    ("places", lambda: rotate(KEY, KEY, TABLE, TABLE, torch.zeros(2, 5, dtype=torch.int64))),
    ("places", lambda: rotate(KEY, KEY, TABLE, TABLE, torch.zeros(4, dtype=torch.int64))),
    ("gate", lambda: swiglu_norm(ROWS.long(), ROWS.long(), VECTOR, VECTOR, 1e-6)),
    ("value", lambda: swiglu_norm(ROWS, ROWS[:, :5], VECTOR, VECTOR, 1e-6)),
    ("value", lambda: swiglu_norm(ROWS, ROWS.bfloat16(), VECTOR, VECTOR, 1e-6)),
    ("weight", lambda: swiglu_norm(ROWS, ROWS, torch.zeros(7), torch.zeros(7), 1e-6)),
    ("weight", lambda: swiglu_norm(ROWS, ROWS, torch.zeros(0), torch.zeros(0), 1e-6)),
    ("weight", lambda: swiglu_norm(ROWS, ROWS, ROWS, VECTOR, 1e-6)),
    ("bias", lambda: swiglu_norm(ROWS, ROWS, VECTOR, VECTOR[:5], 1e-6)),
    ("bias", lambda: swiglu_norm(ROWS, ROWS, VECTOR, VECTOR.long(), 1e-6)),
]
for operation in (add_norm, add_post_norm):
    REFUSED += [
        ("x", lambda operation=operation: operation(ROWS.long(), ROWS, VECTOR, VECTOR, 1e-6)),
        ("branch", lambda operation=operation: operation(ROWS, ROWS[:1], VECTOR, VECTOR, 1e-6)),
        ("branch", lambda operation=operation: operation(ROWS.bfloat16(), ROWS, VECTOR, VECTOR, 1e-6)),
        ("branch", lambda operation=operation: operation(ROWS.bfloat16(), ROWS.half(), VECTOR, VECTOR, 1e-6)),
        ("branch", lambda operation=operation: operation(ROWS.double(), ROWS.bfloat16(), VECTOR, VECTOR, 1e-6)),
        ("weight", lambda operation=operation: operation(ROWS, ROWS, VECTOR[:5], VECTOR[:5], 1e-6)),
        ("bias", lambda operation=operation: operation(ROWS, ROWS, VECTOR, VECTOR[:5], 1e-6)),
    ]


@pytest.mark.parametrize("argument, call", REFUSED)
def test_what_does_not_fit_is_named(argument, call):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: got .*; want "):
        call()


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"backend: got 'fast'"):
        swiglu_norm(ROWS, ROWS, VECTOR, VECTOR, 1e-6, backend="fast")
