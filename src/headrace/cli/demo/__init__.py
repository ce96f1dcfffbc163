"""``headrace demo``: the main job on real data, from the digits to the pictures."""

from headrace.cli.demo.run import run_demo

__all__ = ["run_demo"]
