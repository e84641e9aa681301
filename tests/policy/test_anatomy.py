"""Sites and anatomies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from effllava_optuna.errors import PolicyError
from effllava_optuna.policy import Anatomy, Kind, Site


def test_a_site_refuses_a_floor_outside_its_width() -> None:
    message = r"language\.07\.mlp has floor 9 and width 8\. Use a floor from 1 up to the width\."
    with pytest.raises(PolicyError, match=message):
        Site("language", 7, Kind.MLP, 8, 10, floor=9)
    with pytest.raises(PolicyError, match="floor 0"):
        Site("language", 7, Kind.MLP, 8, 10, floor=0)


def test_an_anatomy_refuses_no_sites_and_the_same_site_twice() -> None:
    site = Site("language", 0, Kind.MLP, 8, 10)
    with pytest.raises(PolicyError, match=r"has no sites\. Use a model"):
        Anatomy(())
    with pytest.raises(PolicyError, match="names a site twice"):
        Anatomy((site, site))


def test_the_digest_changes_with_every_field_of_a_site(anatomy: Anatomy) -> None:
    first, *rest = anatomy.sites
    changes: list[dict[str, Any]] = [
        {"tower": "vision"},
        {"layer": 9},
        {"kind": Kind.MLP, "layer": 9},
        {"width": 5},
        {"unit_params": 101},
        {"floor": 2},
    ]
    digests = {Anatomy((replace(first, **change), *rest)).digest for change in changes}
    digests |= {anatomy.digest, Anatomy((*rest, first)).digest, Anatomy(tuple(rest)).digest}
    assert len(digests) == len(changes) + 3


def test_json_keeps_the_anatomy(anatomy: Anatomy) -> None:
    again = Anatomy.from_json(anatomy.to_json())
    assert again == anatomy
    assert again.digest == anatomy.digest
    assert all(isinstance(site.kind, Kind) for site in again.sites)
    assert again.kinds == (Kind.ATTN, Kind.MLP)
