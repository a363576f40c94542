# SPDX-License-Identifier: Apache-2.0
"""What a tile costs: shared memory, accumulator registers, blocks a multiprocessor. tests/aot holds compiled kernels to
these figures; the tuner leaves out what they rule out.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import KINDS, TileConfig


@dataclass(frozen=True)
class Card:
    """Limits of an architecture (CUDA programming guide) and how its matrix units read their operands."""

    shared_per_block: int
    shared_per_multiprocessor: int
    products_from_shared: bool


_KIB = 1024
CARDS: dict[int, Card] = {
    80: Card(163 * _KIB, 164 * _KIB, products_from_shared=False),
    86: Card(99 * _KIB, 100 * _KIB, products_from_shared=False),
    89: Card(99 * _KIB, 100 * _KIB, products_from_shared=False),
    90: Card(227 * _KIB, 228 * _KIB, products_from_shared=True),
    100: Card(227 * _KIB, 228 * _KIB, products_from_shared=True),
    120: Card(99 * _KIB, 100 * _KIB, products_from_shared=False),
}
REGISTERS_PER_THREAD = 255
REGISTERS_PER_MULTIPROCESSOR = 65536
# With more accumulators than this a thread has no registers left for operands, addresses and the epilogue's own
# values: every kernel tried with 192 of them spills.
MOST_ACCUMULATORS = 128


def card_for(capability: int) -> Card:
    """The limits of a card, by the nearest known architecture not above it."""
    return CARDS[max((known for known in CARDS if known <= capability), default=min(CARDS))]


def operand_bytes(tile: TileConfig, bits: int, capability: int) -> int:
    """Shared memory of the pipelined operands: one block of X and one of Y a buffer.

    Matrix units that read shared memory (sm_90, sm_100; 16 bit, at least 64 rows) are still reading the oldest buffer
    while the newest is being filled, so they need as many as there are stages; where a block is first copied into
    registers its buffer is free at once, and one fewer does.
    """
    from_shared = card_for(capability).products_from_shared and bits == 16 and tile.block_m >= 64
    buffers = tile.stages if from_shared else max(1, tile.stages - 1)
    return buffers * (tile.block_m + tile.block_n) * tile.block_k * bits // 8


def accumulator_registers(kind: str, tile: TileConfig) -> int:
    """fp32 accumulators a thread holds; on sm_100 they pass through its registers in the epilogue only."""
    return KINDS[kind] * tile.block_m * tile.block_n // (32 * tile.warps)


def most_registers(kind: str, tile: TileConfig) -> int:
    """Upper estimate of a thread's registers: the epilogue holds its tile and up to half as much again."""
    return min(REGISTERS_PER_THREAD, accumulator_registers(kind, tile) * 3 // 2 + 80)


def blocks_per_multiprocessor(warps: int, registers: int, shared: int, capability: int) -> int:
    """How many blocks run at once, by registers (given out in eights a thread) and shared memory (1 KiB reserved)."""
    by_registers = REGISTERS_PER_MULTIPROCESSOR // (-(-registers // 8) * 8 * 32 * warps)
    return min(by_registers, card_for(capability).shared_per_multiprocessor // (shared + _KIB))


def flops_per_operand_byte(tile: TileConfig, bits: int) -> float:
    """Multiplications and additions for each byte that the tile fetches from L2."""
    return 2 * tile.block_m * tile.block_n * 8 / ((tile.block_m + tile.block_n) * bits)


def fits(kind: str, tile: TileConfig, bits: int, capability: int) -> bool:
    """Whether a tile can run there at all without spilling, as far as arithmetic can tell."""
    enough_shared = operand_bytes(tile, bits, capability) <= card_for(capability).shared_per_block - _KIB
    return enough_shared and accumulator_registers(kind, tile) <= MOST_ACCUMULATORS
