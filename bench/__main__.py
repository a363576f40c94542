# SPDX-License-Identifier: Apache-2.0
"""`python -m bench` is `clipkit bench`."""

import sys

from clipkit.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
