"""The names a provider's author needs, in one place."""

from __future__ import annotations

import logging

from nbproviders.authoring.adapted import adapt
from nbproviders.authoring.options import Option
from nbproviders.authoring.provider import ModelHandle, ModelProvider
from nbproviders.authoring.resident import ResidentProvider
from nbproviders.authoring.service import BaseProvider
from nbproviders.authoring.weights import WeightsProvider
from nbproviders.core.completion import Chunk, Completion, Finish, Usage
from nbproviders.core.config import ProviderConfig
from nbproviders.core.model import Model, ModelInfo, Stream
from nbproviders.core.params import GenerationParams, Message, Messages, Request, as_request
from nbproviders.core.spec import ModelSpec, ResourceKey
from nbproviders.core.tokens import KnowsTokens, Score, Token
from nbproviders.residency.estimate import Estimate
from nbproviders.residency.progress import Progress
from nbproviders.residency.sleeping import Sleeps, Transfer

__all__ = [
    "BaseProvider",
    "Chunk",
    "Completion",
    "Estimate",
    "Finish",
    "GenerationParams",
    "KnowsTokens",
    "Message",
    "Messages",
    "Model",
    "ModelHandle",
    "ModelInfo",
    "ModelProvider",
    "ModelSpec",
    "Option",
    "Progress",
    "ProviderConfig",
    "Request",
    "ResidentProvider",
    "ResourceHandle",
    "ResourceKey",
    "Score",
    "Sleeps",
    "Stream",
    "Token",
    "Transfer",
    "Usage",
    "WeightsProvider",
    "adapt",
    "as_request",
    "logger",
]

logger = logging.getLogger("nbproviders")
ResourceHandle = ModelHandle
