"""Makes the name ``chatterbox`` stand for whatever is in the hub cache, when imported.

For tests that run documented commands with a tiny model in place of the 3 GB.
"""

from __future__ import annotations

import dataclasses

from chatterbox_opt.checkpoints import hub, registry

registry.HUB["chatterbox"] = dataclasses.replace(
    registry.HUB["chatterbox"], revision=hub.MAIN, pins={}
)
