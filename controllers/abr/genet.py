"""GENET: Pensieve's policy trained with an automatic curriculum, Xia et al., SIGCOMM 2022.

The curriculum is in ``adapters.pensieve_curriculum``. It chooses any level of the ladder, where the
published checkpoint moves by one level at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from controllers.abr.pensieve import Pensieve
from controllers.registry import register


@register("abr", "genet")
@dataclass(frozen=True, slots=True, kw_only=True)
class Genet(Pensieve):
    """:class:`Pensieve`, options and all, with GENET's checkpoint."""

    checkpoint: str = "builtin:abr-genet"
