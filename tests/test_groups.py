"""The tests' own footing: those of a file, those that share something costly, or Ray, stay on one worker of pytest-xdist."""

from __future__ import annotations

import os

import pytest


def test_tests_of_a_file_are_a_group(request: pytest.FixtureRequest) -> None:
    """pytest-xdist 3.8 tells it by the test's id, which pytest 9.2 does not let it change: groups then fall apart unsaid."""
    assert request.node.get_closest_marker("xdist_group").args == ("tests/test_groups.py",)
    if "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup"):
        assert request.node.nodeid.endswith("@tests/test_groups.py")
