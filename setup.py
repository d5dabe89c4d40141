"""Shim for tools that still ask for ``setup.py``; the metadata is in ``setup.cfg``."""

from setuptools import setup

setup()
