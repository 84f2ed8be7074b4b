"""Every setting of the service, once: flag, environment variable and meaning together.

`--max-images 64` and `ALIGNET_MAX_IMAGES=64` are the same setting; a flag wins. The defaults suit
a small machine; their reasons stand beside them. `python -m app --help` prints this class.
"""

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.alias import Alias
from app.fetch import Origin
from app.judging.study import Study
from app.keys import split_keys
from contract.pixels import PixelLimits

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?")

STARTER = Path(__file__).parent / "starter"
"""The bundle that ships inside the package."""


class Settings(BaseSettings):
    """Serve human-aligned image embeddings and odd-one-out judgments over HTTP."""

    model_config = SettingsConfigDict(
        env_prefix="ALIGNET_",
        extra="forbid",
        frozen=True,
        cli_prog_name="alignet-serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
    )

    bundle: Annotated[Path | tuple[Path, ...], NoDecode] = Field(
        default=STARTER,
        description="Bundle folder to serve, the starter if not given; several with commas between, or a folder of "
        "them: requests name the `model`, or get the first.",
    )
    watch: float = Field(
        default=0.0,
        ge=0,
        description="Seconds between looks at the folders of the bundles; a new version in one is verified, warmed "
        "and switched to without an admin call. 0 never looks.",
    )
    aliases: Annotated[tuple[Alias, ...], NoDecode] = Field(
        default=(),
        description="Names that stand for several models by weight, such as best=model-1:95,model-2:5, with "
        "semicolons between; a client keeps its model.",
    )
    shadow: str = Field(
        default="",
        description="Name of a model whose decisions are compared with those given, on a share of the odd-one-out "
        "requests; only counts of it are kept.",
    )
    shadow_share: float = Field(
        default=0.01, gt=0, le=1, description="Share of those requests; fewer are compared while the service is busy."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes any free one.")

    triton_url: str = Field(
        default="",
        description="host:port of a Triton server's gRPC; it runs the graph instead of this process, and must serve "
        "the bundle's own model (`python -m export triton`).",
    )
    device: Literal["cpu", "cuda", "tensorrt"] = Field(
        default="cpu",
        description="ONNX Runtime provider. The session must really get it, or the service does not start.",
    )
    allow_cpu_fallback: bool = Field(
        default=False, description="Serve on the CPU if the device is not to be had, instead of refusing to start."
    )
    graph_cache: Path | None = Field(
        default=None,
        description="Folder that keeps optimised graphs and TensorRT's engines for the next start; none if not given. "
        "Whoever may write there decides what is served.",
    )
    inference_slots: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Inferences side by side; 0 takes one on a GPU, and on a CPU one for every four CPUs of the cgroup "
        "quota, but two if there are two.",
    )
    inference_threads: int = Field(
        default=0,
        ge=0,
        description="Threads that may work on one inference; inferences side by side share them. 0 takes the CPUs of "
        "the cgroup quota for one that is alone, and its share of them for one beside others.",
    )
    decode_threads: int = Field(
        default=0, ge=0, le=64, description="Image decoding threads; 0 takes half the CPUs, at most 8."
    )
    max_batch: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Images in one inference; 0 takes 32 on a GPU, and on a CPU 1 or 4, whichever a trial at the start "
        "finds faster. Batches never wait to fill.",
    )
    max_admitted_images: int = Field(
        default=256, ge=1, description="Images being decoded, queued and inferred at once; beyond it requests get 429."
    )
    max_wait: float = Field(
        default=0.0,
        ge=0,
        description="Seconds a new request may be predicted to wait for images before it; beyond it, 429. 0 takes "
        "1 s on a CPU or Triton, 0.25 s on a GPU.",
    )
    max_steady_wait: float = Field(
        default=0.1,
        gt=0,
        description="The same once images have been coming without a pause for 0.4 s, so that a crowd that does not "
        "end does not make everyone wait as long as a burst may; never less than keeps the service busy.",
    )
    max_held_bytes: int = Field(
        default=256 * 2**20,
        ge=1024,
        description="Bytes of request bodies and unread replies in memory at once; beyond it requests get 429. Reading "
        "and decoding bodies takes about three times as much.",
    )
    cache_images: int = Field(
        default=0,
        ge=0,
        description="Images whose vectors are kept in memory, by a digest of their pixels; 0 keeps none. Images "
        "themselves are never kept.",
    )
    request_timeout: float = Field(
        default=10.0,
        gt=0,
        le=30,
        description="Seconds from the end of the body to the answer, before 504; "
        "X-Request-Timeout-Ms may ask for another.",
    )
    max_request_timeout: float = Field(
        default=30.0, gt=0, le=600, description="Largest X-Request-Timeout-Ms granted, in seconds."
    )
    body_timeout: float = Field(default=15.0, gt=0, description="Seconds a client may take to send a body before 408.")
    drain_delay: float = Field(
        default=5.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM for which requests are still served while /health/ready is 503 already, "
        "so that load balancers notice before the port closes.",
    )
    drain_seconds: int = Field(default=30, ge=0, description="Seconds in-flight requests get to finish after that.")
    stuck_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A batch that takes longer, or images that hang all decode threads, make /health/live fail; "
        "requests get 503.",
    )

    max_body_bytes: int = Field(default=32 * 2**20, ge=1024, description="Largest request body.")
    max_image_bytes: int = Field(default=10 * 2**20, ge=64, description="Largest encoded image.")
    max_image_pixels: int = Field(
        default=25_000_000,
        ge=1,
        le=100_000_000,
        description="Most pixels of one image, checked before decoding (4 bytes each).",
    )
    min_image_side: int = Field(default=16, ge=1, description="Shortest side of an image, in pixels.")
    max_image_side: int = Field(default=16_384, ge=1, description="Longest side of an image, in pixels.")
    max_images: int = Field(default=64, ge=1, description="Images in one request.")
    max_vectors: int = Field(default=1024, ge=1, description="Vectors in one request.")
    max_triplets: int = Field(default=10_000, ge=1, description="Triplets in one request.")
    max_explained_triplets: int = Field(
        default=1, ge=1, description="Triplets in one request with `explain`, which embeds 147 more images for each."
    )
    explain_concurrency: int = Field(
        default=1, ge=0, description="Requests with `explain` at once; beyond it they get 429. 0 serves none."
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated keys; if any, requests need `Authorization: Bearer KEY` (health and pages stay "
        "open).",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with more keys, one a line; it is read again when it changes, so keys are rotated without "
        "a restart.",
    )
    key_images_per_second: float = Field(
        default=0.0,
        ge=0,
        description="Images a second for each key, with a burst of max_images or of one second's share; beyond, 429. "
        "A request without images counts as one. 0 has no bound.",
    )
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated keys of the /admin paths, which only exist with one; none may be an API key.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins whose pages may call this service from a browser; * is any. Off if "
        "not given.",
    )
    fetch_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated origins, such as https://*.example.org, of which images are fetched by URL; "
        "public addresses only. Off if not given.",
    )
    fetch_timeout: float = Field(
        default=5.0, gt=0, description="Seconds one image may take to be fetched, redirects and all."
    )
    api_docs: bool = Field(default=True, description="Serve /docs and /openapi.json, which need no key.")
    playground: bool = Field(default=True, description="Serve the playground, a page to try the service, at /.")
    judging: Path | None = Field(
        default=None,
        description="Study file (TOML) of odd-one-out trials over one's own photos, on the page /judge; off if not "
        "given. See docs/judging.md.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line to log."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people, or one JSON object a line."
    )
    access_log: bool = Field(
        default=True, description="Log a line for every request (health and metrics: at the debug level)."
    )
    trace_endpoint: str = Field(
        default="",
        description="OTLP/HTTP URL that OpenTelemetry traces are sent to, such as http://localhost:4318/v1/traces; "
        "needs the extra `otel`. None are made if empty.",
    )

    @field_validator("bundle", mode="before")
    @classmethod
    def _split_bundles(cls, value: object) -> object:
        if not isinstance(value, str) or "," not in value or Path(value).exists():
            return value
        paths = tuple(Path(path.strip()) for path in value.split(",") if path.strip())
        if not paths:
            raise ValueError("expected folders with commas between")
        return paths if len(paths) > 1 else paths[0]

    @field_validator("aliases", mode="before")
    @classmethod
    def _split_aliases(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(Alias.parse(text) for text in value.split(";") if text.strip())

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return split_keys(value)

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
            raise ValueError("expected origins such as https://app.example.org, with commas between, or *")
        return origins

    @field_validator("fetch_origins", mode="before")
    @classmethod
    def _split_fetch_origins(cls, value: object) -> object:
        origins = tuple(map(str.strip, value.split(","))) if isinstance(value, str) else value
        if isinstance(origins, tuple | list):
            origins = tuple(origin for origin in origins if origin)
            for origin in origins:
                Origin.parse(origin)
            if origins and importlib.util.find_spec("httpcore2") is None:
                raise ValueError("httpcore2 is missing; run: pip install 'alignet-serve[fetch]'")
        return origins

    @field_validator("judging")
    @classmethod
    def _a_study(cls, value: Path | None) -> Path | None:
        if value is not None:
            Study.read(value)
        return value

    @field_validator("triton_url")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (
            host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536 and "/" not in host
        ):
            raise ValueError("expected host:port of Triton's gRPC endpoint, such as localhost:8001, without a scheme")
        return value

    @model_validator(mode="after")
    def _one_engine(self) -> "Settings":
        here = sorted(
            {"device", "allow_cpu_fallback", "graph_cache", "inference_slots", "inference_threads", "max_batch"}
            & self.model_fields_set
        )
        if self.triton_url and here:
            raise ValueError(
                f"{' and '.join(here)} is of an engine in this process; with triton_url, Triton has its own"
            )
        return self

    @model_validator(mode="after")
    def _keys_there(self) -> "Settings":
        if self.key_images_per_second and not self.api_keys and self.api_keys_file is None:
            raise ValueError("key_images_per_second is a bound of each key; set api_keys or api_keys_file too")
        if self.api_keys_file is not None:
            try:
                text = self.api_keys_file.read_text()
            except (OSError, ValueError) as error:
                raise ValueError(f"api_keys_file cannot be read: {type(error).__name__}") from None
            if not split_keys(text):
                raise ValueError("api_keys_file has no key; one stands on each line")
        return self

    @model_validator(mode="after")
    def _admins_apart(self) -> "Settings":
        if set(self.admin_keys) & set(self.api_keys):
            raise ValueError("admin_keys and api_keys share a key; clients must not be admins")
        return self

    @model_validator(mode="after")
    def _one_body_fits(self) -> "Settings":
        if self.max_held_bytes < self.max_body_bytes:
            raise ValueError(f"max_held_bytes is {self.max_held_bytes}, less than one body (max_body_bytes)")
        return self

    @property
    def bundles(self) -> tuple[Path, ...]:
        """`bundle`, whether one or several."""
        return self.bundle if isinstance(self.bundle, tuple) else (self.bundle,)

    @property
    def pixel_limits(self) -> PixelLimits:
        """The limits of one image, as the contract checks them."""
        return PixelLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            min_side=self.min_image_side,
            max_side=self.max_image_side,
        )

    @property
    def limits(self) -> dict[str, int | float]:
        """What the card shows: every limit that can refuse a request."""
        names = (
            "max_body_bytes",
            "max_image_bytes",
            "max_image_pixels",
            "min_image_side",
            "max_image_side",
            "max_images",
            "max_vectors",
            "max_triplets",
            "max_explained_triplets",
            "explain_concurrency",
            "max_admitted_images",
            "max_held_bytes",
            "max_wait",
            "max_steady_wait",
            "fetch_timeout",
            "key_images_per_second",
            "request_timeout",
            "max_request_timeout",
            "body_timeout",
        )
        return {name: getattr(self, name) for name in names}
