"""The registry: names, options, and errors that list the alternatives."""

from __future__ import annotations

import pytest

from controllers import registry


def test_names_are_the_modules() -> None:
    assert set(registry.names("abr")) >= {
        "bba",
        "bola",
        "fixed",
        "mpc",
        "netllm",
        "oracle",
        "random",
        "rate",
        "robustmpc",
    }


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(registry.UnknownController, match=r"'bbb'.*bba.*robustmpc"):
        registry.create("abr", "bbb")
    with pytest.raises(registry.UnknownController, match=r"'tetris'.*abr"):
        registry.names("tetris")


def test_options_are_checked() -> None:
    with pytest.raises(registry.InvalidOptions, match=r"no option 'resevoir_s'.*reservoir_s"):
        registry.create("abr", "bba", {"resevoir_s": 1})
    with pytest.raises(registry.InvalidOptions, match="option level"):
        registry.create("abr", "fixed", {"level": "high"})
    with pytest.raises(registry.InvalidOptions, match="must not be negative"):
        registry.create("abr", "fixed", {"level": -1})
    with pytest.raises(registry.InvalidOptions, match="no option 'plan'"):
        registry.create("abr", "oracle", {"plan": [1]})


def test_a_class_registers_under_its_modules_name_only() -> None:
    with pytest.raises(registry.UnknownController, match="must not register"):
        registry.register("abr", "other")(type("Stray", (), {"__module__": "somewhere.stray"}))
