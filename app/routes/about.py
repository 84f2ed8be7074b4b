"""GET /models, /health and /metrics: what the service says of itself."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import errors
from app.errors import ServiceError
from app.exchange import service_of
from app.schemas import AliasedModelList, Health, ModelCard, ModelList

router = APIRouter()


@router.get(
    "/models",
    response_model=AliasedModelList | ModelList,
    responses=errors.responses("unauthorized", "rate_limited", "not_ready", "engine_away"),
    summary="Models served",
)
async def models(request: Request) -> ModelList:
    """The models served here, the one of requests that name none first, and the aliases, if any."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    service.require_any()
    current = service.models.current
    listed = [model.summary() for model in current.models.values()]
    if not current.aliases:
        return ModelList(models=listed)
    aliases = {name: dict(alias.weights) for name, alias in current.aliases.items()}
    return AliasedModelList(models=listed, aliases=aliases)


@router.get(
    "/models/{name}",
    response_model=ModelCard,
    responses=errors.responses("unauthorized", "rate_limited", "model_not_found", "not_ready", "engine_away"),
    summary="Model card",
)
async def model_card(request: Request, name: str) -> ModelCard:
    """Measured figures with the commands that give them, pixel spec, fingerprints and limits."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    return service.model(name).card(service.settings.limits)


@router.get(
    "/health/live", response_model=Health, responses=errors.responses("internal"), summary="Is the process alive"
)
async def live(request: Request) -> Health:
    """200 while every thread that serving needs runs and none hangs; restart the process otherwise."""
    if not service_of(request).alive:
        raise ServiceError("internal", "a thread that serving needs has ended or hangs; restart the process.")
    return Health(status="live")


@router.get(
    "/health/ready",
    response_model=Health,
    responses=errors.responses("not_ready", "engine_away"),
    summary="May it get requests",
)
async def ready(request: Request) -> Health:
    """200 after the golden check and a warm-up run, until draining; with Triton, while it serves this very model."""
    service_of(request).require_ready()
    return Health(status="ready")


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    service = service_of(request)
    service.keys.admit(request.headers.get("authorization"))
    return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
