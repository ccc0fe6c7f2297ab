"""The server as a Ray Serve application: replicas on the machines of a cluster, behind one address.

    serve run chatterbox_opt.server.ray_app:application model=pico replicas=2 gpus=0

Responsible for what Ray is told. Not responsible for answers (app.py): each replica is a whole
server with an engine of its own. Needs the extras ``server`` and ``ray``; all nodes must have the
same version of this package.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config import hardware
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.server.app import create_app
from chatterbox_opt.server.settings import Limits, ServerSettings


class Arguments(BaseModel):
    """What ``serve run`` takes after the name of the application, or a config file under ``args``.

    Attributes:
        model, profile, device: see ``EngineSpec``.
        replicas: number of engines.
        gpus, cpus: that Ray reserves for each.
        requests: of one replica at once; Ray lets others wait, and the replica refuses them.
        characters: of a text.
        api_key: that clients must send.
        strict_voices: see ``ServerSettings``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = registry.DEFAULT
    profile: str = hardware.AUTO
    device: str = hardware.AUTO
    replicas: int = Field(1, ge=1)
    gpus: float = Field(1, ge=0)
    cpus: float = Field(1, gt=0)
    requests: int = Field(Limits().requests, ge=1)
    characters: int = Field(Limits().characters, ge=1)
    api_key: str | None = None
    strict_voices: bool = False

    def settings(self) -> ServerSettings:
        """Of each replica. Behind Ray's proxy all clients have its address: no limit for each.

        Raises:
            InputError, WeightsError: see ``EngineSpec.check``; an impossible key.
        """
        spec = EngineSpec(model=self.model, profile=self.profile, device=self.device)
        spec.check(None)
        limits = Limits(self.characters, self.requests, requests_per_client=self.requests)
        return ServerSettings(
            engines=(spec,),
            api_key=self.api_key,
            strict_voices=self.strict_voices,
            limits=limits,
        )


def application(arguments: dict[str, Any]) -> Any:
    """A ``ray.serve.Application``.

    Args:
        arguments: see ``Arguments``; strings, as a command line has them, are converted.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an unknown argument, or a value out of range.
        InputError, WeightsError: see ``EngineSpec.check``.
    """
    from ray import serve

    chosen = Arguments(**arguments)
    settings = chosen.settings()
    deployment = serve.deployment(
        name="speech",
        num_replicas=chosen.replicas,
        # one more than the replica takes: it answers those with 429
        max_ongoing_requests=chosen.requests + 1,
        ray_actor_options={"num_gpus": chosen.gpus, "num_cpus": chosen.cpus},
    )
    return deployment(serve.ingress(lambda: create_app(settings))(Speech)).bind()


class Speech:
    """A replica; its routes are those of the ASGI application."""
