# SPDX-License-Identifier: Apache-2.0
"""`python -m clipkit` is the `clipkit` command."""

import sys

from clipkit.cli import main

sys.exit(main())
