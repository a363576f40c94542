# SPDX-License-Identifier: Apache-2.0
"""Package list; the optional compiled part is added here."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["clipkit", "clipkit.*"]), "clipkit.kernels"])
