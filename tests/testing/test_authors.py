"""The contract over small providers of every style, as their authors would write it."""

from __future__ import annotations

from nbproviders.core.config import ProviderConfig
from nbproviders.testing import ProviderContract
from tests.services.keys import FAKE
from tests.testing.authors import PROMPT, REFUSED, Duck, Resident, Resource, Service, Weights


class Small(ProviderContract):
    model, other, prompt, refused = "tiny", "small", PROMPT, REFUSED
    timeout_s = 20.0


class TestResident(Small):
    other = "tiny?width=2"

    def provider(self):
        return Resident()


class TestResource(Small):
    tells_usage = False

    def provider(self):
        return Resource()


class TestService(Small):
    tells_usage = False
    secrets = (FAKE,)

    def provider(self):
        return Service(ProviderConfig(name="small", api_key=FAKE, max_retries=0))


class TestWeights(Small):
    tells_usage = False

    def provider(self):
        return Weights()


class TestDuck(Small):
    tells_usage = False

    def provider(self):
        return Duck()


class Lamp:
    """A resource that answers nothing."""

    def close(self):
        self.closed = True


class Lamps(Resource):
    async def setup(self, resource_spec, **config):
        handle = await super().setup(resource_spec, **config)
        handle.model = Lamp()
        return handle


class TestNoModel(ProviderContract):
    model, other, prompt = "tiny", "small", None
    timeout_s = 20.0

    def provider(self):
        return Lamps()
