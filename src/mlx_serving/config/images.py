"""Pictures in conversations, as people configure them: see `config.policies`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from mlx_serving.core.images.addresses import FetchPolicy, networks_of
from mlx_serving.core.images.rules import ImagePolicy

_FETCH = FetchPolicy()
_IMAGES = ImagePolicy()
_WORDS = r"^[^\s]+( +[^\s]+)*$"


def _networks(text: str | None) -> str | None:
    try:
        networks_of(text)
    except ValueError as error:
        raise PydanticCustomError("network", "{problem}", {"problem": str(error)}) from None
    return text


@dataclass(frozen=True, slots=True)
class ImageFetchConfig(FetchPolicy):
    """Pictures that requests name by URL."""

    enabled: Annotated[
        bool, Field(description="Whether pictures are fetched from the web; otherwise requests bring them along.")
    ] = _FETCH.enabled
    allowed_hosts: Annotated[
        str | None,
        Field(
            pattern=_WORDS,
            description="Hosts that pictures are fetched from, separated by spaces; `*.example.org` are all below "
            "`example.org`. Null is any.",
        ),
    ] = _FETCH.allowed_hosts
    allowed_ports: Annotated[
        str,
        Field(pattern=r"^[0-9]{1,5}( +[0-9]{1,5})*$", description="Ports that URLs may lead to, separated by spaces."),
    ] = _FETCH.allowed_ports
    allowed_networks: Annotated[
        str | None,
        Field(
            pattern=_WORDS,
            description="Networks that may be fetched from though they are not public, separated by spaces, as in "
            "`10.1.0.0/16`. Whoever may send requests can look into them. Null is none.",
        ),
        AfterValidator(_networks),
    ] = _FETCH.allowed_networks
    max_redirects: Annotated[
        int, Field(ge=0, le=20, description="Redirects that are followed; each is checked like a URL.")
    ] = _FETCH.max_redirects
    timeout_s: Annotated[
        float, Field(gt=0, le=300, description="Time for one picture, redirects included, in seconds.")
    ] = _FETCH.timeout_s


@dataclass(frozen=True, slots=True)
class ImagesConfig(ImagePolicy):
    """Pictures in conversations: how many, how large, and where from."""

    max_images: Annotated[int, Field(ge=1, le=1000, description="Pictures in one request.")] = _IMAGES.max_images
    max_bytes: Annotated[int, Field(ge=1024, le=1024**3, description="Largest file of one picture, in bytes.")] = (
        _IMAGES.max_bytes
    )
    max_request_bytes: Annotated[
        int, Field(ge=1024, le=1024**3, description="Files of all pictures of one request together, in bytes.")
    ] = _IMAGES.max_request_bytes
    max_pixels: Annotated[
        int,
        Field(
            ge=1,
            le=500_000_000,
            description="Largest picture, in pixels: a larger one is refused before it is decoded, which takes four "
            "bytes of memory or more for each pixel.",
        ),
    ] = _IMAGES.max_pixels
    max_request_pixels: Annotated[
        int, Field(ge=1, le=5_000_000_000, description="All pictures of one request together, in pixels.")
    ] = _IMAGES.max_request_pixels
    max_side: Annotated[
        int,
        Field(
            ge=32, le=16_384, description="Larger pictures are scaled down to this, on their longer side, in pixels."
        ),
    ] = _IMAGES.max_side
    low_detail_side: Annotated[
        int, Field(ge=32, le=16_384, description="The same for pictures that are sent with detail `low`, in pixels.")
    ] = _IMAGES.low_detail_side
    folders: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Folders that requests may name files of, by path or `file:` URL; separated as in `PATH`. Null "
            "is none. What links in them lead to must be in them, too. Programs that embed the engine may name any "
            "file.",
        ),
    ] = _IMAGES.folders
    fetch: ImageFetchConfig = ImageFetchConfig()
