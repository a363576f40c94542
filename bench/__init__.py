# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against peers. Each is a module run with `python -m bench.NAME`; results are kept in bench/results/."""
