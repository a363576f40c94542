# SPDX-License-Identifier: Apache-2.0
"""merges.txt.gz: the 48,894 byte-pair merges that CLIP uses, one a line, most frequent first.

They are lines 2 to 48,895 of OpenAI's bpe_simple_vocab_16e6.txt (whose gzip file has the sha256
924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a); CLIP never reads the rest of that file. MIT
licence, beside it in LICENSE. sha256 of the unpacked text:
d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02.
"""
